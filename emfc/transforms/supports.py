"""Supports of univariate families, and the constraint maps that carry the real line onto them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.special.precision import wide
from emfc.transforms.base import IndependentTransform, LadjTransform
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


def _beside(bound: Bound, like: Tensor, direction: float, smallest: bool) -> Tensor:
    """Number next to a bound; next to zero, unless `smallest`, one whose reciprocal is far from overflow."""
    end = _as_tensor(bound, like).detach()
    beside = torch.nextafter(end, torch.full_like(end, direction))
    if smallest:
        return beside
    info = torch.finfo(like.dtype)
    tiny = info.tiny / info.eps
    return torch.where(beside.abs() < tiny, math.copysign(tiny, direction), beside)


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
        return inside & torch.isfinite(value)

    def nearest(self, value: Tensor, *, smallest: bool = False) -> Tensor:
        """The value, or a number beside the nearest end where it isn't strictly inside.

        Args:
            value: Any numbers.
            smallest: Take the very next number and pass gradients, as draws do. Otherwise beside zero it is one
                whose reciprocal is far from overflow, and infinity becomes a number whose square is finite.
        """
        limit = torch.finfo(value.dtype).max
        if not smallest:
            value = torch.where(value.abs() <= limit, value, value.sign() * limit**0.5)
        finite = value.clamp(-limit, limit)
        if self.low is None and self.high is None:
            return finite
        inside = finite.detach()
        if self.low is not None:
            inside = torch.where(inside > self.low, inside, _beside(self.low, value, math.inf, smallest))
        if self.high is not None:
            inside = torch.where(inside < self.high, inside, _beside(self.high, value, -math.inf, smallest))
        if smallest:  # a rounded draw: the sum below is exact
            return finite + (inside - finite.detach())
        return torch.where(inside == finite, finite, inside)

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

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """The coordinate itself."""
        return Position(coordinate), torch.zeros_like(coordinate)

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """The value itself."""
        return position.value, torch.zeros_like(position.value)


def _bounded_exp(coordinate: Tensor) -> Tensor:
    info = torch.finfo(coordinate.dtype)
    return torch.exp(coordinate.clamp(math.log(info.tiny) - 15, math.log(info.max) * (1 - 2 * info.eps)))


class LowerBounded(SupportMap):
    r""":math:`x = a + e^y`."""

    low: Bound

    def __init__(self, codomain: constraints.Constraint, low: Bound) -> None:
        super().__init__(codomain, low, None)

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Value and distance to the lower end."""
        below = _bounded_exp(coordinate)
        value = below if not isinstance(self.low, Tensor) and self.low == 0 else self.low + below
        return Position(value, below), coordinate

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Log of the distance to the lower end."""
        coordinate = _known(position.below).log()
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
        above = _bounded_exp(-coordinate)
        return Position(self.high - above, None, above), -coordinate

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Minus the log of the distance to the upper end."""
        log_above = _known(position.above).log()
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
        below, above = self.width * torch.sigmoid(coordinate), self.width * torch.sigmoid(-coordinate)
        value = torch.where(coordinate < 0, self.low + below, self.high - above)
        softplus = torch.nn.functional.softplus
        return Position(value, below, above), self._log_width(value) - softplus(coordinate) - softplus(-coordinate)

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Logit of the place in the interval."""
        log_below, log_above = _known(position.below).log(), _known(position.above).log()
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


def unconstrained_map(constraint: constraints.Constraint) -> LadjTransform:
    r"""The map from the real line (or real vectors) onto a support.

    The identity on the real line, :math:`a + e^y` above a bound, :math:`b - e^{-y}` below one, and the logistic
    function on an interval; bounds may be tensors. Elementwise over event dimensions.

    Args:
        constraint: The support, a torch or Pyro constraint.

    Returns:
        A transform with `call_and_ladj` and `inv.call_and_ladj`.

    Raises:
        UnsupportedFamilyError: If the support is none of these.
    """
    if isinstance(constraint, constraints.independent):
        return IndependentTransform(unconstrained_map(constraint.base_constraint), constraint.reinterpreted_batch_ndims)
    return support_map(constraint)
