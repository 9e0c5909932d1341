r"""Student's t distribution in logs: density and both tails.

With :math:`t = \sqrt\nu \sinh \eta` the density in :math:`\eta` is that of the logit of a symmetric beta variable:
the lower tail at :math:`-t` is :math:`I_x(\nu / 2, \nu / 2)` at :math:`x = 1 / (1 + e^{2 \eta})`, whose
place, slope and density are known without cancellation, for any degrees of freedom and where the square of a value
overflows.

Source: DLMF 8.17.1 with 8.17.21; the tail as in `beta_integral` and `beta_fraction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from emfc.special.beta import split_tails
from emfc.special.beta_integral import Rule, fine, tail_over_density, tail_with_slopes
from emfc.special.elementwise import blend, by_region, differentiable, elementwise, halves
from emfc.special.precision import wide
from emfc.special.stirling import log_minus_digamma, stirling_error
from emfc.special.student_normal import LARGEST_NOISE, LEAST_FREEDOM, REACH, noise_factor

__all__ = [
    "Place",
    "log_student_density",
    "log_student_tail",
    "log_student_tails",
    "log_student_tails_and_density",
    "student_normaliser",
    "student_place",
    "student_shape_slopes",
]


class Place(NamedTuple):
    """Where a distance lies: log cosh and tanh of its coordinate, and the ends of the symmetric beta variable."""

    log_cosh: Tensor
    tanh: Tensor
    x: Tensor
    c: Tensor


def student_place(z: Tensor) -> Place:
    """Place of a distance of at least 0, in units of the root of the degrees of freedom."""
    z = z.clamp(max=torch.finfo(z.dtype).max)
    big = z.clamp(min=1)
    small = torch.minimum(z, 1 / big)
    square = small * small
    cosh = big * torch.sqrt(1 + square)
    tanh = z / cosh
    return Place(torch.log(big).add_(torch.log1p(square), alpha=0.5), tanh, 0.5 / cosh / (cosh + z), 0.5 + 0.5 * tanh)


def log_student_tail(df: Tensor, place: Place, normaliser: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Log of the tail beyond a place, and of the density in the logit."""
    half = 0.5 * df
    ratio = tail_over_density(half, half, place.x, place.c, half * place.tanh, rule=rule)
    log_density = normaliser - df * place.log_cosh
    return log_density + ratio.log_(), log_density


@elementwise("student_normaliser", inputs=1)
def _normaliser(df: Tensor) -> tuple[Tensor, ...]:
    whole, half = stirling_error(torch.cat((df, 0.5 * df))).chunk(2)
    return (0.5 * torch.log(df / (8 * math.pi)) + (whole - 2 * half),)


def student_normaliser(df: Tensor) -> Tensor:
    """Log density at 0 in the logit coordinate; without gradients, for the functions that have theirs."""
    return _normaliser(df.detach())[0]


@elementwise("student_digamma_gap", inputs=1)
def _digamma_gap(df: Tensor) -> tuple[Tensor, ...]:
    return (log_minus_digamma(0.5 * df) - log_minus_digamma(df),)


def _gap_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    (df,) = inputs
    return ((torch.special.polygamma(1, df) - 0.5 * torch.special.polygamma(1, 0.5 * df),),)


_gap_differentiable = differentiable(_digamma_gap, _gap_partials)


@elementwise("log_student_density", inputs=3)
def _log_density(df: Tensor, t: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    root = torch.sqrt(df)
    place = student_place(t.abs() / root)
    return (normaliser + math.log(2) - root.log_() - (df + 1) * place.log_cosh,)


def _density_by_df(df: Tensor, z: Tensor, tanh: Tensor) -> Tensor:
    """Derivative of the log density by the degrees of freedom."""
    distance = z.abs()
    big = distance.clamp(min=1)
    small = torch.where(distance < 1, distance, 1 / big)
    log_cosh = 0.5 * torch.log1p(small * small) + big.log()
    return _gap_differentiable(df)[0] - log_cosh + ((df + 1) * tanh * tanh - 1) / (2 * df)


def _density_slopes(df: Tensor, t: Tensor, *, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor]:
    """Derivatives of the log density by both arguments."""
    root = df.sqrt()
    limit = 0.5 * torch.finfo(t.dtype).max
    z = (t / root).clamp(-limit, limit)
    cosh = torch.hypot(torch.ones_like(z), z)
    tanh = z / cosh
    by_df = _density_by_df(df, z, tanh) if wanted[0] else None
    return by_df, -(df + 1) * tanh / (root * cosh)


def _density_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    return ((*_density_slopes(*inputs[:2], wanted=wanted), None),)


_density_differentiable = differentiable(_log_density, _density_partials)


def log_student_density(df: Tensor, t: Tensor, *, normaliser: Tensor | None = None) -> Tensor:
    r"""Log density of Student's t, exact for many degrees of freedom and for values whose square overflows.

    Args:
        df: Degrees of freedom, positive.
        t: Any finite value, of a shape that broadcasts.
        normaliser: `student_normaliser(df)` where it is known already.

    Returns:
        A tensor of the common shape, differentiable any number of times.
    """
    df, t = wide(df), wide(t)
    return _density_differentiable(df, t, student_normaliser(df) if normaliser is None else normaliser)[0]


def _tails_of_few(df: Tensor, t: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    """By the incomplete beta function, with the density."""
    root = torch.sqrt(df)
    place = student_place(t.abs() / root)
    direct, log_density = log_student_tail(df, place, normaliser, fine(t.dtype))
    return *split_tails(direct, halves(t < 0, t)), log_density - place.log_cosh - root.log_() + math.log(2)


def _tails_of_many(df: Tensor, t: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    """By the noise, with the density."""
    q = torch.log1p(t * t / df)
    half = 0.5 * torch.erfc(math.sqrt(0.5) * torch.sqrt(df * q) * noise_factor(q, df))
    log_density = normaliser + math.log(2) - 0.5 * torch.log(df) - 0.5 * (df + 1) * q
    small, other, lower = torch.log(half), torch.log1p(-half), halves(t < 0, t)
    return blend(other, small, lower), blend(small, other, lower), log_density


@elementwise("log_student_tails", inputs=3, outputs=3)
def _tails(df: Tensor, t: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    limit = LARGEST_NOISE[t.dtype]
    near = (df * (math.expm1(REACH) - 1e-3)).clamp(max=limit * limit).sqrt_()
    many = (df >= LEAST_FREEDOM) & (t.abs() <= near)
    return by_region([(many, _tails_of_many), (~many, _tails_of_few)], (df, t, normaliser), 3)


@elementwise("student_shape_slopes", inputs=4, outputs=2)
def _shape_slopes(df: Tensor, t: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    place, half = student_place(t.abs() / torch.sqrt(df)), 0.5 * df
    tail = tail_with_slopes(half, half, place.x, place.c, half * place.tanh, rule=fine(t.dtype))
    gap = log_minus_digamma(half) - log_minus_digamma(df)
    direct = gap - place.log_cosh + 0.5 * (tail.by_alpha + tail.by_beta) + place.tanh / (df * tail.ratio)
    other = -direct * torch.exp(-(log_p - log_q).abs())
    lower = halves(t < 0, t)
    return blend(other, direct, lower), blend(direct, other, lower)


def _slopes_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    """Second derivatives by the degrees of freedom and t; the tails are functions of both and count no more."""
    if wanted[0]:
        raise NotImplementedError(
            "The log tails of Student's t have no second derivative by the degrees of freedom; take differences."
        )
    df, t, log_p, log_q = inputs
    log_density = log_student_density(df, t)
    limit = 0.5 * torch.finfo(t.dtype).max
    z = (t / df.sqrt()).clamp(-limit, limit)
    by_df = _density_by_df(df, z, z / torch.hypot(torch.ones_like(z), z))
    lower, upper = torch.exp(log_density - log_p), -torch.exp(log_density - log_q)
    return (None, lower * (by_df - outputs[0]), None, None), (None, upper * (by_df - outputs[1]), None, None)


_slopes_differentiable = differentiable(_shape_slopes, _slopes_partials)


def student_shape_slopes(df: Tensor, t: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the logs of the lower and the upper tail by the degrees of freedom."""
    below, above = _slopes_differentiable(df, t, log_p, log_q)
    return below, above


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    df, t, _normaliser = inputs
    log_p, log_q, log_density = outputs
    below, above = student_shape_slopes(df, t, log_p, log_q) if wanted[0] else (None, None)
    rising, falling = torch.exp(log_density - log_p), -torch.exp(log_density - log_q)
    return (below, rising, None), (above, falling, None), (*_density_slopes(df, t, wanted=wanted), None)


_tails_differentiable = differentiable(_tails, _partials)


def log_student_tails(df: Tensor, t: Tensor, *, normaliser: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Logs of both tails of Student's t distribution, :math:`\log P(T \le t)` and :math:`\log P(T > t)`.

    Args:
        df: Degrees of freedom, positive.
        t: Any finite value, of a shape that broadcasts.
        normaliser: `student_normaliser(df)` where it is known already.

    Returns:
        Log of the lower and of the upper tail, of the common shape, with derivatives by both arguments.

    Source: DLMF 8.17.1 with 8.17.21.
    """
    df, t = wide(df), wide(t)
    constant = student_normaliser(df) if normaliser is None else normaliser
    log_p, log_q, _ = _tails_differentiable(df, t, constant)
    return log_p, log_q


def log_student_tails_and_density(df: Tensor, t: Tensor, *, normaliser: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`log_student_tails` and `log_student_density` by one evaluation."""
    log_p, log_q, log_density = _tails_differentiable(wide(df), wide(t), normaliser)
    return log_p, log_q, log_density
