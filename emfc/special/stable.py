"""The stable (Levy) laws in logs: both tails, density and quantile, with derivatives by every argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import differentiable, elementwise, once_only
from emfc.special.normal import log1mexp, log_normal_density, noise_from_tails
from emfc.special.precision import together
from emfc.special.ratios import side_of
from emfc.special.roots import Bracket, Function, increasing_inverse
from emfc.special.stable_exponent import edge_of
from emfc.special.stable_guess import guess
from emfc.special.stable_integral import upper_tail, upper_tail_slopes

__all__ = ["log_stable_density", "log_stable_tails", "log_stable_tails_and_density", "stable_draw", "stable_quantile"]

_Partials = tuple[tuple[Tensor | None, ...], ...]
_BLOCK = 2**14


def _steepest(dtype: torch.dtype) -> float:
    """The largest derivative that is told, so that products of two are finite."""
    largest: float = torch.finfo(dtype).max ** 0.45
    return largest


def _inside(alpha: Tensor, beta: Tensor, x: Tensor) -> Tensor:
    """Distances that are at most where the law, seen from its side, ends."""
    return torch.minimum(x, edge_of(alpha, beta) * (1 - 8 * torch.finfo(x.dtype).eps))


def _mirrored(alpha: Tensor, beta: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sign of the side, the skew seen from there, and the distance, at most where the law ends."""
    side = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
    skew = side * beta
    return side, skew, _inside(alpha, skew, z.abs().clamp(max=torch.finfo(z.dtype).max))


def _tails(alpha: Tensor, beta: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    side, skew, x = _mirrored(alpha, beta, z)
    tail, density = upper_tail(alpha, skew, x)
    tail = tail.clamp(max=-torch.finfo(z.dtype).tiny)
    rest = log1mexp(tail)
    upper = side > 0
    return torch.where(upper, rest, tail), torch.where(upper, tail, rest), density


def _slopes(alpha: Tensor, beta: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of the log of the tail beyond z, seen from 0, and of the log density, by all three."""
    side, skew, x = _mirrored(alpha, beta, z)
    tail, density, tail_alpha, tail_beta, by_x, by_alpha, by_beta = upper_tail_slopes(alpha, skew, x)
    limit = _steepest(z.dtype)
    tail_x = -torch.exp((density - tail).clamp(max=math.log(limit)))
    return tail_alpha, side * tail_beta, side * tail_x, by_alpha, side * by_beta, side * by_x


_tails_op = elementwise("stable_tails_and_density", inputs=3, outputs=3, block=_BLOCK)(_tails)
_slopes_op = elementwise("stable_slopes", inputs=3, outputs=6, block=_BLOCK)(_slopes)


_slopes_once = differentiable(_slopes_op, once_only("Stable laws"))


def _tails_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    log_p, log_q, _ = outputs
    found = _slopes_once(*inputs)
    upper = inputs[2] >= 0
    odds = -torch.exp(torch.where(upper, log_q - log_p, log_p - log_q))
    tail = found[:3]
    other = tuple(odds * part for part in tail)
    lower_rows = tuple(torch.where(upper, second, first) for first, second in zip(tail, other, strict=True))
    upper_rows = tuple(torch.where(upper, first, second) for first, second in zip(tail, other, strict=True))
    return lower_rows, upper_rows, found[3:]


def _sinh(height: Tensor) -> Tensor:
    """Hyperbolic sine, finite up to the largest number."""
    limit = torch.finfo(height.dtype).max
    size = height.abs()
    far = torch.exp((size - math.log(2)).clamp(min=10))
    return torch.copysign(torch.where(size > 20, far, torch.sinh(size.clamp(max=20))).clamp(max=limit), height)


def _solve(alpha: Tensor, beta: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Quantile and log density there, solved in the inverse hyperbolic sine of the position."""
    info = torch.finfo(noise.dtype)
    limit = math.asinh(info.max) * (1 - 4 * info.eps)

    def function_of(places: Tensor | None) -> Function:
        some = (alpha, beta) if places is None else (alpha[places], beta[places])

        def function(height: Tensor) -> tuple[Tensor, Tensor]:
            z = _sinh(height)
            log_p, log_q, density = _tails(*some, z)
            found = noise_from_tails(log_p, log_q)
            stretch = height.abs() + torch.log1p(torch.exp(-2 * height.abs())) - math.log(2)
            return found, torch.exp(log_normal_density(found) - density - stretch)

        return function

    start = guess(alpha, beta, noise).clamp(-0.99 * limit, 0.99 * limit)
    bound = torch.full_like(start, limit)
    root = increasing_inverse(
        function_of(None),
        noise,
        Bracket(-bound, bound),
        start,
        tolerance=8 * info.eps * noise.abs().clamp(min=1),
        take=function_of,
    )
    z = _sinh(root.at)
    z = torch.where(noise.isnan(), noise, -_inside(alpha, -beta, -_inside(alpha, beta, z)))
    return z, _tails(alpha, beta, z)[2]


_solve_op = elementwise("stable_solve", inputs=3, outputs=2, block=_BLOCK)(_solve)


def _solve_partials(inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]) -> _Partials:
    alpha, beta, noise = inputs
    z, density = outputs
    found = _slopes_once(alpha, beta, z)
    info = torch.finfo(z.dtype)
    limit = info.max * info.eps  # which leaves room for a scale; draws of heavy tails move by as much as their size
    by_noise = torch.exp((log_normal_density(noise) - density).clamp(max=math.log(limit)))
    steep = torch.where(found[2] == 0, 1, found[2])
    by_z = [-found[0] / steep, -found[1] / steep, by_noise]
    by_z = [part.clamp(-limit, limit) for part in by_z]
    of_density = [found[3] + found[5] * by_z[0], found[4] + found[5] * by_z[1], found[5] * by_z[2]]
    return tuple(by_z), tuple(part.clamp(-limit, limit) for part in of_density)


_tails_differentiable = differentiable(_tails_op, _tails_partials)
_solve_differentiable = differentiable(_solve_op, _solve_partials)


def log_stable_tails_and_density(stability: Tensor, skew: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both of `log_stable_tails` and `log_stable_density` in one pass, which costs no more than one of them."""
    alpha, beta, z = together(stability, skew, z)
    log_p, log_q, density = _tails_differentiable(alpha, beta, z)
    side = side_of(z)
    margin = 1 + 16 * torch.finfo(z.dtype).eps
    outside = z.abs() > edge_of(alpha.detach(), side * beta.detach()) * margin
    return log_p, log_q, torch.where(outside, -torch.inf, density)


def log_stable_tails(stability: Tensor, skew: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logs of both tails of a stable law with scale 1 and location 0, in the parametrisation :math:`S_0`.

    Its characteristic function is :math:`\exp(-|u|^{\alpha} (1 + i \beta \tan \tfrac{\pi \alpha}{2}
    \operatorname{sign} u\, (|u|^{1 - \alpha} - 1)))`, continuous in all parameters. The tail on the side of z is
    integrated along a path of nearly steepest descent, without cancellation; its error is that of rounding, for power
    laws and light tails alike.

    Args:
        stability: Numbers :math:`\alpha` from 0.1 to 2.
        skew: Numbers :math:`\beta` from -1 to 1.
        z: Real numbers. Beyond the end of a law that has one (stability below 1, skew -1 or 1) they count as at it.

    Returns:
        Log of the lower and of the upper tail, in the common shape, finite, with derivatives of first order.

    Source: Zolotarev, One-dimensional Stable Distributions, 1986, and Nolan, Numerical calculation of stable densities
    and distribution functions, Stochastic Models 13, 1997, for the integral along the path of constant phase; the paths
    here are smooth ones near it.
    """
    log_p, log_q, _ = log_stable_tails_and_density(stability, skew, z)
    return log_p, log_q


def log_stable_density(stability: Tensor, skew: Tensor, z: Tensor) -> Tensor:
    """Log density of a stable law with scale 1 and location 0, as of `log_stable_tails`; -inf beyond its end."""
    return log_stable_tails_and_density(stability, skew, z)[2]


def stable_draw(stability: Tensor, skew: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The quantile of standard normal noise as of `stable_quantile`, and the log density there."""
    alpha, beta, noise = together(stability, skew, noise)
    limit = torch.finfo(noise.dtype).max ** 0.5 / 8
    z, density = _solve_differentiable(alpha, beta, noise.clamp(-limit, limit))
    return z, density


def stable_quantile(stability: Tensor, skew: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Quantile of a stable law with scale 1 and location 0, as of `log_stable_tails`.

    Solved in the inverse hyperbolic sine of the position, for the noise of the smaller tail, by bracketed inverse
    cubics that start from the power law or the light tail. Where the quantile exceeds the largest number, which low
    stabilities bring about, it is about that number.

    Args:
        stability: Numbers from 0.1 to 2.
        skew: Numbers from -1 to 1.
        log_p: Log of the lower tail.
        log_q: Log of the upper tail; only the smaller one of the two is used.

    Returns:
        A tensor of the common shape, with derivatives of first order by the implicit function theorem.

    Source: the inverse interpolation of `increasing_inverse` on the tails of `log_stable_tails`.
    """
    return stable_draw(stability, skew, noise_from_tails(log_p, log_q))[0]
