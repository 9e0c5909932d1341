r"""The beta density where the concentrations are large, small or very unequal: no part of it cancels.

With :math:`n = a + b` the density in the logit of x is :math:`x^a (1 - x)^b / B(a, b)`. Its logarithm is
:math:`-d(x) + c(a, b)`: the deviance :math:`d = a \log \frac{a}{n x} + b \log \frac{b}{n (1 - x)}`, which is 0 at the
mean, and a constant in which only Stirling errors remain.

Source: Loader, Fast and Accurate Computation of Binomial Probabilities, 2000; DLMF 5.11.1 and 5.11.2 for the series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import differentiable, elementwise
from emfc.special.precision import wide

__all__ = [
    "beta_normaliser",
    "beta_score",
    "beta_weight",
    "blend",
    "density_slopes",
    "halves",
    "linked",
    "log_beta_density",
    "log_minus_digamma",
    "logit_density",
    "stirling_error",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# From these arguments on the rational functions of 1 / z^2 below are exact to rounding: numerator and denominator.
_SHIFT = {torch.float32: 2, torch.float64: 4}
_STIRLING = {
    torch.float32: (
        (0.08333333333333333, 0.4647060927390614, 0.458094907648311, 0.04828132693023631),
        (1.0, 5.60980644620207, 5.674608630462658, 0.7222456732620475),
    ),
    torch.float64: (
        (
            *(0.08333333333333333, 3.369711374732801, 42.3535834956448, 199.69121239954654),
            *(339.63350493142246, 166.22799901887467, 11.045334177775924),
        ),
        (
            *(1.0, 40.469869830126946, 509.582473799218, 2412.9023467799598),
            *(4151.457940474618, 2113.3919957972857, 176.39473606965802),
        ),
    ),
}
_DIGAMMA = {
    torch.float32: (
        (0.08333333333333333, 0.5696266220467114, 0.7255371141831785, 0.10332247024984782),
        (1.0, 6.935519464560538, 9.352378269035148, 1.8948446382559487),
    ),
    torch.float64: (
        (
            *(0.08333333333333333, 3.7729410303106845, 53.998380847585004, 296.4920123848431),
            *(605.5286298634184, 370.55436203359983, 31.28628508165822),
        ),
        (
            *(1.0, 45.375292363728214, 652.4704803597738, 3621.0404684462983),
            *(7599.555437858653, 5062.929000684202, 652.0663554508749),
        ),
    ),
}
# The series of x - log(1 + x): up to which x it is used, and with how many terms.
_NEAR = {torch.float32: (0.2, 4), torch.float64: (0.1, 6)}


def blend(no: Tensor, yes: Tensor, choice: Tensor) -> Tensor:
    """The second where the choice is 1, the first where it is 0; exact, and faster than a choice by sign."""
    return torch.lerp(no, yes, choice)


def halves(choice: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers 0 and 1 for `blend`."""
    return choice.to(like.dtype)


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result.mul_(x).add_(coefficient)
    return result


def _rational(coefficients: tuple[Sequence[float], Sequence[float]], z: Tensor) -> tuple[Tensor, Tensor]:
    """A rational function of the square of 1 / z, and 1 / z."""
    inverse = 1 / z
    square = inverse * inverse
    above, below = coefficients
    return _horner(above, square).div_(_horner(below, square)), inverse


def stirling_error(z: Tensor) -> Tensor:
    r""":math:`\log \Gamma(z) - (z - \frac12) \log z + z - \frac12 \log 2 \pi` of plain tensors.

    Source: DLMF 5.11.1 as a Pade approximant; below its range :math:`\Gamma(z) = \Gamma(z + k) / (z)_k`.
    """
    shift = _SHIFT[z.dtype]
    small = z < shift
    if not bool(small.any()):
        result, inverse = _rational(_STIRLING[z.dtype], z)
        return result.mul_(inverse)
    chosen = halves(small, z)
    low = z.clamp(max=shift)
    up = low + shift
    rising = low * (low + (shift - 1))  # z (z + 1) or, with the next line, z (z + 1) (z + 2) (z + 3)
    rising = rising / (up * up) if shift == 2 else rising * (rising + 2) / (up * up).square_()
    moved = (low - 0.5) * torch.log1p(shift / low) - shift - rising.log_()
    result, inverse = _rational(_STIRLING[z.dtype], torch.add(z, chosen, alpha=shift))
    return result.mul_(inverse).addcmul_(moved, chosen)


def log_minus_digamma(z: Tensor) -> Tensor:
    r""":math:`\log z - \psi(z)` of plain tensors, exact where it is small.

    Source: DLMF 5.11.2 as a Pade approximant; below its range the recurrence 5.5.2.
    """
    shift = _SHIFT[z.dtype]
    small = z < shift
    chosen = halves(small, z)
    result, inverse = _rational(_DIGAMMA[z.dtype], torch.add(z, chosen, alpha=shift))
    result = result.mul_(inverse).add_(0.5).mul_(inverse)
    if bool(small.any()):
        low = z.clamp(max=shift)
        pair = 1 / low + 1 / (low + (shift - 1))
        if shift == 4:
            pair = pair + (1 / (low + 1) + 1 / (low + 2))
        result.addcmul_(pair - torch.log1p(shift / low), chosen)
    return result


def _excess(u: Tensor, ratio: Tensor) -> Tensor:
    r""":math:`u - \log(1 + u) \ge 0`, where the ratio is 1 + u, also when that is far below 1."""
    bound, count = _NEAR[u.dtype]
    near = u.clamp(-bound, bound)
    r = near / (2 + near)
    square = r * r
    terms = [2 / (2 * k + 3) for k in range(count)]
    series = r * (near - square.mul(_horner(terms, square)))
    return blend(u - ratio.log(), series, halves(u == near, u))


def _deviance(a: Tensor, b: Tensor, x: Tensor, c: Tensor) -> Tensor:
    n = a + b
    lead = b * x - a * c
    return a * _excess(lead / a, x * (n / a)) + b * _excess(-lead / b, c * (n / b))


def beta_weight(a: Tensor, b: Tensor) -> Tensor:
    """The smaller parameter, or 1: what the density is proportional to where a parameter is small."""
    return torch.minimum(a, b).clamp(max=1)


def logit_density(a: Tensor, b: Tensor, x: Tensor, c: Tensor, normaliser: Tensor) -> Tensor:
    """Log density in the logit of x less the log of `beta_weight`; of plain tensors, given x and 1 - x."""
    return normaliser - _deviance(a, b, x, c)


@elementwise("beta_normaliser", inputs=2)
def _normaliser(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    n = a + b
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    tiny = small < 1
    raised = torch.where(tiny, 1 + small, small)  # whose gamma function is that of a times a
    total, first, second = stirling_error(torch.cat((n, raised, large))).chunk(3)
    spread = 0.5 * torch.log(large / n * raised) - _HALF_LOG_TWO_PI + (total - first - second)
    if bool(tiny.any()):
        part = small.clamp(max=1)
        spread = spread + torch.where(tiny, 1 + part * torch.log(part) - (1 + part) * torch.log1p(part), 0)
    return (spread,)


def beta_normaliser(a: Tensor, b: Tensor) -> Tensor:
    """Log density at the mean, in the logit, less the log of `beta_weight`.

    It has no gradients: it is for the functions below, which have their own.
    """
    return _normaliser(a.detach(), b.detach())[0]


def linked(x: Tensor, c: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """A derivative by x as one by x and one by its complement: the smaller of the two carries it."""
    lower = halves(x <= c, slope)
    return slope * lower, slope * (lower - 1)


@elementwise("beta_score", inputs=4, outputs=2)
def _score(a: Tensor, b: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    n = a + b
    lead = b * x - a * c
    common = log_minus_digamma(n)

    def one(parameter: Tensor, place: Tensor, lead: Tensor) -> Tensor:
        u = lead / parameter
        near = u.clamp(-0.5, 0.5)
        log_ratio = blend(torch.log(place * (n / parameter)), torch.log1p(near), halves(u == near, u))
        return log_ratio + log_minus_digamma(parameter) - common

    return one(a, x, lead), one(b, c, -lead)


def _score_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    a, b, x, c = inputs
    common, first, second = (torch.special.polygamma(1, z) for z in (a + b, a, b))
    return (
        (common - first, common, *linked(x, c, 1 / x)),
        (common, common - second, *linked(x, c, -1 / c)),
    )


_score_differentiable = differentiable(_score, _score_partials)


def beta_score(a: Tensor, b: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Derivatives of the log density by both concentrations, :math:`\log x - \psi(a) + \psi(a + b)` and its mirror."""
    first, second = _score_differentiable(a, b, x, c)
    return first, second


@elementwise("log_beta_density", inputs=5)
def _log_density(a: Tensor, b: Tensor, x: Tensor, c: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    weight = torch.log(beta_weight(a, b))
    return (logit_density(a, b, x, c, normaliser) + weight - torch.log(x) - torch.log(c),)


def density_slopes(a: Tensor, b: Tensor, x: Tensor, c: Tensor, *, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Derivatives of the log density by a, b, x and c, and a constant that has none."""
    limit = torch.finfo(x.dtype).max / 64
    first, second = beta_score(a, b, x, c) if wanted[0] or wanted[1] else (None, None)
    slope = ((a - 1) / x - (b - 1) / c).clamp(-limit, limit)
    return (first, second, *linked(x, c, slope), None)


def _density_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    return (density_slopes(*inputs[:4], wanted=wanted),)


_density_differentiable = differentiable(_log_density, _density_partials)


def log_beta_density(
    concentration1: Tensor,
    concentration0: Tensor,
    x: Tensor,
    complement: Tensor | None = None,
    *,
    normaliser: Tensor | None = None,
) -> Tensor:
    r"""Log density of the Beta distribution, :math:`\log \frac{x^{a - 1} (1 - x)^{b - 1}}{B(a, b)}`.

    Args:
        concentration1: a, positive.
        concentration0: b, positive, of a shape that broadcasts.
        x: Between 0 and 1, exclusive.
        complement: 1 - x where it is known better than x; the smaller of the two carries the gradient.
        normaliser: `beta_normaliser(a, b)` where it is known already.

    Returns:
        A tensor of the common shape, differentiable any number of times.

    Source: Loader, Fast and Accurate Computation of Binomial Probabilities, 2000.
    """
    a, b, x = wide(concentration1), wide(concentration0), wide(x)
    c = 1 - x if complement is None else wide(complement)
    constant = beta_normaliser(a, b) if normaliser is None else normaliser
    return _density_differentiable(a, b, x, c, constant)[0]
