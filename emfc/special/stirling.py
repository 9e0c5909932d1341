"""Parts of the gamma function without cancellation: Stirling's error, deviance, and values beside 1."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

__all__ = ["deviance", "digamma_less_log", "log_gamma_one_plus", "log_gamma_scale", "polynomial", "stirling_error"]

_EULER = 0.57721566490153286061
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# B_2n / (2n (2n - 1)) and B_2n / 2n, with the Bernoulli numbers B_2n.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)

# From here on the series of so many terms are exact to rounding.
_LARGE = {torch.float32: 5.0, torch.float64: 12.0}
_TERMS = {torch.float32: 4, torch.float64: 8}


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Value of a polynomial, constant term first, by Horner's scheme; not differentiable."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result.mul_(x).add_(coefficient)
    return result


def deviance(x: Tensor) -> Tensor:
    r""":math:`x - \log(1 + x)` for :math:`|x| \le 0.4`, to rounding; not differentiable.

    Source: :math:`\log(1 + x) = 2 \operatorname{artanh} r` with :math:`r = x / (2 + x)`, DLMF 4.6.5.
    """
    r = x / (2 + x)
    square = r * r
    terms = 6 if x.dtype == torch.float32 else 13
    series = polynomial(tuple(2 / (2 * n + 3) for n in range(terms)), square)
    return r * (x - square.mul_(series))


def stirling_error(a: Tensor) -> Tensor:
    r""":math:`\log \Gamma(a) - (a - \frac12) \log a + a - \frac12 \log 2\pi` for a from 5 (float32) or 12 on.

    Source: DLMF 5.11.1.
    """
    inverse = 1 / a
    return inverse * polynomial(_STIRLING[: _TERMS[a.dtype]], inverse * inverse)


def log_gamma_scale(a: Tensor) -> Tensor:
    r""":math:`a \log a - a - \log \Gamma(a)` for large a: :math:`\frac12 \log (a / 2\pi)` less Stirling's error."""
    return 0.5 * torch.log(a) - _HALF_LOG_TWO_PI - stirling_error(a)


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
    r""":math:`\psi(a) - \log a`, without cancellation for large a; differentiable.

    Source: DLMF 5.11.2.
    """
    limit = _LARGE[a.dtype]
    far = 1 / a.clamp(min=limit)
    square = far * far
    terms = _DIGAMMA[: _TERMS[a.dtype]]
    series = torch.full_like(square, terms[-1])
    for term in reversed(terms[:-1]):
        series = series * square + term
    near = a.clamp(max=limit)
    return torch.where(a < limit, torch.digamma(near) - torch.log(near), -0.5 * far - square * series)
