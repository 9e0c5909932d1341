"""Carried loads: what one step of a scan reads of the steps before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from emfc.layers.readers import Picker
from emfc.program.ir import Addresses

__all__ = ["Carried", "assemble", "carry", "common_batch"]


@dataclass(frozen=True, eq=False)
class Carried:
    """How the rows of one class in one level get a load that reads the state.

    Attributes:
        shape: Of the load, with a dimension for rows where groups have one.
        groups: Groups of earlier levels that hold the values.
        picker: Positions among their values side by side, flat; None where the load is the one group as it is.
    """

    shape: tuple[int, ...]
    groups: tuple[int, ...]
    picker: Picker | None


def common_batch(values: Sequence[Tensor]) -> int:
    """The batch of several tensors, each of which may have one row for all."""
    return next((len(value) for value in values if len(value) != 1), 1)


def carry(
    columns: Addresses,
    first: int,
    group_of: Addresses,
    position: Addresses,
    sizes: Sequence[int],
    rest: int,
    pickers: dict[bytes, Picker],
) -> Carried:
    """Where a load of one group comes from.

    Args:
        columns: Of its elements, -1 for those that do not belong to the scan.
        first: First column of the scan.
        group_of: Group of each column of the scan.
        position: Its place among the values of its group.
        sizes: Number of values of each group.
        rest: Number of elements that stand before the groups, for those outside the scan.
        pickers: Those made so far.
    """
    inside = columns >= 0
    places = np.where(inside, columns - first, 0)
    groups = np.unique(group_of[places[inside]])
    starts = np.fromiter(accumulate((sizes[g] for g in groups), initial=rest), dtype=np.int64)
    chosen = np.minimum(np.searchsorted(groups, group_of[places]), len(groups) - 1)
    own = np.arange(columns.size).reshape(columns.shape)
    positions = np.where(inside, position[places] + starts[chosen], own)
    if not rest and len(groups) == 1 and positions.size == starts[-1] and (positions == own).all():
        return Carried(columns.shape, (int(groups[0]),), None)
    key = positions.tobytes()
    if key not in pickers:
        pickers[key] = Picker(positions.reshape(-1))
    return Carried(columns.shape, tuple(groups.tolist()), pickers[key])


def assemble(carried: Carried, results: Sequence[Tensor], rest: Tensor | None) -> Tensor:
    """A load that reads the state, out of the results so far and its elements outside the scan."""
    if carried.picker is None:
        value = results[carried.groups[0]]
        return value if value.shape[1:] == carried.shape else value.reshape(len(value), *carried.shape)
    pieces = [
        results[group].flatten(1) if results[group].ndim > 1 else results[group][:, None] for group in carried.groups
    ]
    if rest is not None:
        rest = rest.expand(len(rest), *carried.shape)
        pieces.insert(0, rest.flatten(1) if rest.ndim > 1 else rest[:, None])
    batch = common_batch(pieces)
    joined = pieces[0] if len(pieces) == 1 else torch.cat([piece.expand(batch, -1) for piece in pieces], 1)
    return carried.picker(joined).reshape(batch, *carried.shape)
