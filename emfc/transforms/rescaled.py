"""A transform whose values are scaled and shifted: what vector families put on each of their coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from emfc.transforms.base import NormalTransform
from emfc.transforms.supports import Bound

__all__ = ["RescaledNormal"]


class RescaledNormal(NormalTransform):
    """shift + scale g(e) for an elementwise transform g of the real line and a positive scale."""

    def __init__(self, base: NormalTransform, shift: Bound, scale: Bound = 1.0) -> None:
        super().__init__()
        self.base, self.shift, self.scale = base, shift, scale
        self.domain, self.codomain, self.unit = base.domain, base.codomain, base.unit

    def _log_scale(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.scale, dtype=like.dtype, device=like.device).log()

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log-Jacobian of noise."""
        value, ladj = self.base.call_and_ladj(x)
        return self.shift + self.scale * value, ladj + self._log_scale(value)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        noise, ladj = self.base.inverse_and_ladj((y - self.shift) / self.scale)
        return noise, ladj - self._log_scale(noise)

    def knots(self) -> tuple[Tensor, Tensor] | None:
        """Moved knots of the base."""
        knots = self.base.knots()
        if knots is None:
            return None
        shift, scale = (
            part.unsqueeze(-1) if isinstance(part, Tensor) and part.dim() else part for part in (self.shift, self.scale)
        )
        return shift + scale * knots[0], knots[1]

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"RescaledNormal({self.base!r})"
