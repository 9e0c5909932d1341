"""Parting examples into training, validation and test rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emfc.errors import UserError

__all__ = ["Split", "split_rows"]


class Split(NamedTuple):
    """Row numbers of the three parts, each sorted; together they are all the rows, each once."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split_rows(rows: int, *, seed: int, held_out: float = 0.1) -> Split:
    """Choose the training, validation and test rows by a seed.

    Validation and test each get ``round(held_out * rows)`` rows, at least one: 1797 rows give 1437, 180 and 180.

    Args:
        rows: How many examples there are.
        seed: The seed; the same seed gives the same rows.
        held_out: Part of the rows in each of validation and test, in (0, 0.5).

    Returns:
        The three sets of row numbers.

    Raises:
        UserError: There are fewer than three rows, or ``held_out`` leaves nothing to train on.
    """
    if not 0.0 < held_out < 0.5:
        raise UserError(f"the held-out part must lie between 0 and 0.5, not {held_out}")
    each = max(1, round(held_out * rows))
    if rows - 2 * each < 1:
        raise UserError(f"{rows} examples are too few to hold out a validation and a test part; give at least 3")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    first, second = rows - 2 * each, rows - each
    return Split(order[:first].sort().values, order[first:second].sort().values, order[second:].sort().values)
