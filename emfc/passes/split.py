"""Split: what of a slice can be computed beforehand, and what waits for some of its loads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from emfc.passes.slices import Load, Slice, Step, Value

__all__ = ["Split", "split"]


@dataclass(frozen=True, eq=False)
class Split:
    """A slice in two parts.

    Attributes:
        before: Numbers of the values of the slice that the second part reads and that wait for nothing, with their
            dtype kinds.
        after: The second part. Its loads stand, in order, for what `sources` names.
        sources: For each load of the second part ``("before", i)``, an index into `before`, or ``("load", i)``, a
            load of the slice by its place among the loads.
    """

    before: tuple[tuple[int, str], ...]
    after: Slice
    sources: tuple[tuple[str, int], ...]


def split(held: Slice, waiting: Collection[int]) -> Split:
    """Split a slice at some of its loads.

    Args:
        held: The slice.
        waiting: Places, among the loads, of those that are not known beforehand.
    """
    late: set[int] = set()  # numbers of the values that wait
    places: dict[int, int] = {}  # of loads, by number
    known: dict[int, tuple[tuple[int, ...], str]] = {}
    for number, value in zip(held.numbers, held.values, strict=True):
        if isinstance(value, Load):
            places[number] = len(places)
            if places[number] in waiting:
                late.add(number)
            known[number] = (value.shape, value.dtype)
        elif isinstance(value, Step):
            for offset, (shape, kind) in enumerate(zip(value.shapes, value.dtypes, strict=True)):
                known[number + offset] = (shape, kind)
                if not late.isdisjoint(value.inputs):
                    late.add(number + offset)
        else:
            known[number] = (value.shape, value.dtype)
            if not late.isdisjoint(value.inputs):
                late.add(number)
    wanted = dict.fromkeys(number for number in held.outputs if number not in late)
    for number, value in zip(held.numbers, held.values, strict=True):
        if number in late and not isinstance(value, Load):
            wanted.update(dict.fromkeys(source for source in value.inputs if source not in late))
    return Split(
        before=tuple((number, known[number][1]) for number in wanted),
        after=_after(held, late, {number: known[number] for number in wanted}),
        sources=tuple(("before", place) for place in range(len(wanted)))
        + tuple(("load", places[number]) for number in places if number in late),
    )


def _after(held: Slice, late: Collection[int], known: Mapping[int, tuple[tuple[int, ...], str]]) -> Slice:
    values: list[Value] = []
    numbers: list[int] = []
    for number, (shape, kind) in known.items():
        values.append(Load(np.zeros(shape, dtype=np.int64), kind))
        numbers.append(number)
    waiting = [pair for pair in zip(held.numbers, held.values, strict=True) if pair[0] in late]
    for loads in (True, False):
        for number, value in waiting:
            if isinstance(value, Load) == loads:
                values.append(value)
                numbers.append(number)
    return Slice(tuple(values), tuple(numbers), held.outputs)
