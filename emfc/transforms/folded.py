"""The absolute value of a univariate family of the real line."""

from __future__ import annotations

import torch
from pyro.distributions import FoldedDistribution
from torch import Tensor
from torch.distributions import constraints

from emfc.special.normal import tails_from_noise
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.interval import check_mass, log_mass
from emfc.transforms.registry import UnsupportedFamilyError, family_of, scalar_family
from emfc.transforms.solved import SolvedFamily, coordinate_limits
from emfc.transforms.supports import Position, RealLine

__all__ = ["Folded"]

_SMALL = -7.0  # log of a lower tail over which the density is nearly that at 0


@family_of(FoldedDistribution)
class Folded(SolvedFamily):
    r""":math:`F(x) = F_0(x) - F_0(-x)` and :math:`1 - F(x) = F_0(-x) + (1 - F_0(x))` for x > 0, in logs.

    Raises:
        UnsupportedFamilyError: If the base is discrete or not on the whole real line.
    """

    support = constraints.positive

    def __init__(self, dist: FoldedDistribution) -> None:
        self.base: ScalarFamily = scalar_family(dist.base_dist)
        if self.base.discrete or not isinstance(self.base.support_map, RealLine):
            raise UnsupportedFamilyError(
                f"FoldedDistribution of {type(dist.base_dist).__name__} has no transform; that of a continuous "
                "univariate family on the whole real line has, such as FoldedDistribution(Normal)."
            )
        check_mass(self.base, "FoldedDistribution")
        self.batch_shape = dist.batch_shape

    @staticmethod
    def _both(at: Position) -> tuple[Position, Position]:
        distance = at.value if at.below is None else at.below
        return Position(-distance), Position(distance)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        low, high = self._both(at)
        left, right = self.base.evaluate(low), self.base.evaluate(high)
        log_prob = torch.logaddexp(left.log_prob, right.log_prob)
        log_sf = torch.logaddexp(left.log_cdf, right.log_sf).clamp(max=0)
        return Evaluation(log_prob, log_mass(self.base, low, high, 2 * high.value, (left, right)), log_sf)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        low, high = self._both(at)
        return torch.logaddexp(self.base.log_density(low), self.base.log_density(high))

    def guess(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Between the base's two quantiles of half the upper tail, which meet where it is symmetric about 0."""
        log_p, log_q = tails_from_noise(noise)
        half = log_q - torch.log(torch.full_like(log_q, 2))
        rest = torch.log1p(-torch.exp(half))
        right, left = self.base.quantile(rest, half), -self.base.quantile(half, rest)
        low, high = coordinate_limits(self.support_map, noise.dtype)
        tiny = torch.finfo(noise.dtype).tiny
        least, most = (end.clamp(min=tiny).log().nan_to_num(low).clamp(low, high) for end in (left, right))
        log_prob, log_cdf, log_sf = self.base.evaluate(Position(torch.zeros_like(noise)))
        near = (log_p - log_prob - torch.log(torch.full_like(log_p, 2))).nan_to_num(0.0).clamp(low, high)
        central = (log_cdf - log_sf).abs() < 0.5  # the medians of both sides lie near 0, and are rounded
        near = torch.where(central, near, torch.minimum(near, torch.maximum(least, most)))
        small = log_p < _SMALL
        first = torch.where(small, low, torch.minimum(least, most))
        last = torch.where(small, high, torch.maximum(least, most))
        return first, last, torch.where(small, near, torch.logaddexp(least, most) - 0.6931471805599453)
