"""Batched root finding with a guaranteed bracket, and the gradients of a root."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from emfc.special.precision import outside_graphs

__all__ = ["Bracket", "Function", "Root", "attach_root", "increasing_inverse", "increasing_root"]

Function = Callable[[Tensor], tuple[Tensor, Tensor]]

# Halving a bracket of any two numbers of the dtype down to neighbours, with as many Newton steps again.
_ITERATIONS = {torch.float32: 64, torch.float64: 100}


@outside_graphs
def increasing_root(
    function: Function,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    *,
    tolerance: Tensor,
    unit: float = 0.0,
) -> Tensor:
    """Root of an increasing function between two ends: Newton steps, halved where they leave or stall.

    The bracket is kept for every element, so that the result is right however the function bends; the number of
    iterations is bounded, and the loop ends when all are done, also in compiled programs, where it breaks the graph.

    Args:
        function: Gives value and derivative at a tensor of points. Not differentiated.
        low: Points where the function is at most 0.
        high: Points where it is at least 0.
        start: First guesses, between the two.
        tolerance: Absolute value of the function that is as good as 0.
        unit: Points are told apart to rounding of themselves, or of this where it is larger.

    Returns:
        The roots, without gradients.
    """
    with torch.no_grad():
        info = torch.finfo(start.dtype)
        first, last = low, high  # ends not yet visited: a step past one of them goes to it
        x, step, before = start, high - low, high - low
        old = older = torch.full_like(start, torch.inf)
        done = torch.zeros_like(start, dtype=torch.bool)
        for _ in range(_ITERATIONS[start.dtype]):
            value, slope = function(x)
            low, high = torch.where(value < 0, x, low), torch.where(value > 0, x, high)
            move = value / slope.clamp(min=info.tiny)
            newton, size = x - move, move.abs()
            near = size <= 4 * info.eps * x.abs().clamp(min=unit)
            within = ((newton > low) | (low == first)) & ((newton < high) | (high == last))
            progress = (size <= 0.5 * before.abs()) | (value.abs() <= 0.25 * older)
            target = torch.where(near | (within & progress), newton.clamp(low, high), _middle(low, high))
            before, step = step, target - x
            older, old = old, value.abs()
            done = done | (value.abs() <= tolerance)
            x = torch.where(done, x, target)
            done = done | near | (step == 0)
            if _finished(done):
                break
    return x


class Bracket(NamedTuple):
    """Two points with a root between them, and the function's value and reciprocal slope there where known.

    A root that lies outside after all, by rounding, is found as well: an end that turns out to be on the root's
    other side is moved to the limit on that side.
    """

    low: Tensor
    high: Tensor
    ends: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    limits: tuple[float, float] = (-float("inf"), float("inf"))


class Root(NamedTuple):
    """Where a function takes its target, its value and reciprocal slope there, and whether it rises there at all."""

    at: Tensor
    value: Tensor
    slope: Tensor
    regular: Tensor


class _Search:
    """One element each: the last point, the nearest one beyond the root, and how far both are from it.

    Every step is the inverse cubic through both ends with their slopes, or a Newton step while only one is known. Where
    the last one brought neither the value nor the bracket closer, it is the middle of the bracket, or its unknown end.
    """

    def __init__(self, target: Tensor, bracket: Bracket, start: Tensor, tolerance: Tensor, unit: float) -> None:
        self.target, self.x, self.tolerance, self.unit = target, start, tolerance, unit
        self.limits = bracket.limits
        unknown = torch.full_like(start, torch.nan)
        self.sides: tuple[Tensor, ...] = (bracket.low, bracket.high, *(bracket.ends or (unknown,) * 4))
        self.other = self.other_value = self.other_slope = unknown
        self.miss = self.width = torch.full_like(start, torch.inf)
        self.value = self.slope = unknown
        self.begun = False

    def select(self, keep: Tensor) -> None:
        """Go on with some elements only."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[keep])
        self.sides = ()

    def step(self, function: Function) -> tuple[Tensor, Root]:
        """Evaluate and move on: which elements are done, and the root where they are."""
        info = torch.finfo(self.x.dtype)
        x, before, before_width = self.x, self.miss, self.width
        value, slope = function(x)
        miss = self.target - value
        self._turn(miss, before)
        gap = self.other - x
        width, size = gap.abs(), miss.abs()
        regular = slope <= info.max
        rise = (self.other_value - value).abs()
        known = rise > 0
        steepest = 3 * width / rise
        part = size / rise
        rest = 1 - part
        bend = torch.minimum(slope, steepest) * rest - torch.minimum(self.other_slope, steepest) * part
        cubic = part * (width * part * (3 - 2 * part) + rise * rest * bend)
        move = torch.where(known, cubic, torch.minimum(size * slope, width))
        target = torch.where(~known & (move >= width), self.other, x + torch.copysign(move, miss))
        closer = (size <= 0.25 * before.abs()) | (width <= 0.5 * before_width)
        trusted = closer & regular & (move < torch.where(known, width, torch.inf))
        rounding = 2 * info.eps * x.abs().clamp(min=self.unit)
        right = regular & (size <= self.tolerance)
        # A step of rounding size ends the search, unless the slope must be wrong because the target is far, or it was
        # limited, as next to a cliff.
        still = regular & trusted & (move <= rounding) & (size <= 0.5 * self.target.abs().clamp(min=1))
        still = still & ~(slope > steepest)
        done = right | still | (width <= 2 * rounding)
        self.miss, self.width, self.value, self.slope = miss, width, value, slope
        middle = _middle(torch.minimum(x, self.other), torch.maximum(x, self.other))
        self.x = torch.where(trusted, target, torch.where(known, middle, self.other))
        # Where the function is flat up to the root, its left end is taken, which lies on the other side.
        passed = (self.other, self.other_value, self.other_slope)
        kept = regular | ~(self.other_slope <= info.max)
        at, value, slope = (torch.where(kept, *pair) for pair in zip((x, value, slope), passed, strict=True))
        return done, Root(at, value, slope, regular | ~kept)

    def _turn(self, miss: Tensor, before: Tensor) -> None:
        """Keep the point beyond the root: the last one where the root now lies on its other side."""
        above = miss > 0
        if not self.begun:
            self.begun = True
            low, high, *ends = self.sides
            self.other = torch.where(above, high, low)
            self.other_value = torch.where(above, ends[2], ends[0])
            self.other_slope = torch.where(above, ends[3], ends[1])
            self.last = self.x
            return
        crossed = above != (before > 0)
        missed = (self.x == self.other) & ~crossed
        limit = torch.where(above, self.limits[1], torch.full_like(self.x, self.limits[0]))
        self.other = torch.where(crossed, self.last, torch.where(missed, limit, self.other))
        self.other_value = torch.where(crossed, self.value, self.other_value.masked_fill(missed, torch.nan))
        self.other_slope = torch.where(crossed, self.slope, self.other_slope)
        self.last = self.x


def increasing_inverse(
    function: Function,
    target: Tensor,
    bracket: Bracket,
    start: Tensor,
    *,
    tolerance: Tensor,
    unit: float = 0.0,
    take: Callable[[Tensor], Function] | None = None,
) -> Root:
    """Where an increasing function takes given values, for functions that tell their reciprocal slope.

    Third order near the root and never worse than halving the bracket; the loop ends when all are done, in bounded
    time. What looks flat to the dtype counts as on the right of the root. Points are returned as they were evaluated,
    with their slopes.

    Args:
        function: Gives value and reciprocal slope, infinite where it is flat, at a tensor of points.
        target: The values to be taken.
        bracket: Points that enclose the root.
        start: First guesses, inside the brackets.
        tolerance: A distance from the target that is as good as none.
        unit: Points are told apart to rounding of themselves, or of this where it is larger.
        take: Given indices of a one-dimensional problem, the function of those elements alone; elements that are done
            are then dropped.

    Source: Inverse cubic Hermite interpolation, with the slopes limited as by Fritsch and Carlson, Monotone Piecewise
    Cubic Interpolation, SIAM J. Numer. Anal. 17, 1980.
    """
    search = _Search(target, bracket, start, tolerance, unit)
    done = torch.zeros_like(target, dtype=torch.bool)
    result = Root(start, start, start, done)
    places: Tensor | None = None
    for _ in range(2 * _ITERATIONS[start.dtype]):
        found, root = search.step(function)
        if places is None:
            result = Root(*(torch.where(done, old, new) for old, new in zip(result, root, strict=True)))
        else:
            for old, new in zip(result, root, strict=True):
                old[places] = torch.where(done, old[places], new)
        done = done | found
        if _finished(done):
            break
        if take is None:
            continue
        keep = (~done).nonzero().squeeze(-1)
        if keep.numel() <= 0.75 * done.numel():
            places = keep if places is None else places[keep]
            function = take(places)
            search.select(keep)
            done = done[keep]
    return result


def _finished(done: Tensor) -> bool:
    """Whether all elements are done, those of every batch of a function transform together."""
    while torch._C._functorch.is_functorch_wrapped_tensor(done):
        done = torch._C._functorch.get_unwrapped(done)
    return bool(done.all())


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Middle of a bracket; of a wide one the middle of its orders of magnitude."""
    between = 0.5 * (_magnitude(low) + _magnitude(high))
    wide = torch.copysign(torch.expm1(between.abs()), between)
    return torch.where(high - low > 100, torch.minimum(torch.maximum(wide, low), high), 0.5 * low + 0.5 * high)


def _magnitude(value: Tensor) -> Tensor:
    return torch.copysign(torch.log1p(value.abs()), value)


def attach_root(root: Tensor, residual: Tensor, slope: Tensor) -> Tensor:
    r"""The root with first derivatives by the implicit function theorem, :math:`dx = -dr / r'(x)`.

    Args:
        root: Where the residual vanishes, without gradients.
        residual: The residual at the root, connected to everything that it depends on but the root.
        slope: Derivative of the residual with respect to the root.

    Returns:
        The same numbers, connected. Second derivatives are not represented.
    """
    slope = slope.detach()
    slope = slope.clamp(min=torch.finfo(slope.dtype).tiny * 16)
    return root.detach() - (residual - residual.detach()) / slope
