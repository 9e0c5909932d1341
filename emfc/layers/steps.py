"""Steps: a recurrence that is not affine, step by step, with everything else computed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from emfc.layers.batching import cast
from emfc.layers.carried import Carried, assemble, carry, common_batch
from emfc.layers.emit import Code
from emfc.layers.kernel import Kernel
from emfc.layers.readers import Environment, Picker, Reader
from emfc.passes.slices import Load
from emfc.passes.split import split
from emfc.program.ir import Addresses

__all__ = ["Steps"]


@dataclass(frozen=True, eq=False)
class _Group:
    """The rows of one class in one level, with one entry for each load that reads the state."""

    member: int
    place: int
    carried: tuple[Carried, ...]


class _Member:
    """One class of a scan.

    Attributes:
        rows: Its rows in the order of their levels.
        sizes: How many there are in each of its levels.
    """

    def __init__(self, kernel: Kernel, own: set[int], first: int, last: int, levels: Sequence[int]) -> None:
        """Prepare.

        Args:
            kernel: Of the class.
            own: Nodes of the scan.
            first: First column of the scan.
            last: Its last column plus one.
            levels: Level of each row.
        """
        self.kernel = kernel
        held, layout = kernel.held, kernel.layout
        base = layout.program.instruction_base
        order = np.argsort(np.asarray(levels), kind="stable")
        self.rows: list[int] = order.tolist()
        self.levels, counts = np.unique(np.asarray(levels), return_counts=True)
        self.sizes: list[int] = counts.tolist()
        self.starts = list(accumulate(self.sizes, initial=0))
        self.loads = [value for value in held.slice.values if isinstance(value, Load)]
        self.columns: dict[int, Addresses] = {}  # of each load that reads the state, -1 outside
        self.outside: dict[int, Reader] = {}  # what the same load reads elsewhere
        for place, addresses in enumerate(held.addresses):
            columns = np.full(addresses.shape, -1, dtype=np.int64)
            virtual = addresses >= base
            columns[virtual] = layout.virtual[addresses[virtual] - base]
            columns[(columns < first) | (columns >= last)] = -1
            if (columns >= 0).any():
                self.columns[place] = columns
                if (columns < 0).any():
                    rest = np.where(columns < 0, addresses, 0)
                    self.outside[place] = Reader(rest, self.loads[place].dtype, layout)
        self.split = split(held.slice, self.columns.keys())
        literals: dict[int, float] = {}
        numbers = [n for n, value in zip(held.slice.numbers, held.slice.values, strict=True) if isinstance(value, Load)]
        for place, (kind, source) in enumerate(self.split.sources):
            if kind == "before" and self.split.before[source][0] in numbers:
                literal = kernel.code.literal(self.split.before[source][0])
                if literal is not None:
                    literals[place] = literal
        self.after = Code(self.split.after, literals)
        inverse = np.argsort(order)
        self.back = None if (inverse == np.arange(len(inverse))).all() else inverse

    def before(self, environment: Environment) -> list[Tensor]:
        """What does not read the state, for all rows, ``[B or 1, n or 1, *shape]``."""
        if not self.split.before:
            return []
        function = self.kernel.code.function(self.split.before, 2, environment.dtype)
        readers = self.kernel.full.readers
        return list(function.call(*[readers[place](environment) for place in function.taken]))

    def rest(self, environment: Environment) -> dict[int, Tensor]:
        """For loads that read the state in some elements their other elements ``[B or 1, n or 1, *shape]``."""
        return {place: reader(environment) for place, reader in self.outside.items()}

    def by_level(self, value: Tensor, single: bool) -> Sequence[Tensor]:
        """Rows of each level; without a dimension for rows where there is one in each."""
        if value.shape[1] == 1:
            return (value.squeeze(1) if single else value,) * len(self.sizes)
        if self.back is not None:
            value = value.index_select(1, torch.as_tensor(self.rows, device=value.device))
        return value.unbind(1) if single else value.split(self.sizes, 1)


class Steps:
    """A stage whose classes read each other's or their own earlier rows."""

    def __init__(self, kernels: Sequence[Kernel], parents: Sequence[Sequence[int]]) -> None:
        level = _levels([node for kernel in kernels for node in kernel.held.sites], parents)
        own = set(level)
        first = min(int(kernel.own.min()) for kernel in kernels)
        last = max(int(kernel.own.max()) for kernel in kernels) + 1
        self.members = [
            _Member(kernel, own, first, last, [level[node] for node in kernel.held.sites]) for kernel in kernels
        ]
        self.single = all(size == 1 for member in self.members for size in member.sizes)
        self.groups = self._groups(first, last)

    def _groups(self, first: int, last: int) -> list[_Group]:
        """All groups by level, with where their loads come from."""
        keys = sorted(
            (int(level), number, place)
            for number, member in enumerate(self.members)
            for place, level in enumerate(member.levels)
        )
        group_of = np.zeros(last - first, dtype=np.int64)
        position = np.zeros(last - first, dtype=np.int64)
        sizes = []
        rows_of = []
        for index, (_, number, place) in enumerate(keys):
            member = self.members[number]
            rows = member.rows[member.starts[place] : member.starts[place + 1]]
            columns = member.kernel.own[rows].reshape(-1) - first
            group_of[columns] = index
            position[columns] = np.arange(columns.size)
            sizes.append(columns.size)
            rows_of.append(rows)
        pickers: dict[bytes, Picker] = {}
        groups = []
        for index, (_, number, place) in enumerate(keys):
            member = self.members[number]
            carried = []
            for load, columns in member.columns.items():
                held = columns if len(columns) == 1 else columns[rows_of[index]]
                held = held[0] if self.single else held
                rest = held.size if load in member.outside else 0
                carried.append(carry(held, first, group_of, position, sizes, rest, pickers))
            groups.append(_Group(number, place, tuple(carried)))
        return groups

    def __call__(self, environment: Environment) -> list[Tensor]:
        """Values ``[B or 1, n]`` of each class."""
        single, dtype = self.single, environment.dtype
        lead = 1 if single else 2
        known = [[member.by_level(value, single) for value in member.before(environment)] for member in self.members]
        rests = [
            {place: member.by_level(value, single) for place, value in member.rest(environment).items()}
            for member in self.members
        ]
        calls = []
        for member in self.members:
            (number,), (kind,) = member.kernel.held.slice.outputs, member.kernel.kinds
            calls.append(member.after.function(((number, kind),), lead, dtype))
        results: list[Tensor] = []
        collected: list[list[Tensor]] = [[] for _ in self.members]
        for group in self.groups:
            member = self.members[group.member]
            loads = dict(zip(member.columns, group.carried, strict=True))
            arguments = []
            for taken in calls[group.member].taken:
                source, index = member.split.sources[taken]
                if source == "before":
                    arguments.append(known[group.member][index][group.place])
                    continue
                kind = member.loads[index].dtype
                rest = rests[group.member].get(index)
                value = assemble(loads[index], results, None if rest is None else rest[group.place])
                arguments.append(cast(value, kind, dtype))
            (value,) = calls[group.member].call(*arguments)
            value = cast(value, "float", dtype)
            shape = member.kernel.held.shape
            rows = () if single else (member.sizes[group.place],)
            if value.shape[1:] != (*rows, *shape):
                value = value.expand(len(value), *rows, *shape)
            results.append(value)
            collected[group.member].append(value)
        return [self._joined(member, held) for member, held in zip(self.members, collected, strict=True)]

    def _joined(self, member: _Member, held: list[Tensor]) -> Tensor:
        """All rows of a class side by side, in their own order."""
        batch = common_batch(held)
        held = [value.expand(batch, *value.shape[1:]) for value in held]
        value = torch.stack(held, 1) if self.single else torch.cat(held, 1)
        if member.back is not None:
            value = value.index_select(1, torch.as_tensor(member.back, device=value.device))
        return value.flatten(1) if value.ndim > 1 else value[:, None]


def _levels(nodes: Sequence[int], parents: Sequence[Sequence[int]]) -> dict[int, int]:
    """Length of the longest path to each of some nodes through the others."""
    level = dict.fromkeys(nodes, 0)
    for node in sorted(nodes):
        level[node] = 1 + max((level[parent] for parent in parents[node] if parent in level), default=-1)
    return level
