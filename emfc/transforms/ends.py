"""Ends of supports and distances to them, for the steps of a chain from one support to the next.

Distances to 0 and to 1, where logarithms and log odds are taken, are never found from a rounded value if the ends tell
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from emfc.special.precision import eager
from emfc.special.ratios import log_distance
from emfc.transforms.supports import Bound, Interval, LowerBounded, Position, SupportMap, UpperBounded

__all__ = [
    "OPEN",
    "POSITIVE",
    "UNIT",
    "Ends",
    "between",
    "ends_of",
    "from_zero",
    "inner_end",
    "log_of",
    "moved_end",
    "scaled_exp",
    "to_one",
    "within",
]

Ends = tuple[Bound | None, Bound | None]
OPEN: Ends = (None, None)
UNIT: Ends = (0.0, 1.0)
POSITIVE: Ends = (0.0, None)


def scaled_exp(scale: Tensor, exponent: Tensor) -> Tensor:
    """A positive scale times the exponential, finite, too small or too large only where the product is."""
    limit = torch.finfo(exponent.dtype).max
    half = torch.exp(0.5 * exponent.clamp(max=1.9 * math.log(limit)))
    return ((scale * half).clamp(max=limit) * half).clamp(max=limit)


def ends_of(support: SupportMap) -> Ends:
    """The finite ends of a support, as far as its map tells them."""
    if isinstance(support, (Interval, LowerBounded, UpperBounded)):
        return support.low, support.high
    return OPEN


def moved_end(end: Bound | None, function: Callable[[Tensor], Tensor]) -> Bound | None:
    """A finite end under a function, as a tensor if it is one."""
    if end is None:
        return None
    if isinstance(end, Tensor):
        return function(end).clamp(max=torch.finfo(end.dtype).max)
    with torch.no_grad():
        return min(float(function(torch.tensor(end, dtype=torch.float64))), torch.finfo(torch.float64).max)


def inner_end(end: Bound | None, outermost: float) -> Bound | None:
    """An end inside of 0, or of 1; None where it is that, or a tensor that must not be looked at."""
    if isinstance(end, Tensor):
        inside = end > 0 if outermost == 0 else end < 1
        return end if eager() and bool(inside.all()) else None
    return None if end is None or end == outermost else end


def from_zero(at: Position, ends: Ends) -> Tensor:
    """Distance to 0, which is the value, exact next to a lower end of 0."""
    low = ends[0]
    if at.below is None or low is None:
        return at.value
    return at.below if not isinstance(low, Tensor) and low == 0 else low + at.below


def to_one(at: Position, ends: Ends) -> Tensor:
    """Distance to 1, exact next to an upper end of 1."""
    high = ends[1]
    if at.above is None or high is None:
        return 1 - at.value
    return at.above if not isinstance(high, Tensor) and high == 1 else (1 - high) + at.above


def within(ends: Ends, value: Tensor, zero: Tensor | None = None, one: Tensor | None = None) -> Position:
    """Position between two ends of a value whose distances to 0 and, if it is near, to 1 may be known better."""
    low, high = ends
    below = None if low is None else (value if zero is None else zero) - low
    if high is None:
        return Position(value, below, None)
    above = high - value
    if one is not None:
        if not isinstance(high, Tensor):
            above = one if high == 1 else above
        else:
            above = torch.where((high - 1).abs() < 0.5, one - (1 - high), above)
    return Position(value, below, above)


def between(ends: Ends, at: Position, outer: Ends) -> Position:
    """The same value with distances to other ends than those that it has them to."""
    low, high = ends
    below: Tensor | None = None
    above: Tensor | None = None
    if low is not None:
        below = at.value - low if at.below is None or outer[0] is None else at.below + (outer[0] - low)
    if high is not None:
        above = high - at.value if at.above is None or outer[1] is None else at.above + (high - outer[1])
    return Position(at.value, below, above)


def log_of(at: Position, ends: Ends) -> Tensor:
    """Log of a positive value, exact next to 0 and to 1."""
    far = log_distance(from_zero(at, ends))
    if ends[1] is None or at.above is None:
        return far
    one = to_one(at, ends)
    near = one.abs() < 0.5
    return torch.where(near, torch.log1p(-torch.where(near, one, 0)), far)
