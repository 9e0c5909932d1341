"""Paths: the rows of a class in the order in which each follows the one before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfc.layers.schedule import Nodes, row_edges
from emfc.program.ir import Addresses

__all__ = ["Directions", "Paths", "find_directions", "find_paths"]

_LARGEST_STATE = 16


@dataclass(frozen=True, eq=False)
class Paths:
    """Rows of a class that form chains.

    Attributes:
        order: Rows, path after path.
        count: Number of paths that are solved side by side.
        joined: Whether paths of different lengths are laid end to end as one.
        position: For each of `order` how many rows stand before it on its path.
        lag: The longest step back.
    """

    order: Addresses
    count: int
    joined: bool
    position: Addresses
    lag: int


def find_paths(nodes: Nodes, number: int) -> Paths | None:
    """The paths of a class, or None where its rows branch or reach far back."""
    reader, source, _ = row_edges(nodes, (number,))
    rows = len(nodes.columns[number])
    before = np.full(rows, -1, dtype=np.int64)
    np.maximum.at(before, reader, source)
    held = before[before >= 0]
    if not len(held) or (before >= np.arange(rows)).any() or len(np.unique(held)) < len(held):
        return None
    after = np.full(rows, -1, dtype=np.int64)
    after[held] = np.flatnonzero(before >= 0)
    path, position, order = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64), []
    following = after.tolist()
    lengths = []
    for label, start in enumerate(np.flatnonzero(before < 0).tolist()):
        row, count = start, 0
        while row >= 0:
            order.append(row)
            row = following[row]
            count += 1
        held_rows = order[len(order) - count :]
        path[held_rows], position[held_rows] = label, np.arange(count)
        lengths.append(count)
    lags = position[reader] - position[source]
    if (path[reader] != path[source]).any() or lags.min() < 1 or lags.max() > _LARGEST_STATE:
        return None
    arranged = np.asarray(order, dtype=np.int64)
    joined = len(set(lengths)) > 1
    return Paths(arranged, 1 if joined else len(lengths), joined, position[arranged], int(lags.max()))


@dataclass(frozen=True, eq=False)
class Directions:
    """The elements of a chain's own loads, as directions of its state.

    Attributes:
        loads: Positions of the loads.
        elementwise: Whether each element of a row follows its own element of the rows before, so that a direction is a
            whole load; otherwise a direction is one element of a load.
        lag: For each direction how many rows it reaches back; 0 where it never reads the chain.
        element: For each direction which element it reads.
        own: Whether a row's direction reads the chain ``[n, J]``, in the order of the paths.
        addresses: What the directions read ``[n, J]`` or, elementwise, ``[n, J, *shape]``.
    """

    loads: tuple[int, ...]
    elementwise: bool
    lag: Addresses
    element: Addresses
    own: npt.NDArray[np.bool_]
    addresses: Addresses


def find_directions(nodes: Nodes, number: int, paths: Paths, *, elementwise: bool) -> Directions | None:
    """The directions of a chain, or None where rows differ in what they read.

    Args:
        nodes: Of the program.
        number: Of the class.
        paths: Of the class.
        elementwise: Whether only pointwise instructions lie between the loads and the location.
    """
    own = nodes.columns[number]
    loads = tuple(
        place
        for place, columns in enumerate(nodes.loads[number])
        if (nodes.owner[columns[columns >= 0]] == number).any()
    )
    if any(len(nodes.loads[number][place]) == 1 and len(own) > 1 for place in loads):
        return None
    columns = [nodes.loads[number][place][paths.order] for place in loads]
    addresses = [nodes.kernels[number].held.addresses[place][paths.order] for place in loads]
    size = int(np.prod(own.shape[1:], dtype=np.int64))
    whole = elementwise and all(held.shape[1:] == own.shape[1:] for held in columns)
    flat = np.stack([held.reshape(len(own), -1) for held in columns], 1) if whole else None
    if flat is None:
        flat = np.concatenate([held.reshape(len(own), -1) for held in columns], 1)[:, :, None]
    inside = (flat >= 0) & (nodes.owner[flat] == number)
    if whole and not (inside.all(2) == inside.any(2)).all():
        return None
    held_own = inside[:, :, 0]
    position = np.zeros(len(own), dtype=np.int64)
    position[paths.order] = paths.position
    place = np.zeros(len(nodes.owner), dtype=np.int64)
    place[own.reshape(len(own), -1)] = np.arange(size)
    first = np.where(held_own, flat[:, :, 0], own.reshape(-1)[0])
    lags = np.where(held_own, paths.position[:, None] - position[nodes.row[first]], 0)
    elements = np.where(held_own, place[first], 0)
    lag, element = lags.max(0), elements.max(0)
    if (held_own & ((lags != lag) | (elements != element))).any():
        return None
    if whole:
        rows = nodes.row[np.where(inside, flat, first[:, :, None])]
        straight = (rows == rows[:, :, :1]) & (place[np.where(inside, flat, 0)] == np.arange(size))
        if not (straight | ~inside).all():
            return None
        stacked = np.stack(addresses, 1)
    else:
        if paths.lag * size > _LARGEST_STATE or len(lag) > 4 * _LARGEST_STATE:
            return None
        stacked = np.concatenate([held.reshape(len(own), -1) for held in addresses], 1)
    return Directions(loads, whole, lag, element, held_own, stacked)
