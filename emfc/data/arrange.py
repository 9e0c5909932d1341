"""Arranging arrays into the sites of a program, with every way in which they may not fit said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.data.columns import column_names, first_few, nearest_name, split_columns
from emfc.errors import UserError

__all__ = ["arrange_examples", "require_finite", "require_rows", "same_rows"]

Shape = tuple[int, ...]
Array = npt.NDArray[np.float64]


def arrange_examples(
    content: Mapping[str, Array] | Array, sites: Mapping[str, Shape], *, where: str
) -> dict[str, Tensor]:
    """Arrange arrays into the sites of an example.

    Args:
        content: One array for each site, shape ``[rows, *shape]``; or one array of flat examples ``[rows, D]``, alone
            or under the key ``x``; or, where there is one site, its array alone.
        sites: Shape of each site, in the order of the example.
        where: What to call the source of the arrays in a message.

    Returns:
        Each site's values in float64 on the CPU, shape ``[rows, *shape]``: at least one row, every value finite.

    Raises:
        UserError: A site is missing or unknown, a shape or the width is wrong, there are no rows, or a value is not a
            finite number.
    """
    arrays = _from_keys(where, content, sites) if isinstance(content, Mapping) else _from_array(where, content, sites)
    for site, array in arrays.items():
        if not np.isfinite(array).all():
            matrix = array.reshape(len(array), math.prod(array.shape[1:]))
            require_finite(where, matrix, column_names({site: sites[site]}))
    return {site: torch.from_numpy(np.ascontiguousarray(array)) for site, array in arrays.items()}


def _from_keys(where: str, arrays: Mapping[str, Array], sites: Mapping[str, Shape]) -> dict[str, Array]:
    if set(arrays) == {"x"} and arrays["x"].shape[1:] != sites.get("x"):
        return _from_array(where, arrays["x"], sites)
    unknown = [key for key in arrays if key not in sites]
    if unknown:
        names = first_few([repr(key) for key in unknown])
        what = f"the key {names} matches" if len(unknown) == 1 else f"the keys {names} match"
        hint = nearest_name(unknown[0], sites) or f"; the program's sites are {first_few(list(sites))}"
        raise UserError(f"{where}: {what} no site of the program{hint}")
    missing = [site for site in sites if site not in arrays]
    if missing:
        names = first_few([repr(site) for site in missing])
        what = f"the site {names} is" if len(missing) == 1 else f"the sites {names} are"
        raise UserError(f"{where}: {what} missing")
    require_rows(where, same_rows(where, arrays))
    for site, shape in sites.items():
        found = arrays[site].shape[1:]
        if found != shape:
            raise UserError(
                f"{where}: site {site!r} has shape {list(found)} in each row; the program needs {list(shape)}"
            )
    return {site: arrays[site] for site in sites}


def _from_array(where: str, array: Array, sites: Mapping[str, Shape]) -> dict[str, Array]:
    width = sum(math.prod(shape) for shape in sites.values())
    if len(sites) == 1 and array.ndim >= 1:
        (site, shape) = next(iter(sites.items()))
        if array.shape[1:] == shape:
            require_rows(where, len(array))
            return {site: array}
    if array.ndim != 2:
        raise UserError(f"{where}: the array has shape {list(array.shape)}; the program needs [rows, {width}]")
    if array.shape[1] != width:
        shapes = first_few([f"{site}{list(shape)}" if shape else site for site, shape in sites.items()])
        raise UserError(f"{where} has {array.shape[1]} columns; the program needs {width} ({shapes})")
    require_rows(where, len(array))
    return split_columns(array, sites)


def same_rows(where: str, arrays: Mapping[str, Array]) -> int:
    """Give the number of rows that all arrays have; raise UserError where they differ."""
    counts: dict[str, int] = {}
    for key, array in arrays.items():
        if array.ndim == 0:
            raise UserError(f"{where}: {key!r} is one number; it needs a first dimension, one row for each example")
        counts[key] = array.shape[0]
    if len(set(counts.values())) > 1:
        listed = first_few([f"{key!r} has {rows}" for key, rows in counts.items()])
        raise UserError(f"{where} is ragged: {listed} rows; every key needs the same number")
    return next(iter(counts.values()), 0)


def require_rows(where: str, rows: int) -> None:
    """Raise UserError where there are no rows."""
    if rows == 0:
        raise UserError(f"{where} has no rows")


def require_finite(where: str, matrix: Array, names: list[str]) -> None:
    """Raise UserError, which names rows and columns, where an element of ``[rows, columns]`` is not finite."""
    bad = ~np.isfinite(matrix)
    if not bad.any():
        return
    rows = np.flatnonzero(bad.any(axis=1)).tolist()
    columns = [names[index] for index in np.flatnonzero(bad.any(axis=0)).tolist()]
    what = "NaN or empty" if np.isnan(matrix[bad]).any() else "infinite"
    row_noun = "row" if len(rows) == 1 else "rows"
    column_noun = "column" if len(columns) == 1 else "columns"
    raise UserError(
        f"{where}: {what} values in {row_noun} {first_few(rows)} (counted from 0), "
        f"{column_noun} {first_few(columns)}; remove or fill them in first"
    )
