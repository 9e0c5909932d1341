"""Families of extremes, whose log cumulative hazard is affine in the value or in its logarithm: Gumbel, Weibull."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.hazard import log_hazard_from_tails, tails_from_log_hazard
from emfc.special.normal import tails_from_noise
from emfc.special.precision import wide
from emfc.special.ratios import log_distance
from emfc.transforms.ends import scaled_exp
from emfc.transforms.family import Evaluation, LocationScale, ScalarFamily
from emfc.transforms.registry import family_of
from emfc.transforms.supports import Position

__all__ = ["Gumbel", "Weibull"]


@family_of(td.Gumbel)
class Gumbel(LocationScale):
    r""":math:`F(z) = \exp(-e^{-z})`."""

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        log_sf, log_cdf = tails_from_log_hazard(-z)
        return Evaluation(log_cdf - z, log_cdf, log_sf)

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Minus the log of minus the log of the lower tail."""
        return -log_hazard_from_tails(log_q, log_p)


@family_of(td.Weibull)
class Weibull(ScalarFamily):
    r""":math:`1 - F(x) = \exp(-(x / s)^k)`."""

    support = constraints.positive

    def __init__(self, dist: td.Weibull) -> None:
        self.scale, self.concentration = wide(dist.scale), wide(dist.concentration)
        self.batch_shape = dist.batch_shape

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        value = at.value if at.below is None else at.below
        log_x = log_distance(value)
        y = self.concentration * self._log_ratio(value, log_x)
        log_cdf, log_sf = tails_from_log_hazard(y)
        return Evaluation(self.concentration.log() + y - log_x + log_sf, log_cdf, log_sf)

    def _log_ratio(self, value: Tensor, log_x: Tensor) -> Tensor:
        """Log of the value over the scale; beside the scale by the difference of both, which is exact there."""
        near = (value > 0.5 * self.scale) & (value < 2 * self.scale)
        beside = torch.log1p(torch.where(near, value - self.scale, 0) / self.scale)
        return torch.where(near, beside, log_x - self.scale.log())

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """A power of the hazard, and the density by the power, which may be too small or large for a number."""
        log_p, log_q = tails_from_noise(noise)
        y = log_hazard_from_tails(log_p, log_q)
        log_x = self.scale.log() + y / self.concentration
        value = self.support_map.nearest(scaled_exp(self.scale, y / self.concentration), smallest=True)
        return Position(value, value), self.concentration.log() + y - log_x + log_q

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """A power of the hazard."""
        return scaled_exp(self.scale, log_hazard_from_tails(log_p, log_q) / self.concentration)
