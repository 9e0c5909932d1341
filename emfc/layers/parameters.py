"""The program's parameters in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, constraints, transform_to

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
    return held, tuple(map(_constraining, held)), unconstrained


def _constraining(constraint: constraints.Constraint) -> Callable[[Tensor], Tensor] | None:
    """The map onto a constraint, None for the identity, without the shift by 0 and the scaling by 1 that follow the
    exponential for a bound of 0.
    """
    transform = transform_to(constraint)
    parts = transform.parts if isinstance(transform, ComposeTransform) else [transform]
    needed = [part for part in parts if not _is_identity(part)]
    if not needed:
        return None
    return transform if len(needed) == len(parts) else needed[0] if len(needed) == 1 else ComposeTransform(needed)


def _is_identity(transform: object) -> bool:
    if not isinstance(transform, AffineTransform):
        return False
    loc, scale = transform.loc, transform.scale
    return not isinstance(loc, Tensor) and not isinstance(scale, Tensor) and loc == 0 and scale == 1


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
