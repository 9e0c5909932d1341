"""Parts of the gamma function without cancellation: Stirling's error, deviance, and values beside 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from emfc.special.elementwise import halves
from emfc.special.polynomials import differentiable_polynomial, polynomial

__all__ = [
    "deviance",
    "digamma_less_log",
    "log_gamma_one_plus",
    "log_gamma_scale",
    "log_minus_digamma",
    "stirling_error",
]

_EULER = 0.57721566490153286061
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# B_2n / 2n, with the Bernoulli numbers B_2n; from here on series of so many terms are exact to rounding.
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)
_LARGE = {torch.float32: 5.0, torch.float64: 12.0}
_TERMS = {torch.float32: 4, torch.float64: 8}

# B_2n / (2n (2n - 1)).
_SCALE = {
    torch.float32: (1 / 12, -1 / 360, 1 / 1260),
    torch.float64: (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188),
}

# From these arguments on the rational functions of 1 / z^2 below are exact to rounding: numerator and denominator.
_SHIFT = {torch.float32: 2, torch.float64: 4}
_STIRLING_ERROR = {
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
_LOG_LESS_DIGAMMA = {
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


def deviance(x: Tensor) -> Tensor:
    r""":math:`x - \log(1 + x)` for :math:`|x| \le 0.4`, to rounding; not differentiable.

    Source: :math:`\log(1 + x) = 2 \operatorname{artanh} r` with :math:`r = x / (2 + x)`, DLMF 4.6.5.
    """
    r = x / (2 + x)
    square = r * r
    terms = 6 if x.dtype == torch.float32 else 13
    series = polynomial(tuple(2 / (2 * n + 3) for n in range(terms)), square)
    return r * (x - square.mul_(series))


def _rational(coefficients: tuple[Sequence[float], Sequence[float]], z: Tensor) -> tuple[Tensor, Tensor]:
    """A rational function of the square of 1 / z, and 1 / z."""
    inverse = 1 / z
    square = inverse * inverse
    above, below = coefficients
    return polynomial(above, square).div_(polynomial(below, square)), inverse


def stirling_error(z: Tensor) -> Tensor:
    r""":math:`\log \Gamma(z) - (z - \frac12) \log z + z - \frac12 \log 2 \pi` of plain tensors.

    Source: DLMF 5.11.1 as a Pade approximant; below its range :math:`\Gamma(z) = \Gamma(z + k) / (z)_k`.
    """
    shift = _SHIFT[z.dtype]
    small = z < shift
    if not bool(small.any()):
        result, inverse = _rational(_STIRLING_ERROR[z.dtype], z)
        return result.mul_(inverse)
    chosen = halves(small, z)
    low = z.clamp(max=shift)
    up = low + shift
    rising = low * (low + (shift - 1))  # z (z + 1) or, with the next line, z (z + 1) (z + 2) (z + 3)
    rising = rising / (up * up) if shift == 2 else rising * (rising + 2) / (up * up).square_()
    moved = (low - 0.5) * torch.log1p(shift / low) - shift - rising.log_()
    result, inverse = _rational(_STIRLING_ERROR[z.dtype], torch.add(z, chosen, alpha=shift))
    return result.mul_(inverse).addcmul_(moved, chosen)


def log_minus_digamma(z: Tensor) -> Tensor:
    r""":math:`\log z - \psi(z)` of plain tensors, exact where it is small.

    Source: DLMF 5.11.2 as a Pade approximant; below its range the recurrence 5.5.2.
    """
    shift = _SHIFT[z.dtype]
    small = z < shift
    chosen = halves(small, z)
    result, inverse = _rational(_LOG_LESS_DIGAMMA[z.dtype], torch.add(z, chosen, alpha=shift))
    result = result.mul_(inverse).add_(0.5).mul_(inverse)
    if bool(small.any()):
        low = z.clamp(max=shift)
        pair = 1 / low + 1 / (low + (shift - 1))
        if shift == 4:
            pair = pair + (1 / (low + 1) + 1 / (low + 2))
        result.addcmul_(pair - torch.log1p(shift / low), chosen)
    return result


def log_gamma_scale(a: Tensor) -> Tensor:
    r""":math:`a \log a - a - \log \Gamma(a)` for a from 8 (float32) or 20 on; not differentiable.

    That is :math:`\frac12 \log (a / 2\pi)` less Stirling's error, which is so small there that few terms of its
    series, DLMF 5.11.1, are enough.
    """
    inverse = 1 / a
    return 0.5 * torch.log(a) - _HALF_LOG_TWO_PI - inverse * polynomial(_SCALE[a.dtype], inverse * inverse)


@cache
def _one_plus(terms: int) -> tuple[float, ...]:
    """Coefficients of log Gamma(1 + a) + log(1 + a) = a (c_0 + c_1 a + ...): DLMF 5.7.3."""
    coefficients = [1 - _EULER]
    for k in range(2, terms + 1):
        rest = sum(n**-k for n in range(100, 1, -1)) + 100.5 ** (1 - k) / (k - 1) - k / 24 * 100.5 ** (-1 - k)
        rest += 7 / 5760 * k * (k + 1) * (k + 2) * 100.5 ** (-3 - k)
        coefficients.append((-1) ** k * rest / k)
    return tuple(coefficients)


def log_gamma_one_plus(a: Tensor) -> Tensor:
    r""":math:`\log \Gamma(1 + a)` for positive a, relatively exact for small a too; not differentiable.

    Source: DLMF 5.7.3.
    """
    near = a.clamp(max=0.25)
    series = near * polynomial(_one_plus(9 if a.dtype == torch.float32 else 17), near) - torch.log1p(near)
    if not bool((a > 0.25).any()):
        return series
    return torch.where(a > 0.25, torch.lgamma(1 + a), series)


def digamma_less_log(a: Tensor) -> Tensor:
    r""":math:`\psi(a) - \log a`, without cancellation for large a; differentiable, unlike `log_minus_digamma`.

    Source: DLMF 5.11.2.
    """
    limit = _LARGE[a.dtype]
    far = 1 / a.clamp(min=limit)
    square = far * far
    terms = _DIGAMMA[: _TERMS[a.dtype]]
    series = differentiable_polynomial(terms, square)
    near = a.clamp(max=limit)
    return torch.where(a < limit, torch.digamma(near) - torch.log(near), -0.5 * far - square * series)
