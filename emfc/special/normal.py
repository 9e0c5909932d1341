"""Functions of the normal distribution that stay accurate far out in both tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import differentiable, elementwise
from emfc.special.precision import wide

__all__ = [
    "exact_tails",
    "log1mexp",
    "log_ndtr",
    "log_normal_density",
    "log_sum_exp",
    "ndtri_exp",
    "noise_from_distances",
    "noise_from_signed_tail",
    "noise_from_tails",
    "tails_from_noise",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_LOG_HALF = -math.log(2)
_LOG_MOST = math.log(0.7)  # of a probability that is still exact enough near 1/2, where its complement would be too
_SQRT_HALF = math.sqrt(0.5)

# Beyond these distances the complementary error function is, or is nearly, subnormal.
_FAR = {torch.float32: 12.5, torch.float64: 37.0}


def log_normal_density(noise: Tensor) -> Tensor:
    r"""Log density of the standard normal, :math:`\log \phi(e) = -e^2 / 2 - \log \sqrt{2 \pi}`."""
    return -0.5 * noise * noise - _HALF_LOG_TWO_PI


def _largest(dtype: torch.dtype) -> float:
    """A distance whose square is far from overflow."""
    largest: float = torch.finfo(dtype).max ** 0.5 / 4
    return largest


def _mills_series(t: Tensor) -> Tensor:
    r""":math:`t \Phi(-t) / \phi(t)` for large t. Source: DLMF 7.12.1."""
    r = 1 / (t * t)
    return 1 - r * (1 - r * (3 - r * (15 - r * (105 - r * (945 - r * 10395)))))


def _log_of_half(half: Tensor, t: Tensor) -> Tensor:
    r""":math:`\log \Phi(-t)` for :math:`t \ge 0`, given :math:`\Phi(-t)` where that is no subnormal number."""
    result = torch.log(half)
    limit = _FAR[t.dtype]
    far = t > limit
    if bool(far.any()):
        distance = t.clamp(min=limit)
        series = _mills_series(distance).log() - 0.5 * distance * distance - distance.log() - _HALF_LOG_TWO_PI
        result = torch.where(far, series, result)
    return result


@elementwise("log_ndtr", inputs=1)
def _log_ndtr(noise: Tensor) -> tuple[Tensor, ...]:
    t = noise.abs()
    half = 0.5 * torch.erfc(_SQRT_HALF * t)
    positive = noise > 0
    if not bool(positive.any()):
        return (_log_of_half(half, t),)
    return (torch.where(positive, torch.log1p(-half), _log_of_half(half, t)),)


@elementwise("normal_tails", inputs=1, outputs=2)
def _tails(noise: Tensor) -> tuple[Tensor, ...]:
    t = noise.abs().clamp(max=_largest(noise.dtype))
    half = 0.5 * torch.erfc(_SQRT_HALF * t)
    small, body = _log_of_half(half, t), torch.log1p(-half)
    lower = (noise < 0).to(noise.dtype)  # a blend by 0 or 1 is exact, and faster than a choice by sign
    return torch.lerp(body, small, lower), torch.lerp(small, body, lower)


def _mills_ratio(distance: Tensor) -> Tensor:
    r""":math:`\Phi(-t) / \phi(t)`, without cancellation."""
    ratio: Tensor = math.sqrt(0.5 * math.pi) * torch.special.erfcx(_SQRT_HALF * distance)
    return ratio


def _distance(noise: Tensor) -> Tensor:
    """Absolute value, finite, whose derivative at 0 is 1."""
    limit = _largest(noise.dtype)
    return torch.where(noise < 0, -noise, noise).clamp(max=limit)


def _log_ndtr_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    (noise,), (log_p,) = inputs, outputs
    lower = noise < 0
    hazard = 1 / _mills_ratio(_distance(noise.clamp(max=0)))
    near = torch.exp(log_normal_density(noise.clamp(min=0, max=_largest(noise.dtype))) - torch.where(lower, 0, log_p))
    return ((torch.where(lower, hazard, near),),)


def _tails_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    (noise,), (log_p, log_q) = inputs, outputs
    lower = noise < 0
    hazard = 1 / _mills_ratio(_distance(noise))
    other = hazard * torch.exp(torch.where(lower, log_p - log_q, log_q - log_p))
    return ((torch.where(lower, hazard, other),), (-torch.where(lower, other, hazard),))


_log_ndtr_differentiable = differentiable(_log_ndtr, _log_ndtr_partials)
_tails_differentiable = differentiable(_tails, _tails_partials)


def log_ndtr(noise: Tensor) -> Tensor:
    r"""Log of the standard normal distribution function, :math:`\log \Phi(e)`.

    The logarithm of the complementary error function, which is accurate as long as it is a normal number; the
    asymptotic (Mills) series beyond.

    Args:
        noise: Any shape; half precision is computed in float32.

    Returns:
        A tensor of the same shape, accurate to rounding for every negative argument; for a positive one
        the error is that of the (nearly zero) result.

    Source: DLMF 7.12.1 for the series.
    """
    return _log_ndtr_differentiable(wide(noise))[0]


def tails_from_noise(noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log probabilities of both tails, :math:`\log \Phi(e)` and :math:`\log \Phi(-e)`, by one error function.

    Args:
        noise: Any shape, float32 or float64.

    Returns:
        Two tensors of the same shape, finite also for infinite noise.
    """
    log_p, log_q = _tails_differentiable(noise)
    return log_p, log_q


def _far_tail(log_p: Tensor) -> Tensor:
    r"""Solve :math:`\log \Phi(-t) = \ell` for :math:`\ell \ll 0` by Newton steps on the Mills series."""
    target = -2 * log_p
    t = (target - torch.log(target * (2 * math.pi))).sqrt()
    for _ in range(3):
        residual = 0.5 * t * t + t.log() + _HALF_LOG_TWO_PI - _mills_series(t).log() + log_p
        t = t - residual / (t + 1 / t)
    result: Tensor = -t
    return result


def _small_quantile(log_p: Tensor) -> Tensor:
    """Quantile of log probabilities that are at most 0.7; nothing else may hold the argument."""
    info = torch.finfo(log_p.dtype)
    tiny = math.log(info.tiny) + 1
    if log_p.numel() and float(log_p.amin()) >= tiny:  # not so where one is no number
        near: Tensor = torch.special.ndtri(log_p.exp_())
        return near
    near = torch.special.ndtri(torch.exp(log_p.clamp(min=tiny)))
    return torch.where(log_p < tiny, _far_tail(log_p.clamp(min=info.min / 16, max=tiny)), near)


@elementwise("ndtri_exp", inputs=1)
def _ndtri_exp(log_p: Tensor) -> tuple[Tensor, ...]:
    upper = log_p > _LOG_MOST
    small = _small_quantile(log_p.clamp(max=_LOG_MOST))
    if bool(upper.any()):
        large = -torch.special.ndtri(-torch.expm1(log_p.clamp(min=_LOG_MOST)))
        return (torch.where(upper, large, small),)
    return (small,)


@elementwise("noise_from_tails", inputs=2)
def _noise(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    small = torch.minimum(log_p, log_q).clamp(max=_LOG_HALF)
    return (torch.copysign(_small_quantile(small), log_p - log_q),)


@elementwise("noise_from_signed_tail", inputs=1)
def _signed_noise(signed: Tensor) -> tuple[Tensor, ...]:
    return (_small_quantile(signed.abs().neg_()).copysign_(signed),)


@elementwise("noise_from_distances", inputs=2)
def _uniform_noise(below: Tensor, above: Tensor) -> tuple[Tensor, ...]:
    share = torch.minimum(below, above) / (below + above)
    quantile = torch.special.ndtri(share.clamp(torch.finfo(share.dtype).tiny, 0.5))
    return (torch.copysign(quantile, below - above),)


def _ndtri_exp_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    return ((_mills_ratio(-outputs[0]),),)


def _noise_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    lower = inputs[0] < inputs[1]
    noise = outputs[0]
    ratio = _mills_ratio(torch.where(lower, -noise, noise))
    return ((torch.where(lower, ratio, 0), -torch.where(lower, 0, ratio)),)


def _signed_noise_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    (signed,), (noise,) = inputs, outputs
    return ((_mills_ratio(torch.where(signed < 0, -noise, noise)),),)


def _uniform_noise_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    below, above = inputs
    width = below + above
    rate = torch.exp(-log_normal_density(outputs[0])) / width
    return ((rate * (above / width), -rate * (below / width)),)


_ndtri_exp_differentiable = differentiable(_ndtri_exp, _ndtri_exp_partials)
_noise_differentiable = differentiable(_noise, _noise_partials)
_signed_noise_differentiable = differentiable(_signed_noise, _signed_noise_partials)
_uniform_noise_differentiable = differentiable(_uniform_noise, _uniform_noise_partials)


def ndtri_exp(log_p: Tensor) -> Tensor:
    r"""Standard normal quantile of a probability given by its log, :math:`\Phi^{-1}(\exp \ell)`.

    The inverse of `log_ndtr`. Below the smallest normal number of the dtype the argument's own logarithm
    is used: the asymptotic (Mills) series, polished by Newton steps.

    Args:
        log_p: Log probabilities, at most 0, of any shape; half precision is computed in float32.

    Returns:
        A tensor of the same shape, differentiable any number of times.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.12 for the series.
    """
    return _ndtri_exp_differentiable(wide(log_p))[0]


def noise_from_tails(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Noise whose lower and upper tail have these log probabilities, found from the smaller one.

    Args:
        log_p: Log of the lower tail.
        log_q: Log of the upper tail, of a shape that broadcasts against `log_p`.

    Returns:
        Finite noise, whatever the tails.
    """
    return _noise_differentiable(log_p, log_q)[0]


def noise_from_signed_tail(signed: Tensor) -> Tensor:
    r"""Noise beyond which a tail of probability :math:`e^{-|s|}` lies, on the side of the sign of s.

    Args:
        signed: Minus the log of the smaller tail, at least :math:`\log 2`, with the sign of the noise.

    Returns:
        Finite noise of the same shape.
    """
    return _signed_noise_differentiable(signed)[0]


def noise_from_distances(below: Tensor, above: Tensor) -> Tensor:
    """Noise whose tails are in the proportion of two distances: that of a uniform's value between two ends.

    Args:
        below: Distance to the lower end, not negative.
        above: Distance to the upper end, of a shape that broadcasts; not both are 0.

    Returns:
        Finite noise.
    """
    return _uniform_noise_differentiable(below, above)[0]


def log1mexp(log_p: Tensor) -> Tensor:
    r""":math:`\log(1 - e^{\ell})` for negative :math:`\ell`, finite gradients everywhere below 0.

    Source: Maechler, Accurately Computing log(1 - exp(-|a|)), 2012.
    """
    tiny = torch.finfo(log_p.dtype).tiny
    near = torch.log(-torch.expm1(log_p.clamp(min=_LOG_HALF, max=-tiny)))
    far = torch.log1p(-torch.exp(log_p.clamp(max=_LOG_HALF)))
    return torch.lerp(far, near, (log_p > _LOG_HALF).to(log_p.dtype))  # a blend by 0 or 1 is exact


def exact_tails(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Both log tails, the larger one found anew from the smaller."""
    lower = log_p < log_q
    small = torch.where(lower, log_p, log_q)
    other = log1mexp(small.clamp(max=_LOG_HALF + 1e-3))
    return torch.where(lower, small, other), torch.where(lower, other, small)


def log_sum_exp(terms: Tensor, dim: int = -1) -> Tensor:
    """`logsumexp` whose gradient is zero, not NaN, where every term is -inf."""
    floor = torch.finfo(terms.dtype).min / 4
    total = torch.logsumexp(terms.clamp(min=floor), dim)
    return torch.where(total > 0.5 * floor, total, -math.inf)
