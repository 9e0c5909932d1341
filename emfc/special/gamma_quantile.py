"""Quantile of the gamma distribution from log tails, with derivatives by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from emfc.special.elementwise import by_region, differentiable, elementwise
from emfc.special.gamma import bounded_ratio, concentration_slopes, log_gamma_density
from emfc.special.gamma_regions import eta_series, tails_and_density
from emfc.special.normal import log1mexp, ndtri_exp
from emfc.special.polynomials import polynomial
from emfc.special.precision import together
from emfc.special.stirling import log_gamma_one_plus

__all__ = ["gamma_quantile", "gamma_quantile_and_log"]

_ITERATIONS = 40
# A step of Halley's method this small, in units of the spread of log x, is the last one: the error goes by its cube.
_LAST_STEP = {torch.float32: 2e-3, torch.float64: 1e-5}
_LOG_SMALL = -1.2  # log x below which the power series gives the first guess
_FIRST = 0.5  # concentration from which Temme's inversion does

# Taylor coefficients of Temme's second and third correction in eta.
_SECOND = (-7 / 405, -7 / 2592, 533 / 204120, -1579 / 2099520, 109 / 1749600)
_THIRD = (449 / 102060, -63149 / 20995200, 29233 / 36741600)


def _from_power_series(a: Tensor, log_p: Tensor, log_q: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
    """Fixed-point steps on the first terms of DLMF 8.7.1, given its leading one; exact where x is no more than eps."""
    y = log_x
    for _ in range(2):
        x = torch.exp(y)
        total = x * (-1 / (1 + a) + x * (0.5 / (2 + a) - x / (6 * (3 + a))))
        y = log_x - torch.log1p(a * total) / a
    return (torch.exp(y),)


def _from_upper_fraction(a: Tensor, log_p: Tensor, log_q: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
    """Newton steps on the second convergent of the continued fraction of the upper tail, for small a."""
    goal = -(log_q + torch.lgamma(a))
    y = torch.log((goal - (1 - a) * torch.log(goal.clamp(min=1))).clamp(min=0.5))
    for _ in range(4):
        x = torch.exp(y)
        value = x + 1 - a - (1 - a) / (x + 3 - a)
        y = (y + ((a * y - x - torch.log(value) + goal) / value).clamp(-1, 1)).clamp(min=-2)
    return (torch.exp(y),)


@cache
def _series() -> tuple[tuple[float, ...], tuple[float, ...]]:
    r"""Taylor coefficients in :math:`\eta` of :math:`\lambda - 1` and of Temme's first correction.

    That is :math:`\log(\eta / (\lambda - 1)) / \eta`.
    """
    ratio = eta_series(13)
    logs = [Fraction(0)]
    for n in range(1, 9):
        mixed = sum((k * logs[k] * ratio[n + 1 - k] for k in range(1, n)), Fraction(0))
        logs.append(ratio[n + 1] - mixed / n)
    return tuple(map(float, ratio)), tuple(-float(value) for value in logs[1:])


def _log_ratio(eta: Tensor) -> Tensor:
    r"""Solution of :math:`e^\ell - 1 - \ell = \eta^2 / 2` with the sign of eta, by Newton steps."""
    half = 0.5 * eta * eta
    middle = torch.log1p(polynomial(_series()[0], eta.clamp(-1.2, 1.2)))
    right = torch.log(1 + half + torch.log(1 + half + torch.log(1 + half)))
    left = torch.exp(-1 - half) - 1 - half
    log_ratio = torch.where(eta > 1.2, right, torch.where(eta < -1.2, left, middle))
    flat = eta.abs() < 0.02
    for _ in range(2):
        slope = torch.where(flat, 1, torch.expm1(log_ratio))
        log_ratio = log_ratio - torch.where(flat, 0, (slope - log_ratio - half) / slope)
    return log_ratio


def _from_inversion(a: Tensor, log_p: Tensor, log_q: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
    """Temme, Asymptotic inversion of incomplete gamma functions, 1992, section 3."""
    eta = torch.copysign(ndtri_exp(torch.minimum(log_p, log_q)), log_p - log_q).div_(torch.sqrt(a))
    inverse = 1 / a

    def corrected(eta: Tensor, inverse: Tensor, first: Tensor) -> Tensor:
        near = eta.clamp(-1, 1)
        third = polynomial(_THIRD, near).mul_(inverse).add_(polynomial(_SECOND, near))
        return third.mul_(inverse).add_(first).mul_(inverse).add_(eta)

    def flat(eta: Tensor, inverse: Tensor) -> tuple[Tensor, ...]:
        ratio, first = _series()
        return (polynomial(ratio, corrected(eta, inverse, polynomial(first, eta))).add_(1),)

    def steep(eta: Tensor, inverse: Tensor) -> tuple[Tensor, ...]:
        first = torch.log(eta / torch.expm1(_log_ratio(eta))) / eta
        return (torch.exp(_log_ratio(corrected(eta, inverse, first))),)

    small = (eta.abs() < 1) & (inverse < 1)
    return (by_region([(small, flat), (~small & (eta != 0), steep), (eta == 0, flat)], (eta, inverse))[0].mul_(a),)


def _start(a: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First guesses, where they are final, and their logs there."""
    log_x = (log_p + log_gamma_one_plus(a)) / a
    small = log_x < _LOG_SMALL
    regions = [
        (small, _from_power_series),
        (~small & (a < _FIRST), _from_upper_fraction),
        (~small & ~(a < _FIRST), _from_inversion),
    ]
    x = by_region(regions, (a, log_p, log_q, log_x))[0]
    return x, log_x < math.log(torch.finfo(a.dtype).eps), log_x


def _quantile(a: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """Halley's method on the log of the smaller tail as a function of log x, where it is concave."""
    info = torch.finfo(a.dtype)
    lower = log_p < log_q
    target = torch.minimum(log_p, log_q).clamp(min=info.min / 16, max=-0.69)
    other = torch.log1p(-torch.exp(target))
    guess = _start(a, torch.where(lower, target, other), torch.where(lower, other, target))
    result, final, log_final = guess[0].clamp_(min=info.tiny * info.eps, max=info.max), *guess[1:]
    sign = torch.where(lower, 1, -1).to(a.dtype)
    index = (~final).nonzero().squeeze(-1)
    x, low, high = (
        result[index],
        torch.zeros_like(index, dtype=a.dtype),
        torch.full_like(index, info.max, dtype=a.dtype),
    )
    a, sign, target = a[index], sign[index], target[index]
    for _ in range(_ITERATIONS):
        if index.numel() == 0:
            break
        log_lower, log_upper, density = tails_and_density(a, x)
        log_tail = torch.lerp(log_upper, log_lower, 0.5 * (sign + 1))
        residual = (log_tail - target) * sign
        hazard = torch.exp((density + torch.log(x) - log_tail).clamp_(-80, 80))
        newton = residual.neg() / hazard
        step = newton / (a - x).addcmul_(sign, hazard, value=-1).mul_(newton).mul_(0.5).add_(1).clamp_(0.5, 2)
        moved = torch.expm1(step.clamp(-3, 3)).mul_(x).add_(x)
        active = (step.abs() * torch.sqrt(1 + x) > _LAST_STEP[x.dtype]).nonzero().squeeze(-1)
        if active.numel() < index.numel():
            result[index] = moved
            index, x, moved, a, sign = (value[active] for value in (index, x, moved, a, sign))
            residual, target, low, high = (value[active] for value in (residual, target, low, high))
        low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
        middle = torch.sqrt(low.clamp(min=info.tiny)) * torch.sqrt(high)
        x = torch.where((moved > low) & (moved < high), moved, middle)
    result[index] = x  # none, but where the iterations did not suffice
    return result, torch.where(final, log_final, torch.log(result))


_quantile_op = elementwise("gamma_quantile", inputs=3, outputs=2, block=2**18)(_quantile)


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    """For tiny x, whose logarithm alone may be known, those of log P = a log x - log Gamma(1 + a)."""
    (a, log_p, log_q), (x, log_x) = inputs, outputs
    lower = log_p < log_q
    small = torch.where(lower, log_p, log_q)
    other = log1mexp(small)
    log_p, log_q = torch.where(lower, small, other), torch.where(lower, other, small)
    tiny = log_x < math.log(torch.finfo(x.dtype).eps)
    log_step = torch.where(tiny, small - log_p - torch.log(a), small - log_gamma_density(a, x) - log_x)
    step = bounded_ratio(log_step)
    by_p, by_q = torch.where(lower, step, 0), torch.where(lower, 0, -step)
    if not wanted[0]:
        return (None, x * by_p, x * by_q), (None, by_p, by_q)
    slope_p, slope_q = concentration_slopes(a, x, log_p, log_q)
    by_a = torch.where(tiny, (torch.digamma(1 + a) - log_x) / a, step * torch.where(lower, -slope_p, slope_q))
    return (x * by_a, x * by_p, x * by_q), (by_a, by_p, by_q)


_differentiable_quantile = differentiable(_quantile_op, _partials)


def gamma_quantile_and_log(concentration: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """`gamma_quantile` and its logarithm, which is finite and exact also where the quantile itself underflows."""
    x, log_x = _differentiable_quantile(*together(concentration, log_p, log_q))
    return x, log_x


def gamma_quantile(concentration: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""The x with :math:`\log P(a, x)` and :math:`\log Q(a, x)` as given, the quantile of the gamma distribution.

    It is solved on the smaller tail, in logs, by Halley's method within a bracket, from the power series for small x,
    the continued fraction for small a, and Temme's asymptotic inversion else.

    Args:
        concentration: Positive numbers a, from 1e-3 to 1e6 tested.
        log_p: Log of the lower tail.
        log_q: Log of the upper tail; only the smaller of the two is used.

    Returns:
        Positive numbers of the common shape; the smallest one of the dtype where x underflows. Differentiable with
        respect to all arguments by the implicit function theorem.

    Source: Temme, Asymptotic inversion of incomplete gamma functions, 1992; DiDonato and Morris, Computation of the
    incomplete gamma function ratios and their inverse, 1986, for the other guesses.
    """
    return gamma_quantile_and_log(concentration, log_p, log_q)[0]
