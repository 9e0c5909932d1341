"""Univariate families with closed forms: one small class each.

In every `evaluate` and `quantile` the expression of the branch not taken stays finite, and so do its derivatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Logistic as PyroLogistic
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from emfc.special.fused import normal_probability
from emfc.special.normal import (
    log1mexp,
    log_ndtr,
    log_normal_density,
    ndtri_exp,
    noise_from_distances,
    noise_from_signed_tail,
    noise_from_tails,
    tails_from_noise,
)
from emfc.special.precision import wide
from emfc.special.ratios import side_of
from emfc.transforms.family import Evaluation, LocationScale, ScalarFamily
from emfc.transforms.registry import family_of
from emfc.transforms.supports import Position

__all__ = ["Cauchy", "Exponential", "HalfCauchy", "HalfNormal", "Laplace", "LogNormal", "Logistic", "Normal", "Uniform"]

_LOG_TWO = math.log(2)
_LOG_PI = math.log(math.pi)


def _distance(distance: Tensor | None, value: Tensor) -> Tensor:
    """Distance to a finite end, at least the smallest normal number."""
    known = value if distance is None else distance
    return known.clamp(min=torch.finfo(known.dtype).tiny)


def _small(log_p: Tensor) -> Tensor:
    """A log probability at most one half, and no smaller than what has a finite inverse."""
    return log_p.clamp(min=-math.log(torch.finfo(log_p.dtype).max) + 3, max=-_LOG_TWO)


def _cotangent(log_p: Tensor, turn: float) -> Tensor:
    r""":math:`\cot(c p)` for :math:`p \le 1/2`, finite with its derivatives for the smallest p."""
    log_p = _small(log_p)
    p = torch.exp(log_p)
    return torch.exp(-log_p) * torch.cos(turn * p) / (turn * torch.sinc(turn / math.pi * p))


def _bounded(z: Tensor) -> Tensor:
    """A standard normal value whose square does not overflow."""
    limit = torch.finfo(z.dtype).max ** 0.5 / 4
    return z.clamp(-limit, limit)


def _normal_evaluation(z: Tensor) -> Evaluation:
    """The standard normal, without overflow of the square."""
    z = _bounded(z)
    return Evaluation(log_normal_density(z), *tails_from_noise(z))


@family_of(td.Normal)
class Normal(LocationScale):
    r""":math:`F(z) = \Phi(z)`."""

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        return _normal_evaluation(z)

    def standard_log_density(self, z: Tensor) -> Tensor:
        """Log density, which needs no tails."""
        return log_normal_density(_bounded(z))

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Noise of the tails."""
        return noise_from_tails(log_p, log_q)


@family_of(td.Laplace)
class Laplace(LocationScale):
    r""":math:`F(z) = e^z / 2` below the median, mirrored above."""

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        tail = -z.abs() - _LOG_TWO
        body = torch.log1p(-torch.exp(tail))
        return Evaluation(tail, torch.where(z < 0, tail, body), torch.where(z < 0, body, tail))

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Logarithm of twice the smaller tail."""
        return torch.where(log_p < log_q, log_p + _LOG_TWO, -_LOG_TWO - log_q)

    def standard_log_density(self, z: Tensor) -> Tensor:
        """Log density, that of an exponential but for the factor 2."""
        return -z.abs() - _LOG_TWO

    def standard_draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """By the smaller tail, which is the density as well."""
        limit = torch.finfo(noise.dtype).max ** 0.5 / 4
        side = side_of(noise)
        tail = log_ndtr((-side * noise).clamp(min=-limit))
        return -side * (tail + _LOG_TWO), tail

    def standard_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By the smaller tail."""
        signed = torch.add(z, side_of(z), alpha=_LOG_TWO)
        return noise_from_signed_tail(signed), -signed.abs()


@family_of(PyroLogistic)
class Logistic(LocationScale):
    r""":math:`F(z) = 1 / (1 + e^{-z})`."""

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        log_p, log_q = logsigmoid(z), logsigmoid(-z)
        return Evaluation(log_p + log_q, log_p, log_q)

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log odds."""
        return log_p - log_q

    def standard_draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Log odds of the tails, whose product is the density."""
        log_p, log_q = tails_from_noise(noise)
        return log_p - log_q, log_p + log_q

    def standard_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By the smaller tail."""
        side = side_of(z)
        distance = side * z
        tail = logsigmoid(-distance)
        return noise_from_signed_tail(-side * tail), torch.add(distance, tail, alpha=2)


def _log_acot(distance: Tensor) -> Tensor:
    """Log of the arc cotangent of a distance, at most pi / 2, without overflow of its square."""
    far = distance.clamp(min=1)
    near = distance.clamp(max=1)
    w = 1 / far.clamp(max=1 / torch.finfo(distance.dtype).eps)
    log_far = torch.log(torch.atan(w) / w) - far.log()
    return torch.where(distance > 1, log_far, torch.log(0.5 * math.pi - torch.atan(near)))


@family_of(td.Cauchy)
class Cauchy(LocationScale):
    r""":math:`F(z) = \operatorname{arccot}(-z) / \pi`."""

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        tail = _log_acot(z.abs()) - _LOG_PI
        body = torch.log1p(-torch.exp(tail))
        log_prob = -2 * torch.hypot(torch.ones_like(z), z).log() - _LOG_PI
        return Evaluation(log_prob, torch.where(z < 0, tail, body), torch.where(z < 0, body, tail))

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Cotangent of the smaller tail."""
        lower = log_p < log_q
        distance = _cotangent(torch.where(lower, log_p, log_q), math.pi)
        return torch.where(lower, -distance, distance)


@family_of(td.LogNormal)
class LogNormal(ScalarFamily):
    """The exponential of a normal."""

    support = constraints.positive

    def __init__(self, dist: td.LogNormal) -> None:
        self.loc, self.scale = wide(dist.loc), wide(dist.scale)
        self.batch_shape = dist.batch_shape

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        log_x = _distance(at.below, at.value).log()
        result = _normal_evaluation((log_x - self.loc) / self.scale)
        return result._replace(log_prob=result.log_prob - log_x - self.scale.log())

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        log_x = _distance(at.below, at.value).log()
        return log_normal_density(_bounded((log_x - self.loc) / self.scale)) - log_x - self.scale.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Exponential of the normal's quantile."""
        return torch.exp(self.loc + self.scale * noise_from_tails(log_p, log_q))


class _Scaled(ScalarFamily):
    """A family of the positive half-line with a scale."""

    support = constraints.nonnegative

    def __init__(self, dist: Any) -> None:
        self.scale = wide(dist.scale)
        self.batch_shape = dist.batch_shape

    def _standard(self, at: Position) -> Tensor:
        z = _distance(at.below, at.value) / self.scale
        return z.clamp(min=torch.finfo(z.dtype).tiny)


@family_of(td.HalfNormal)
class HalfNormal(_Scaled):
    r""":math:`F(z) = \operatorname{erf}(z / \sqrt 2)`, :math:`1 - F(z) = 2 \Phi(-z)`."""

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        z = self._standard(at)
        log_prob, _, log_sf = _normal_evaluation(z)
        log_cdf = torch.erf(z * math.sqrt(0.5)).log()
        return Evaluation(log_prob + _LOG_TWO - self.scale.log(), log_cdf, log_sf + _LOG_TWO)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return log_normal_density(_bounded(self._standard(at))) + _LOG_TWO - self.scale.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Inverse error function of a small lower tail, normal quantile of a small upper one."""
        below = math.sqrt(2) * torch.erfinv(torch.exp(log_p.clamp(max=-_LOG_TWO)))
        above = -ndtri_exp(log_q.clamp(max=-_LOG_TWO) - _LOG_TWO)
        return self.scale * torch.where(log_p < log_q, below, above)


@family_of(td.HalfCauchy)
class HalfCauchy(_Scaled):
    r""":math:`F(z) = \frac{2}{\pi} \operatorname{atan} z`."""

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        z = self._standard(at)
        one = torch.ones_like(z)
        return Evaluation(
            _LOG_TWO - _LOG_PI - 2 * torch.hypot(one, z).log() - self.scale.log(),
            torch.atan(z).log() + (_LOG_TWO - _LOG_PI),
            _log_acot(z) + (_LOG_TWO - _LOG_PI),
        )

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        z = self._standard(at)
        return _LOG_TWO - _LOG_PI - 2 * torch.hypot(torch.ones_like(z), z).log() - self.scale.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Tangent of a small lower tail, cotangent of a small upper one."""
        below = torch.tan(0.5 * math.pi * torch.exp(log_p.clamp(max=-_LOG_TWO)))
        return self.scale * torch.where(log_p < log_q, below, _cotangent(log_q, 0.5 * math.pi))


@family_of(td.Exponential)
class Exponential(ScalarFamily):
    r""":math:`1 - F(x) = e^{-r x}`."""

    support = constraints.nonnegative

    def __init__(self, dist: td.Exponential) -> None:
        self.rate = wide(dist.rate)
        self.batch_shape = dist.batch_shape

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        log_sf = -self.rate * _distance(at.below, at.value)
        log_sf = log_sf.clamp(-torch.finfo(log_sf.dtype).max / 16, -torch.finfo(log_sf.dtype).tiny)
        return Evaluation(self.rate.log() + log_sf, log1mexp(log_sf), log_sf)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return self.rate.log() - self.rate * at.value

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log of the upper tail over the rate."""
        return -log_q / self.rate


@family_of(td.Uniform)
class Uniform(ScalarFamily):
    """Uniform on an interval; density 0 at its upper end, as in torch."""

    def __init__(self, dist: td.Uniform) -> None:
        self.low, self.high = wide(dist.low), wide(dist.high)
        self.batch_shape = dist.batch_shape
        self.support = constraints.half_open_interval(self.low, self.high)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails, by the distances to both ends; the density is 0 outside."""
        width = self.high - self.low
        below = at.value - self.low if at.below is None else at.below
        above = self.high - at.value if at.above is None else at.above
        tiny = torch.finfo(below.dtype).tiny
        inside = (below >= 0) & (above >= 0)
        return Evaluation(
            torch.where(inside, -width.log(), -math.inf),
            (below / width).clamp(tiny, 1).log(),
            (above / width).clamp(tiny, 1).log(),
        )

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Lower end plus, or upper end minus, the smaller tail."""
        return self.locate(log_p, log_q).value

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Quantile with distances that are exact at both ends."""
        width = self.high - self.low
        below, above = width * torch.exp(log_p), width * torch.exp(log_q)
        value = torch.where(log_p < log_q, self.low + below, self.high - above)
        return Position(self.support_map.nearest(value, smallest=True), below, above)

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """The smaller tail's distance from its end."""
        width = self.high - self.low
        side = side_of(noise)
        near = (0.5 * width) * torch.erfc((math.sqrt(0.5) * side) * noise)
        far = width - near
        lower = (0.5 - 0.5 * side).to(near.dtype)
        value = torch.lerp(self.high.to(near.dtype), self.low.to(near.dtype), lower) - side * near
        position = Position(
            self.support_map.nearest(value, smallest=True),
            torch.lerp(far, near, lower),
            torch.lerp(near, far, lower),
        )
        return position, -width.log()

    def draw_value(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The distance from the end that is nearer to zero, where values are spaced more finely."""
        width = self.high - self.low
        side = torch.where(self.low.abs() <= self.high.abs(), 1.0, -1.0).to(width.dtype)
        share = normal_probability(side * noise)
        value = torch.addcmul(torch.where(side > 0, self.low, self.high), side * width, share)
        return self.support_map.nearest(value, smallest=True), -width.log()

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Normal quantile of the smaller tail."""
        below = at.value - self.low if at.below is None else at.below
        above = self.high - at.value if at.above is None else at.above
        return noise_from_distances(below, above), -(self.high - self.low).log()
