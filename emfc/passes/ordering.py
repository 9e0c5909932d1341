"""Ordering: the steps of a filter over summed-out values, for the events of one component.

A value is introduced just before the first event that needs it, with those that it depends on itself, and eliminated
right after its last reader. Where some values are conditioned on, the others fall into parts that are filtered apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["CALL", "LARGEST_ENUMERATION", "Event", "Operation", "cost_of", "parts_of", "roots_of"]

LARGEST_ENUMERATION = 1024
CALL = 30.0  # what a step costs
_NUMBER = 1.0  # what a number in it costs, for a hundred examples


class Operation(NamedTuple):
    """One step of a filter over the axes of the conditioned values, then those of the values alive.

    Attributes:
        kind: ``"introduce"`` (multiply by the probabilities of a new value, whose axis comes last), ``"observe"``
            (multiply by the densities of an element) or ``"eliminate"`` (sum over an axis).
        event: The element or the introduced value, by its number in the bundle; -1 for ``"eliminate"``.
        kernel: Class of the event.
        axes: For each slot of the class the axis that it lies on, -1 for none.
        live: Sizes of the axes alive, after an introduction and before an elimination.
        axis: What is eliminated.
    """

    kind: str
    event: int
    kernel: int
    axes: tuple[int, ...]
    live: tuple[int, ...]
    axis: int = -1


class Event(NamedTuple):
    """A factor: an element of a mixture, or the choice of a summed-out value.

    Attributes:
        address: Of the element; events are in program order by it.
        kernel: Class of its site.
        position: Its place among the elements of the class.
        scope: The summed-out values that it depends on; its own comes last.
        slots: The slot of each of them.
        own: The value that is chosen, or -1.
    """

    address: int
    kernel: int
    position: int
    scope: tuple[int, ...]
    slots: tuple[int, ...]
    own: int


def roots_of(scopes: Sequence[Sequence[int]]) -> list[int]:
    """For each scope a number that two scopes share where a chain of common members joins them; -1 where empty."""
    parent: dict[int, int] = {}

    def root(member: int) -> int:
        while parent.setdefault(member, member) != member:
            parent[member] = member = parent[parent[member]]
        return member

    for scope in scopes:
        for member in scope[1:]:
            parent[root(member)] = root(scope[0])
    return [root(scope[0]) if scope else -1 for scope in scopes]


def parts_of(
    events: list[Event], priors: Mapping[int, int], conditioned: tuple[int, ...], levels: Sequence[int]
) -> tuple[list[tuple[Operation, ...]], list[int]]:
    """Operations of each part once some values are held fixed, and the values of the largest filter."""
    fixed = set(conditioned)
    rest = [[latent for latent in event.scope if latent not in fixed] for event in events]
    grouped: dict[int, list[int]] = {}
    for number, (event, root) in enumerate(zip(events, roots_of(rest), strict=True)):
        if event.own < 0 or event.own in fixed:
            grouped.setdefault(root, []).append(number)
    parts = []
    largest = list(conditioned)
    for observed in grouped.values():
        operations, live = _operations(events, observed, priors, conditioned, levels)
        parts.append(operations)
        largest = max(largest, [*conditioned, *live], key=lambda held: math.prod(levels[latent] for latent in held))
    return parts, largest


def _operations(
    events: list[Event],
    observed: list[int],
    priors: Mapping[int, int],
    conditioned: tuple[int, ...],
    levels: Sequence[int],
) -> tuple[tuple[Operation, ...], list[int]]:
    """Operations of one part, none where they are too large, and the values that are alive at its largest."""
    sequence: list[int] = []
    known = set(conditioned)
    for number in observed:
        sequence.extend(_missing(events, number, priors, known))
        sequence.append(number)
    fixed = set(conditioned)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, number in enumerate(sequence):
        for latent in events[number].scope:
            if latent not in fixed:
                first.setdefault(latent, place)
                last[latent] = place
    peak = _peak(first, last, levels, len(sequence))
    largest = [latent for latent in first if first[latent] <= peak <= last[latent]]
    if math.prod(levels[latent] for latent in (*conditioned, *largest)) > LARGEST_ENUMERATION:
        return (), largest
    live: list[int] = []
    operations: list[Operation] = []
    for place, number in enumerate(sequence):
        event = events[number]
        new = event.own >= 0 and event.own not in fixed
        if new:
            live.append(event.own)
        axes = [-1] * (max(event.slots, default=-1) + 1)
        order = {latent: axis for axis, latent in enumerate((*conditioned, *live))}
        for latent, slot in zip(event.scope, event.slots, strict=True):
            axes[slot] = order[latent]
        sizes = tuple(levels[latent] for latent in live)
        operations.append(Operation("introduce" if new else "observe", number, event.kernel, tuple(axes), sizes))
        for latent in [latent for latent in live if last[latent] == place]:
            sizes = tuple(levels[held] for held in live)
            axis = len(conditioned) + live.index(latent)
            operations.append(Operation("eliminate", -1, -1, (), sizes, axis))
            live.remove(latent)
    return tuple(operations), largest


def _peak(first: Mapping[int, int], last: Mapping[int, int], levels: Sequence[int], count: int) -> int:
    """The place in a sequence at which the values alive have the most joint levels."""
    change = np.zeros(count + 1)
    for latent, place in first.items():
        change[place] += math.log2(levels[latent])
        change[last[latent] + 1] -= math.log2(levels[latent])
    return int(np.argmax(np.cumsum(change)[:count])) if count else 0


def _missing(events: list[Event], number: int, priors: Mapping[int, int], known: set[int]) -> list[int]:
    """Introductions that an event waits for, in program order; they are known from now on."""
    pending = [latent for latent in events[number].scope if latent not in known]
    found: list[int] = []
    while pending:
        latent = pending.pop()
        if latent not in known:
            known.add(latent)
            found.append(priors[latent])
            pending.extend(events[priors[latent]].scope)
    return sorted(found)


def cost_of(parts: Sequence[Sequence[Operation]], conditioned: int, copies: int) -> float:
    """About how long a density takes: parts with the same operations are filtered together, and so are elements that
    follow each other."""
    counts: dict[tuple[Operation, ...], int] = {}
    for part in parts:
        key = tuple(operation._replace(event=-1) for operation in part)
        counts[key] = counts.get(key, 0) + copies
    total = 0.0
    for key, count in counts.items():
        before: Operation | None = None
        for operation in key:
            follows = operation == before and operation.kind == "observe"
            total += (0.0 if follows else CALL) + _NUMBER * conditioned * math.prod(operation.live) * count
            before = operation
    return total
