"""The program's parameters in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from emfc.program.constraint import constraint_from_data
from emfc.program.ir import Program

__all__ = ["Parameters", "lifted"]


Transforms = tuple[Callable[[Tensor], Tensor] | None, ...]


def lifted(program: Program) -> tuple[list[constraints.Constraint], Transforms, nn.ParameterList]:
    """A program's learnable parameters: their constraints, the maps to these (None for the identity), and their
    unconstrained starting values.
    """
    dtype = getattr(torch, program.dtype)
    held = [constraint_from_data(parameter.constraint) for parameter in program.parameters]
    unconstrained = nn.ParameterList()
    for parameter, constraint in zip(program.parameters, held, strict=True):
        start = transform_to(constraint).inv(parameter.initial.to(dtype))
        unconstrained.append(nn.Parameter(start.detach().clone().contiguous()))
    return held, tuple(None if one is constraints.real else transform_to(one) for one in held), unconstrained


class Parameters:
    """The program's parameters of one call, each found when it is first wanted."""

    def __init__(
        self,
        unconstrained: Sequence[Tensor],
        transforms: Sequence[Callable[[Tensor], Tensor] | None],
        like: Tensor,
    ) -> None:
        """Hold them.

        Args:
            unconstrained: One by one, in the program's order.
            transforms: From these to the constrained parameters; None where they are the same.
            like: A tensor in the dtype and on the device in which they are wanted.
        """
        self.unconstrained = tuple(unconstrained)
        self.transforms = tuple(transforms)
        self.like = like
        self._constrained: tuple[Tensor, ...] | None = None
        self._flat: Tensor | None = None

    @property
    def constrained(self) -> tuple[Tensor, ...]:
        """One by one, constrained."""
        if self._constrained is None:
            pairs = zip(self.transforms, self.unconstrained, strict=True)
            made = [value if transform is None else transform(value) for transform, value in pairs]
            self._constrained = tuple(value.to(dtype=self.like.dtype, device=self.like.device) for value in made)
        return self._constrained

    @property
    def flat(self) -> Tensor:
        """Constrained, side by side ``[P]``."""
        if self._flat is None:
            held = [value.reshape(-1) for value in self.constrained]
            self._flat = torch.cat(held) if len(held) > 1 else held[0] if held else self.like.new_zeros(0)
        return self._flat
