r"""The quantile of the Beta distribution from the log of its smaller tail.

In the logit y the log of a tail is concave, so that Newton's iteration converges from anywhere, and the density's own
derivatives give steps of fifth order from one evaluation of the tail. The last step moves x and 1 - x, each relative
to itself.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.5.22 for the first guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.beta import beta_shape_slopes, direct_tail, split_tails
from emfc.special.beta_density import beta_normaliser, beta_weight, log_beta_density, logit_density
from emfc.special.beta_integral import COARSE, Rule, fine
from emfc.special.elementwise import blend, differentiable, elementwise, halves
from emfc.special.normal import noise_from_tails
from emfc.special.precision import wide
from emfc.special.ratios import bounded_exp

__all__ = ["SCHEDULE", "beta_quantile", "beta_quantile_and_logit", "fifth_order_step"]

# A rule, and the size of a step after which the next rule follows: the error left is its fifth power.
SCHEDULE = {
    torch.float32: ((fine(torch.float32), 0.05),),
    torch.float64: ((COARSE, 0.3), (fine(torch.float64), 0.01)),
}
_ITERATIONS = 60


def fifth_order_step(
    residual: Tensor, hazard: Tensor, first: Tensor, second: Tensor, third: Tensor
) -> tuple[Tensor, Tensor]:
    """How far a coordinate moves for the log of its lower tail to change by a residual, and the size of the step.

    Args:
        residual: Target minus the log of the tail.
        hazard: Density over tail.
        first: First derivative of the log density; `second` and `third` the next ones.

    Returns:
        The step, by inversion of the Taylor series where it is short, by Halley's or Newton's rule otherwise; and its
        size in units of the scale on which the hazard changes.
    """
    farthest = 0.4 * math.log(torch.finfo(residual.dtype).max)
    plain = (residual / hazard).clamp(-farthest, farthest)
    one = first - hazard  # derivatives of the log of the hazard
    curvature = (second.abs() * torch.exp(plain.abs())).sqrt_()  # grows so at most
    size = plain.abs() * (one.abs() * (1 + residual * residual) + curvature + curvature.sqrt())
    two = second - hazard * one
    three = third - hazard * (one * one + two)
    twice = one * one
    series = (6 * twice - 7 * two).mul_(one).add_(three).mul_(plain / 4)
    series = (2 * twice - two).sub_(series).mul_(plain / 3)
    series = (one - series).mul_(plain / 2)
    halley = 1 / (1 + 0.5 * one * plain).clamp(min=0.5)
    halley = torch.where(residual > 2, 1, halley)  # Newton's rule stays below, as the log of the tail is concave
    return plain * blend(halley, 1 - series, halves(size < 0.5, size)), size


def _guess(a: Tensor, b: Tensor, log_p: Tensor, log_q: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor]:
    """First guess of the logit for a lower tail of at most one half, and where it is exact already."""
    n = a + b
    big_a, big_b = a.clamp(min=1), b.clamp(min=1)
    noise = -noise_from_tails(log_p, log_q)
    inverse_a, inverse_b = 1 / (2 * big_a - 1), 1 / (2 * big_b - 1)
    h = 2 / (inverse_a + inverse_b)
    lam = (noise * noise - 3) / 6
    w = noise * torch.sqrt(h + lam) / h - (inverse_b - inverse_a) * (lam + 5 / 6 - 2 / (3 * h))
    logit = torch.log(big_a / big_b) - 2 * w
    # Near its end a tail is a power of the distance: that of a small parameter nearly everywhere.
    log_beta = -(normaliser + beta_weight(a, b).log() + a * torch.log1p(b / a) + b * torch.log1p(a / b))
    left = (log_p + a.log() + log_beta) / a
    exact = math.log(torch.finfo(a.dtype).eps) - n.log()
    known = left < exact
    small_a, small_b = a < 1, b < 1
    if bool(small_a.any()) or bool(small_b.any()):
        right = -(log_q + b.log() + log_beta) / b
        near_left = left.clamp(max=-0.5)
        near_left = torch.where(small_b, left.clamp(max=0), near_left - torch.log1p(-torch.exp(near_left)))
        scaled = log_p / a
        bound = scaled - torch.log(-torch.expm1(scaled))
        to_left = torch.where(small_a, (log_p < torch.log(b / n)) | ~small_b, log_p < torch.log(0.2 * b))
        turned = torch.where(to_left, torch.where(small_a, near_left, bound), right.clamp(min=0))
        logit = torch.where(small_a | small_b, turned, logit)
        at_right = ~to_left & small_b & (-right < exact)
        logit = torch.where(at_right, right, logit)
        known = (known & to_left) | at_right | (known & ~small_b)
    return torch.where(known & (left < exact), left, logit), known


def _step(
    a: Tensor, b: Tensor, log_p: Tensor, normaliser: Tensor, x: Tensor, c: Tensor, *, rule: Rule
) -> tuple[Tensor, Tensor]:
    ratio, lower = direct_tail(a, b, x, c, rule)
    log_density, weight = logit_density(a, b, x, c, normaliser), beta_weight(a, b)
    reached, _ = split_tails(log_density + torch.log(ratio.mul_(weight)), lower)
    hazard = torch.exp(log_density - reached).mul_(weight)
    second = -(a + b) * x * c
    return fifth_order_step(log_p - reached, hazard, a * c - b * x, second, second * (c - x))


@elementwise("beta_quantile", inputs=5, outputs=3)
def _quantile(a: Tensor, b: Tensor, log_p: Tensor, log_q: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
    info = torch.finfo(a.dtype)
    turned = halves(log_p > log_q, a)
    a, b = blend(a, b, turned), blend(b, a, turned)
    log_p, log_q = torch.minimum(log_p, log_q).clamp(min=info.min / 16), torch.maximum(log_p, log_q)
    logit, known = _guess(a, b, log_p, log_q, normaliser)
    limit = -math.log(info.tiny) - 2
    bounded = logit.clamp(-limit, limit)
    x, c = torch.sigmoid(bounded), torch.sigmoid(-bounded)
    index = (~known).nonzero().squeeze(-1)
    given = (a, b, log_p, normaliser, x, c)
    for rule, tolerance in SCHEDULE[a.dtype]:
        left = index
        for _ in range(_ITERATIONS):
            if left.numel() == 0:
                break
            whole = left.numel() == a.numel()
            values = given if whole else tuple(value[left] for value in given)
            step, size = _step(*values, rule=rule)
            one, other = values[4] * torch.exp(step), values[5]
            whole_weight = one + other
            one, other = one / whole_weight, other / whole_weight
            one, other = one.clamp(info.tiny, 1), other.clamp(info.tiny, 1)
            if whole:
                x.copy_(one), c.copy_(other)
            else:
                x[left], c[left] = one, other
            left = left[size > tolerance]
    smallest = info.tiny * info.eps
    near = torch.exp(-logit.abs()).clamp(min=smallest)
    below = logit < 0
    logit = torch.where(known, logit, x.log() - c.log())
    x = torch.where(known, torch.where(below, near, 1 - near), x)
    c = torch.where(known, torch.where(below, 1 - near, near), c)
    return blend(x, c, turned), blend(c, x, turned), (1 - 2 * turned) * logit


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor | None, ...], ...]:
    a, b, log_p, log_q, normaliser = inputs
    x, c, _logit = outputs
    lower = halves(log_p < log_q, x)
    excess = torch.minimum(log_p, log_q) - log_beta_density(a, b, x, c, normaliser=normaliser)
    shapes: tuple[Tensor | None, ...] = (None, None)
    if wanted[0] or wanted[1]:
        below, above = beta_shape_slopes(a, b, x, c, log_p, log_q)
        shapes = tuple(blend(up, -down, lower) for down, up in zip(below, above, strict=True))
    rows = []
    for exponent, sign in ((excess, 1), (excess, -1), (excess - x.log() - c.log(), 1)):
        ratio = sign * bounded_exp(exponent, room=16)  # for products
        rows.append(
            (*(None if part is None else ratio * part for part in shapes), ratio * lower, ratio * (lower - 1), None)
        )
    return tuple(rows)


_quantile_differentiable = differentiable(_quantile, _partials)


def beta_quantile(
    concentration1: Tensor,
    concentration0: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    normaliser: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The value x whose lower and upper tail have these logs, and 1 - x, each exact relative to itself.

    Args:
        concentration1: a, positive.
        concentration0: b, positive, of a shape that broadcasts.
        log_p: Log of the lower tail.
        log_q: Log of the upper tail; only the smaller tail need be exact.
        normaliser: `beta_normaliser(a, b)` where it is known already.

    Returns:
        x and 1 - x, at least the smallest positive number, with derivatives by the implicit function theorem.

    Source: Newton's iteration on the log of the tail, concave in the logit, from Abramowitz and Stegun 26.5.22 or,
    for small concentrations, the first term of DLMF 8.17.8.
    """
    return beta_quantile_and_logit(concentration1, concentration0, log_p, log_q, normaliser=normaliser)[:2]


def beta_quantile_and_logit(
    concentration1: Tensor,
    concentration0: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    normaliser: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`beta_quantile` and the logit of x, which stays exact where x or 1 - x underflows."""
    a, b = wide(concentration1), wide(concentration0)
    constant = beta_normaliser(a, b) if normaliser is None else normaliser
    x, c, logit = _quantile_differentiable(a, b, wide(log_p), wide(log_q), constant)
    return x, c, logit
