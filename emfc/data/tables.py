"""Reading and writing tables of examples: ``.npz``, ``.npy``, ``.csv`` and ``.parquet``."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.data.arrange import arrange_examples, require_finite, require_rows, same_rows
from emfc.data.atomic import check_target, replacing
from emfc.data.columns import column_names, distinct_names, join_columns, match_columns, split_columns
from emfc.data.formats import READERS, Columns
from emfc.errors import UserError

__all__ = ["check_table_target", "read_matrix", "read_table", "write_table"]

Shape = tuple[int, ...]
Array = npt.NDArray[np.float64]
ENDINGS = ", ".join(READERS)


def read_table(
    path: str | os.PathLike[str], sites: Mapping[str, Shape], *, ignore: Collection[str] = ()
) -> dict[str, Tensor]:
    """Read examples from a file, by its ending.

    ``.npz``: one key per site with an array of shape ``[rows, *shape]``, or one key ``x`` with flat examples
    ``[rows, D]``. ``.npy``: flat examples, or ``[rows, *shape]`` where there is one site. ``.csv`` and ``.parquet``:
    one column per element, named ``site``, ``site[i]`` or ``site[i,j]``, in any order.

    Args:
        path: The file.
        sites: Shape of each site, in the order of the example.
        ignore: Columns or keys that may be there and are left out.

    Returns:
        Each site's values in float64 on the CPU, shape ``[rows, *shape]``: at least one row, every value finite.

    Raises:
        UserError: The file is missing, of another format, empty, has the wrong width, unknown or missing columns, or
            values that are not finite numbers.
    """
    source = _existing(path)
    skipped = set(ignore) - set(sites)
    content = READERS[source.suffix.lower()](source)
    if isinstance(content, Columns):
        order = match_columns(content.names, sites, where=str(source), ignore=skipped)
        require_rows(str(source), content.rows)
        content = split_columns(np.stack([content.values[position] for position in order], axis=1), sites)
    elif isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in skipped}
    return arrange_examples(content, sites, where=str(source))


def read_matrix(path: str | os.PathLike[str]) -> Tensor:
    """Read all the numbers of a file as one matrix, such as a context for each example.

    Args:
        path: The file. Columns stay in the order of the file; several keys of a ``.npz`` are joined in their order.

    Returns:
        The values in float64 on the CPU, shape ``[rows, columns]``.

    Raises:
        UserError: The file is missing, of another format, empty, or has values that are not finite numbers.
    """
    source = _existing(path)
    content = READERS[source.suffix.lower()](source)
    if isinstance(content, Columns):
        names, blocks = distinct_names(content.names, where=str(source)), [np.stack(content.values, axis=1)]
    else:
        named = content if isinstance(content, dict) else {"x": content}
        same_rows(str(source), named)
        blocks = [array.reshape(len(array), math.prod(array.shape[1:])) for array in named.values()]
        names = column_names({key: array.shape[1:] for key, array in named.items()})
    matrix = np.concatenate(blocks, axis=1)
    require_rows(str(source), len(matrix))
    require_finite(str(source), matrix, names)
    return torch.from_numpy(np.ascontiguousarray(matrix))


def check_table_target(path: str | os.PathLike[str]) -> Path:
    """Check, before any work is done, that a table can be written at ``path``.

    Args:
        path: The file to be written.

    Returns:
        The same path.

    Raises:
        UserError: The ending is none of ours, or the file cannot be written there.
    """
    target = Path(path)
    if target.suffix.lower() not in READERS:
        raise UserError(f"cannot write {target}: the ending must be one of {ENDINGS}")
    return check_target(target)


def write_table(
    path: str | os.PathLike[str], mapping: Mapping[str, Tensor | npt.NDArray[np.generic]], *, overwrite: bool = True
) -> None:
    """Write examples to a file, by its ending; the file appears whole or not at all.

    What is written is what `read_table` reads: ``.npz`` has one key per site, ``.npy`` flat examples, ``.csv`` and
    ``.parquet`` one column per element.

    Args:
        path: The file.
        mapping: Each site's values, shape ``[rows, *shape]``, all with the same number of rows.
        overwrite: Whether a file that exists is replaced.

    Raises:
        UserError: The ending is none of ours, or the file cannot be written there.
    """
    target = check_table_target(path)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; give another name or remove it first")
    arrays = {site: _to_numpy(values) for site, values in mapping.items()}
    ending = target.suffix.lower()
    with replacing(target) as aside:
        if ending == ".npz":
            with aside.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
        elif ending == ".npy":
            flat = [array.reshape(len(array), math.prod(array.shape[1:])) for array in arrays.values()]
            np.save(aside, np.concatenate(flat, axis=1), allow_pickle=False)
        else:
            _write_columns(aside, ending, arrays)


def _write_columns(path: Path, ending: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    names, columns = join_columns(arrays)
    table = pa.table([pa.array(np.ascontiguousarray(column)) for column in columns], names=names)
    if ending == ".csv":
        arrow_csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)


def _to_numpy(values: Tensor | npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if isinstance(values, Tensor):
        detached = values.detach().cpu()
        return detached.float().numpy() if detached.dtype in (torch.bfloat16, torch.float16) else detached.numpy()
    return np.asarray(values)


def _existing(path: str | os.PathLike[str]) -> Path:
    source = Path(path)
    if source.suffix.lower() not in READERS:
        raise UserError(f"cannot read {source}: the ending must be one of {ENDINGS}")
    if not source.exists():
        raise UserError(f"the file {source} does not exist")
    if not source.is_file():
        raise UserError(f"{source} is not a file")
    if not os.access(source, os.R_OK):
        raise UserError(f"{source} may not be read")
    if source.stat().st_size == 0:
        raise UserError(f"{source} is empty")
    return source
