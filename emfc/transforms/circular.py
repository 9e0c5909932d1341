r"""The von Mises family on the circle cut open at :math:`\pm \pi`, and refusals of its relatives."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as pd
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.precision import wide
from emfc.special.von_mises import von_mises_log_density, von_mises_quantile, von_mises_tails
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.registry import UnsupportedFamilyError, family_of, from_normal, refusing, scalar_family
from emfc.transforms.supports import Position

__all__ = ["VonMises"]


@family_of(td.VonMises)
class VonMises(ScalarFamily):
    r""":math:`f(x) = e^{\kappa \cos(x - m)} / (2 \pi I_0(\kappa))` on :math:`[-\pi, \pi]`.

    The circle is cut at :math:`\pm \pi`, whatever the mode m, for that is where torch cuts its samples: noise rises
    from the angle :math:`-\pi` to :math:`\pi`, and a mode near the cut has draws at both ends. torch's density is
    periodic on the whole real line; here it is that of one turn, and -inf outside :math:`[-\pi, \pi]`. The mode may be
    any angle, the concentration 0.
    """

    support = constraints.interval(-math.pi, math.pi)

    def __init__(self, dist: td.VonMises) -> None:
        self.loc, self.concentration = wide(dist.loc), wide(dist.concentration)
        self.batch_shape = dist.batch_shape

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return von_mises_log_density(self.loc, self.concentration, at.value)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        tails = von_mises_tails(self.loc, self.concentration, at.value, at.below, at.above)
        return Evaluation(self.log_density(at), *tails)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The located value."""
        return self.locate(log_p, log_q).value

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Quantile, solved on the smaller tail with implicit derivatives, with distances that are exact at the cuts."""
        x, below, above = von_mises_quantile(self.loc, self.concentration, log_p, log_q)
        x = self.support_map.nearest(x, smallest=True)
        lower = log_p < log_q
        low, high = von_mises_tails(self.loc, self.concentration, x, below, above)
        residual = torch.where(lower, low - log_p, log_q - high)
        log_prob = von_mises_log_density(self.loc, self.concentration, x)
        rate = (torch.where(lower, low, high) - log_prob).detach()
        step = (residual - residual.detach()) * torch.exp(rate.clamp(max=0.9 * math.log(torch.finfo(x.dtype).max)))
        return Position(x - step, below - step, above + step)


def _refuse(instead: str) -> Any:
    @refusing
    def refuse(dist: td.Distribution) -> Any:
        raise UnsupportedFamilyError(f"{type(dist).__name__} has no transform from normal noise; {instead}.")

    return refuse


_ANGLES = "the nearest supported is VonMises, one angle each, with a mode that may depend on the angle before"

for _family, _instead in (
    (pd.SineSkewed, _ANGLES),
    (pd.SineBivariateVonMises, _ANGLES),
    (pd.ProjectedNormal, "the nearest supported is the MultivariateNormal that is projected, or VonMises for an angle"),
    (pd.VonMises3D, "the nearest supported is VonMises for an angle"),
):
    from_normal.register(_family, _refuse(_instead))
    scalar_family.register(_family, _refuse(_instead))
