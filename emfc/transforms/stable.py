"""Stable (Levy) laws, by quadrature."""

from __future__ import annotations

import math

import pyro.distributions as pd
import torch
from torch import Tensor

from emfc.special.normal import noise_from_tails
from emfc.special.precision import eager, wide
from emfc.special.stable import log_stable_tails_and_density, stable_draw
from emfc.transforms.family import Evaluation, LocationScale
from emfc.transforms.registry import UnsupportedFamilyError, family_of

__all__ = ["Stable"]

_LEAST = 0.1


@family_of(pd.Stable)
class Stable(LocationScale):
    r"""Pyro's `Stable` and `StableWithLogProb`, in both of their coordinates.

    With `coords="S"` values are those of `coords="S0"` shifted by :math:`\beta \tan \frac{\pi \alpha}{2}` scales,
    except at stability 1, where both are the same; derivatives with respect to the stability hold on either side of 1,
    not at it. A draw is exact to rounding of the larger one of draw and shift.

    Raises:
        UnsupportedFamilyError: If a stability is below 0.1, where draws span more orders of magnitude than numbers do.
    """

    def __init__(self, dist: pd.Stable) -> None:
        super().__init__(dist)
        self.stability, self.skew = wide(dist.stability), wide(dist.skew)
        self.shifted = dist.coords == "S"
        if eager() and bool((self.stability < _LEAST).any()):
            raise UnsupportedFamilyError(
                f"Stable with a stability below {_LEAST} has no transform, for its draws span more orders of magnitude "
                f"than floating point does; use a stability of at least {_LEAST}, or the logarithm of a family with "
                "heavy tails."
            )

    def _shift(self) -> Tensor | float:
        """What is to be added to draws of continuous coordinates."""
        if not self.shifted:
            return 0.0
        one = self.stability == 1
        tangent = torch.tan(0.5 * math.pi * torch.where(one, 2, self.stability))
        return self.skew * torch.where(one, 0, tangent)

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        log_p, log_q, log_prob = log_stable_tails_and_density(self.stability, self.skew, z - self._shift())
        return Evaluation(log_prob, log_p, log_q)

    def standard_draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Solved draw, and its log density."""
        z, log_prob = stable_draw(self.stability, self.skew, noise)
        return z + self._shift(), log_prob

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Solved for the noise of the smaller tail."""
        return self.standard_draw(noise_from_tails(log_p, log_q))[0]
