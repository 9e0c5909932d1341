r"""Both tails of the Beta distribution in logs: the incomplete beta ratio and its complement.

The tail away from the mean is the density times an integral (`beta_integral`), the other one its complement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.beta_density import (
    beta_arguments,
    beta_score,
    beta_weight,
    density_slopes,
    linked,
    log_beta_density,
    logit_density,
)
from emfc.special.beta_integral import Rule, fine, tail_over_density, tail_with_slopes
from emfc.special.elementwise import blend, differentiable, elementwise, halves
from emfc.special.normal import log1mexp
from emfc.special.ratios import bounded_exp

__all__ = ["beta_shape_slopes", "direct_tail", "log_beta_tails", "log_beta_tails_and_density", "split_tails"]


def _towards_its_end(a: Tensor, b: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Arguments that make a lower tail of the tail on the side of the mean where x lies, and 1 where it was that.

    A parameter below 1 counts as 1: its mean lies where most of the mass is on the other side.
    """
    lower = halves(x * b.clamp(min=1) <= c * a.clamp(min=1), x)
    slope = (a * c - b * x).mul_(2 * lower - 1)
    return blend(b, a, lower), blend(a, b, lower), blend(c, x, lower), blend(x, c, lower), slope, lower


def direct_tail(a: Tensor, b: Tensor, x: Tensor, c: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The tail that ends at x away from the mean over the density in the logit, and 1 where that is the lower tail."""
    *arguments, lower = _towards_its_end(a, b, x, c)
    return tail_over_density(*arguments, rule=rule), lower


def split_tails(direct: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the lower and the upper tail, given the one that was computed and whether it is the lower."""
    direct = direct.clamp(max=-torch.finfo(direct.dtype).tiny)
    other = log1mexp(direct)
    return blend(other, direct, lower), blend(direct, other, lower)


@elementwise("log_beta_tails", inputs=5, outputs=3)
def _tails(a: Tensor, b: Tensor, x: Tensor, c: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    ratio, lower = direct_tail(a, b, x, c, fine(x.dtype))
    weight = beta_weight(a, b)
    log_density = logit_density(a, b, x, c, normaliser)
    direct = log_density + torch.log(ratio * weight)
    return *split_tails(direct, lower), log_density + torch.log(weight) - x.log() - c.log()


@elementwise("beta_shape_slopes", inputs=6, outputs=4)
def _shape_slopes(a: Tensor, b: Tensor, x: Tensor, c: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    *arguments, lower = _towards_its_end(a, b, x, c)
    _, by_end, by_other = tail_with_slopes(*arguments, rule=fine(x.dtype))
    other = torch.exp((log_p - log_q).mul_(2 * lower - 1))
    result = []
    slopes = blend(by_other, by_end, lower), blend(by_end, by_other, lower)
    for score, slope in zip(beta_score(a, b, x, c), slopes, strict=True):
        direct = score + slope
        turned = -direct * other
        result += [blend(turned, direct, lower), blend(direct, turned, lower)]
    return result[0], result[2], result[1], result[3]


def _slopes_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    """Second derivatives by a concentration and x; the tails are functions of the other inputs and count no more."""
    if wanted[0] or wanted[1]:
        raise NotImplementedError(
            "The log tails of a beta distribution have no second derivatives by its concentrations; take differences."
        )
    a, b, x, c, log_p, log_q = inputs
    log_density, scores = log_beta_density(a, b, x, c), beta_score(a, b, x, c)
    rows: list[tuple[Tensor | None, ...]] = []
    for sign, tail, slopes in ((1, log_p, outputs[:2]), (-1, log_q, outputs[2:])):
        hazard = bounded_exp(log_density - tail, room=1)
        for score, slope in zip(scores, slopes, strict=True):
            rows.append((None, None, *linked(x, c, sign * hazard * (score - slope)), None, None))
    return tuple(rows)


_slopes_differentiable = differentiable(_shape_slopes, _slopes_partials)


def beta_shape_slopes(
    a: Tensor, b: Tensor, x: Tensor, c: Tensor, log_p: Tensor, log_q: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Derivatives of the log of the lower tail by both concentrations, and of that of the upper one.

    They are conditional expectations of the score, summed over the same nodes as the tail itself.
    """
    lower_a, lower_b, upper_a, upper_b = _slopes_differentiable(a, b, x, c, log_p, log_q)
    return (lower_a, lower_b), (upper_a, upper_b)


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    a, b, x, c, _normaliser = inputs
    log_p, log_q, log_density = outputs
    nothing = (None, None)
    shapes = beta_shape_slopes(a, b, x, c, log_p, log_q) if wanted[0] or wanted[1] else (nothing, nothing)
    places: list[tuple[Tensor, Tensor] | tuple[None, None]] = [nothing, nothing]
    if wanted[2] or wanted[3]:
        places = [
            linked(x, c, sign * bounded_exp(log_density - tail, room=1)) for sign, tail in ((1, log_p), (-1, log_q))
        ]
    return (*shapes[0], *places[0], None), (*shapes[1], *places[1], None), density_slopes(a, b, x, c, wanted=wanted)


_tails_differentiable = differentiable(_tails, _partials)


def log_beta_tails(
    concentration1: Tensor,
    concentration0: Tensor,
    x: Tensor,
    complement: Tensor | None = None,
    *,
    normaliser: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Logs of both tails of the Beta distribution, :math:`\log I_x(a, b)` and :math:`\log I_{1 - x}(b, a)`.

    Args:
        concentration1: a, positive.
        concentration0: b, positive, of a shape that broadcasts.
        x: Between 0 and 1, exclusive.
        complement: 1 - x where it is known better than x, as near 1; the smaller of the two carries the gradient.
        normaliser: `beta_normaliser(a, b)` where it is known already.

    Returns:
        Log of the lower and of the upper tail, of the common shape, with derivatives by all arguments.

    Source: DLMF 8.17.1 by quadrature (`beta_integral`), 8.17.20 for small concentrations.
    """
    log_p, log_q, _ = _tails_differentiable(*beta_arguments(concentration1, concentration0, x, complement, normaliser))
    return log_p, log_q


def log_beta_tails_and_density(
    concentration1: Tensor, concentration0: Tensor, x: Tensor, complement: Tensor, *, normaliser: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`log_beta_tails` and `log_beta_density` by one evaluation."""
    arguments = beta_arguments(concentration1, concentration0, x, complement, normaliser)
    log_p, log_q, log_density = _tails_differentiable(*arguments)
    return log_p, log_q, log_density
