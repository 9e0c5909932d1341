"""Which elements of mixtures are drawn together, and what each of them needs first.

Copies of a component whose elements are drawn at the same levels make a group; each of them is a lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from emfc.layers.kernel import Kernel
from emfc.layers.latents import Enumeration
from emfc.layers.part_filter import factor_index
from emfc.layers.plan import Plan
from emfc.layers.readers import Picker
from emfc.passes.eliminate import Bundle
from emfc.passes.ordering import Operation
from emfc.program.ir import Addresses

__all__ = ["Draw", "Group", "Key", "Pieces", "Step", "group_draws"]

Key = tuple[int, int]
"""Class and level of what is evaluated together."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a filter for all lanes of a group.

    Attributes:
        operation: The operation.
        key: Where its factors are evaluated.
        piece: Which piece of these is its own.
        inner: For each joint level of the axes its place among the K populations; None where these are in order.
    """

    operation: Operation
    key: Key
    piece: int
    inner: Picker | None


@dataclass(frozen=True, eq=False)
class Draw:
    """One element of every lane of a group.

    Attributes:
        group: Number of the group.
        part: Number of the part whose filter the element belongs to.
        before: What the filter does first.
        step: The observation of the element itself; of a summed-out value where `mixed` is False.
        mixed: Whether an element is drawn.
        level: When.
        sites: Site and place of each lane's element, ``[lanes, 2]``.
        columns: Columns of the noise.
        place: Of the element inside its vector.
    """

    group: int
    part: int
    before: tuple[Step, ...]
    step: Step
    mixed: bool
    level: int
    sites: Addresses
    columns: Picker
    place: int


@dataclass(frozen=True, eq=False)
class Group:
    """Copies of a bundle that are drawn at the same time."""

    conditioned: tuple[int, ...]
    draws: tuple[Draw, ...]


@dataclass(eq=False)
class Pieces:
    """What is evaluated together, by class and level: the elements in the order in which they are taken."""

    taken: dict[Key, list[Addresses]] = field(default_factory=dict)

    def add(self, key: Key, places: Addresses) -> int:
        """Take some elements; returns the number of the piece."""
        held = self.taken.setdefault(key, [])
        held.append(places)
        return len(held) - 1

    def split(self, key: Key, values: Tensor, width: int = 1) -> list[Tensor]:
        """All pieces of values ``[B or 1, elements / width or 1, ...]``, each of which `width` elements share."""
        taken = self.taken[key]
        if values.shape[1] == 1:
            return [values] * len(taken)
        order = np.concatenate(taken) // width
        if len(order) != values.shape[1] or (order != np.arange(len(order))).any():
            values = values.index_select(1, torch.from_numpy(order).to(values.device))
        return list(values.split([len(held) for held in taken], 1))


def group_draws(
    plan: Plan, held: Mapping[int, Enumeration], evaluated: Mapping[int, int], drawn: Mapping[int, int], pieces: Pieces
) -> list[Group]:
    """Split the bundles of a plan into groups.

    Args:
        plan: The plan.
        held: Its classes at their joint values.
        evaluated: For each site the level at which its parameters are known.
        drawn: For each site of an example the level at which it is drawn.
        pieces: Filled with what is taken.
    """
    kernels = {kernel.number: kernel for kernel in plan.kernels}
    rows = _rows_within_levels(plan, held, evaluated)
    groups: list[Group] = []
    for bundle in plan.elimination.bundles:
        marks: list[Addresses] = []
        for number, positions in zip(bundle.kernels, bundle.positions, strict=True):
            kernel = kernels[number]
            sites = np.asarray(kernel.held.sites)[positions // len(held[number].scopes.elements)]
            marks.append(np.array([evaluated[site] for site in sites]))
            marks.append(np.array([drawn.get(site, 0) for site in sites]))
            marks.append(_places(kernel, positions))
        _, members = np.unique(np.asarray(marks), axis=1, return_inverse=True)
        for member in range(int(members.max()) + 1):
            copies = np.flatnonzero(members.reshape(-1) == member)
            groups.append(_group(len(groups), bundle, copies, kernels, held, rows, evaluated, drawn, pieces))
    return groups


def _places(kernel: Kernel, positions: Addresses) -> Addresses:
    """Place of elements inside their vectors."""
    vector = kernel.held.specification.family == "MultivariateNormal"
    return positions % kernel.held.shape[-1] if vector else np.zeros_like(positions)


def _rows_within_levels(
    plan: Plan, held: Mapping[int, Enumeration], evaluated: Mapping[int, int]
) -> dict[int, Addresses]:
    """For each class the place of each row among those evaluated at the same level."""
    result = {}
    for kernel in plan.kernels:
        if kernel.number in held:
            counts: dict[int, int] = {}
            places = []
            for site in kernel.held.sites:
                places.append(counts.get(evaluated[site], 0))
                counts[evaluated[site]] = places[-1] + 1
            result[kernel.number] = np.asarray(places)
    return result


def _group(
    number: int,
    bundle: Bundle,
    copies: Addresses,
    kernels: Mapping[int, Kernel],
    held: Mapping[int, Enumeration],
    rows: Mapping[int, Addresses],
    evaluated: Mapping[int, int],
    drawn: Mapping[int, int],
    pieces: Pieces,
) -> Group:
    def step(operation: Operation) -> Step:
        if operation.kind == "eliminate":
            return Step(operation, (-1, -1), -1, None)
        kernel = kernels[operation.kernel]
        size = len(held[operation.kernel].scopes.elements)
        row, place = np.divmod(bundle.positions[operation.event, copies], size)
        key = (operation.kernel, evaluated[kernel.held.sites[row[0]]])
        index = factor_index(operation, bundle.conditioned, held[operation.kernel])
        in_order = index.size == held[operation.kernel].count and (index.reshape(-1) == np.arange(index.size)).all()
        elements = rows[operation.kernel][row] * size + place
        return Step(operation, key, pieces.add(key, elements), None if in_order else Picker(index))

    chunks: list[tuple[int, int, list[Operation]]] = []
    for part, operations in enumerate(bundle.parts):
        waiting: list[Operation] = []
        for operation in operations:
            waiting.append(operation)
            if operation.kind == "observe":
                chunks.append((operation.event, part, waiting))
                waiting = []
    draws = []
    level = 0
    for event, part, chunk in sorted(chunks, key=lambda held: held[0]):
        kernel = kernels[bundle.kernels[event]]
        positions = bundle.positions[event, copies]
        row, place = np.divmod(positions, len(held[kernel.number].scopes.elements))
        sites = np.asarray(kernel.held.sites)[row]
        mixed = held[kernel.number].scopes.own is None
        before, own = tuple(step(operation) for operation in chunk[:-1]), step(chunk[-1])
        level = max([level, own.key[1], *(waited.key[1] for waited in before)])
        if mixed:
            level = max(level, drawn[sites[0]])
        columns = kernel.noise.reshape(len(kernel.held.sites), -1)[row, place] if mixed else np.zeros(0, dtype=np.int64)
        draws.append(
            Draw(
                group=number,
                part=part,
                before=before,
                step=own,
                mixed=mixed,
                level=level,
                sites=np.stack([sites, place], 1),
                columns=Picker(columns),
                place=int(_places(kernel, positions)[0]),
            )
        )
    return Group(bundle.conditioned, tuple(draws))
