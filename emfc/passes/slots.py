"""Slots: how few joint values a class must be evaluated at so that every element sees all values of its own scope.

Elements rarely read the same values: a row of a plate reads its own label. Values that no element reads together share
a slot and take the same level in every evaluation; a class is evaluated at all combinations of the levels of its slots.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfc.passes.scopes import Scopes

__all__ = ["Slots", "assign_slots"]


@dataclass(frozen=True, eq=False)
class Slots:
    """Slots of a class.

    Attributes:
        places: For each of the numbers of `Scopes` its slot.
        sizes: How many levels each slot has.
    """

    places: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many joint values the class is evaluated at."""
        return math.prod(self.sizes)

    def table(self) -> npt.NDArray[np.float64]:
        """The joint values ``[K, m]``: for each combination of the slots the level of each number."""
        combinations = np.array(list(itertools.product(*map(range, self.sizes))), dtype=np.float64)
        return combinations.reshape(self.count, len(self.sizes))[:, list(self.places)]

    @property
    def strides(self) -> tuple[int, ...]:
        """How far apart neighbouring levels of each slot are among the combinations."""
        return tuple(math.prod(self.sizes[place + 1 :]) for place in range(len(self.sizes)))


def assign_slots(scopes: Scopes) -> Slots:
    """Give each number the first slot of its size that none of those read together with it has."""
    together: list[set[int]] = [set() for _ in scopes.levels]
    for element in set(scopes.elements):
        for number in element:
            together[number].update(element)
    places: list[int] = []
    sizes: list[int] = []
    for number, levels in enumerate(scopes.levels):
        taken = {places[other] for other in together[number] if other < number}
        place = next((p for p, size in enumerate(sizes) if size == levels and p not in taken), len(sizes))
        if place == len(sizes):
            sizes.append(levels)
        places.append(place)
    return Slots(tuple(places), tuple(sizes))
