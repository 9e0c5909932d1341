"""Log probability of a stretch of the von Mises circle, exact however little of the whole lies there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import differentiable, elementwise, once_only
from emfc.special.normal import log_sum_exp
from emfc.special.von_mises import log_bessel_i0e, reduced_angle, side_moments, von_mises_log_density

__all__ = ["von_mises_log_mass"]


def _sides(k: Tensor, first: Tensor, last: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log of the integral of :math:`e^{\kappa (\cos t - 1)}` between two turns, and the mean of :math:`1 - \cos t`.

    The stretch is cut at the mode (turn 0) and at the antimodes, into parts on which the integrand only falls.
    """
    logs, means = [], []
    cuts = (-math.inf, -math.pi, 0.0, math.pi, math.inf)
    for place in range(4):
        low, high = (turn.clamp(cuts[place], cuts[place + 1]) for turn in (first, last))
        whole = (low == first) & (high == last)
        length = torch.where(whole, width, high - low)
        some = length > 0
        away = (low + 2 * math.pi, -high, low, 2 * math.pi - high)[place]  # of the end that is nearer to a mode
        log_part, mean = side_moments(k, away, torch.where(some, length, 1.0))
        logs.append(torch.where(some, log_part, -math.inf))
        means.append(mean)
    total = log_sum_exp(torch.stack(logs), 0)
    shares = torch.exp(torch.stack(logs) - total)
    return total, (shares * torch.stack(means)).sum(0)


@elementwise("von_mises_log_mass", inputs=4, outputs=2)
def _mass(k: Tensor, first: Tensor, last: Tensor, width: Tensor) -> tuple[Tensor, ...]:
    total, mean = _sides(k, first, last, width)
    return total - log_bessel_i0e(k) - math.log(2 * math.pi), mean


@elementwise("von_mises_whole_mean", inputs=1)
def _whole_mean(k: Tensor) -> tuple[Tensor, ...]:
    zero = torch.zeros_like(k)
    return (side_moments(k, zero, zero + math.pi)[1],)


_mean_once = differentiable(_whole_mean, once_only("The masses of von Mises laws"))


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    (k, first, last, _), (log_mass, mean) = inputs, outputs
    zero = torch.zeros_like(k)
    at_first, at_last = (torch.exp(von_mises_log_density(zero, k, turn) - log_mass) for turn in (first, last))
    by_k = _mean_once(k)[0] - mean if wanted[0] else None
    return (by_k, -at_first, at_last, None), (None, None, None, None)


_differentiable = differentiable(_mass, _partials)


def von_mises_log_mass(loc: Tensor, concentration: Tensor, low: Tensor, high: Tensor, width: Tensor) -> Tensor:
    r"""Log of the probability between two angles, :math:`\log \int_a^b e^{\kappa \cos (t - m)} dt / (2 \pi I_0)`.

    Not a difference of tails, of which neither need be small where little lies between.

    Args:
        loc: Mode m, any angle.
        concentration: At least 0.
        low: Lower angle a, from :math:`-\pi` on.
        high: Upper angle b, up to :math:`\pi`; shapes broadcast.
        width: b - a, as exact as it is known; positive.

    Returns:
        A tensor of the common shape, differentiable once with respect to the first four.

    Source: the integral representation DLMF 10.32.1 of the Bessel function, cut into stretches.
    """
    m = reduced_angle(loc)
    return _differentiable(concentration, low - m, high - m, width.detach())[0]
