"""How a row inside a loop gets the values that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.layers.batching import cast
from emfc.layers.readers import Environment, Layout, Picker, Reader
from emfc.layers.schedule import Group, Nodes
from emfc.program.ir import Addresses

__all__ = ["Fetch", "Fetches"]


@dataclass(frozen=True, eq=False)
class _Element:
    """One element of the value of one group of a single row, in a shape without size."""

    group: int
    place: int
    shape: tuple[int, ...]

    def __call__(self, drawn: Sequence[Tensor], environment: Environment) -> Tensor:
        value = drawn[self.group]
        held = value.flatten(1).select(1, self.place) if value.ndim > 1 else value
        return held.reshape(held.shape[0], *self.shape) if self.shape else held


@dataclass(frozen=True, eq=False)
class _Outside:
    """Values from before the loop."""

    reader: Reader
    lead: int

    def __call__(self, drawn: Sequence[Tensor], environment: Environment) -> Tensor:
        held = self.reader(environment)
        return held[:, 0] if self.lead == 1 else held


@dataclass(frozen=True, eq=False)
class _Assembled:
    """Elements of several groups and from before the loop."""

    groups: tuple[int, ...]
    reader: Reader | None
    picker: Picker
    lead: int
    kind: str

    def __call__(self, drawn: Sequence[Tensor], environment: Environment) -> Tensor:
        pieces = [drawn[group] for group in self.groups]
        pieces = [piece.flatten(1) if piece.ndim > 1 else piece.unsqueeze(-1) for piece in pieces]
        if self.reader is not None:
            pieces.append(self.reader(environment)[:, 0])
        if len(pieces) > 1:
            rows = torch.broadcast_shapes(*(piece.shape[:1] for piece in pieces))
            pieces = [torch.cat([piece.expand(*rows, -1) for piece in pieces], -1)]
        held = self.picker(pieces[0])
        return cast(held if self.lead == 2 else held[:, 0], self.kind, environment.dtype)


Fetch = int | _Element | _Outside | _Assembled
"""The number of a group whose value is wanted as it is, or a function of all values so far."""


class Fetches:
    """Finds, for each row of a loop and each of its loads, where the values come from."""

    def __init__(self, nodes: Nodes, groups: Sequence[Group], layout: Layout, lead: int) -> None:
        """Prepare.

        Args:
            nodes: Of the program.
            groups: Of the loop, in order.
            layout: Where values from before the loop stand.
            lead: 1 where each group is a single row, else 2.
        """
        self._nodes, self._layout, self._lead = nodes, layout, lead
        self._group = np.full(len(nodes.owner), -1, dtype=np.int64)
        self._place = np.zeros(len(nodes.owner), dtype=np.int64)
        for number, group in enumerate(groups):
            columns = nodes.columns[group.number][group.rows].reshape(-1)
            self._group[columns] = number
            self._place[columns] = np.arange(columns.size)
        self._groups = groups
        self._sizes = np.asarray([nodes.columns[held.number][held.rows].size for held in groups])

    def of(self, number: int, load: int, rows: Sequence[Addresses]) -> list[Fetch]:
        """The fetches of one load of a class for each of its groups.

        Args:
            number: Of the class.
            load: Position of the load.
            rows: Rows of each group.
        """
        columns = self._nodes.loads[number][load]
        shared = len(columns) == 1
        if self._lead == 2:
            return [self._general(number, load, np.zeros(1, dtype=np.int64) if shared else held) for held in rows]
        order = np.zeros(len(rows), dtype=np.int64) if shared else np.concatenate(rows)
        whole, element = self._single(number, load, order)
        fetches: list[Fetch] = []
        shape = columns.shape[1:]
        for place, row in enumerate(order.tolist()):
            if whole[place] >= 0:
                fetches.append(int(whole[place]))
            elif element[place] >= 0:
                column = int(columns[row].reshape(-1)[0])
                fetches.append(_Element(int(element[place]), int(self._place[column]), shape))
            else:
                fetches.append(self._general(number, load, np.asarray([row])))
        return fetches

    def _load(self, number: int, load: int) -> str:
        return self._nodes.load_values(number)[load][1].dtype

    def _single(self, number: int, load: int, order: Addresses) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For single rows, the group whose whole value each reads, and the group of which it reads one element."""
        nodes = self._nodes
        columns = nodes.loads[number][load][order]
        shape, count = columns.shape[1:], int(np.prod(columns.shape[1:], dtype=np.int64))
        none = np.full(len(order), -1, dtype=np.int64)
        if not count or self._load(number, load) != "float":
            return none, none
        flat = columns.reshape(len(order), count)
        held = np.where(flat >= 0, self._group[flat], -1)
        one = (held >= 0).all(1) & (held == held[:, :1]).all(1)
        group = held[:, 0]
        shapes = {key: nodes.columns[key].shape[1:] == shape for key in {item.number for item in self._groups}}
        alike = np.asarray([shapes[item.number] for item in self._groups])
        full = one & (self._sizes[group] == count) & alike[group] & (self._place[flat] == np.arange(count)).all(1)
        return np.where(full, group, none), np.where(one & ~full & (count == 1), group, none)

    def _general(self, number: int, load: int, rows: Addresses) -> Fetch:
        nodes, kind = self._nodes, self._load(number, load)
        columns = nodes.loads[number][load][rows]
        addresses = nodes.kernels[number].held.addresses[load][rows]
        flat = columns.reshape(-1)
        held = np.where(flat >= 0, self._group[flat], -1)
        if (held < 0).all():
            return _Outside(Reader(addresses, kind, self._layout), self._lead)
        groups = np.unique(held[held >= 0])
        first = int(groups[0])
        if len(groups) == 1 and self._lead == 2 and kind == "float" and (held >= 0).all():
            source = self._groups[first]
            same = nodes.columns[source.number][source.rows].shape == columns.shape
            if same and (self._place[flat] == np.arange(flat.size)).all():
                return first
        offsets = np.concatenate([[0], np.cumsum(self._sizes[groups])])
        inside = held >= 0
        positions = np.zeros(flat.shape, dtype=np.int64)
        positions[inside] = offsets[np.searchsorted(groups, held[inside])] + self._place[flat[inside]]
        reader = None
        if not inside.all():
            rest = addresses.reshape(-1)[~inside]
            positions[~inside] = offsets[-1] + np.arange(len(rest))
            reader = Reader(rest[None], "float", self._layout)
        picker = Picker(positions.reshape(columns.shape))
        return _Assembled(tuple(groups.tolist()), reader, picker, self._lead, kind)
