"""Both tails of the gamma distribution, each element by its region's expansion; bodies of elementwise functions."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, partial

import torch
from torch import Tensor

from emfc.special.elementwise import Kernel, by_region
from emfc.special.normal import ndtri_exp
from emfc.special.polynomials import polynomial
from emfc.special.stirling import deviance, log_gamma_one_plus, log_gamma_scale

__all__ = ["SMALL", "eta_series", "log_density", "noise_and_density", "tail_and_density", "tails_and_density"]

SMALL = 2.0  # largest x of the power series
_UNIFORM = {torch.float32: 8.0, torch.float64: 20.0}  # smallest concentration of the uniform expansion
_SHORT = 100.0  # concentration from which a shorter one does
_WIDTH = 0.4  # relative distance of x from the concentration up to which it is used
_MIDDLE = 5.0  # x from which the continued fraction is short


def _log_kernel(a: Tensor, x: Tensor, log_x: Tensor) -> Tensor:
    r""":math:`\log (x^a e^{-x} / \Gamma(a))` away from x = a."""

    def plain(a: Tensor, x: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
        return (a * log_x - x - torch.lgamma(a),)

    def scaled(a: Tensor, x: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
        return (log_gamma_scale(a) - (x - a) + a * torch.log(x / a),)

    large = a > _UNIFORM[a.dtype]
    if not bool(large.any()):
        return plain(a, x, log_x)[0]
    return by_region([(large, scaled), (~large, plain)], (a, x, log_x))[0]


def _power_series(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    r"""For small x: :math:`P = x^a / \Gamma(1 + a) \, (1 + a \sum_{n \ge 1} (-x)^n / (n! (a + n)))`, DLMF 8.7.1.

    Its logarithm is relatively exact, so that the upper tail is too.
    """
    shifted, minus = a + 1, -x
    total, power = minus / shifted, minus.clone()
    for n in range(2, 15 if a.dtype == torch.float32 else 26):
        shifted.add_(1)
        power.mul_(minus)
        total.addcdiv_(power, shifted, value=1 / math.factorial(n))
    log_x, scale = torch.log(x), log_gamma_one_plus(a)
    log_p = (a * log_x - scale).add_(torch.log1p(total.mul_(a))).clamp_(max=-torch.finfo(a.dtype).tiny)
    minus_log_q = -torch.log(-torch.expm1(log_p.clamp(min=-0.7)))
    signed = torch.lerp(log_p, minus_log_q, (log_p > -0.7).to(a.dtype))
    return signed, (a - 1) * log_x - x - scale + torch.log(a)


def _lower_fraction(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    r"""For x below a: :math:`P = x^a e^{-x} / \Gamma(a) / (a - x + x / (a + 1 - x + 2 x / (a + 2 - x + \dots)))`.

    Source: Cuyt et al., Handbook of Continued Fractions for Special Functions, 2008, chapter 12.6 (the M-fraction).
    With so many terms what is left out is at most 2e-8 of the tail in float32 and 2e-15 in float64, for x up to a and,
    from the concentrations of the uniform expansion on, up to 0.6 a.
    """
    root = math.sqrt(min(20.0, float(a.max())))
    terms = int(8 + 4 * root if a.dtype == torch.float32 else 13 + 6 * root)
    above = a - x
    value = above + terms
    for n in range(terms, 0, -1):
        value = (above + (n - 1)).addcdiv_(x, value, value=n)
    log_x = torch.log(x)
    kernel = _log_kernel(a, x, log_x)
    return kernel - torch.log(value), kernel - log_x


def _upper_fraction(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    r"""For x above a: :math:`Q = x^a e^{-x} / \Gamma(a) / (x + 1 - a - \dots)`, DLMF 8.9.2 in its even form.

    With as many terms as the smallest x needs, what is left out is at most 2e-8 of the tail in float32 and 2e-16 in
    float64, wherever the uniform expansion isn't used.
    """
    least = float(x.min())
    terms = max(12, int(26 / least) + 3) if a.dtype == torch.float32 else max(19, int(95 / least) + 5)
    below, shifted = x - a, a - terms
    value = below + (2 * terms + 1)
    for n in range(terms, 0, -1):
        value = (below + (2 * n - 1)).addcdiv_(shifted, value, value=n)
        shifted.add_(1)
    log_x = torch.log(x)
    kernel = _log_kernel(a, x, log_x)
    return torch.log(value) - kernel, kernel - log_x


def eta_series(count: int) -> list[Fraction]:
    r"""Taylor coefficients of :math:`\lambda - 1` in :math:`\eta`; :math:`\lambda - 1 - \log \lambda = \eta^2 / 2`."""
    series = [Fraction(0), Fraction(1)]
    for n in range(2, count):
        mixed = sum((series[i] * series[n + 1 - i] for i in range(2, n)), Fraction(0))
        series.append(series[n - 1] / (n + 1) - mixed / 2)
    return series


@cache
def _uniform_coefficients(dtype: torch.dtype, smallest: float) -> tuple[tuple[float, ...], ...]:
    r"""Taylor coefficients of the functions :math:`C_k(\eta)`, as many as tell from the smallest concentration on.

    Source: DLMF 8.12.9 to 8.12.11.
    """
    orders, degree = (6, 10) if dtype == torch.float32 else (12, 20)
    size = degree + 2 * orders + 2
    root = eta_series(size + 1)
    inverse = [Fraction(1)]
    for n in range(1, size):
        inverse.append(-sum((root[i + 1] * inverse[n - i] for i in range(1, n + 1)), Fraction(0)))
    function, least = inverse[1:], 0.05 * torch.finfo(dtype).eps
    table = []
    for _ in range(orders):
        kept = [float(value) for value in function[:degree]]
        while kept and abs(kept[-1]) * 0.48 ** (len(kept) - 1) < least:
            kept.pop()
        if not kept:
            break
        table.append(tuple(kept))
        function = [(n + 2) * function[n + 2] - function[1] * inverse[n + 1] for n in range(len(function) - 2)]
        least *= smallest
    return tuple(table)


def _uniform(a: Tensor, x: Tensor, smallest: float) -> tuple[Tensor, ...]:
    r"""For x near a large a: the error function and a correction.

    Source: Temme, The asymptotic expansion of the incomplete gamma functions, 1979; DLMF 8.12.
    """
    inverse = 1 / a
    offset = (x - a) * inverse
    square = deviance(offset)
    eta = torch.copysign(torch.sqrt(2 * square), offset)
    correction = torch.zeros_like(a)
    for coefficients in reversed(_uniform_coefficients(a.dtype, smallest)):
        correction.mul_(inverse).add_(polynomial(coefficients, eta))
    exponent = square.mul_(a)
    scale = torch.sqrt((2 * math.pi) * a)
    correction.div_(torch.copysign(scale, offset))
    distance = torch.sqrt(exponent)
    if bool((exponent > -0.95 * math.log(torch.finfo(a.dtype).tiny)).any()):
        main = torch.special.erfcx(distance).mul_(0.5).add_(correction)
        small = torch.log(main) - exponent
    else:
        main = torch.erfc(distance).mul_(0.5).addcmul_(torch.exp(-exponent), correction)
        small = torch.log(main)
    log_density = log_gamma_scale(a) - exponent - torch.log(x)
    return torch.copysign(small, offset), log_density


def _within(x: Tensor) -> Tensor:
    """Positive and finite."""
    info = torch.finfo(x.dtype)
    return x.clamp(min=info.tiny * info.eps, max=info.max)


def _is_uniform(a: Tensor, x: Tensor) -> Tensor:
    return (a >= _UNIFORM[a.dtype]) & ((x - a).abs() <= _WIDTH * a)


def log_density(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Log density of the gamma distribution with rate 1."""

    def near(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return (log_gamma_scale(a) - a * deviance((x - a) / a) - torch.log(x),)

    def far(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        log_x = torch.log(x)
        return (_log_kernel(a, x, log_x) - log_x,)

    x = _within(x)
    uniform = _is_uniform(a, x)
    return by_region([(uniform, near), (~uniform, far)], (a, x))


def tail_and_density(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Log of a tail that is at most 0.65, with the sign changed if it is the upper one; log density; for rate 1."""
    x = _within(x)
    first, highest = _UNIFORM[a.dtype], float(a.max())
    small, above = x <= SMALL, x >= a
    regions: list[tuple[Tensor, Kernel]] = []
    rest = ~small
    if highest >= first:
        uniform = _is_uniform(a, x)
        small, rest, large = small & ~uniform, rest & ~uniform, a >= _SHORT
        regions.append((uniform & ~large, partial(_uniform, smallest=first)))
        if highest >= _SHORT:
            regions.append((uniform & large, partial(_uniform, smallest=_SHORT)))
    near = x < _MIDDLE
    regions += [
        (small, _power_series),
        (rest & ~above, _lower_fraction),
        (rest & above & near, _upper_fraction),
        (rest & above & ~near, _upper_fraction),
    ]
    return by_region(regions, (a, x), 2)


def tails_and_density(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Logs of the lower tail, the upper tail and the density of the gamma distribution with rate 1."""
    signed, density = tail_and_density(a, x)
    small, upper = -signed.abs(), (signed > 0).to(a.dtype)
    other = torch.log1p(-torch.exp(small))
    return torch.lerp(small, other, upper), torch.lerp(other, small, upper), density


def noise_and_density(a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Noise whose tails are those of the gamma distribution with rate 1, and log density of that."""
    signed, density = tail_and_density(a, x)
    side = torch.copysign(torch.ones_like(a), signed)
    return ndtri_exp(-signed.abs()).mul_(-side), density
