"""Loops of polynomials: every element of every row is a column of its own, and each term one operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfc.layers.drawn import Drawn, Pieces, rows_view
from emfc.layers.kernel import Kernel, View
from emfc.layers.polynomials import Atom, Polynomials, polynomials, written
from emfc.layers.readers import Environment, Reader
from emfc.layers.schedule import Nodes, Stage
from emfc.passes.slices import Gather, Load, Step
from emfc.program.ir import Addresses

__all__ = ["PolynomialLoop"]


@dataclass(frozen=True, eq=False)
class _Member:
    """One class.

    Attributes:
        kernel: Of the class.
        view: Readers of its rows, in the order of the loop.
        found: Its location, or value, as polynomials.
        scale: Number of the scale in the slice; None for virtual nodes.
        prepared: Numbers of the slice's values that are computed before the loop and handed over.
        constants: The constant of each element.
        function: Code of one row.
    """

    kernel: Kernel
    view: View
    found: Polynomials
    scale: int | None
    prepared: tuple[int, ...]
    constants: Addresses
    function: Callable[..., list[Tensor]]


class PolynomialLoop:
    """A loop over single rows of Normal sites, and of virtual nodes, that are polynomials in what they read.

    Scales are known before the loop, so that a value is its polynomial plus a number known before. For layers without
    gates.
    """

    def __init__(self, nodes: Nodes, stage: Stage, pieces: Pieces, found: dict[int, Polynomials]) -> None:
        """Prepare a stage; see `PolynomialLoop.find`."""
        inside = _inside(nodes, stage)
        addresses = [held for number in stage.numbers for held in nodes.kernels[number].held.addresses]
        self._sources, layout = pieces.sources(addresses)
        rows = {
            number: np.concatenate([group.rows for group in stage.groups if group.number == number])
            for number in stage.numbers
        }
        self.columns = np.concatenate([nodes.columns[group.number][group.rows].reshape(-1) for group in stage.groups])
        self._members: dict[int, _Member] = {}
        self._virtual = any(nodes.virtual[number] for number in stage.numbers)
        before: list[Addresses] = []
        for number in stage.numbers:
            kernel, loads = nodes.kernels[number], nodes.load_values(number)
            ignored = {place: np.zeros_like(kernel.held.addresses[place][:1]) for place in inside[number]}
            numbers = {loads[place][0] for place in inside[number]}
            others = [atom.number for atom in found[number].atoms if atom.number not in numbers]
            constants = np.asarray([held.get((), 0.0) for held in found[number].elements])
            self._members[number] = _Member(
                kernel,
                rows_view(nodes, number, rows[number], layout, ignored),
                found[number],
                None if nodes.virtual[number] else _outputs(kernel)["scale"],
                tuple(dict.fromkeys(others)),
                constants,
                written(found[number], noisy=not nodes.virtual[number]),
            )
            for place in inside[number]:
                columns, held = nodes.loads[number][place], kernel.held.addresses[place]
                before.append(held[~np.isin(columns, self.columns)])
        self._before = np.unique(np.concatenate(before))
        self._reader = Reader(self._before[None], "float", layout) if self._before.size else None
        self._steps = self._plan(nodes, stage, rows, inside)

    @staticmethod
    def find(nodes: Nodes, stage: Stage, pieces: Pieces) -> PolynomialLoop | None:
        """The loop of a stage, or None where some class is no polynomial."""
        if any(len(group.rows) > 1 for group in stage.groups):
            return None
        inside = _inside(nodes, stage)
        found = {}
        for number in stage.numbers:
            held = _polynomials(nodes, number, inside[number])
            if held is None:
                return None
            found[number] = held
        return PolynomialLoop(nodes, stage, pieces, found)

    def _plan(
        self, nodes: Nodes, stage: Stage, rows: dict[int, Addresses], inside: dict[int, list[int]]
    ) -> list[tuple[Callable[..., list[Tensor]], Callable[[list[Tensor]], Any]]]:
        """For each row its function and what picks its arguments out of all cells.

        Cells are, in order: values from before, for each class its prepared values row by row and what is added row by
        row, and all values of the loop.
        """
        offset = len(self._before)
        tables: dict[int, Addresses] = {}
        later: dict[int, list[tuple[int, Addresses]]] = {number: [] for number in stage.numbers}
        for number, member in self._members.items():
            loads = {
                first: place for place, (first, _) in enumerate(nodes.load_values(number)) if place in inside[number]
            }
            count = len(rows[number])
            starts = {}
            for held in member.prepared:
                starts[held] = offset
                offset += count * _size(member.kernel, held)
            columns = []
            for position, atom in enumerate(member.found.atoms):
                if atom.number in loads:
                    place = loads[atom.number]
                    later[number].append((position, self._read(nodes, number, place, atom.element, rows[number])))
                    columns.append(np.zeros(count, dtype=np.int64))
                else:
                    size = _size(member.kernel, atom.number)
                    columns.append(starts[atom.number] + np.arange(count) * size + atom.element)
            if member.scale is not None:
                size = len(member.found.elements)
                columns += [offset + np.arange(count) * size + element for element in range(size)]
                offset += count * size
            tables[number] = np.stack(columns, 1) if columns else np.zeros((count, 0), dtype=np.int64)
        for number, held_columns in later.items():
            for position, cells in held_columns:
                tables[number][:, position] = np.where(cells < 0, -1 - cells, offset + cells)
        places = dict.fromkeys(stage.numbers, 0)
        steps: list[tuple[Callable[..., list[Tensor]], Callable[[list[Tensor]], Any]]] = []
        for group in stage.groups:
            chosen = tables[group.number][places[group.number]].tolist()
            places[group.number] += 1
            several = len(chosen) > 1
            function = self._members[group.number].function
            steps.append((function, operator.itemgetter(*chosen) if several else _Single(chosen)))
        return steps

    def _read(self, nodes: Nodes, number: int, place: int, element: int, rows: Addresses) -> Addresses:
        """For each row the value of the loop that one element of a load reads, or -1 less one of those before."""
        columns, addresses = nodes.loads[number][place], nodes.kernels[number].held.addresses[place]
        chosen = np.zeros(len(rows), dtype=np.int64) if len(columns) == 1 else rows
        column = columns[chosen].reshape(len(rows), -1)[:, element]
        address = addresses[chosen].reshape(len(rows), -1)[:, element]
        position = np.full(len(nodes.owner) + 1, -1, dtype=np.int64)
        position[self.columns] = np.arange(len(self.columns))
        held = position[column]
        return np.where(held >= 0, held, -1 - np.searchsorted(self._before, address))

    def __call__(self, drawn: Drawn) -> Tensor:
        """Values ``[B or 1, W]``."""
        environment = self._sources(drawn)
        cells: list[Tensor] = list(self._reader(environment)[:, 0].unbind(1)) if self._reader is not None else []
        for member in self._members.values():
            cells += self._prepared(member, drawn, environment)
        start = len(cells)
        for function, pick in self._steps:
            cells += function(*pick(cells))
        values = cells[start:]
        if self._virtual:
            values = list(torch.broadcast_tensors(*values))
        return torch.stack(values).t()

    @staticmethod
    def _prepared(member: _Member, drawn: Drawn, environment: Environment) -> list[Tensor]:
        """Cells of a class that are known before the loop."""
        scale = [] if member.scale is None else [member.scale]
        wanted = tuple(dict.fromkeys([*member.prepared, *scale]))
        function = member.kernel.code.function(tuple((held, "float") for held in wanted), 2, environment.dtype)
        found = function.call(*[member.view.readers[place](environment) for place in function.taken])
        known = dict(zip(wanted, found, strict=True))
        count = len(member.view.rows)
        cells: list[Tensor] = []
        for held in member.prepared:
            value = known[held]
            cells += _columns(value.expand(value.shape[0], count, *value.shape[2:]))
        if member.scale is not None:
            noise, spread = drawn.noise_of(member.view.noise), known[member.scale]
            if drawn.wanted:
                drawn.add(spread.log(), noise)
            added = spread * noise
            if member.constants.any():
                constants = torch.as_tensor(member.constants, dtype=added.dtype, device=added.device)
                added = added + constants.reshape(added.shape[2:])
            cells += _columns(added)
        return cells

    def describe(self) -> str:
        """In words."""
        terms = sum(member.found.cost * len(member.view.rows) for member in self._members.values())
        return f"{len(self._steps)} x polynomials in a loop of {terms} operations"


@dataclass(frozen=True)
class _Single:
    """Picks at most one cell."""

    chosen: list[int]

    def __call__(self, cells: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(cells[place] for place in self.chosen)


def _columns(value: Tensor) -> tuple[Tensor, ...]:
    """A value ``[B or 1, n, *shape]`` as columns, row by row."""
    flat = value.flatten(1) if value.ndim > 1 else value
    return flat.t().contiguous().unbind(0)


def _outputs(kernel: Kernel) -> dict[str, int]:
    return dict(zip(kernel.held.paths, kernel.held.slice.outputs, strict=True))


def _size(kernel: Kernel, number: int) -> int:
    """Elements of a value of a slice."""
    for first, value in zip(kernel.held.slice.numbers, kernel.held.slice.values, strict=True):
        shapes = value.shapes if isinstance(value, Step) else (value.shape,)
        if first <= number < first + len(shapes):
            return int(np.prod(shapes[number - first], dtype=np.int64))
    raise KeyError(number)


def _inside(nodes: Nodes, stage: Stage) -> dict[int, list[int]]:
    """For each class the positions of its loads that read the stage."""
    numbers = set(stage.numbers)
    return {
        number: [
            place
            for place, held in enumerate(nodes.loads[number])
            if numbers.intersection(np.unique(nodes.owner[held[held >= 0]]).tolist())
        ]
        for number in stage.numbers
    }


def _polynomials(nodes: Nodes, number: int, places: list[int]) -> Polynomials | None:
    """The location of a class of Normal sites, or the value of virtual nodes, as polynomials that are worth it."""
    kernel, virtual = nodes.kernels[number], nodes.virtual[number]
    held, outputs, loads = kernel.held.slice, _outputs(kernel), nodes.load_values(number)
    if any(kind != "float" for kind in kernel.kinds) or any(loads[place][1].dtype != "float" for place in places):
        return None
    if not virtual and kernel.held.specification.family != "Normal":
        return None
    inside = held.dependent([loads[place][0] for place in places])
    if not virtual and outputs["scale"] in inside:
        return None
    target, same = outputs["value" if virtual else "loc"], _same(nodes, number, places)
    found = polynomials(held, target, inside, kernel.code.literal, kernel.held.shape, same)
    if found is None or not all(any(held) for held in found.elements):
        return None
    plain = 1 + sum(nodes.loads[number][place].size > 1 for place in places)
    for first, value in zip(held.numbers, held.values, strict=True):
        if first in inside and not isinstance(value, Load):
            plain += len(value.inputs) + 2 if isinstance(value, Gather) else 1
    return found if found.cost <= plain + 1 else None


def _same(nodes: Nodes, number: int, places: list[int]) -> dict[Atom, Atom]:
    """Elements of loads that read the same as an element of another load in every row."""
    known: dict[tuple[int, bytes], Atom] = {}
    result: dict[Atom, Atom] = {}
    loads = nodes.load_values(number)
    for place in places:
        addresses = nodes.kernels[number].held.addresses[place]
        flat = addresses.reshape(len(addresses), -1)
        for element in range(flat.shape[1]):
            atom = Atom(loads[place][0], element)
            result[atom] = known.setdefault((len(flat), flat[:, element].tobytes()), atom)
    return result
