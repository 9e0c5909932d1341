r"""The quantile of Student's t from the log of its smaller tail.

In the coordinate :math:`\eta` of :math:`t = \sqrt\nu \sinh \eta` the log of the tail is concave, so that Newton's
iteration converges from anywhere; where the distribution is nearly normal no iteration is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.beta_integral import Rule
from emfc.special.beta_quantile import SCHEDULE, fifth_order_step
from emfc.special.elementwise import blend, by_region, differentiable, elementwise, halves
from emfc.special.normal import noise_from_tails
from emfc.special.precision import wide
from emfc.special.student import (
    log_student_density,
    log_student_tail,
    student_normaliser,
    student_place,
    student_shape_slopes,
)
from emfc.special.student_normal import LARGEST_NOISE, LEAST_FREEDOM, REACH, place_factor

__all__ = ["student_quantile"]

_ITERATIONS = 60


def _guess(df: Tensor, log_p: Tensor, noise: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor]:
    """First guess of the coordinate of a lower tail of at most one half, and where it is exact already."""
    factor = (8 * df + 3) / (8 * df + 1)
    log_cosh = (noise * factor).square_() / (2 * df)
    middle = log_cosh + torch.log1p(torch.sqrt(-torch.expm1(-2 * log_cosh)))
    far = (normaliser - torch.log(0.5 * df) - log_p) / df + math.log(2)
    rest = torch.exp(-2 * far.clamp(min=0))
    tail = df * rest
    known = tail < torch.finfo(df.dtype).eps
    return torch.where((tail < 0.3) & (far > 0), far - rest * (df / (df + 2)), middle), known


def _step(df: Tensor, log_p: Tensor, normaliser: Tensor, eta: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    place = student_place(torch.sinh(eta))
    reached, log_density = log_student_tail(df, place, normaliser, rule)
    second = -df * place.x * place.c
    return fifth_order_step(
        log_p - reached, torch.exp(log_density - reached), 0.5 * df * place.tanh, second, second * place.tanh
    )


def _distance_of_few(df: Tensor, log_p: Tensor, noise: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    """By iteration."""
    info = torch.finfo(df.dtype)
    eta, known = _guess(df, log_p, noise, normaliser)
    index = (~known).nonzero().squeeze(-1)
    longest = 0.9 * math.log(info.max)
    for rule, tolerance in SCHEDULE[df.dtype]:
        left = index
        for _ in range(_ITERATIONS):
            if left.numel() == 0:
                break
            whole = left.numel() == df.numel()
            values = (df, log_p, normaliser, eta) if whole else (df[left], log_p[left], normaliser[left], eta[left])
            step, size = _step(*values, rule)
            moved = (values[3] - 0.5 * step).clamp(0, longest)
            if whole:
                eta = moved
            else:
                eta[left] = moved
            left = left[size > tolerance]
    t = torch.sinh(eta.clamp(max=longest)) * torch.sqrt(df)
    far = torch.exp((eta + (0.5 * torch.log(df) - math.log(2))).clamp(max=math.log(info.max) * (1 - 4 * info.eps)))
    return (blend(t, far, halves(eta > 0.5 * longest, t)),)


def _distance_of_many(df: Tensor, log_p: Tensor, noise: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    """By the noise."""
    ratio = noise * noise / df
    return (torch.sqrt(df * torch.expm1(ratio * place_factor(ratio, df))),)


@elementwise("student_quantile", inputs=4)
def _quantile(df: Tensor, log_p: Tensor, log_q: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    sign = torch.copysign(torch.ones_like(log_p), log_p - log_q)
    log_p, log_q = torch.minimum(log_p, log_q).clamp(min=torch.finfo(df.dtype).min / 16), torch.maximum(log_p, log_q)
    noise = noise_from_tails(log_p, log_q)
    limit = LARGEST_NOISE[df.dtype]
    many = (df >= LEAST_FREEDOM) & (noise * noise <= (REACH * df).clamp(max=limit * limit))
    values = (df, log_p, noise, normaliser)
    return (sign * by_region([(many, _distance_of_many), (~many, _distance_of_few)], values)[0],)


def _quantile_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    df, log_p, log_q, normaliser = inputs
    t = outputs[0]
    lower = halves(log_p < log_q, t)
    largest = math.log(torch.finfo(t.dtype).max) - 16  # which leaves room for products
    log_density = log_student_density(df, t, normaliser=normaliser)
    ratio = torch.exp((torch.minimum(log_p, log_q) - log_density).clamp(max=largest))
    by_df: Tensor | None = None
    if wanted[0]:
        below, above = student_shape_slopes(df, t, log_p, log_q)
        by_df = ratio * blend(above, -below, lower)
    return ((by_df, ratio * lower, ratio * (lower - 1), None),)


_quantile_differentiable = differentiable(_quantile, _quantile_partials)


def student_quantile(df: Tensor, log_p: Tensor, log_q: Tensor, *, normaliser: Tensor | None = None) -> Tensor:
    r"""The value whose lower and upper tail under Student's t have these logs.

    Args:
        df: Degrees of freedom, positive.
        log_p: Log of the lower tail, of a shape that broadcasts.
        log_q: Log of the upper tail; only the smaller tail need be exact.
        normaliser: `student_normaliser(df)` where it is known already.

    Returns:
        A finite value (at most the largest number), with derivatives by the implicit function theorem.

    Source: Newton's iteration on the log of the tail, from the inverse of Wallace's approximation (Bounds on normal
    approximations to Student's and the chi-square distributions, 1959) or from the power law of the tail.
    """
    df = wide(df)
    constant = student_normaliser(df) if normaliser is None else normaliser
    return _quantile_differentiable(df, wide(log_p), wide(log_q), constant)[0]
