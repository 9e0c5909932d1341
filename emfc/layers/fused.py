"""The log density of a layer under `torch.compile`, made when it is first wanted."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor

from emfc.layers.parameters import Parameters
from emfc.layers.supports import UNCOMPUTABLE
from emfc.special.precision import eager

__all__ = ["Fused"]

_WithSum = Callable[..., tuple[Tensor, Tensor]]
_UNCHANGING = re.compile(
    r"\b(plan_density|plan_transforms|__import_(emfc_dot_(layers|special)|torch)_\w+|__builtins_dict_\w+)\b"
)


class _LogDensity(Protocol):
    def __call__(self, values: Tensor, parameters: Parameters, *, guarded: bool = False) -> Tensor: ...


class Fused:
    """The log density ``[B]`` as one function of examples and parameters, fused by the compiler.

    Each number of examples is compiled for itself: code for any number, which torch would make of the second one,
    costs more per call, and for some programs its backward pass fails.

    Where the compiler cannot be used, for want of a C++ compiler for example, it says so once and the ordinary
    operations do the work.
    """

    def __init__(self, log_density: _LogDensity) -> None:
        """Prepare.

        Args:
            log_density: Of examples and parameters.
        """
        self.log_density = log_density
        self._compiled: _WithSum | None = None
        self._transforms: tuple[Any, ...] = ()
        self._dtype: torch.dtype | None = None
        self._device: torch.device | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None, "_dtype": None}

    def with_sum(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Log density, and its sum over all examples, without gradients, which tells whether all is finite.

        Where it is not, a value is outside its support, or `log_density` finds what this cannot.
        """
        if values.dtype is not self._dtype or values.device != self._device:
            self._dtype, self._device = values.dtype, values.device
            with torch.no_grad():  # tables are made once, outside the compiler
                self.log_density(values[:1], parameters)
        if self._compiled is None or parameters.transforms is not self._transforms:
            self._transforms = parameters.transforms
            self._compiled = torch.compile(self._function(), dynamic=False, options={"guard_filter_fn": _changeable})
            try:
                return self._compiled(values, *parameters.unconstrained)
            except torch._dynamo.exc.TorchDynamoException:  # arrays of NumPy that are read cannot be filtered
                self._compiled = torch.compile(self._function(), dynamic=False)
        try:
            return self._compiled(values, *parameters.unconstrained)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(f"this layer runs without torch.compile: {str(error).splitlines()[0]}", stacklevel=2)
            self._compiled = self._function()
        return self._compiled(values, *parameters.unconstrained)

    def again(self, values: Tensor, unconstrained: Iterable[Tensor]) -> Tensor | None:
        """Log density by what is compiled already, in as few steps of Python as can be.

        Args:
            values: Examples ``[B, D]``, of the D that was compiled for.
            unconstrained: The program's parameters, of the transforms that were compiled for.

        Returns:
            ``[B]``; None where `with_sum` has to find it, or where not all is finite.
        """
        compiled = self._compiled
        if compiled is None or values.dtype is not self._dtype or values.device != self._device or not eager():
            return None
        try:
            total, whole = compiled(values, *unconstrained)
        except UNCOMPUTABLE:
            return None
        unconnected = values.requires_grad and not total.requires_grad and torch.is_grad_enabled()
        return None if unconnected or not math.isfinite(whole.item()) else total

    def _function(self) -> _WithSum:
        """A function of tensors alone, with code of its own: torch keeps and counts what it compiles by code object."""
        plan_density, plan_transforms = self.log_density, self._transforms

        def run(examples: Tensor, *unconstrained: Tensor) -> tuple[Tensor, Tensor]:
            total = plan_density(examples, Parameters(unconstrained, plan_transforms, examples), guarded=True)
            return total, total.detach().sum()

        return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


def _changeable(guards: Sequence[Any]) -> list[bool]:
    """Which conditions are looked at in every call: not those on plans and on code, which never change."""
    return [_UNCHANGING.search(guard.name) is None for guard in guards]
