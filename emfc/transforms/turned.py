"""Half-lines whose direction is a tensor: above their end where a sign is positive, below it where it is negative."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.transforms.supports import LowerBounded, Position, RealLine, SupportMap, UpperBounded

__all__ = ["TurnedHalfLine", "TurnedMap"]


class TurnedHalfLine(constraints.Constraint):
    """Values above an end where the sign is 1, below it where it is -1, all of them where it is 0.

    Args:
        end: The ends.
        sign: 1, -1 or 0 for each.
        known: Whether positions bring their distance from the end; otherwise it is found from the value.
    """

    def __init__(self, end: Tensor, sign: Tensor, *, known: bool = True) -> None:
        self.end, self.side, self.known = end, sign, known
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether values lie inside."""
        inside = torch.where(self.side > 0, value >= self.end, value < self.end)
        return inside | ((self.side == 0) & (value == value))

    def support_map(self) -> SupportMap:
        """The map onto the half-lines."""
        return TurnedMap(self)


class TurnedMap(SupportMap):
    r""":math:`x = a + e^y` where the sign is 1, :math:`a - e^{-y}` where it is -1, y where it is 0.

    The distance from the end, on whichever side it lies, is a position's `below`.
    """

    def __init__(self, codomain: TurnedHalfLine) -> None:
        super().__init__(codomain, None, None)
        self.end, self.side, self.known = codomain.end, codomain.side, codomain.known
        self.rising = LowerBounded(constraints.greater_than_eq(self.end), self.end)
        self.falling = UpperBounded(constraints.less_than(self.end), self.end)
        self.line = RealLine()

    def _pick(self, rising: Tensor, falling: Tensor, line: Tensor) -> Tensor:
        return torch.where(self.side > 0, rising, torch.where(self.side < 0, falling, line))

    def position(self, coordinate: Tensor) -> tuple[Position, Tensor]:
        """Value and distance from the end."""
        rising, up = self.rising.position(coordinate)
        falling, down = self.falling.position(coordinate)
        line, flat = self.line.position(coordinate)
        value = self._pick(rising.value, falling.value, line.value)
        distance = torch.where(self.side > 0, cast(Tensor, rising.below), cast(Tensor, falling.above))
        return Position(value, distance if self.known else None), self._pick(up, down, flat)

    def coordinate(self, position: Position) -> tuple[Tensor, Tensor]:
        """Log of the distance from the end, with the sign."""
        distance = position.below if self.known else None
        if distance is None:
            distance = self.place(position.value).below
        distance = torch.where(self.side == 0, 1, cast(Tensor, distance))
        rising, up = self.rising.coordinate(Position(position.value, distance))
        falling, down = self.falling.coordinate(Position(position.value, None, distance))
        line, flat = self.line.coordinate(position)
        return self._pick(rising, falling, line), self._pick(up, down, flat)

    def surely_contains(self, value: Tensor) -> bool:
        """Not known without a look at each element's side."""
        return False

    def nearest(self, value: Tensor, *, smallest: bool = False) -> Tensor:
        """The value, or a number beside the end where it isn't strictly inside."""
        maps = (self.rising, self.falling, self.line)
        rising, falling, line = (part.nearest(value, smallest=smallest) for part in maps)
        return self._pick(rising, falling, line)

    def place(self, value: Tensor) -> Position:
        """Position of a value that lies inside."""
        return Position(value, torch.where(self.side > 0, value - self.end, self.end - value))

    def union(self) -> tuple[SupportMap, bool]:
        """A half-line if all of the last batch dimension have one direction; otherwise the real line."""
        sign, end = torch.broadcast_tensors(self.side, self.end)
        if sign.dim() == 0:
            return self, True
        up, down = (sign > 0).all(-1), (sign < 0).all(-1)
        ends = torch.where(up, end.amin(-1), end.amax(-1))
        both: Any = up.to(sign.dtype) - down.to(sign.dtype)
        return TurnedHalfLine(torch.where(up | down, ends, 0), both, known=False).support_map(), False
