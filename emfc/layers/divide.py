"""Divide: classes cut into parts so that no class waits for another that only some of its rows need.

Sites that do the same work are one class although they stand at different places of the graph: the steps of a trend and
the measurements of the level that it moves. Taken together they would feed each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from emfc.layers.kernel import Kernel
from emfc.layers.plan import Plan
from emfc.layers.schedule import Nodes, components, row_edges

__all__ = ["divided"]

_ROUNDS = 3


def divided(plan: Plan) -> Nodes:
    """The nodes of a plan, in classes that wait for one another as little as can be seen at once."""
    virtual = [False] * len(plan.ordinary) + [True] * len(plan.virtual_kernels)
    nodes = Nodes(plan, (*plan.ordinary, *plan.virtual_kernels), virtual)
    for _ in range(_ROUNDS):
        parts = _parts(nodes)
        if all(len(held) == 1 for held in parts):
            break
        kernels = [
            kernel if len(held) == 1 else _rows(kernel, rows)
            for kernel, held in zip(nodes.kernels, parts, strict=True)
            for rows in held
        ]
        flags = [flag for flag, held in zip(nodes.virtual, parts, strict=True) for _ in held]
        nodes = Nodes(plan, kernels, flags)
    return nodes


def _parts(nodes: Nodes) -> list[list[npt.NDArray[np.int64]]]:
    """Rows of each part of each class."""
    edges = [nodes.sources(number).tolist() for number in range(len(nodes.kernels))]
    parts = [[np.arange(len(columns))] for columns in nodes.columns]
    for component in components(edges):
        if len(component) == 1 and component[0] in edges[component[0]]:
            parts[component[0]] = _without_leaves(nodes, component[0])
        elif len(component) > 1:
            for number in component:
                parts[number] = _by_sources(nodes, number, component)
    return parts


def _without_leaves(nodes: Nodes, number: int) -> list[npt.NDArray[np.int64]]:
    """A class of which some rows are read by several others: apart from it the rows that no other reads."""
    reader, source, _ = row_edges(nodes, (number,))
    rows = np.arange(len(nodes.columns[number]))
    last = np.full(len(rows), -1, dtype=np.int64)
    np.maximum.at(last, reader, source)
    if len(np.unique(last[last >= 0])) == (last >= 0).sum():
        return [rows]
    inner = np.isin(rows, source)
    return [rows[inner], rows[~inner]]


def _by_sources(nodes: Nodes, number: int, component: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """A class by which classes of its component each element of its loads reads.

    Rows that read values from before the component in some places go with those that read the same in all others.
    """
    rows = np.arange(len(nodes.columns[number]))
    inside = np.zeros(len(nodes.kernels), dtype=np.bool_)
    inside[list(component)] = True
    owners = []
    for columns in nodes.loads[number]:
        flat = columns.reshape(len(columns), -1)
        held = np.where((flat >= 0) & inside[nodes.owner[flat]], nodes.owner[flat], -1)
        owners.append(np.broadcast_to(held, (len(rows), held.shape[1])))
    patterns, place = np.unique(np.concatenate(owners, 1), axis=0, return_inverse=True)
    if len(patterns) == 1:
        return [rows]
    place = place.reshape(-1)
    order = np.argsort(-(patterns >= 0).sum(1), kind="stable")
    goes = np.arange(len(patterns))
    whole: list[int] = []
    for pattern in order.tolist():
        fitting = [other for other in whole if ((patterns[pattern] < 0) | (patterns[pattern] == patterns[other])).all()]
        if len(fitting) == 1:
            goes[pattern] = fitting[0]
        else:
            whole.append(pattern)
        if len(whole) > len(component) + 1:  # rows differ in more ways than classes could explain
            return [rows]
    return [rows[goes[place] == held] for held in whole]


def _rows(kernel: Kernel, rows: npt.NDArray[np.int64]) -> Kernel:
    """Some rows of a class as a class."""
    held = replace(
        kernel.held,
        sites=tuple(kernel.held.sites[row] for row in rows.tolist()),
        addresses=tuple(addresses if len(addresses) == 1 else addresses[rows] for addresses in kernel.held.addresses),
    )
    return Kernel(
        held,
        kernel.layout,
        kernel.own[rows],
        kernel.noise[rows],
        number=kernel.number,
        mixed=kernel.mixed,
        emitted=kernel.emitted,
    )
