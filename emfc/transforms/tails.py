"""Families with power tails from an end on: Pareto, GeneralizedPareto."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.hazard import log_hazard_from_tails, tails_from_log_hazard
from emfc.special.normal import tails_from_noise
from emfc.special.precision import wide
from emfc.special.ratios import expm1_ratio, log1p_ratio, log_distance
from emfc.transforms.ends import scaled_exp
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.registry import family_of
from emfc.transforms.supports import Position, SupportMap

__all__ = ["GeneralizedPareto", "Pareto", "ParetoMap", "ParetoSupport"]


@family_of(td.Pareto)
class Pareto(ScalarFamily):
    r""":math:`1 - F(x) = (s / x)^a` from s on."""

    def __init__(self, dist: td.Pareto) -> None:
        self.scale, self.alpha = wide(dist.scale), wide(dist.alpha)
        self.batch_shape = dist.batch_shape
        self.support = constraints.greater_than_eq(self.scale)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails; the density is 0 below the scale."""
        below = at.value - self.scale if at.below is None else at.below
        far = below > 4 * self.scale
        growth = torch.where(
            far,
            log_distance(torch.where(far, at.value, self.scale)) - self.scale.log(),
            torch.log1p(torch.where(far, 0, below).clamp(min=0) / self.scale),
        )
        hazard = (self.alpha * growth).clamp(max=torch.finfo(growth.dtype).max / 16)
        log_cdf, _ = tails_from_log_hazard(log_distance(hazard))
        log_prob = self.alpha.log() - self.scale.log() - hazard - growth
        return Evaluation(torch.where(below >= 0, log_prob, -math.inf), log_cdf, -hazard)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Scale times a power of the upper tail."""
        return self.locate(log_p, log_q).value

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Quantile, and the density by its logarithm."""
        tails = tails_from_noise(noise)
        growth = torch.exp(log_hazard_from_tails(*tails)) / self.alpha
        return self._at(growth), self.alpha.log() - self.scale.log() - (self.alpha + 1) * growth

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Quantile with the exact distance to the scale."""
        return self._at(torch.exp(log_hazard_from_tails(log_p, log_q)) / self.alpha)

    def _at(self, growth: Tensor) -> Position:
        value = scaled_exp(self.scale, growth)
        near = growth < 1
        below = torch.where(near, self.scale * torch.expm1(torch.where(near, growth, 0)), value - self.scale)
        return Position(self.support_map.nearest(value, smallest=True), below)


class ParetoSupport(constraints.Constraint):
    """From an end on, up to a finite end for some elements and to infinity for the others.

    Args:
        low: The lower end.
        curb: One over the length of the support, 0 where that is infinite.
    """

    def __init__(self, low: Tensor, curb: Tensor) -> None:
        self.low, self.curb = low, curb
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """True inside and at finite ends."""
        return (value >= self.low) & ((value - self.low) * self.curb <= 1)

    def support_map(self) -> SupportMap:
        """The map of the real line onto this support."""
        return ParetoMap(self)


class ParetoMap(SupportMap):
    r""":math:`x = a + 1 / (c + e^{-y})`, which is :math:`a + e^y` for a curb c of 0."""

    low: Tensor

    def __init__(self, codomain: ParetoSupport) -> None:
        self.curb = codomain.curb
        length = torch.where(self.curb > 0, 1 / torch.where(self.curb > 0, self.curb, 1), torch.inf)
        self._high = codomain.low + length
        super().__init__(codomain, codomain.low, self._high)
        self._finite = self.curb > 0
        self._length = torch.where(self._finite, length, 1)

    def union(self) -> tuple[SupportMap, bool]:
        """From the lowest end to the highest, or to infinity."""
        if self.curb.dim() == 0 and self.low.dim() == 0:
            return self, True
        low, high = torch.broadcast_tensors(self.low, self._high)
        low, high = low.amin(-1), high.amax(-1)
        return ParetoMap(ParetoSupport(low, 1 / (high - low))), False

    def place(self, value: Tensor) -> Position:
        """Position of a value; without an upper end the distance to it is the largest number."""
        high = torch.where(self._finite, self._high, 0)
        above = torch.where(self._finite, high - value, torch.finfo(value.dtype).max)
        return Position(value, value - self.low, above)

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Value and distances to the ends."""
        limit = math.log(torch.finfo(coordinate.dtype).max) - 3
        shrink = torch.exp((-coordinate).clamp(-limit, limit))
        below = 1 / (self.curb + shrink)
        above = torch.where(self._finite, self._length * (shrink * below), torch.finfo(coordinate.dtype).max)
        return Position(self.low + below, below, above), 2 * log_distance(below) - coordinate.clamp(-limit, limit)

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        r"""Minus the log of :math:`1 / (x - a) - c`."""
        below = position.value - self.low if position.below is None else position.below
        log_below = log_distance(below)
        above = below if position.above is None else position.above
        share = torch.where(self._finite, above / self._length, 1)
        coordinate = log_below - log_distance(share)
        return coordinate, log_below + log_distance(share)


@family_of(td.GeneralizedPareto)
class GeneralizedPareto(ScalarFamily):
    r""":math:`1 - F(x) = (1 + k z)^{-1/k}` with :math:`z = (x - m) / s`, and :math:`e^{-z}` for k = 0."""

    def __init__(self, dist: td.GeneralizedPareto) -> None:
        self.loc, self.scale, self.concentration = wide(dist.loc), wide(dist.scale), wide(dist.concentration)
        self.batch_shape = dist.batch_shape
        curb = (-self.concentration).clamp(min=0)
        self.curb = torch.where(curb > torch.finfo(curb.dtype).tiny ** 0.25, curb, 0)  # else the end is out of reach
        self.support = ParetoSupport(self.loc, self.curb / self.scale)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails, near a finite upper end by the distance to it; the density is 0 outside."""
        below = at.value - self.loc if at.below is None else at.below
        info = torch.finfo(below.dtype)
        k = self.concentration
        far = (k > 0) & (below > 100 * self.scale / torch.where(k > 0, k, 1))
        z = (torch.where(far, 0, below) / self.scale).clamp(min=info.tiny)
        near = k * z < -0.5  # the upper end
        hazard = z * log1p_ratio(torch.where(near, -0.5, k * z))
        rate = torch.where(far, k, 1)
        log_w = log_distance(torch.where(far, below, self.scale)) - self.scale.log() + rate.log()
        hazard = torch.where(far, (log_w + torch.log1p(torch.exp(-log_w))) / rate, hazard)
        if at.above is not None:
            share = torch.where(near, self.curb, 0.5) * (torch.where(near, at.above, self.scale) / self.scale)
            closer = -log_distance(share) / torch.where(near, self.curb, 1)
            hazard = torch.where(near, closer, hazard)
        inside = (below >= 0) & (True if at.above is None else at.above >= 0)
        log_cdf, _ = tails_from_log_hazard(log_distance(hazard))
        log_prob = -self.scale.log() - hazard * (1 + self.concentration)
        return Evaluation(torch.where(inside, log_prob, -math.inf), log_cdf, -hazard)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """A power of the upper tail."""
        return self.locate(log_p, log_q).value

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Quantile, and the density by the hazard."""
        hazard = torch.exp(log_hazard_from_tails(*tails_from_noise(noise)))
        return self._at(hazard), -self.scale.log() - hazard * (1 + self.concentration)

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Quantile with distances that are exact at both ends."""
        return self._at(torch.exp(log_hazard_from_tails(log_p, log_q)))

    def _at(self, hazard: Tensor) -> Position:
        info = torch.finfo(hazard.dtype)
        w = self.concentration * hazard
        mild = w < 1
        length = self.scale / torch.where(self.curb > 0, self.curb, 1)
        rate = self.scale / torch.where(mild, 1, self.concentration)
        below = torch.where(
            mild,
            self.scale * (hazard * expm1_ratio(torch.where(mild, w, 0))),
            scaled_exp(rate, torch.where(mild, 0, w)) - rate,
        )
        above = torch.where(self.curb > 0, length * torch.exp(w.clamp(max=0)), info.max)
        close = w < -0.5
        value = torch.where(close, (self.loc + length) - torch.where(close, above, 0), self.loc + below)
        return Position(self.support_map.nearest(value, smallest=True), below, above)
