r"""The von Mises distribution on the circle cut open at :math:`\pm \pi`: both log tails, and their quantile.

Every tail is a sum of at most two integrals of :math:`e^{\kappa \cos t}` over intervals on which it falls, each found
by one rule of Gauss and Legendre on the stretch where it matters; nothing is subtracted, so that tails are exact for
any concentration and next to the cut too.

Source: DLMF 10.32.1, for the normalisation of the density as for the tails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import by_region, differentiable, elementwise, once_only
from emfc.special.legendre import legendre_rule
from emfc.special.normal import log1mexp, ndtri_exp
from emfc.special.roots import increasing_root

__all__ = ["log_bessel_i0e", "von_mises_log_density", "von_mises_quantile", "von_mises_tails"]

_LOG_HALF = -math.log(2)
_LOG_TWO_PI = math.log(2 * math.pi)

# Orders of magnitude (in e) that an integrand falls over the stretch, and nodes of the rule.
_REACH = {torch.float32: (18.0, 14), torch.float64: (38.0, 28)}
_LARGE = 30.0
_SERIES = [1.0]
for _k in range(1, 16):
    _SERIES.append(_SERIES[-1] * (2 * _k - 1) ** 2 / (8 * _k))


def log_bessel_i0e(concentration: Tensor) -> Tensor:
    r""":math:`\log(e^{-\kappa} I_0(\kappa))` for :math:`\kappa \ge 0`, with derivatives that do not cancel.

    Source: DLMF 10.40.1 for large arguments.
    """
    large = concentration > _LARGE
    near = torch.special.i0(torch.where(large, 1.0, concentration)).log() - torch.where(large, 1.0, concentration)
    argument = torch.where(large, concentration, 2 * _LARGE)
    total = torch.zeros_like(argument)
    for coefficient in reversed(_SERIES[1:]):
        total = (total + coefficient) / argument
    far = torch.log1p(total) - 0.5 * (argument.log() + _LOG_TWO_PI)
    return torch.where(large, far, near)


def von_mises_log_density(loc: Tensor, concentration: Tensor, x: Tensor) -> Tensor:
    """Log density, periodic in x.

    Args:
        loc: Mode, any angle.
        concentration: At least 0.
        x: Angles; shapes broadcast.
    """
    turn = torch.sin(0.5 * (x - loc))
    return -2 * concentration * turn * turn - log_bessel_i0e(concentration) - _LOG_TWO_PI


def _stretch(k: Tensor, a: Tensor, length: Tensor) -> Tensor:
    """Length of the interval from a on which the integrand matters."""
    fall = _REACH[k.dtype][0] / k.clamp(min=1e-3)
    sine, cosine = torch.sin(a), torch.cos(a)
    root = sine * sine + 2 * cosine * fall  # the cosine is nearly a parabola on short stretches
    short = torch.where(root > 0, 2 * fall / (sine + root.clamp(min=0).sqrt()).clamp(min=1e-30), math.pi)
    long = torch.where(cosine - fall > -1, torch.acos((cosine - fall).clamp(-1, 1)) - a, math.pi)
    return torch.minimum(length, torch.where(fall < 1e-3, short, long))


def side_moments(k: Tensor, a: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log of the integral of :math:`e^{\kappa (\cos t - 1)}` from a on, and the mean of :math:`1 - \cos t` by it."""
    span = _stretch(k, a, length)
    sine, cosine = torch.sin(a), torch.cos(a)
    total, weighted = torch.zeros_like(a), torch.zeros_like(a)
    for node, weight in legendre_rule(_REACH[a.dtype][1]):
        s = torch.sin((0.5 * node) * span)
        fall = 2 * s * (sine * torch.sqrt(1 - s * s) + cosine * s)
        mass = weight * torch.exp(-k * fall)
        total += mass
        weighted += mass * fall
    turn = torch.sin(0.5 * a)
    first = 2 * turn * turn
    tiny = torch.finfo(a.dtype).tiny
    return span.clamp(min=tiny).log() + total.log() - k * first, first + weighted / total


def _mirrored(loc: Tensor, turn: Tensor, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Flag, mode, angle and distances to both cuts, mirrored where the mode is negative."""
    flip = loc < 0
    return (
        flip,
        loc.abs(),
        torch.where(flip, -turn, turn),
        torch.where(flip, above, below),
        torch.where(flip, below, above),
    )


def _add(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Log of the sum of two integrals, and the mean by both."""
    total = torch.logaddexp(first[0], second[0])
    share = torch.exp(second[0] - total)
    return total, first[1] + share * (second[1] - first[1])


def _from_cut(k: Tensor, m: Tensor, turn: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """The lower tail of a place between the lower cut and the antimode."""
    return *side_moments(k, math.pi - m, low), torch.zeros_like(k)


def _to_cut(k: Tensor, m: Tensor, turn: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """The upper tail of a place above the mode."""
    return *side_moments(k, turn, high), torch.ones_like(k)


def _lower_part(k: Tensor, m: Tensor, turn: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """The lower tail of a place between antimode and mode."""
    log_p, mean = _add(side_moments(k, math.pi - m, m), side_moments(k, -turn, (low - m).clamp(min=0)))
    return log_p, mean, torch.zeros_like(k)


def _upper_part(k: Tensor, m: Tensor, turn: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """The upper tail of a place between antimode and mode."""
    zero, cut = torch.zeros_like(k), math.pi - m
    length = torch.where(high < 1, (high - cut).clamp(min=0), -turn)  # whichever is rounded less
    log_q, mean = _add(side_moments(k, zero, length), side_moments(k, zero, cut))
    return log_q, mean, torch.ones_like(k)


def _small_tail(k: Tensor, m: Tensor, turn: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """Log of the smaller tail (up to the whole integral), the mean by it, and 1 where it is the upper one; m >= 0."""
    inputs = (k, m, turn, low, high)
    first = low < m
    upper = ~first & (turn > 0)
    inner = ~first & ~upper
    results = by_region([(first, _from_cut), (upper, _to_cut), (inner, _lower_part)], inputs, 3)
    half = log_bessel_i0e(k) + _LOG_TWO_PI + _LOG_HALF
    again = inner & (results[0] > half)
    if bool(again.any()):
        results = by_region([(again, _upper_part), (~again, lambda *_: tuple(r[~again] for r in results))], inputs, 3)
    return results


@elementwise("von_mises_tails", inputs=5, outputs=2)
def _tails(k: Tensor, m: Tensor, turn: Tensor, below: Tensor, above: Tensor) -> tuple[Tensor, ...]:
    flip, m, turn, low, high = _mirrored(m, turn, below, above)
    small, _, upper = _small_tail(k, m, turn, low, high)
    small = (small - log_bessel_i0e(k) - _LOG_TWO_PI).clamp(max=1e-3 + _LOG_HALF)
    other = log1mexp(small)
    lower = (upper == 0) ^ flip
    return torch.where(lower, small, other), torch.where(lower, other, small)


@elementwise("von_mises_slope", inputs=5, outputs=2)
def _concentration_slope(k: Tensor, m: Tensor, turn: Tensor, below: Tensor, above: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of both log tails by the concentration."""
    flip, m, turn, low, high = _mirrored(m, turn, below, above)
    small, mean, upper = _small_tail(k, m, turn, low, high)
    zero = torch.zeros_like(k)
    slope = side_moments(k, zero, zero + math.pi)[1] - mean
    small = (small - log_bessel_i0e(k) - _LOG_TWO_PI).clamp(max=1e-3 + _LOG_HALF)
    other = -slope * torch.exp(small - log1mexp(small))
    lower = (upper == 0) ^ flip
    return torch.where(lower, slope, other), torch.where(lower, other, slope)


_slope_once = differentiable(_concentration_slope, once_only("The tails of von Mises laws"))


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    k, m, turn, below, above = inputs
    log_p, log_q = outputs
    by_k: tuple[Tensor | None, ...] = (None, None)
    if wanted[0]:
        by_k = _slope_once(k, m, turn, below, above)
    # The place moves both ends of neither tail; the mode moves the density at the place against that at the cut.
    height = -log_bessel_i0e(k) - _LOG_TWO_PI
    half_turn, half_cut = torch.sin(0.5 * turn), torch.cos(0.5 * m)
    here, cut = height - 2 * k * half_turn * half_turn, height - 2 * k * half_cut * half_cut
    near_low = below < above
    distance = torch.where(near_low, below, above)
    middle = torch.where(near_low, 0.5 * below - m, 0.5 * above + m)
    rise = 2 * torch.sin(middle) * torch.sin(0.5 * distance)  # of the cosine, from the cut to the place
    larger = torch.where(rise > 0, here, cut)
    gain = -torch.expm1(-k * rise.abs()) * torch.where(rise > 0, 1.0, -1.0)
    at_p, at_q = torch.exp(here - log_p), torch.exp(here - log_q)
    by_m_p, by_m_q = -gain * torch.exp(larger - log_p), gain * torch.exp(larger - log_q)
    return (by_k[0], by_m_p, at_p, None, None), (by_k[1], by_m_q, -at_q, None, None)


_tails_differentiable = differentiable(_tails, _partials)


def von_mises_tails(
    loc: Tensor, concentration: Tensor, x: Tensor, below: Tensor | None = None, above: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Log of both tails, :math:`\int_{-\pi}^x f` and :math:`\int_x^\pi f`.

    Args:
        loc: Mode, any angle.
        concentration: At least 0.
        x: Angles strictly between the cuts; shapes broadcast.
        below: Distance of x to :math:`-\pi`, where it is known better than x.
        above: Distance of x to :math:`\pi`, likewise.

    Returns:
        Finite tensors; differentiable once with respect to the first three.

    Source: the integral representation DLMF 10.32.1 of the Bessel function, cut into stretches.
    """
    m = reduced_angle(loc)
    below, above = x + math.pi if below is None else below, math.pi - x if above is None else above
    log_p, log_q = _tails_differentiable(concentration, m, x - m.detach(), below.detach(), above.detach())
    return log_p, log_q


def reduced_angle(loc: Tensor) -> Tensor:
    """The angle in the circle's range."""
    return loc - (2 * math.pi) * torch.round(loc.detach() / (2 * math.pi))


@elementwise("von_mises_quantile", inputs=4, outputs=3)
def _quantile(k: Tensor, m: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """Solved for the log of the distance to the cut where that is nearer than the mode, else for the angle.

    Source: DLMF 10.32.1 as in `von_mises_tails`; Newton's iteration on the log of the smaller tail within a bracket.
    """
    flip = m < 0
    lower = (log_p < log_q) ^ flip
    norm = log_bessel_i0e(k) + _LOG_TWO_PI
    small = torch.minimum(log_p, log_q)
    target = small + norm
    m = m.abs()
    zero = torch.zeros_like(k)
    cut = math.pi - m
    share = torch.where(
        lower, side_moments(k, cut, m)[0], side_moments(k, zero, cut)[0]
    )  # up to the antimode, or the mode
    halfway = torch.where(lower, 0.5 * (math.pi + m), 0.5 * cut)

    def from_end(distance: Tensor, turn: Tensor) -> Tensor:
        """Log of the tail up to a place by its distance to the cut and its angle, of which one is exact."""
        passed = torch.where(lower, distance > m, turn < 0)  # the antimode, or the mode
        first = torch.where(lower, torch.where(passed, -turn, cut), turn.clamp(min=0))
        length = torch.where(passed, torch.where(lower, math.pi + turn, -turn), distance)
        length = torch.where(lower & passed & near, distance - m, length)
        part = side_moments(k, first, length.clamp(min=0))[0]
        return torch.where(passed, torch.logaddexp(part, share), part)

    def turn_at(distance: Tensor) -> Tensor:
        return torch.where(lower, distance - math.pi - m, cut - distance)

    near = torch.ones_like(lower)
    near = target < from_end(halfway, turn_at(halfway))

    def tail(v: Tensor) -> tuple[Tensor, Tensor]:
        distance = torch.where(near, torch.exp(torch.where(near, v, 0.0)), torch.where(lower, math.pi + m + v, cut - v))
        turn = torch.where(near, turn_at(distance), v)
        log_tail = from_end(distance, turn)
        half_turn = torch.sin(0.5 * turn)
        slope = torch.exp(-2 * k * half_turn * half_turn - log_tail) * torch.where(near, distance, 1.0)
        return torch.where(near | lower, log_tail - target, target - log_tail), slope

    def height(turn: Tensor) -> Tensor:
        half = torch.sin(0.5 * turn)
        return -2 * k * half * half

    info = torch.finfo(k.dtype)
    at_cut, at_half = height(cut), height(turn_at(halfway))
    top, bottom = torch.maximum(at_cut, at_half), torch.where(lower, -2 * k, at_cut)
    span = halfway.clamp(min=info.tiny).log()
    margin = 4 * info.eps * (target.abs() + k + 1)
    least = torch.minimum(target - top - margin, span)
    most = torch.minimum(target - bottom + margin, span)
    z = ndtri_exp(small.clamp(max=_LOG_HALF)).abs()
    angle = 2 * torch.asin((0.5 * z / k.clamp(min=info.eps).sqrt()).clamp(max=1))
    angle = torch.minimum(angle, (math.pi * (1 - 2 * torch.exp(small))).clamp(min=0))
    low = torch.where(near, least, torch.where(lower, turn_at(halfway), -math.pi))
    high = torch.where(near, most, torch.where(lower, zero, turn_at(halfway)))
    start = torch.where(near, target - at_cut, torch.where(lower, -angle, angle))
    tolerance = 4 * info.eps * small.abs().clamp(min=1)
    root = increasing_root(tail, low, high, start.clamp(low, high), tolerance=tolerance)
    distance = torch.exp(torch.where(near, root, 0.0))
    below = torch.where(near, torch.where(lower, distance, 2 * math.pi - distance), math.pi + (m + root))
    above = torch.where(near, torch.where(lower, 2 * math.pi - distance, distance), cut - root)
    x = torch.where(near, torch.where(lower, distance - math.pi, math.pi - distance), m + root)
    return torch.where(flip, -x, x), torch.where(flip, above, below), torch.where(flip, below, above)


def von_mises_quantile(
    loc: Tensor, concentration: Tensor, log_p: Tensor, log_q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Angle with these log tails, of which the smaller counts, and its distances to both cuts; without gradients.

    Args:
        loc: Mode, any angle.
        concentration: At least 0.
        log_p: Log of the lower tail.
        log_q: Log of the upper tail; shapes broadcast.
    """
    x, below, above = _quantile(concentration.detach(), reduced_angle(loc.detach()), log_p.detach(), log_q.detach())
    return x, below, above
