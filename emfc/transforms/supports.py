"""Supports of univariate families, and the constraint maps that carry the real line onto them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from emfc.special.precision import eager, wide
from emfc.special.ratios import log_distance, logistic_pair
from emfc.transforms.base import IndependentTransform, LadjTransform
from emfc.transforms.dispatch import class_dispatch
from emfc.transforms.distances import next_number, positive_exp, steady
from emfc.transforms.registry import UnsupportedFamilyError

__all__ = [
    "Bound",
    "Interval",
    "LowerBounded",
    "Position",
    "RealLine",
    "SupportMap",
    "UpperBounded",
    "support_map",
    "unconstrained_map",
]

Bound = float | Tensor


class Position(NamedTuple):
    """A value with its distances to the support's finite ends, each as exact as it is known.

    Near an end the distance says more than the value, whose rounding hides it.
    """

    value: Tensor
    below: Tensor | None = None
    above: Tensor | None = None

    def unsqueeze(self) -> Position:
        """The same with a new last dimension, for the components of a mixture."""
        below, above = (None if part is None else part.unsqueeze(-1) for part in self[1:])
        return Position(self.value.unsqueeze(-1), below, above)


def _as_tensor(bound: Bound, like: Tensor) -> Tensor:
    return (
        bound.to(like.dtype)
        if isinstance(bound, Tensor)
        else torch.full((), bound, dtype=like.dtype, device=like.device)
    )


def _known(distance: Tensor | None) -> Tensor:
    """The distance to an end that the support has."""
    return cast(Tensor, distance)


def _beside(bound: Bound, like: Tensor, upward: bool, smallest: bool) -> Tensor:
    """Number next to a bound; next to zero, unless `smallest`, one whose reciprocal is far from overflow."""
    end = _as_tensor(bound, like).detach()
    beside = next_number(end, upward)
    if smallest:
        return beside
    info = torch.finfo(like.dtype)
    tiny = info.tiny / info.eps
    return torch.where(beside.abs() < tiny, tiny if upward else -tiny, beside)


def _finite(value: Tensor, limit: float) -> Tensor:
    """The value; instead of infinity a number whose square is finite."""
    if torch.compiler.is_compiling():  # which vectorises this and not the other
        return torch.where(value.abs() <= limit, value, value.sign() * limit**0.5)
    return torch.nan_to_num(value, nan=math.nan, posinf=limit**0.5, neginf=-(limit**0.5))


class SupportMap(LadjTransform):
    """An increasing bijection of the real line onto an interval, whose ends may be tensors."""

    domain = constraints.real

    def __init__(self, codomain: constraints.Constraint, low: Bound | None, high: Bound | None) -> None:
        super().__init__()
        self.codomain = codomain
        self.low = wide(low) if isinstance(low, Tensor) else low
        self.high = wide(high) if isinstance(high, Tensor) else high

    @abstractmethod
    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Position of an unconstrained coordinate, and the log-Jacobian of this map there."""

    @abstractmethod
    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Unconstrained coordinate of a position, and the log-Jacobian of this map there."""

    def contains(self, value: Tensor) -> Tensor:
        """True where the value is finite and in the support."""
        inside: Tensor = self.codomain.check(value)
        return inside & (value.abs() <= torch.finfo(value.dtype).max)

    def surely_contains(self, value: Tensor) -> bool:
        """True where one pass over the values shows that all are finite and strictly inside; False says nothing."""
        if not eager() or not value.numel():
            return False
        least, most = value.detach().aminmax()
        limit = torch.finfo(value.dtype).max
        inside = (least >= -limit if self.low is None else least > self.low) & (
            most <= limit if self.high is None else most < self.high
        )
        return bool(inside.all())

    def nearest(self, value: Tensor, *, smallest: bool = False) -> Tensor:
        """The value, or a number beside the nearest end where it isn't strictly inside.

        Args:
            value: Any numbers.
            smallest: Take the very next number and pass gradients, as draws do. Otherwise beside zero it is one
                whose reciprocal is far from overflow, and infinity becomes a number whose square is finite.
        """
        limit = torch.finfo(value.dtype).max
        if not smallest:
            if self.low is None or self.high is None:
                value = _finite(value, limit)
            if self.low is not None:
                value = torch.where(value > self.low, value, _beside(self.low, value, True, smallest))
            if self.high is not None:
                value = torch.where(value < self.high, value, _beside(self.high, value, False, smallest))
            return value
        if self.low is None or self.high is None:
            value = value.clamp(-limit, limit)
        if self.low is None and self.high is None:
            return value
        known = inside = value.detach()
        if self.low is not None:
            inside = torch.maximum(inside, _beside(self.low, value, True, smallest))
        if self.high is not None:
            inside = torch.minimum(inside, _beside(self.high, value, False, smallest))
        if eager() and not value.requires_grad and forward_ad._current_level < 0:
            return inside
        return value + (inside - known)  # a rounded draw, with the gradient of the draw: the sum is exact

    def place(self, value: Tensor) -> Position:
        """Position of a value that lies inside."""
        return Position(
            value,
            None if self.low is None else value - self.low,
            None if self.high is None else self.high - value,
        )

    def union(self) -> tuple[SupportMap, bool]:
        """The smallest interval that holds those of the last batch dimension, and whether they are all the same."""
        return self, True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Constrained value, strictly inside, and log-Jacobian."""
        position, ladj = self.position(wide(x))
        return self.nearest(position.value, smallest=True), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Unconstrained value; outside the support that of the nearest value inside, with log-Jacobian -inf."""
        y = wide(y)
        coordinate, ladj = self.coordinate(self.place(self.nearest(y)))
        return coordinate, torch.where(self.contains(y), -ladj, -math.inf)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.codomain})"


class RealLine(SupportMap):
    """The identity."""

    def __init__(self, codomain: constraints.Constraint = constraints.real) -> None:
        super().__init__(codomain, None, None)

    def contains(self, value: Tensor) -> Tensor:
        """True where the value is finite."""
        return value.abs() <= torch.finfo(value.dtype).max

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """The coordinate itself."""
        return Position(coordinate), torch.zeros_like(coordinate)

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """The value itself."""
        return position.value, torch.zeros_like(position.value)


class LowerBounded(SupportMap):
    r""":math:`x = a + e^y`."""

    low: Bound

    def __init__(self, codomain: constraints.Constraint, low: Bound) -> None:
        super().__init__(codomain, low, None)

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Value and distance to the lower end."""
        below = positive_exp(steady(coordinate))
        value = below if not isinstance(self.low, Tensor) and self.low == 0 else self.low + below
        return Position(value, below), coordinate

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Log of the distance to the lower end."""
        coordinate = log_distance(_known(position.below))
        return coordinate, coordinate

    def union(self) -> tuple[SupportMap, bool]:
        """From the lowest end on."""
        if isinstance(self.low, Tensor) and self.low.dim() > 0:
            low = self.low.amin(-1)
            return LowerBounded(constraints.greater_than_eq(low), low), False
        return self, True


class UpperBounded(SupportMap):
    r""":math:`x = b - e^{-y}`."""

    high: Bound

    def __init__(self, codomain: constraints.Constraint, high: Bound) -> None:
        super().__init__(codomain, None, high)

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Value and distance to the upper end."""
        above = positive_exp(steady(-coordinate))
        return Position(self.high - above, None, above), -coordinate

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Minus the log of the distance to the upper end."""
        log_above = log_distance(_known(position.above))
        return -log_above, log_above

    def union(self) -> tuple[SupportMap, bool]:
        """Up to the highest end."""
        if isinstance(self.high, Tensor) and self.high.dim() > 0:
            high = self.high.amax(-1)
            return UpperBounded(constraints.less_than(high), high), False
        return self, True


class Interval(SupportMap):
    r""":math:`x = a + (b - a) / (1 + e^{-y})`."""

    low: Bound
    high: Bound

    def __init__(self, codomain: constraints.Constraint, low: Bound, high: Bound) -> None:
        super().__init__(codomain, low, high)

    @property
    def width(self) -> Bound:
        """Length of the interval."""
        return self.high - self.low

    def _log_width(self, like: Tensor) -> Tensor:
        return _as_tensor(self.width, like).log()

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Value and distances to both ends."""
        below, above = (self.width * share for share in logistic_pair(steady(coordinate, both=True)))
        value = torch.where(coordinate < 0, self.low + below, self.high - above)
        log_slope = logsigmoid(coordinate) + logsigmoid(-coordinate)
        return Position(value, below, above), self._log_width(value) + log_slope

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Logit of the place in the interval."""
        log_below, log_above = log_distance(_known(position.below)), log_distance(_known(position.above))
        return log_below - log_above, log_below + log_above - self._log_width(log_below)

    def union(self) -> tuple[SupportMap, bool]:
        """From the lowest end to the highest."""
        if not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor):
            return self, True
        reference = cast(Tensor, self.low if isinstance(self.low, Tensor) else self.high)
        low, high = torch.broadcast_tensors(_as_tensor(self.low, reference), _as_tensor(self.high, reference))
        if low.dim() == 0:
            return self, True
        low, high = low.amin(-1), high.amax(-1)
        return Interval(constraints.half_open_interval(low, high), low, high), False


def support_map(constraint: constraints.Constraint) -> SupportMap:
    """The constraint map of a scalar support.

    Raises:
        UnsupportedFamilyError: If there is none, as for discrete supports and simplices.
    """
    own = getattr(constraint, "support_map", None)
    if own is not None:  # a constraint that brings its map
        return cast(SupportMap, own())
    base = getattr(constraint, "base_constraint", None)
    if base is not None and constraint.event_dim == 0:  # a mixture's support
        return support_map(base)
    if isinstance(constraint, type(constraints.real)):
        return RealLine(constraint)
    if isinstance(constraint, (constraints.interval, constraints.half_open_interval)):
        return Interval(constraint, constraint.lower_bound, constraint.upper_bound)
    if isinstance(constraint, (constraints.greater_than, constraints.greater_than_eq)):
        return LowerBounded(constraint, constraint.lower_bound)
    if isinstance(constraint, constraints.less_than):
        return UpperBounded(constraint, constraint.upper_bound)
    raise UnsupportedFamilyError(f"The support {constraint} has no constraint map from the real line.")


@class_dispatch
def unconstrained_map(constraint: constraints.Constraint) -> LadjTransform:
    r"""The map from the real line (or real vectors) onto a support.

    The identity on the real line, :math:`a + e^y` above a bound, :math:`b - e^{-y}` below one, and the logistic
    function on an interval; bounds may be tensors. Elementwise over event dimensions of such a support. A simplex,
    an ordered vector, and the matrices (Cholesky factors, correlation and positive definite matrices) have maps from
    real vectors of their number of free elements, which `forward_shape` and `inverse_shape` tell.

    Args:
        constraint: The support, a torch or Pyro constraint.

    Returns:
        A transform with `call_and_ladj` and `inv.call_and_ladj`.

    Raises:
        UnsupportedFamilyError: If the support is none of these.
    """
    own = getattr(constraint, "support_map", None)
    if own is not None:  # a constraint that brings its map
        return cast(SupportMap, own())
    base = getattr(constraint, "base_constraint", None)
    if base is not None and constraint.event_dim > 0:  # a mixture's support
        return unconstrained_map(base)
    return support_map(constraint)


@unconstrained_map.register(constraints.independent)
def _independent(constraint: Any) -> LadjTransform:
    return IndependentTransform(unconstrained_map(constraint.base_constraint), constraint.reinterpreted_batch_ndims)
