"""Eliminate: in which order the summed-out values are introduced and summed out again.

Every element of a mixture, and the choice of every summed-out value, is a factor over a few summed-out values. Values
that no factor joins are independent, and make components of their own; components with the same structure are one
bundle. Within a component the elements come in program order, each after the values that it depends on, and a value
is summed out after its last reader: what is left is a filter over the values alive. Where a component falls apart once
a few of its values are held fixed, these are conditioned on instead, and the parts are filtered side by side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emfc.passes.classify import SiteClass
from emfc.passes.marginalise import Populations
from emfc.passes.ordering import CALL, LARGEST_ENUMERATION, Event, Operation, cost_of, parts_of, roots_of
from emfc.passes.scopes import Scopes, find_scopes
from emfc.passes.slots import Slots, assign_slots
from emfc.program.errors import CompileError
from emfc.program.ir import Addresses, Program

__all__ = ["LARGEST_ENUMERATION", "Bundle", "Elimination", "Operation", "eliminate"]

_MOST = 10  # values that are conditioned on


@dataclass(frozen=True, eq=False)
class Bundle:
    """Components with the same structure.

    Attributes:
        conditioned: Numbers of levels of the values that are conditioned on.
        parts: For each part that is left the operations of its filter.
        kernels: Class of each event; events are in program order.
        positions: For each event and copy its place among the elements of its class, ``[E, C]``.
    """

    conditioned: tuple[int, ...]
    parts: tuple[tuple[Operation, ...], ...]
    kernels: tuple[int, ...]
    positions: Addresses

    @cached_property
    def observed(self) -> tuple[int, ...]:
        """Numbers of the events that are observed, in program order."""
        return tuple(sorted(op.event for part in self.parts for op in part if op.kind == "observe"))

    @cached_property
    def largest(self) -> int:
        """The most joint values that are kept at a time."""
        sizes = [math.prod(op.live) for part in self.parts for op in part]
        return math.prod(self.conditioned) * max(sizes, default=1)


@dataclass(frozen=True, eq=False)
class Elimination:
    """How all components are eliminated.

    Attributes:
        bundles: The components.
        scopes: By class, for those that are summed out or read what is.
        slots: The same.
    """

    bundles: tuple[Bundle, ...]
    scopes: Mapping[int, Scopes]
    slots: Mapping[int, Slots]

    @property
    def largest(self) -> int:
        """The most joint values that are kept at a time."""
        return max((bundle.largest for bundle in self.bundles), default=0)

    def describe(self) -> str:
        """The size of it in words."""
        copies = [bundle.positions.shape[1] for bundle in self.bundles]
        steps = [
            sum(operation.kind == "introduce" for operation in max(bundle.parts, key=len)) for bundle in self.bundles
        ]
        chain = f", in chains of up to {max(steps)}" if max(steps, default=0) > 1 else ""
        kinds = f" of {len(copies)} kinds" if len(copies) > 1 else ""
        apart = f" at a time, in {sum(copies)} independent components{kinds}" if sum(copies) > 1 else ""
        return f"{self.largest} populations{apart}{chain}"


def eliminate(program: Program, populations: Populations, classes: Mapping[int, SiteClass]) -> Elimination:
    """Plan the elimination of all summed-out values.

    Args:
        program: The program.
        populations: What is summed out.
        classes: Classes of the sites of an example and of those summed out, by number.

    Raises:
        CompileError: More joint values than allowed would have to be kept at a time (E-DISCRETE).
    """
    summed, readers = set(populations.sites), set(populations.readers)
    scopes: dict[int, Scopes] = {}
    slots: dict[int, Slots] = {}
    events: list[Event] = []
    for number, held in classes.items():
        if held.sites[0] not in summed and held.sites[0] not in readers:
            continue
        scopes[number] = find_scopes(program, held, populations.addresses, populations.levels, held.sites[0] in summed)
        slots[number] = assign_slots(scopes[number])
        events.extend(_events(program, held, number, scopes[number], slots[number]))
    levels = populations.levels
    priors = {event.own: event for event in events if event.own >= 0}
    observations = sorted(event for event in events if event.own < 0)
    bundles: dict[tuple[object, ...], list[list[Event]]] = {}
    for component in _components(observations, priors):
        bundles.setdefault(_signature(component, levels), []).append(component)
    planned = tuple(_bundle(program, populations, members) for members in bundles.values())
    for number in slots:
        if slots[number].count > LARGEST_ENUMERATION:
            read = [levels[place] for place in sorted(set(scopes[number].latents[0].tolist()))]
            raise _refused(program, populations, [int(scopes[number].latents[0, 0])], read)
    return Elimination(planned, scopes, slots)


def _events(program: Program, held: SiteClass, number: int, scopes: Scopes, slots: Slots) -> Iterable[Event]:
    size = len(scopes.elements)
    observed = program.sites[held.sites[0]].observed  # a term of a variational target, which has no address
    for row, index in enumerate(held.sites):
        start, latents = program.sites[index].start, scopes.latents[row].tolist()
        if observed:
            start = int(program.addresses_before[index])
        for place, element in enumerate(scopes.elements):
            yield Event(
                address=start if observed else start + place,
                kernel=number,
                position=row * size + place,
                scope=tuple(latents[local] for local in element),
                slots=tuple(slots.places[local] for local in element),
                own=-1 if scopes.own is None else latents[scopes.own + place],
            )


def _components(observations: list[Event], priors: Mapping[int, Event]) -> list[list[Event]]:
    """Events that share values, directly or not, in program order; values that no element needs are left out."""
    pending = [latent for event in observations for latent in event.scope]
    needed: set[int] = set()
    while pending:
        latent = pending.pop()
        if latent not in needed:
            needed.add(latent)
            pending.extend(priors[latent].scope)
    events = sorted([*observations, *(priors[latent] for latent in needed)])
    roots = roots_of([event.scope for event in events])
    found: dict[int, list[Event]] = {}
    for event, root in zip(events, roots, strict=True):
        found.setdefault(root, []).append(event)
    return list(found.values())


def _signature(component: list[Event], levels: Sequence[int]) -> tuple[object, ...]:
    names: dict[int, int] = {}
    told = [
        (event.kernel, event.slots, event.own >= 0, *(names.setdefault(latent, len(names)) for latent in event.scope))
        for event in component
    ]
    return tuple(told), tuple(levels[latent] for latent in names)


def _bundle(program: Program, populations: Populations, members: list[list[Event]]) -> Bundle:
    """Plan one component for all its copies, conditioning on as many of its most read values as pays."""
    first, levels = members[0], populations.levels
    priors = {event.own: number for number, event in enumerate(first) if event.own >= 0}
    degrees = dict.fromkeys(priors, 0)
    for event in first:
        for latent in event.scope:
            degrees[latent] += 1
    ranked = sorted(degrees, key=lambda latent: (-degrees[latent], latent))
    best: tuple[float, list[tuple[Operation, ...]], tuple[int, ...]] | None = None
    least: tuple[int, list[int]] | None = None
    for count in range(min(len(ranked), _MOST) + 1):
        conditioned = tuple(ranked[:count])
        if count and (
            math.prod(levels[latent] for latent in conditioned) > LARGEST_ENUMERATION or degrees[ranked[count - 1]] < 3
        ):
            break
        parts, largest = parts_of(first, priors, conditioned, levels)
        size = math.prod(levels[latent] for latent in largest)
        if least is None or size < least[0]:
            least = size, largest
        if size <= LARGEST_ENUMERATION:
            cost = cost_of(parts, math.prod(levels[latent] for latent in conditioned), len(members))
            if best is None or 2 * cost < best[0]:
                best = cost, parts, conditioned
            if cost <= 4 * CALL:
                break
    if best is None:
        largest = least[1] if least else ranked
        raise _refused(program, populations, largest, [levels[latent] for latent in largest])
    return Bundle(
        conditioned=tuple(levels[latent] for latent in best[2]),
        parts=tuple(best[1]),
        kernels=tuple(event.kernel for event in first),
        positions=np.array([[event.position for event in component] for component in members], dtype=np.int64).T,
    )


def _refused(
    program: Program, populations: Populations, latents: Collection[int], levels: Sequence[int]
) -> CompileError:
    address = min(int(populations.addresses[latent]) for latent in latents)
    owner = max(
        (program.sites[index] for index in populations.sites if program.sites[index].start <= address),
        key=lambda s: s.start,
    )
    return CompileError(
        "E-DISCRETE",
        f"summing out {len(levels)} discrete values that depend on each other would take {_large(levels)} populations "
        f"at a time, more than the {LARGEST_ENUMERATION} that are allowed",
        site=owner.name,
        location=owner.location,
        source=owner.source,
        advice="use fewer discrete values that are read together, or a MixtureSameFamily for each row",
    )


def _large(sizes: Sequence[int]) -> str:
    """The size of an enumeration, readable also where it has hundreds of digits."""
    total = math.prod(sizes)
    power = f"{sizes[0]}^{len(sizes)}" if len(set(sizes)) == 1 and len(sizes) > 1 else " * ".join(map(str, sizes[:6]))
    return f"{power} = {total}" if total < 10**15 else power
