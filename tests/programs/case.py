"""What the corpus records about one program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Case", "RefusedCase"]


def _follow_default_dtype(value: Any) -> Any:
    """Floating tensors among the arguments are given in the default dtype of the moment."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.get_default_dtype())
    return value


@dataclass(frozen=True)
class _Program:
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    factory: bool = False
    """Whether ``model`` is called without arguments to make the program (modules, closures over tensors)."""

    def build(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """A fresh program with its arguments, in the default dtype of the moment, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.model() if self.factory else self.model
        args = tuple(_follow_default_dtype(value) for value in self.args)
        kwargs = {name: _follow_default_dtype(value) for name, value in self.kwargs.items()}
        return model, args, kwargs


@dataclass(frozen=True, kw_only=True)
class Case(_Program):
    """One program that compiles.

    Attributes:
        parents: For every sample site, observed ones too, the sites on whose values its parameters really depend.
            A discrete latent that the compiler sums out is a parent like any other.
        summed: Discrete latent sites that the compiler sums out; they have no place in the example.
        observed: Sites with a given value; they have no place in the example.
        make_fx: Whether ``make_fx(functionalize(...))`` is able to trace the program.
        notes: What is particular about it.
    """

    parents: Mapping[str, set[str]]
    summed: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    make_fx: bool = True
    notes: str = ""

    @property
    def example_sites(self) -> tuple[str, ...]:
        """The sites that make an example, in the order in which the program samples them."""
        return tuple(name for name in self.parents if name not in self.summed and name not in self.observed)


@dataclass(frozen=True, kw_only=True)
class RefusedCase(_Program):
    """One program that is refused.

    Attributes:
        code: The code of the refusal.
        line: A part of the user's own line that the message must show.
        words: Words that the message (reason and advice) must contain.
        notes: What is particular about it.
    """

    code: str
    line: str = ""
    words: tuple[str, ...] = ()
    notes: str = ""
