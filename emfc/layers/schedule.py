"""The order of sampling: classes of nodes in stages, each of which needs only the stages before it.

Nodes are sites and, where a recurrence was cut, virtual nodes. Classes that feed one another form one stage, whose
rows are drawn level by level; a class that does not feed itself is drawn in one go.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx
import numpy as np
import numpy.typing as npt

from emfc.layers.kernel import Kernel
from emfc.layers.plan import Plan
from emfc.layers.readers import Layout
from emfc.passes.slices import Load
from emfc.program.ir import Addresses

__all__ = ["Group", "Nodes", "Stage", "components", "row_edges", "schedule"]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one class that are drawn together: number of the class and the rows."""

    number: int
    rows: Addresses


@dataclass(frozen=True, eq=False)
class Stage:
    """Classes that are drawn together.

    Attributes:
        numbers: Of the classes, ascending.
        recursive: Whether rows read rows of the same stage.
        groups: Rows by level, in an order in which they can be drawn; one group where the stage is not recursive.
    """

    numbers: tuple[int, ...]
    recursive: bool
    groups: tuple[Group, ...]


class Nodes:
    """Every value that is drawn, in one numbering: the columns of an example, then those of virtual nodes.

    Attributes:
        kernels: Of all classes; their position is their number here.
        virtual: For each class whether its nodes are virtual.
        columns: For each class the columns ``[n, *shape]`` of its rows' values.
        owner: For each column the number of its class.
        row: For each column the row there.
        address: For each column the address of the value.
    """

    def __init__(self, plan: Plan, kernels: Sequence[Kernel], virtual: Sequence[bool]) -> None:
        """Number the values.

        Args:
            plan: Of the program.
            kernels: The classes, which together have every node that is drawn.
            virtual: For each class whether its nodes are virtual.
        """
        self.plan = plan
        self.layout: Layout = plan.layout
        self.program = plan.program
        self.kernels, self.virtual = tuple(kernels), tuple(virtual)
        self.dim = plan.dim
        held = self.layout.virtual
        self.columns = tuple(
            kernel.own + (self.dim if virtual else 0)
            for kernel, virtual in zip(self.kernels, self.virtual, strict=True)
        )
        count = self.dim + int((held >= 0).sum())
        self.owner = np.zeros(count, dtype=np.int64)
        self.row = np.zeros(count, dtype=np.int64)
        for number, own in enumerate(self.columns):
            flat = own.reshape(len(own), -1)
            self.owner[flat] = number
            self.row[flat] = np.arange(len(own))[:, None]
        self.address = np.zeros(count, dtype=np.int64)
        for base, known, first in (
            (self.program.site_base, self.layout.columns, 0),
            (self.program.instruction_base, held, self.dim),
        ):
            places = np.flatnonzero(known >= 0)
            self.address[known[places] + first] = places + base

    def of(self, addresses: Addresses) -> Addresses:
        """The column of each address, -1 for constants and parameters."""
        program = self.program
        result = np.full(addresses.shape, -1, dtype=np.int64)
        sites = (addresses >= program.site_base) & (addresses < program.instruction_base)
        result[sites] = self.layout.columns[addresses[sites] - program.site_base]
        computed = addresses >= program.instruction_base
        if computed.any():
            result[computed] = self.layout.virtual[addresses[computed] - program.instruction_base] + self.dim
        return result

    @cached_property
    def loads(self) -> tuple[tuple[Addresses, ...], ...]:
        """For each class the columns that each of its loads reads, ``[n or 1, *shape]``."""
        return tuple(tuple(self.of(addresses) for addresses in kernel.held.addresses) for kernel in self.kernels)

    def load_values(self, number: int) -> list[tuple[int, Load]]:
        """Number of each load's value in the slice of a class, and the load."""
        held = self.kernels[number].held.slice
        return [
            (first, value) for first, value in zip(held.numbers, held.values, strict=True) if isinstance(value, Load)
        ]

    def sources(self, number: int) -> npt.NDArray[np.int64]:
        """Numbers of the classes that a class reads."""
        read = [held[held >= 0] for held in self.loads[number]]
        return np.unique(np.concatenate([self.owner[held] for held in read])) if read else np.zeros(0, dtype=np.int64)


def schedule(nodes: Nodes) -> tuple[Stage, ...]:
    """Stages in an order in which they can be drawn."""
    edges = [nodes.sources(number).tolist() for number in range(len(nodes.kernels))]
    stages = []
    for component in components(edges):
        numbers = tuple(sorted(component))
        recursive = len(numbers) > 1 or numbers[0] in edges[numbers[0]]
        if recursive:
            groups = _levels(nodes, numbers)
        else:
            groups = (Group(numbers[0], np.arange(len(nodes.columns[numbers[0]]))),)
        stages.append(Stage(numbers, recursive, groups))
    return tuple(stages)


def components(edges: Sequence[Collection[int]]) -> list[list[int]]:
    """Strongly connected components of a graph given by the predecessors of each node, predecessors first."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(edges)))
    graph.add_edges_from((other, node) for node, held in enumerate(edges) for other in held)
    whole = networkx.condensation(graph)
    return [sorted(whole.nodes[part]["members"]) for part in networkx.lexicographical_topological_sort(whole)]


def row_edges(nodes: Nodes, numbers: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Addresses]:
    """Edges between rows of some classes: reader and source, numbered class after class, and where each class starts.

    Args:
        nodes: Of the program.
        numbers: Of the classes.
    """
    counts = [len(nodes.columns[number]) for number in numbers]
    first = np.concatenate([[0], np.cumsum(counts)])
    base = np.full(len(nodes.kernels), -1, dtype=np.int64)
    base[list(numbers)] = first[:-1]
    readers, sources = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for number, count in zip(numbers, counts, strict=True):
        for columns in nodes.loads[number]:
            flat = np.broadcast_to(columns.reshape(len(columns), -1), (count, columns[0].size))
            reader, _ = inner = np.nonzero((flat >= 0) & (base[nodes.owner[flat]] >= 0))
            source = flat[inner]
            readers.append(reader + base[number])
            sources.append(base[nodes.owner[source]] + nodes.row[source])
    pairs = np.unique(np.stack([np.concatenate(readers), np.concatenate(sources)]), axis=1)
    return pairs[0], pairs[1], first


def _levels(nodes: Nodes, numbers: tuple[int, ...]) -> tuple[Group, ...]:
    """Rows by level: the length of the longest path to them inside the stage."""
    reader, source, first = row_edges(nodes, numbers)
    count = int(first[-1])
    order = np.argsort(source, kind="stable")
    ends = np.searchsorted(source[order], np.arange(count + 1)).tolist()
    after = reader[order].tolist()
    waiting = np.bincount(reader, minlength=count).tolist()
    level = [0] * count
    ready = [node for node in range(count) if not waiting[node]]
    for node in ready:  # grows while it is walked
        below = level[node] + 1
        for place in range(ends[node], ends[node + 1]):
            other = after[place]
            level[other] = max(level[other], below)
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    owner = np.repeat(np.arange(len(numbers)), np.diff(first))
    levels = np.asarray(level, dtype=np.int64)
    program_order = np.concatenate([np.asarray(nodes.kernels[number].held.sites) for number in numbers])
    start = np.full((int(levels.max()) + 1, len(numbers)), np.iinfo(np.int64).max)
    np.minimum.at(start, (levels, owner), program_order)
    keys = start[levels, owner]
    arranged = np.lexsort((np.arange(count), owner, keys, levels))
    changes = np.flatnonzero((np.diff(levels[arranged]) != 0) | (np.diff(owner[arranged]) != 0)) + 1
    rows = arranged - first[owner[arranged]]
    return tuple(
        Group(numbers[int(owner[arranged[begin]])], rows[begin:end])
        for begin, end in zip([0, *changes.tolist()], [*changes.tolist(), count], strict=True)
    )
