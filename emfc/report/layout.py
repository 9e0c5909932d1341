"""Places for the nodes of a directed graph without cycles, in layers, in about linear time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Place", "layered_layout", "layers_of"]

SWEEPS = 4
TALLEST_COLUMN = 14


class Place(NamedTuple):
    """Where a node stands: x in units of one node's width, y in layers downwards."""

    x: float
    y: float


def layers_of(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Give each node the length of the longest path that leads to it.

    Args:
        parents: Each node's parents; parents come before their children.

    Returns:
        Layer of each node, from 0.
    """
    layer: dict[str, int] = {}
    for node, above in parents.items():
        layer[node] = 1 + max((layer[parent] for parent in above if parent in layer), default=-1)
    return layer


def layered_layout(parents: Mapping[str, Sequence[str]]) -> dict[str, Place]:
    """Place nodes in layers, each near its parents and children; a long graph is folded into columns like a snake.

    Args:
        parents: Each node's parents; parents come before their children.

    Returns:
        Place of each node.
    """
    if not parents:
        return {}
    layer = layers_of(parents)
    rows: list[list[str]] = [[] for _ in range(1 + max(layer.values()))]
    for node, index in layer.items():
        rows[index].append(node)
    children: dict[str, list[str]] = {node: [] for node in parents}
    for node, above in parents.items():
        for parent in above:
            if parent in children:
                children[parent].append(node)
    _order(rows, parents, children)
    return _fold(rows)


def _order(rows: list[list[str]], parents: Mapping[str, Sequence[str]], children: Mapping[str, Sequence[str]]) -> None:
    """Sort each layer by the mean place of the neighbours above, then below, a few times (barycentre heuristic)."""
    place = {node: _centred(index, len(row)) for row in rows for index, node in enumerate(row)}
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        neighbours = parents if downward else children
        for row in rows if downward else reversed(rows):
            wish = {
                node: _mean([place[other] for other in neighbours[node] if other in place], place[node]) for node in row
            }
            row.sort(key=wish.__getitem__)
            for index, node in enumerate(row):
                place[node] = _centred(index, len(row))


def _fold(rows: Sequence[Sequence[str]]) -> dict[str, Place]:
    """Lay layers one under another; from the bottom the next column goes up again."""
    tall = TALLEST_COLUMN if len(rows) > 2 * TALLEST_COLUMN else len(rows)
    places: dict[str, Place] = {}
    left = 0.0
    for column, first in enumerate(range(0, len(rows), tall)):
        block = rows[first : first + tall]
        width = max(len(row) for row in block)
        for index, row in enumerate(block):
            y = index if column % 2 == 0 else tall - 1 - index
            for position, node in enumerate(row):
                places[node] = Place(left + (width - 1) / 2 + _centred(position, len(row)), float(y))
        left += width + 0.25
    return places


def _centred(index: int, count: int) -> float:
    return index - (count - 1) / 2


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
