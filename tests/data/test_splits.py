"""Splits: every row once, by the seed alone."""

from __future__ import annotations

import pytest
import torch

from emfc.data import split_rows
from emfc.errors import UserError


@pytest.mark.parametrize("rows", [3, 10, 25, 1797])
def test_every_row_once(rows: int) -> None:
    split = split_rows(rows, seed=4)
    assert torch.cat(split).sort().values.tolist() == list(range(rows))
    again = split_rows(rows, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(split, again, strict=True))


def test_a_tenth_of_the_digits() -> None:
    assert [len(part) for part in split_rows(1797, seed=0)] == [1437, 180, 180]
    assert not torch.equal(split_rows(1797, seed=0).test, split_rows(1797, seed=1).test)


@pytest.mark.parametrize(("rows", "held_out"), [(2, 0.1), (0, 0.1), (100, 0.5), (100, 0.0)])
def test_too_little(rows: int, held_out: float) -> None:
    with pytest.raises(UserError):
        split_rows(rows, seed=0, held_out=held_out)
