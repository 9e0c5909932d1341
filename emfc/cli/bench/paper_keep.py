"""Cells of ``emfc bench paper`` in the files that runs go on from."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from emfc.cli.bench.keeping import read_cells
from emfc.cli.bench.paper_cells import Cell
from emfc.cli.options import DtypeName

__all__ = ["PROTOCOLS", "kept_cells"]

PROTOCOLS = ("paper", "held-out")
DTYPES = tuple(name.value for name in DtypeName)
_CELL = TypeAdapter(Cell)


def kept_cells(path: Path | None) -> list[Cell]:
    """Cells of earlier runs; one that was cut off is left out.

    Args:
        path: The file; none where it is None or doesn't exist.

    Raises:
        UserError: The file is of something else, or cannot be read.
    """
    return read_cells(path, _read, what="emfc bench paper", beginning='{"request": ')


def _read(line: str) -> Cell:
    return _sound(_CELL.validate_json(line))


def _sound(cell: Cell) -> Cell:
    """The cell, if its numbers are such as a run can have.

    Raises:
        ValueError: They are not.
    """
    request = cell.request
    lengths = (request.steps, request.minutes)
    counts = (request.batch, *request.hidden, request.transforms, request.test_rows, cell.baseline_parameters)
    if (
        lengths.count(None) != 1
        or request.dtype not in DTYPES
        or request.protocol not in (None, *PROTOCOLS)
        or not request.hidden
        or min(counts) < 1
        or len({len(row) for row in cell.samples or ()}) > 1
    ):
        raise ValueError("a number of the cell is out of its range")
    return cell
