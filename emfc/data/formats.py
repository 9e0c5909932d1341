"""The four file formats of a table, each read to plain arrays and written from columns.

Readers return what the file itself tells: named arrays (``.npz``), one array (``.npy``) or named columns (``.csv``,
``.parquet``). Nothing here knows the sites of a program. No reader ever unpickles.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emfc.data.columns import separator_hint
from emfc.errors import UserError

__all__ = ["READERS", "Columns", "read_csv", "read_npy", "read_npz", "read_parquet"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Named columns, each of shape ``[rows]``, in the order of the file."""

    names: list[str]
    values: list[Array] = field(repr=False)

    @property
    def rows(self) -> int:
        return len(self.values[0]) if self.values else 0


def read_npz(path: Path) -> dict[str, Array]:
    """Read the arrays of a ``.npz`` file.

    Args:
        path: A file that exists.

    Returns:
        Each key's array in float64.

    Raises:
        UserError: The file is no ``.npz`` archive, is damaged, or holds something that is not numbers.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a .npz file")
    arrays: dict[str, Array] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                arrays[key] = _numbers(archive[key], f"{path}: the array {key!r}")
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(_numpy_fault(path, error)) from error
    if not arrays:
        raise UserError(f"{path} holds no arrays")
    return arrays


def read_npy(path: Path) -> Array:
    """Read the array of a ``.npy`` file.

    Args:
        path: A file that exists.

    Returns:
        The array in float64.

    Raises:
        UserError: The file is no ``.npy`` file, is damaged, or holds something that is not numbers.
    """
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise UserError(f"{path} is not a .npy file")
    try:
        return _numbers(np.load(path, allow_pickle=False), str(path))
    except UserError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise UserError(_numpy_fault(path, error)) from error


def read_csv(path: Path) -> Columns:
    """Read a comma-separated file whose first line names the columns.

    Args:
        path: A file that exists.

    Returns:
        The columns in float64; empty cells are NaN.

    Raises:
        UserError: The file is not text, a line has more or fewer cells than the first, or a cell is not a number.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a .csv file in UTF-8") from error
    if not names:
        raise UserError(f"{path} is empty")
    uneven: list[int] = []

    def note(row: arrow_csv.InvalidRow) -> str:
        uneven.append(row.number if row.number is not None else -1)
        return "skip"

    positions = [str(position) for position in range(len(names))]
    reading = arrow_csv.ReadOptions(use_threads=False, column_names=positions, skip_rows=1)
    parsing = arrow_csv.ParseOptions(invalid_row_handler=note)

    def read(kind: pa.DataType) -> pa.Table:
        converting = arrow_csv.ConvertOptions(column_types=dict.fromkeys(positions, kind))
        return arrow_csv.read_csv(path, read_options=reading, parse_options=parsing, convert_options=converting)

    try:
        table = read(pa.float64())
    except pa.ArrowInvalid as error:
        try:
            raise UserError(_csv_fault(path, names, read(pa.string()))) from error
        except pa.ArrowInvalid as unreadable:
            raise UserError(f"{path} is not a readable .csv file") from unreadable
    if uneven:
        lines = f" at line {uneven[0]}" if uneven[0] > 0 else ""
        hint = separator_hint(names)
        raise UserError(f"{path} is ragged{lines}: every line needs {len(names)} cells, as the first one has{hint}")
    return Columns(names, [np.asarray(column.to_numpy(), dtype=np.float64) for column in table.columns])


def read_parquet(path: Path) -> Columns:
    """Read the columns of a ``.parquet`` file.

    Args:
        path: A file that exists.

    Returns:
        The columns in float64; nulls are NaN.

    Raises:
        UserError: The file is no parquet file or holds a column that is not numbers.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable .parquet file") from error
    values: list[Array] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
            column = column.cast(pa.float64())
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UserError(f"{path}: the column {name!r} is not numeric (it is {kind})")
        values.append(np.asarray(column.to_numpy(), dtype=np.float64))
    return Columns(list(table.column_names), values)


READERS: Mapping[str, Callable[[Path], dict[str, Array] | Array | Columns]] = {
    ".npz": read_npz,
    ".npy": read_npy,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def _numbers(array: object, where: str) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = array.dtype if isinstance(array, np.ndarray) else "no array"
        raise UserError(f"{where} is not numeric (it is {kind})")
    return array.astype(np.float64)


def _numpy_fault(path: Path, error: Exception) -> str:
    if "allow_pickle" in str(error):
        return f"{path} holds pickled objects, which are never loaded; save plain numeric arrays instead"
    return f"{path} is damaged or not a {path.suffix} file"


def _csv_fault(path: Path, names: list[str], table: object) -> str:
    """Find the first cell that is not a number."""
    for name, column in zip(names, table.columns, strict=True):  # type: ignore[attr-defined]
        for row, cell in enumerate(column.to_pylist()):
            if cell is None or cell == "":
                continue
            try:
                float(cell)
            except ValueError:
                told = f"row {row} (counted from 0) holds {cell[:30]!r}"
                return f"{path}: the column {name!r} is not numeric: {told}{separator_hint(names)}"
    return f"{path} is not a readable .csv file of numbers"
