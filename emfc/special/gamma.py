"""The gamma distribution in logs: both tails, density, and their derivatives, by the concentration too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import by_region, differentiable, elementwise
from emfc.special.gamma_regions import log_density, noise_and_density, tails_and_density
from emfc.special.gamma_shape import shape_curvatures, shape_slopes
from emfc.special.normal import log_normal_density, ndtri_exp, tails_from_noise
from emfc.special.precision import together
from emfc.special.ratios import bounded_exp
from emfc.special.stirling import digamma_less_log, log_gamma_one_plus

__all__ = [
    "bounded_ratio",
    "concentration_slopes",
    "gamma_noise_and_density",
    "log_gamma_density",
    "log_gamma_leading",
    "log_gamma_tails",
    "log_gamma_tails_and_density",
]

_Partials = tuple[tuple[Tensor | None, ...], ...]

# Much larger blocks than usual, for the body is a sorting into regions.
_BLOCK = 2**18

_tails_op = elementwise("gamma_tails_and_density", inputs=2, outputs=3, block=_BLOCK)(tails_and_density)
_noise_op = elementwise("gamma_noise_and_density", inputs=2, outputs=2, block=_BLOCK)(noise_and_density)
_density_op = elementwise("gamma_log_density", inputs=2, block=_BLOCK)(log_density)
_slopes_op = elementwise("gamma_shape_slopes", inputs=4, outputs=2, block=_BLOCK)(shape_slopes)
_curvatures_op = elementwise("gamma_shape_curvatures", inputs=4, outputs=2, block=_BLOCK)(shape_curvatures)


def bounded_ratio(exponent: Tensor) -> Tensor:
    """Exponential that is far enough from overflow that noise times it doesn't overflow either."""
    return bounded_exp(exponent, room=5)


def _density_by_concentration(a: Tensor, x: Tensor) -> Tensor:
    r""":math:`\log x - \psi(a)`, from the logs of x / a and of a less :math:`\psi(a)`."""
    offset = (x - a) / a
    near = offset.abs() < 0.5
    ratio = torch.where(near, torch.log1p(torch.where(near, offset, 0)), torch.log(x) - torch.log(a))
    return ratio - digamma_less_log(a)


def _density_slopes(a: Tensor, x: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Derivatives of the log density."""
    by_a = by_x = None
    if wanted[0]:
        by_a = _density_by_concentration(a, x)
    if wanted[1]:
        info = torch.finfo(x.dtype)
        by_x = ((a - 1 - x) / x.clamp(min=info.tiny)).clamp(info.min / 150, info.max / 150)
    return by_a, by_x


def _density_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    a, x = inputs
    return (_density_slopes(a, x, wanted),)


def _slopes_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    """Second derivatives of the log tails, which the tails as further inputs must not count again."""
    a, x, log_p, log_q = inputs
    by_a: Sequence[Tensor | None] = (None, None)
    by_x: Sequence[Tensor | None] = (None, None)
    if wanted[0]:
        by_a = _curvatures_op(a, x, log_p, log_q)
    if wanted[1]:
        density = _density(a, x)[0]
        density_slope = _density_by_concentration(a, x)
        by_x = tuple(
            sign * bounded_ratio(density - tail) * (density_slope - slope)
            for sign, tail, slope in zip((1, -1), (log_p, log_q), outputs, strict=True)
        )
    return tuple((first, second, None, None) for first, second in zip(by_a, by_x, strict=True))


def _tails_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    (a, x), (log_p, log_q, density) = inputs, outputs
    by_a: Sequence[Tensor | None] = (None, None)
    by_x: Sequence[Tensor | None] = (None, None)
    if wanted[0]:
        by_a = concentration_slopes(a, x, log_p, log_q)
    if wanted[1]:
        by_x = bounded_ratio(density - log_p), -bounded_ratio(density - log_q)
    return *zip(by_a, by_x, strict=True), _density_slopes(a, x, wanted)


def _noise_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    (a, x), (noise, density) = inputs, outputs
    normal = log_normal_density(noise)
    by_a = by_x = None
    if wanted[0]:
        log_p, log_q = tails_from_noise(noise)
        slope_p, slope_q = concentration_slopes(a, x, log_p, log_q)
        lower = noise < 0
        mills = bounded_ratio(torch.where(lower, log_p, log_q) - normal)
        by_a = mills * torch.where(lower, slope_p, -slope_q)
    if wanted[1]:
        by_x = bounded_ratio(density - normal)
    return (by_a, by_x), _density_slopes(a, x, wanted)


_density = differentiable(_density_op, _density_partials)
_slopes = differentiable(_slopes_op, _slopes_partials)
_tails = differentiable(_tails_op, _tails_partials)
_noise = differentiable(_noise_op, _noise_partials)


def concentration_slopes(concentration: Tensor, x: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    r"""Derivatives of both log tails by the concentration, of :math:`\log P(a, x)` and :math:`\log Q(a, x)`.

    The smaller tail's is the mean of :math:`\log T` beyond x less :math:`\psi(a)`: by the power series for small x, and
    by Gauss-Legendre quadrature else.

    Args:
        concentration: Positive numbers a.
        x: Positive numbers.
        log_p: Their log lower tail.
        log_q: Their log upper tail.

    Returns:
        Two tensors of the common shape. They have derivatives by a and x, in which the tails are functions of both.

    Source: differentiation of DLMF 8.2.2 and 8.7.1 under integral and sum.
    """
    by_p, by_q = _slopes(concentration, x, log_p.detach(), log_q.detach())
    return by_p, by_q


def log_gamma_tails_and_density(concentration: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both of `log_gamma_tails` and `log_gamma_density` in one pass, which costs no more than the tails alone."""
    log_p, log_q, density = _tails(*together(concentration, x))
    return log_p, log_q, density


def gamma_noise_and_density(concentration: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The normal quantile of P(a, x), from the smaller tail in logs, and `log_gamma_density`, in one pass.

    Args:
        concentration: Positive numbers a.
        x: Positive numbers, of a shape that broadcasts against those.

    Returns:
        Finite noise and the log density, differentiable with respect to both arguments.
    """
    noise, density = _noise(*together(concentration, x))
    return noise, density


def _first_term(a: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
    scale = log_gamma_one_plus(a)
    log_p = a * log_x - scale
    return log_p, (a - 1) * log_x + torch.log(a) - scale, ndtri_exp(log_p)


def _nothing(a: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
    return torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a)


@elementwise("gamma_leading", inputs=2, outputs=3, block=_BLOCK)
def _leading(a: Tensor, log_x: Tensor) -> tuple[Tensor, ...]:
    small = log_x < math.log(torch.finfo(a.dtype).eps)
    return by_region([(small, _first_term), (~small, _nothing)], (a, log_x), 3)


def _leading_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    (a, log_x), (log_p, _, noise) = inputs, outputs
    by_a = log_x - torch.digamma(1 + a) if wanted[0] else None
    mills = bounded_ratio(log_p - log_normal_density(noise))
    return (
        (by_a, a),
        (None if by_a is None else by_a + 1 / a, a - 1),
        (None if by_a is None else mills * by_a, mills * a),
    )


_leading_differentiable = differentiable(_leading, _leading_partials)


def log_gamma_leading(concentration: Tensor, log_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log lower tail, log density and noise for x so small that 1 - x is 1: :math:`a \log x - \log \Gamma(1 + a)`.

    Args:
        concentration: Positive numbers a.
        log_x: Logs of positive numbers, which themselves may be too small for a number. Where one is not so small,
            the results are 0, and cost nothing.

    Source: the first term of DLMF 8.7.1.
    """
    log_p, density, noise = _leading_differentiable(*together(concentration, log_x))
    return log_p, density, noise


def log_gamma_tails(concentration: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logs of the regularised incomplete gamma functions, :math:`\log P(a, x)` and :math:`\log Q(a, x)`.

    Each element is computed by the expansion of its region, the smaller tail directly, so that both logs are exact
    to rounding wherever they are: a power series for small x, continued fractions on either side of a, and Temme's
    uniform expansion around a large a.

    Args:
        concentration: Positive numbers a, from 1e-3 to 1e6 tested.
        x: Positive numbers, of a shape that broadcasts against those.

    Returns:
        Log of the lower and of the upper tail, finite, differentiable with respect to both arguments.

    Source: DLMF 8.7.1, 8.9.2, 8.12; Temme, The asymptotic expansion of the incomplete gamma functions, 1979; Cuyt et
    al., Handbook of Continued Fractions for Special Functions, 2008, chapter 12.6.
    """
    log_p, log_q, _ = log_gamma_tails_and_density(concentration, x)
    return log_p, log_q


def log_gamma_density(concentration: Tensor, x: Tensor) -> Tensor:
    r"""Log density of the gamma distribution with rate 1, :math:`(a - 1) \log x - x - \log \Gamma(a)`.

    Without cancellation for large a: :math:`-a (\lambda - 1 - \log \lambda) + \frac12 \log (a / 2 \pi)` less Stirling's
    error and log x, with :math:`\lambda = x / a`.

    Args:
        concentration: Positive numbers a.
        x: Positive numbers, of a shape that broadcasts against those.

    Returns:
        A tensor of the common shape, differentiable with respect to both arguments.

    Source: Loader, Fast and accurate computation of binomial probabilities, 2000.
    """
    return _density(*together(concentration, x))[0]
