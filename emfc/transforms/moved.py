"""Univariate families moved by elementwise bijections, increasing or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform

from emfc.special.precision import eager, wide
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.supports import Bound, Interval, LowerBounded, Position, RealLine, UpperBounded

__all__ = ["AffineFamily", "TransformedFamily", "affine_family"]

_Value = TypeVar("_Value", Tensor, Bound)


class TransformedFamily(ScalarFamily):
    """A univariate family followed by elementwise monotone bijections, increasing or not."""

    def __init__(self, base: ScalarFamily, chain: Sequence[Transform], batch_shape: Size) -> None:
        self.base, self.chain = base, tuple(chain)
        self.batch_shape = batch_shape
        self.support = self.chain[-1].codomain if self.chain else base.support
        self.sign: int | Tensor = 1
        for part in self.chain:
            self.sign = self.sign * part.sign

    def _swap(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The pair, exchanged where the chain decreases."""
        if isinstance(self.sign, int):
            return (first, second) if self.sign > 0 else (second, first)
        return torch.where(self.sign > 0, first, second), torch.where(self.sign > 0, second, first)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        value, stretch = at.value, torch.zeros_like(at.value)
        for part in reversed(self.chain):
            before = part.inv(value)
            stretch = stretch + part.log_abs_det_jacobian(before, value)
            value = before
        inner = self.base.support_map
        log_prob, log_cdf, log_sf = self.base.evaluate(inner.place(inner.nearest(value)))
        return Evaluation(log_prob - stretch, *self._swap(log_cdf, log_sf))

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The chain's value at the base's quantile."""
        value = self.base.quantile(*self._swap(log_p, log_q))
        for part in self.chain:
            value = part(value)
        return value


class AffineFamily(ScalarFamily):
    """A univariate family as loc + scale x, whose distances to the support's ends stay exact.

    Args:
        base: The family of x.
        loc: Shift.
        scale: Any factor but 0; of one sign if the base's support is a half-line.
        increasing: Sign of the scale where all elements have the same, None where they differ.
        batch_shape: Shape of base and parameters together.
    """

    def __init__(
        self, base: ScalarFamily, loc: Bound, scale: Bound, *, increasing: bool | None, batch_shape: Size
    ) -> None:
        self.base, self.increasing = base, increasing
        self.loc = wide(loc) if isinstance(loc, Tensor) else loc
        self.scale = wide(scale) if isinstance(scale, Tensor) else scale
        self.batch_shape = batch_shape
        self.support = self._image()

    def _image(self) -> constraints.Constraint:
        support = self.base.support_map
        if isinstance(support, RealLine):
            return constraints.real
        if isinstance(support, Interval):
            low, high = self._swap(self._move(support.low), self._move(support.high))
            return constraints.half_open_interval(low, high)
        end = self._move(support.low if isinstance(support, LowerBounded) else support.high)
        lower = isinstance(support, LowerBounded) == self.increasing
        return constraints.greater_than_eq(end) if lower else constraints.less_than(end)

    def _move(self, bound: Bound | None) -> Bound:
        return self.loc + self.scale * (0.0 if bound is None else bound)

    def _swap(self, first: _Value, second: _Value) -> tuple[_Value, _Value]:
        """The pair, exchanged where the scale is negative."""
        if self.increasing is None:
            positive = torch.as_tensor(self.scale > 0)
            return torch.where(positive, first, second), torch.where(positive, second, first)
        return (first, second) if self.increasing else (second, first)

    def _distances(self, at: Position, factor: Bound) -> tuple[Tensor | None, Tensor | None]:
        """Distances times a positive factor, exchanged where the scale is negative."""
        below = None if at.below is None else at.below * factor
        above = None if at.above is None else at.above * factor
        if below is not None and above is not None:
            return self._swap(below, above)
        return (above, below) if self.increasing is False else (below, above)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        inner = Position((at.value - self.loc) / self.scale, *self._distances(at, 1 / _size(self.scale)))
        log_prob, log_cdf, log_sf = self.base.evaluate(inner)
        size = _size(self.scale)
        log_scale = size.log() if isinstance(size, Tensor) else math.log(size)
        return Evaluation(log_prob - log_scale, *self._swap(log_cdf, log_sf))

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Moved quantile of the base."""
        return self.loc + self.scale * self.base.quantile(*self._swap(log_p, log_q))

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Moved position of the base."""
        inner = self.base.locate(*self._swap(log_p, log_q))
        value = self.support_map.nearest(self.loc + self.scale * inner.value, smallest=True)
        return Position(value, *self._distances(inner, _size(self.scale)))


def _size(value: Bound) -> Bound:
    return value.abs() if isinstance(value, Tensor) else abs(value)


def affine_family(base: ScalarFamily, chain: Sequence[Transform], batch_shape: Size) -> ScalarFamily | None:
    """The affine family of a chain of affine transforms; None if it holds others or its support isn't known."""
    parts = [part for part in chain if isinstance(part, AffineTransform)]
    if not parts or base.discrete or len(parts) < len(chain):
        return None
    loc: Bound = 0.0
    scale: Bound = 1.0
    for part in parts:
        loc, scale = part.loc + part.scale * loc, part.scale * scale
    increasing: bool | None = None
    if not isinstance(scale, Tensor):
        increasing = scale > 0
    elif eager():
        positive = scale > 0
        increasing = True if bool(positive.all()) else (None if bool(positive.any()) else False)
    if increasing is None and isinstance(base.support_map, (LowerBounded, UpperBounded)):
        return None
    return AffineFamily(base, loc, scale, increasing=increasing, batch_shape=batch_shape)
