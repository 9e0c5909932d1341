r"""The beta density where the concentrations are large, small or very unequal: no part of it cancels.

With :math:`n = a + b` the density in the logit of x is :math:`x^a (1 - x)^b / B(a, b)`. Its logarithm is
:math:`-d(x) + c(a, b)`: the deviance :math:`d = a \log \frac{a}{n x} + b \log \frac{b}{n (1 - x)}`, which is 0 at the
mean, and a constant in which only Stirling errors remain.

Source: Loader, Fast and Accurate Computation of Binomial Probabilities, 2000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import blend, differentiable, elementwise, halves
from emfc.special.polynomials import polynomial
from emfc.special.precision import wide
from emfc.special.stirling import log_minus_digamma, stirling_error

__all__ = [
    "beta_arguments",
    "beta_normaliser",
    "beta_score",
    "beta_weight",
    "density_slopes",
    "linked",
    "log_beta_density",
    "logit_density",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# The series of x - log(1 + x): up to which x it is used, and with how many terms.
_NEAR = {torch.float32: (0.2, 4), torch.float64: (0.1, 6)}


def _excess(u: Tensor, ratio: Tensor) -> Tensor:
    r""":math:`u - \log(1 + u) \ge 0`, where the ratio is 1 + u, also when that is far below 1."""
    bound, count = _NEAR[u.dtype]
    near = u.clamp(-bound, bound)
    r = near / (2 + near)
    square = r * r
    terms = [2 / (2 * k + 3) for k in range(count)]
    series = r * (near - square.mul(polynomial(terms, square)))
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


def beta_arguments(
    concentration1: Tensor, concentration0: Tensor, x: Tensor, complement: Tensor | None, normaliser: Tensor | None
) -> tuple[Tensor, ...]:
    """All five, at least float32; the last two, where they are not given, from the others."""
    a, b, x = wide(concentration1), wide(concentration0), wide(x)
    c = 1 - x if complement is None else wide(complement)
    return a, b, x, c, beta_normaliser(a, b) if normaliser is None else normaliser


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
    return _density_differentiable(*beta_arguments(concentration1, concentration0, x, complement, normaliser))[0]
