"""The program's parameters in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Parameters"]


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
