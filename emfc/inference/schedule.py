"""Budgets, learning-rate schedules and the test that says whether an objective still improves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Budget", "Cycle", "improves"]


@dataclass
class Budget:
    """Seconds and steps of a fit, the search for a start included.

    Attributes:
        seconds: Most seconds of wall time; None for any.
        steps: Most steps; None for any.
        reserve: Seconds that are kept for the evaluation at the end.
        done: Steps done.
    """

    seconds: float | None = None
    steps: int | None = None
    reserve: float = 0.0
    done: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self.began

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self.seconds is not None or self.steps is not None

    @property
    def share(self) -> float:
        """Share of the budget that is spent, 0 where there is no limit."""
        shares = [0.0]
        if self.seconds is not None:
            shares.append(self.elapsed / max(self.seconds - self.reserve, 1e-9))
        if self.steps is not None:
            shares.append(self.done / self.steps if self.steps else 1.0)
        return max(shares)

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.share >= 1


@dataclass
class Cycle:
    """One rise, plateau and fall of the learning rate.

    The rate rises over ``warm_up`` steps, stays until the plateau ends, and falls to zero along a cosine. The plateau
    ends when the objective has stopped improving, or at a share of the budget; the fall takes as long as ``fall``
    times what came before, and all of the budget where about that much is left.

    Attributes:
        budget: What the cycle may spend.
        plateau: Share of what is left of the budget at which the fall begins at the latest.
        fall: Length of the fall in plateaus.
        warm_up: Steps of the rise.
        least: Fewest steps of a plateau that the budget does not end.
    """

    budget: Budget
    plateau: float = 0.35
    fall: float = 2.0
    warm_up: int = 50
    least: int = 1000
    steps: int = 0
    fell_at: int | None = None
    share_at: float = 0.0
    length: int | None = None

    def __post_init__(self) -> None:
        self.first = self.budget.share

    @property
    def falling(self) -> bool:
        """Whether the rate falls."""
        return self.fell_at is not None

    @property
    def due(self) -> bool:
        """Whether the budget says that the fall begins."""
        return self.budget.limited and self.budget.share >= self.first + self.plateau * (1 - self.first)

    def begin_fall(self) -> None:
        """Lets the rate fall from here on."""
        self.fell_at, self.share_at = self.steps, self.budget.share
        length = max(int(self.fall * self.steps), 4 * self.warm_up)
        per_step = (self.share_at - self.first) / max(self.steps, 1)
        # What is left would not do for another cycle: take it all.
        self.length = None if self.budget.limited and self.share_at + 3 * length * per_step >= 1 else length

    def factor(self) -> float:
        """Factor on the learning rate for the next step, 0 when the cycle is over."""
        rise = min(1.0, (self.steps + 1) / self.warm_up)
        if self.fell_at is None:
            return rise
        if self.length is None:
            part = (self.budget.share - self.share_at) / max(1 - self.share_at, 1e-9)
        else:
            part = (self.steps - self.fell_at) / self.length
        return rise * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))

    @property
    def over(self) -> bool:
        """Whether the cycle is at its end."""
        return self.fell_at is not None and self.length is not None and self.steps - self.fell_at >= self.length


def improves(values: Sequence[float], *, block: int = 25, least: float = 0.0, sigmas: float = 2.0) -> bool:
    """Whether the mean of the last quarter of a noisy series is significantly above that of the quarter before.

    The standard error is that of means of blocks, since neighbours depend on each other.

    Args:
        values: The series; shorter than 8 blocks, it counts as improving.
        block: Length of a block.
        least: Smallest improvement that counts.
        sigmas: How many standard errors it must exceed.
    """
    quarter = len(values) // (4 * block)
    if quarter < 2:
        return True
    recent = values[-2 * quarter * block :]
    means = [math.fsum(recent[i : i + block]) / block for i in range(0, len(recent), block)]
    older, newer = means[:quarter], means[quarter:]
    gain = math.fsum(newer) / quarter - math.fsum(older) / quarter
    spread = math.sqrt((_variance(older) + _variance(newer)) / quarter)
    return gain > max(sigmas * spread, least)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
