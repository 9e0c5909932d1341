"""Derivatives of the gamma distribution's log tails by its concentration; bodies of elementwise functions.

With T of the gamma distribution, d log P / da is the mean of log T below x less that of all, and the derivative of
that the variance of log T below x less that of all; likewise above x. The smaller tail is computed, the other follows
from P + Q = 1.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from emfc.special.elementwise import by_region
from emfc.special.gamma_regions import SMALL
from emfc.special.legendre import legendre_rule
from emfc.special.polynomials import polynomial
from emfc.special.stirling import digamma_less_log

__all__ = ["shape_curvatures", "shape_slopes"]

_NODES = {torch.float32: 10, torch.float64: 18}
_REACH = {torch.float32: 15.0, torch.float64: 30.0}  # how far below its largest log the density is integrated
_BEND = tuple(1 / math.factorial(n) for n in range(2, 9))  # of (exp(u) - 1 - u) / u^2
_FLAT = 100.0  # x from which the integrand's exponent needs a series in single precision


def _power_moments(a: Tensor, x: Tensor, *, curvature: bool) -> tuple[Tensor, ...]:
    """For small x, derivatives of the logarithm of the power series DLMF 8.7.1."""
    minus, shifted = -x, a.clone()
    power = torch.ones_like(x)
    total, first, second = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for n in range(1, 15 if a.dtype == torch.float32 else 26):
        power.mul_(minus)
        term = power / shifted.add_(1)
        total.add_(term, alpha=1 / math.factorial(n))
        term.div_(shifted)
        first.add_(term, alpha=1 / math.factorial(n - 1))
        if curvature:
            second.addcdiv_(term, shifted, value=-2 / math.factorial(n - 1))
    whole = 1 + a * total
    ratio = first / whole
    slope = torch.log(x) - torch.digamma(1 + a) + ratio
    if not curvature:
        return (slope,)
    return slope, second / whole - ratio * ratio - torch.polygamma(1, 1 + a)


def _tail_moments(a: Tensor, x: Tensor, *, sign: int, flat: bool, curvature: bool) -> tuple[Tensor, ...]:
    r"""Mean and variance of :math:`\log T` beyond x less those of all, by quadrature in :math:`t = \pm \log (T / x)`.

    The density of t is :math:`\exp(-|x - a| t - x (e^{\pm t} - 1 \mp t))`.
    """
    distance, reach = (x - a).abs(), _REACH[a.dtype]
    if sign < 0:  # t - 1 + exp(-t) is more than t^2 / (2 + 2 t / 3)
        square, linear = distance / 3 + 0.5 * x, 0.5 * (distance - reach / 3)
        length = (torch.sqrt(linear * linear + reach * square) - linear) / square
    else:
        length = 2 * reach / (distance + torch.sqrt(distance * distance + 2 * reach * x))
        length = torch.minimum(length, torch.log1p(reach / x + length))
    drop, mass = distance * length, torch.zeros_like(a)
    mean, square = torch.zeros_like(a), torch.zeros_like(a)
    signed = length * sign
    for node, weight in legendre_rule(_NODES[a.dtype]):
        u = signed * node
        if flat:
            bend = polynomial(_BEND, u).mul_(u).mul_(u)
        else:
            bend = torch.expm1(u).sub_(u)
        part = torch.exp(bend.mul_(x).add_(drop, alpha=node).neg_()).mul_(weight)
        mass.add_(part)
        mean.add_(part, alpha=node)
        if curvature:
            square.add_(part, alpha=node * node)
    mean.div_(mass)
    near = (x - a) / a
    ratio = torch.where(near.abs() < 0.5, torch.log1p(near.clamp(-0.5, 0.5)), torch.log(x) - torch.log(a))
    slope = ratio - digamma_less_log(a) + signed * mean
    if not curvature:
        return (slope,)
    variance = (square / mass - mean * mean) * length * length
    return slope, variance - torch.polygamma(1, a)


def _smaller(a: Tensor, x: Tensor, *, curvature: bool) -> tuple[Tensor, ...]:
    """Derivatives of log P below a and for small x, and of log Q else."""
    info = torch.finfo(x.dtype)
    x = x.clamp(min=info.tiny * info.eps, max=info.max)
    small, above = x <= SMALL, x >= a
    flat = (x >= _FLAT) & (x > 0.5 * a) & (a > 0.5 * x) & (x.dtype == torch.float32)
    moments = partial(_tail_moments, curvature=curvature)
    regions = [
        (small, partial(_power_moments, curvature=curvature)),
        (~(small | above | flat), partial(moments, sign=-1, flat=False)),
        (~(small | flat) & above, partial(moments, sign=1, flat=False)),
        (flat & ~above, partial(moments, sign=-1, flat=True)),
        (flat & above, partial(moments, sign=1, flat=True)),
    ]
    return by_region(regions, (a, x), 1 + curvature)


def _upper(a: Tensor, x: Tensor) -> Tensor:
    """Where `_smaller` is about log Q."""
    return (x > SMALL) & (x >= a)


def shape_slopes(a: Tensor, x: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """First derivatives of log P and log Q by a, given both."""
    slope = _smaller(a, x, curvature=False)[0]
    upper = _upper(a, x)
    limit = math.log(torch.finfo(a.dtype).max) * 0.5
    ratio = torch.exp(torch.where(upper, log_q - log_p, log_p - log_q).clamp(max=limit))
    other = -slope * ratio
    return torch.where(upper, other, slope), torch.where(upper, slope, other)


def shape_curvatures(a: Tensor, x: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """Second derivatives of log P and log Q by a, given both."""
    slope, curvature = _smaller(a, x, curvature=True)
    upper = _upper(a, x)
    limit = math.log(torch.finfo(a.dtype).max) * 0.5
    ratio = torch.exp(torch.where(upper, log_q - log_p, log_p - log_q).clamp(max=limit))
    other = -ratio * (slope * slope * (1 + ratio) + curvature)
    return torch.where(upper, other, curvature), torch.where(upper, curvature, other)
