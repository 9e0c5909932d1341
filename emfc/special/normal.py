"""Functions of the normal distribution that stay accurate far out in both tails."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from emfc.special.precision import eager, wide

__all__ = [
    "log1mexp",
    "log_ndtr",
    "log_normal_density",
    "log_sum_exp",
    "ndtri_exp",
    "noise_from_tails",
    "tails_from_noise",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_LOG_HALF = -math.log(2)


def log_normal_density(noise: Tensor) -> Tensor:
    r"""Log density of the standard normal, :math:`\log \phi(e) = -e^2 / 2 - \log \sqrt{2 \pi}`."""
    return -0.5 * noise * noise - _HALF_LOG_TWO_PI


def log_ndtr(noise: Tensor) -> Tensor:
    r"""Log of the standard normal distribution function, :math:`\log \Phi(e)`.

    Args:
        noise: Any shape; half precision is computed in float32.

    Returns:
        A tensor of the same shape, accurate to rounding for every negative argument; for a positive one
        the error is that of the (nearly zero) result.
    """
    noise = wide(noise)
    if eager():
        result: Tensor = torch.special.log_ndtr(noise)
        return result
    # The same in operations that map and compile; the tail is scaled so that neither part over- nor underflows.
    turn = math.sqrt(0.5) * noise
    far = turn.clamp(max=-0.5)
    near = turn.clamp(min=-1)
    low = torch.log(0.5 * torch.special.erfcx(-far)) - far * far
    return torch.where(turn < -0.7, low, torch.log1p(-0.5 * torch.erfc(near)))


def _far_tail(log_p: Tensor) -> Tensor:
    r"""Solve :math:`\log \Phi(-t) = \ell` for :math:`\ell \ll 0` by Newton steps on the Mills series."""
    target = -2 * log_p
    t = (target - torch.log(target * (2 * math.pi))).sqrt()
    for _ in range(3):
        r = 1 / (t * t)
        series = 1 - r * (1 - r * (3 - r * (15 - r * (105 - r * 945))))
        residual = 0.5 * t * t + t.log() + _HALF_LOG_TWO_PI - series.log() + log_p
        t = t - residual / (t + 1 / t)
    result: Tensor = -t
    return result


def _ndtri_exp(log_p: Tensor) -> Tensor:
    tiny = math.log(torch.finfo(log_p.dtype).tiny) + 1
    middle = log_p.clamp(min=tiny)
    lower = middle <= _LOG_HALF
    p = torch.where(lower, torch.exp(middle), -torch.expm1(middle))
    near = torch.special.ndtri(p)
    near = torch.where(lower, near, -near)
    return torch.where(log_p < tiny, _far_tail(log_p.clamp(max=tiny)), near)


def _mills_ratio(noise: Tensor) -> Tensor:
    r""":math:`\Phi(e) / \phi(e)`, the derivative of the quantile by the log probability, without cancellation."""
    ratio: Tensor = math.sqrt(0.5 * math.pi) * torch.special.erfcx(-math.sqrt(0.5) * noise)
    return ratio


class _NdtriExp(torch.autograd.Function):
    """Inverse of log_ndtr with the derivative of an inverse function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        return _ndtri_exp(log_p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * _mills_ratio(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _mills_ratio(*ctx.saved_tensors)


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
    result: Tensor = _NdtriExp.apply(wide(log_p))  # type: ignore[no-untyped-call]
    return result


def log1mexp(log_p: Tensor) -> Tensor:
    r""":math:`\log(1 - e^{\ell})` for negative :math:`\ell`, finite gradients everywhere below 0.

    Source: Maechler, Accurately Computing log(1 - exp(-|a|)), 2012.
    """
    near = log_p > _LOG_HALF
    tiny = torch.finfo(log_p.dtype).tiny
    close = torch.log(-torch.expm1(torch.where(near, log_p, _LOG_HALF).clamp(max=-tiny)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, _LOG_HALF, log_p))))


def log_sum_exp(terms: Tensor) -> Tensor:
    """`logsumexp` over the last dimension whose gradient is zero, not NaN, where every term is -inf."""
    floor = torch.finfo(terms.dtype).min / 4
    total = torch.logsumexp(terms.clamp(min=floor), -1)
    return torch.where(total > 0.5 * floor, total, -math.inf)


def tails_from_noise(noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log probabilities of both tails, :math:`\log \Phi(e)` and :math:`\log \Phi(-e)`."""
    return log_ndtr(noise), log_ndtr(-noise)


def noise_from_tails(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Noise whose lower and upper tail have these log probabilities, found from the smaller one.

    Args:
        log_p: Log of the lower tail.
        log_q: Log of the upper tail, of a shape that broadcasts against `log_p`.

    Returns:
        Finite noise, whatever the tails.
    """
    lower = log_p < log_q
    small = torch.where(lower, log_p, log_q)
    noise = ndtri_exp(small.clamp(min=torch.finfo(small.dtype).min / 16, max=_LOG_HALF + 1e-3))
    return torch.where(lower, noise, -noise)
