r"""The tail of a beta distribution over its density, by quadrature in the logit coordinate.

Seen from the point :math:`\zeta`, the tail towards 0 divided by the density in the logit is

.. math:: \int_0^\infty e^{-\phi(t)} dt, \quad \phi(t) = \alpha t + n \log(1 - \zeta (1 - e^{-t})),

where :math:`\phi` is convex and, up to about the mean, rising. Its cumulative expectations give the derivatives by
the concentrations. A small :math:`\alpha` is first raised by its recurrence, DLMF 8.17.20, whose terms are positive.
All functions here take plain tensors, and their tail is the lower one; the upper tail is that of the mirrored density.

Source: DLMF 8.17.1 in the coordinate t; Gauss-Legendre rule up to where the integrand is negligible; for large n the
cumulants of a Bernoulli variable, :math:`\log(1 - \zeta + \zeta e^{-t}) = \sum_j \kappa_j (-t)^j / j!`.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from emfc.special.beta_fraction import fraction_levels, tail_by_fraction
from emfc.special.elementwise import Kernel, blend, by_region, halves
from emfc.special.legendre import legendre_rule

__all__ = ["COARSE", "Rule", "Tail", "fine", "tail_over_density", "tail_with_slopes"]


class Rule(NamedTuple):
    """How many nodes the integral takes, at which exponent it ends, and how much of `fraction_levels` is needed."""

    nodes: int
    end: float
    share: float


COARSE = Rule(8, 12.0, 0.5)  # 5 digits
_FINE = {torch.float32: Rule(12, 17.0, 0.65), torch.float64: Rule(24, 36.0, 1.0)}
_FEW, _MANY = 16, 28  # up to these levels a continued fraction is faster than the integral
_RAISED = 6  # smaller parameters of a tail are raised by as much
_CUMULANTS = {torch.float32: 8, torch.float64: 12}
_SHORT = 0.6  # a range of integration in which these cumulants are enough
_NODES_BYTES, _LEVELS_BYTES = 3 * 2**17, 2**20  # of arrays of nodes and of levels: larger ones leave the cache


def fine(dtype: torch.dtype) -> Rule:
    """The rule that is exact to rounding."""
    return _FINE[dtype]


class Tail(NamedTuple):
    """A tail over the density, and the derivatives of the log of this ratio by both parameters where wanted."""

    ratio: Tensor
    by_alpha: Tensor
    by_beta: Tensor


@lru_cache
def _legendre(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes on [0, 1] as a column, weights, and powers of the nodes from the first on."""
    nodes, weights = (torch.tensor(part, dtype=torch.float64) for part in zip(*legendre_rule(count), strict=True))
    nodes = nodes.unsqueeze(-1)
    powers = nodes ** torch.arange(1, _CUMULANTS[dtype] + 1)
    return nodes.to(device, dtype), weights.to(device, dtype), powers.to(device, dtype)


def _cumulant_rows() -> list[list[int]]:
    r"""Rows j = 2, 3, ...: the cumulant of order j as a polynomial in :math:`v = \zeta (1 - \zeta)`.

    Those of odd order have the factor :math:`1 - 2 \zeta` besides. By
    :math:`\kappa_{j + 1} = v\, d\kappa_j / d\zeta`.
    """
    rows = [[0, 1]]
    for order in range(2, max(_CUMULANTS.values())):
        row = rows[-1]
        size = len(row)
        if order % 2 == 0:
            rows.append([k * value for k, value in enumerate(row)])
        else:  # the derivative of (1 - 2 zeta) p(v) is (1 - 4 v) p'(v) - 2 p(v)
            new = [0] * (size + 1)
            for k, value in enumerate(row):
                new[k] += k * value
                new[k + 1] -= (4 * k + 2) * value
            rows.append(new)
    return rows


_ROWS = _cumulant_rows()


@lru_cache
def _cumulant_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Coefficients of :math:`v, v^2, ...` in :math:`-\kappa_j (-1)^j / j!`."""
    rows = _ROWS[: _CUMULANTS[dtype] - 1]
    width = max(len(row) for row in rows) - 1
    table = torch.zeros(len(rows), width, dtype=torch.float64)
    for place, row in enumerate(rows):
        order = place + 2
        for power, value in enumerate(row[1:]):
            table[place, power] = -((-1) ** order) * value / math.factorial(order)
    return table.to(device=device, dtype=dtype)


def _sums(exponent: Tensor, reach: Tensor, nodes: Tensor, weights: Tensor, moments: bool) -> tuple[Tensor, ...]:
    """Integral of the exponential, and of it times minus the exponent and times t."""
    if not moments:
        return (torch.mv(exponent.exp_().t(), weights).mul_(reach),)
    mass = torch.exp(exponent)
    total = torch.mv(mass.t(), weights).mul_(reach)
    depth = -torch.mv(exponent.mul_(mass).t(), weights).mul_(reach)
    place = torch.mv(mass.t(), weights * nodes.squeeze(-1)).mul_(reach * reach)
    return total, depth, place


def _reach(
    alpha: Tensor, beta: Tensor, n: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, end: float
) -> tuple[Tensor, ...]:
    """Where the exponent is about `end`; and side, parameter and place of the coordinate in which it cancels least."""
    curve = n * zeta * rest
    reach = (2 * end) / (slope + torch.sqrt(slope * slope + (2 * end) * curve))
    reach = torch.log1p(torch.expm1((end + beta * reach) / n) / rest)
    lower = halves(alpha <= beta, n)
    side = 1 - 2 * lower
    small, place = blend(beta, alpha, lower), blend(rest, zeta, lower)
    turn = side * reach
    growth = place * torch.expm1(turn)
    excess = n * torch.log1p(growth) - small * turn - end
    reach = reach - excess / (side * (n * (place + growth) / (1 + growth) - small))  # a Newton step
    return reach, side, small, place


def _general(
    rule: Rule, moments: bool, n: Tensor, small: Tensor, place: Tensor, turn: Tensor, reach: Tensor, *_: Tensor
) -> tuple[Tensor, ...]:
    """The exponent as it is written."""
    nodes, weights, _powers = _legendre(rule.nodes, n.dtype, n.device)
    steps = nodes * turn
    exponent = torch.expm1(steps).mul_(place).log1p_().mul_(-n).addcmul_(steps, small)
    return _sums(exponent, reach, nodes, weights, moments)


def _short(
    rule: Rule,
    moments: bool,
    n: Tensor,
    small: Tensor,
    place: Tensor,
    turn: Tensor,
    reach: Tensor,
    zeta: Tensor,
    rest: Tensor,
    slope: Tensor,
) -> tuple[Tensor, ...]:
    """The exponent by its cumulants: nothing cancels however large n is."""
    nodes, weights, powers = _legendre(rule.nodes, n.dtype, n.device)
    table = _cumulant_table(n.dtype, n.device)
    v = zeta * rest
    ladder = torch.empty((table.shape[1], n.numel()), dtype=n.dtype, device=n.device)
    ladder[0] = v
    for power in range(1, table.shape[1]):
        torch.mul(ladder[power - 1], v, out=ladder[power])
    rows = torch.empty((table.shape[0] + 1, n.numel()), dtype=n.dtype, device=n.device)
    torch.mul(slope, -reach, out=rows[0])
    torch.mm(table, ladder, out=rows[1:])
    scale, skew = n * reach, rest - zeta
    for order in range(2, rows.shape[0] + 1):
        scale = scale * reach
        rows[order - 1] *= scale if order % 2 == 0 else scale * skew
    return _sums(powers @ rows, reach, nodes, weights, moments)


def _chunked(function: Kernel, count: int, size: int) -> Kernel:
    """The function over so many elements at a time that an array of so many rows has at most so many bytes."""

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        length = size // (count * values[0].itemsize) if values[0].device.type == "cpu" else 2**20
        if values[0].numel() <= length:
            return function(*values)
        pieces = zip(*(value.split(length) for value in values), strict=True)
        return tuple(torch.cat(column) for column in zip(*(function(*piece) for piece in pieces), strict=True))

    return run


def _integral(
    alpha: Tensor, beta: Tensor, n: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, rule: Rule, moments: bool
) -> tuple[Tensor, ...]:
    """The integral for a parameter that is not small; with moments, also those of the exponent and of t."""
    reach, side, small, place = _reach(alpha, beta, n, zeta, rest, slope, rule.end)
    brief = reach < _SHORT
    regions = [
        (brief, _chunked(partial(_short, rule, moments), rule.nodes, _NODES_BYTES)),
        (~brief, _chunked(partial(_general, rule, moments), rule.nodes, _NODES_BYTES)),
    ]
    return by_region(regions, (n, small, place, side * reach, reach, zeta, rest, slope), 3 if moments else 1)


def _by_fraction(
    rule: Rule, alpha: Tensor, beta: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, levels: Tensor
) -> tuple[Tensor, ...]:
    count = 1 + math.ceil(rule.share * float(levels.max()))

    def some(*values: Tensor) -> tuple[Tensor, ...]:
        return (tail_by_fraction(*values, levels=count),)

    return _chunked(some, count, _LEVELS_BYTES)(alpha, beta, zeta, rest, slope)


def tail_over_density(alpha: Tensor, beta: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, *, rule: Rule) -> Tensor:
    r"""The lower tail over the density in the logit.

    Args:
        alpha: Parameter of the tail.
        beta: The other one.
        zeta: Where the tail ends, at most about the mean.
        rest: 1 minus it.
        slope: :math:`\alpha (1 - \zeta) - \beta \zeta`.
        rule: How exactly.
    """
    levels = fraction_levels(alpha, beta, alpha + beta)
    few, many = levels <= _FEW, levels <= _MANY
    fraction = partial(_by_fraction, rule)
    regions: list[tuple[Tensor, Kernel]] = [
        (few, fraction),
        (many ^ few, fraction),
        (~many, lambda *given: (_raised_integral(*given[:5], rule=rule, moments=False).ratio,)),
    ]
    return by_region(regions, (alpha, beta, zeta, rest, slope, levels))[0]


def tail_with_slopes(alpha: Tensor, beta: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, *, rule: Rule) -> Tail:
    """The same ratio with the derivatives of its log by both parameters."""
    return _raised_integral(alpha, beta, zeta, rest, slope, rule=rule, moments=True)


def _raised_integral(
    alpha: Tensor, beta: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, *, rule: Rule, moments: bool
) -> Tail:
    """The integral after the recurrence that raises a small parameter."""
    n = alpha + beta
    small = alpha < _RAISED
    raising = bool(small.any())
    if raising:
        chosen = halves(small, n)
        term = 1 / alpha
        head = term.clone()
        up, down = torch.zeros_like(n), -term  # derivatives of the log of the term: common to both, by alpha besides
        by_alpha, by_beta = term * down, torch.zeros_like(n)
        for step in range(_RAISED - 1):
            inverse = 1 / (alpha + (step + 1))
            if moments:
                up, down = up + 1 / (n + step), down - inverse
            term = term * zeta * (n + step) * inverse
            head = head + term
            if moments:
                by_alpha, by_beta = by_alpha + term * (up + down), by_beta + term * up
        factor = blend(torch.ones_like(n), term * zeta * (n + (_RAISED - 1)), chosen)
        head = head * chosen
        slope = slope + _RAISED * chosen * rest
        alpha, n = alpha + _RAISED * chosen, n + _RAISED * chosen
    total, *rows = _integral(alpha, beta, n, zeta, rest, slope, rule, moments)
    if not moments:
        ratio = head + factor * total if raising else total
        return Tail(ratio, ratio, ratio)
    depth, place = rows
    log_by_alpha, log_by_beta = -(depth + beta * place) / n, (alpha * place - depth) / n
    if not raising:
        return Tail(total, log_by_alpha / total, log_by_beta / total)
    up = (up + 1 / (n - 1)) * chosen
    ratio = head + factor * total
    log_by_alpha = chosen * by_alpha + factor * (log_by_alpha + (up + chosen * down) * total)
    log_by_beta = chosen * by_beta + factor * (log_by_beta + up * total)
    return Tail(ratio, log_by_alpha / ratio, log_by_beta / ratio)
