"""Univariate families moved by elementwise bijections, increasing or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform

from emfc.special.precision import eager, wide
from emfc.transforms.chains import Chain
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.supports import Bound, Interval, LowerBounded, Position, RealLine, UpperBounded
from emfc.transforms.turned import TurnedHalfLine

__all__ = ["AffineFamily", "TransformedFamily", "TurnedFamily", "affine_family"]

_Value = TypeVar("_Value", Tensor, Bound)


class TransformedFamily(ScalarFamily):
    """A univariate family followed by a chain of elementwise bijections, increasing or not.

    Args:
        base: The family of the chain's inputs.
        chain: The chain, whose ends are those of the base's support.
        batch_shape: Shape of base and chain together.

    Raises:
        UnsupportedFamilyError: If it is not known whether the chain increases.
    """

    def __init__(self, base: ScalarFamily, chain: Chain, batch_shape: Size) -> None:
        if isinstance(chain.sign, int) and chain.sign == 0:
            raise UnsupportedFamilyError(
                "A chain of transforms of which one has no `sign` is no univariate family; from_normal takes it."
            )
        self.base, self.chain = base, chain
        self.batch_shape = batch_shape
        self.support = chain.support()

    def swap(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The pair, exchanged where the chain decreases."""
        sign = self.chain.sign
        if isinstance(sign, int):
            return (first, second) if sign > 0 else (second, first)
        return torch.where(sign > 0, first, second), torch.where(sign > 0, second, first)

    def inner(self, at: Position) -> tuple[Position, Tensor, Tensor]:
        """Position in the base's support, whether it lies there, and the log of the chain's stretch."""
        at, stretch = self.chain.backward(at)
        support = self.base.support_map
        value = support.nearest(at.value)
        place = support.place(value)
        if at.below is None and at.above is None:
            return place, support.contains(at.value), stretch
        inside = at.value.abs() <= torch.finfo(at.value.dtype).max
        for distance in at[1:]:
            if distance is not None:
                inside = inside & (distance >= 0)
        below, above = (
            known if distance is None else distance.clamp(min=0)
            for distance, known in zip(at[1:], place[1:], strict=True)
        )
        return Position(value, below, above), inside, stretch

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        inner, inside, stretch = self.inner(at)
        log_prob, log_cdf, log_sf = self.base.evaluate(inner)
        return Evaluation(torch.where(inside, log_prob - stretch, -math.inf), *self.swap(log_cdf, log_sf))

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        inner, inside, stretch = self.inner(at)
        return torch.where(inside, self.base.log_density(inner) - stretch, -math.inf)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The chain's value at the base's quantile."""
        return self.locate(log_p, log_q).value

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """The chain's position at that of the base."""
        at, _ = self.chain.forward(self.base.locate(*self.swap(log_p, log_q)))
        return at._replace(value=self.support_map.nearest(at.value, smallest=True))

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """The chain's position at the base's draw."""
        inner, log_prob = self.base.draw(self.chain.sign * noise)
        at, stretch = self.chain.forward(inner)
        return at._replace(value=self.support_map.nearest(at.value, smallest=True)), log_prob - stretch

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """The base's noise at the chain's input."""
        inner, inside, stretch = self.inner(at)
        noise, log_prob = self.base.noise(inner)
        return self.chain.sign * noise, torch.where(inside, log_prob - stretch, -math.inf)


class AffineFamily(ScalarFamily):
    """A univariate family as loc + scale x, whose distances to the support's ends stay exact.

    Args:
        base: The family of x.
        loc: Shift.
        scale: Any factor but 0; of one known sign if the base's support is a half-line, see `TurnedFamily` for others.
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
            low, high = self.swap(self._move(support.low), self._move(support.high))
            return constraints.half_open_interval(low, high)
        end = self._move(support.low if isinstance(support, LowerBounded) else support.high)
        lower = isinstance(support, LowerBounded) == self.increasing
        return constraints.greater_than_eq(end) if lower else constraints.less_than(end)

    def _move(self, bound: Bound | None) -> Bound:
        return self.loc + self.scale * (0.0 if bound is None else bound)

    def swap(self, first: _Value, second: _Value) -> tuple[_Value, _Value]:
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
            return self.swap(below, above)
        return (above, below) if self.increasing is False else (below, above)

    def inner(self, at: Position) -> Position:
        return Position((at.value - self.loc) / self.scale, *self._distances(at, 1 / _size(self.scale)))

    def _outer(self, inner: Position) -> Position:
        value = self.support_map.nearest(self.loc + self.scale * inner.value, smallest=True)
        return Position(value, *self._distances(inner, _size(self.scale)))

    def _log_scale(self) -> Bound:
        size = _size(self.scale)
        return size.log() if isinstance(size, Tensor) else math.log(size)

    def _sign(self) -> Bound:
        if self.increasing is None:
            return torch.as_tensor(self.scale).sign()
        return 1.0 if self.increasing else -1.0

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        log_prob, log_cdf, log_sf = self.base.evaluate(self.inner(at))
        return Evaluation(log_prob - self._log_scale(), *self.swap(log_cdf, log_sf))

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return self.base.log_density(self.inner(at)) - self._log_scale()

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Moved draw of the base."""
        inner, log_prob = self.base.draw(self._sign() * noise)
        return self._outer(inner), log_prob - self._log_scale()

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise of the base."""
        noise, log_prob = self.base.noise(self.inner(at))
        return self._sign() * noise, log_prob - self._log_scale()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Moved quantile of the base."""
        return self.loc + self.scale * self.base.quantile(*self.swap(log_p, log_q))

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Moved position of the base."""
        return self._outer(self.base.locate(*self.swap(log_p, log_q)))


class TurnedFamily(AffineFamily):
    """A univariate family of a half-line as loc + scale x, with scales whose signs differ or must not be looked at.

    The support is the same half-line as that of `AffineFamily` for each element; the distance from its end is the
    position's `below`, on whichever side it lies.
    """

    scale: Tensor

    def _image(self) -> constraints.Constraint:
        support = self.base.support_map
        self.rising = isinstance(support, LowerBounded)
        end = torch.as_tensor(self._move(support.low if self.rising else support.high))
        sign = self.scale.detach().sign()
        return TurnedHalfLine(end, sign if self.rising else -sign)

    def _inner_of(self, at: Position) -> tuple[Position, Tensor]:
        """Position in the base's support, and whether it lies there; a mixture's positions may not."""
        base, distance = self.base.support_map, at.below
        if distance is None:
            distance = cast(Tensor, self.support_map.place(at.value).below)
        inside, distance = distance >= 0, distance.clamp(min=0) / self.scale.abs()
        value = base.nearest((at.value - self.loc) / self.scale)
        return Position(value, *((distance, None) if self.rising else (None, distance))), inside

    def _outer(self, inner: Position) -> Position:
        value = self.support_map.nearest(self.loc + self.scale * inner.value, smallest=True)
        return Position(value, cast(Tensor, inner.below if self.rising else inner.above) * self.scale.abs())

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        inner, inside = self._inner_of(at)
        log_prob, log_cdf, log_sf = self.base.evaluate(inner)
        below, above = (-math.inf, 0) if self.rising else (0, -math.inf)
        tails = self.swap(torch.where(inside, log_cdf, below), torch.where(inside, log_sf, above))
        return Evaluation(torch.where(inside, log_prob - self._log_scale(), -math.inf), *tails)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        inner, inside = self._inner_of(at)
        return torch.where(inside, self.base.log_density(inner) - self._log_scale(), -math.inf)

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise of the base."""
        inner, inside = self._inner_of(at)
        noise, log_prob = self.base.noise(inner)
        return self._sign() * noise, torch.where(inside, log_prob - self._log_scale(), -math.inf)


def _size(value: Bound) -> Bound:
    return value.abs() if isinstance(value, Tensor) else abs(value)


def affine_family(base: ScalarFamily, chain: Sequence[Transform], batch_shape: Size) -> ScalarFamily | None:
    """The affine family of a chain of affine transforms; None if it holds others or has no known support."""
    parts = [part for part in chain if isinstance(part, AffineTransform)]
    if not parts or base.discrete or len(parts) < len(chain):
        return None
    if not isinstance(base.support_map, (RealLine, Interval, LowerBounded, UpperBounded)):
        return None
    loc: Bound = 0.0
    scale: Bound = 1.0
    for part in parts:
        loc, scale = part.loc + part.scale * loc, part.scale * scale
    increasing: bool | None = None
    if not isinstance(scale, Tensor):
        increasing = False
        if scale > 0:  # a branch, for a compiler may take the number as a symbol
            increasing = True
    elif eager():
        positive = scale > 0
        increasing = True if bool(positive.all()) else (None if bool(positive.any()) else False)
    turned = increasing is None and isinstance(base.support_map, (LowerBounded, UpperBounded))
    family = TurnedFamily if turned else AffineFamily
    return family(base, loc, scale, increasing=increasing, batch_shape=batch_shape)
