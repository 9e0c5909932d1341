"""What mpmath says: noise of a value, and its derivatives along directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp

Pair = tuple[mp.mpf, mp.mpf]


def phi(z: Any) -> Pair:
    """Both tails of the standard normal: for oracles that know the noise itself."""
    z = mp.mpf(z) / mp.sqrt(2)
    return mp.erfc(-z) / 2, mp.erfc(z) / 2


def lift(value: Any) -> Any:
    """Numbers, or nested lists of them, in mpmath."""
    return [lift(part) for part in value] if isinstance(value, list) else mp.mpf(value)


def moved(value: Any, amount: mp.mpf, tangent: Any) -> Any:
    """Value plus an amount times a direction."""
    if isinstance(value, list):
        return [moved(part, amount, other) for part, other in zip(value, tangent, strict=True)]
    return value + amount * tangent


def log_slope(tail: mp.mpf, guess: float) -> tuple[mp.mpf, mp.mpf]:
    """Noise at minus the distance whose normal tail this is, and the derivative of that tail's log there."""
    with mp.workdps(35):
        z = mp.mpf(-abs(guess))
        for _ in range(60):
            small = mp.erfc(-z / mp.sqrt(2)) / 2
            slope = mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi) / small
            step = mp.log(tail / small) / slope
            z += step
            if abs(step) < 1e-15 * (1 + abs(z)):
                break
        return z, slope


class Truth:
    """Tails of one draw, and the noise that they are."""

    def __init__(self, tails: Callable[..., Any], x: Any, parameters: Sequence[Any], digits: int) -> None:
        self.tails, self.digits = tails, digits
        with mp.workdps(digits):
            self.x, self.parameters = lift(x), [lift(value) for value in parameters]
            self.pairs = self._pairs(self.x, self.parameters)
        self._slopes: dict[int, mp.mpf] = {}

    def _pairs(self, x: Any, parameters: Sequence[Any]) -> list[Pair]:
        found = self.tails(x, *parameters)
        return found if isinstance(found, list) else [found]

    def error(self, place: int, near: float) -> float:
        """Exact noise of an element, minus the noise that it ought to be."""
        lower, upper = self.pairs[place]
        tail = lower if near < 0 else upper
        if tail <= 0:
            return float("inf")
        z, self._slopes[place] = log_slope(tail, near)
        with mp.workdps(self.digits):
            return float((z if near < 0 else -z) - mp.mpf(near))

    def derivative(self, near: Sequence[float], which: int | None, tangent: Any, size: float) -> list[float]:
        """Derivatives of the noises along a direction of the value (None) or of a parameter.

        They are central differences, whose step changes the noise by as little as the digits allow, given about how
        large the derivatives are.
        """
        with mp.workdps(self.digits):
            h = mp.mpf(10) ** (-(self.digits // 3)) / max(1, mp.mpf(size))
            ends = []
            tangent = lift(tangent)
            for sign in (1, -1):
                x, parameters = self.x, list(self.parameters)
                if which is None:
                    x = moved(x, sign * h, tangent)
                else:
                    parameters[which] = moved(parameters[which], sign * h, tangent)
                ends.append(self._pairs(x, parameters))
            result = []
            for place, e in enumerate(near):
                side = 0 if e < 0 else 1
                change = mp.log(ends[0][place][side] / ends[1][place][side]) / (2 * h * self._slopes[place])
                result.append(float(change if side == 0 else -change))
            return result
