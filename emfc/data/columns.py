"""Names of the columns of a table of examples, and the way between columns and sites."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from emfc.errors import UserError

__all__ = [
    "column_names",
    "distinct_names",
    "first_few",
    "join_columns",
    "match_columns",
    "nearest_name",
    "separator_hint",
    "split_columns",
]

Shape = tuple[int, ...]
Array = npt.NDArray[np.float64]
INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")


def column_names(sites: Mapping[str, Shape]) -> list[str]:
    """Name every element of an example: ``site``, ``site[i]`` or ``site[i,j]``.

    Args:
        sites: Shape of each site, in the order of the example.

    Returns:
        One name for each of the D elements, each site in C order.
    """
    names: list[str] = []
    for site, shape in sites.items():
        if not shape:
            names.append(site)
        else:
            ranges = (range(size) for size in shape)
            names.extend(f"{site}[{','.join(map(str, index))}]" for index in product(*ranges))
    return names


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to an unknown one.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        ``"; did you mean 'x[0]'?"``, or nothing where no name is near.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_few(items: Sequence[object], limit: int = 5) -> str:
    """List a few items in words: ``3, 7 and 12 more``.

    Args:
        items: What to list.
        limit: How many to spell out.

    Returns:
        The list as a phrase.
    """
    shown = [str(item) for item in items[:limit]]
    left = len(items) - len(shown)
    if left:
        return f"{', '.join(shown)} and {left} more"
    if len(shown) > 1:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return shown[0] if shown else "none"


def separator_hint(names: Sequence[str]) -> str:
    """Say that a table seems to be separated by something else than commas, or nothing.

    Args:
        names: The cells of its first line, as commas part them.

    Returns:
        A phrase that begins with a semicolon, or nothing.
    """
    for character, word in ((";", "semicolons"), ("\t", "tabs")):
        if any(character in name for name in names):
            return f"; the cells seem to be separated by {word}: separate them by commas"
    return ""


def split_columns(matrix: Array, sites: Mapping[str, Shape]) -> dict[str, Array]:
    """Cut flat examples into sites.

    Args:
        matrix: Examples, shape ``[rows, D]``.
        sites: Shape of each site, in the order of the example; their elements number D.

    Returns:
        Each site's values, shape ``[rows, *shape]``.
    """
    rows = matrix.shape[0]
    found: dict[str, Array] = {}
    start = 0
    for site, shape in sites.items():
        size = math.prod(shape)
        found[site] = matrix[:, start : start + size].reshape(rows, *shape)
        start += size
    return found


def join_columns(mapping: Mapping[str, npt.NDArray[np.generic]]) -> tuple[list[str], list[npt.NDArray[np.generic]]]:
    """Turn sites into columns, the inverse of reading them.

    Args:
        mapping: Each site's values, shape ``[rows, *shape]``.

    Returns:
        The names of the columns and their values, each of shape ``[rows]``.
    """
    names = column_names({site: values.shape[1:] for site, values in mapping.items()})
    columns: list[npt.NDArray[np.generic]] = []
    for values in mapping.values():
        flat = values.reshape(values.shape[0], math.prod(values.shape[1:]))
        columns.extend(flat[:, index] for index in range(flat.shape[1]))
    return names, columns


def match_columns(found: Sequence[str], sites: Mapping[str, Shape], *, where: str, ignore: Iterable[str]) -> list[int]:
    """Find the column of every element of an example.

    Args:
        found: The columns' names in the order of the file.
        sites: Shape of each site, in the order of the example.
        where: What to call the file in a message.
        ignore: Columns that may be there and are left out.

    Returns:
        For each of the D elements, the position of its column.

    Raises:
        UserError: A column comes twice, belongs to no site, or is missing.
    """
    tidy = distinct_names(found, where=where)
    places = {name: position for position, name in enumerate(tidy)}
    wanted = column_names(sites)
    known = set(wanted)
    if len(known) != len(wanted):
        raise UserError(
            f"{where}: two elements of the program have the same column name; use a .npz file, whose keys are sites"
        )
    skipped = set(ignore)
    unknown = [name for name in tidy if name not in known and name not in skipped]
    if unknown:
        if all(_is_number(name) for name in tidy):
            raise UserError(
                f"{where}: the first line holds numbers; it must name the columns: {first_few(wanted, limit=3)}"
            )
        names = first_few([repr(name) for name in unknown])
        what = f"the column {names} matches" if len(unknown) == 1 else f"the columns {names} match"
        if any(name in INDEX_NAMES for name in unknown):
            raise UserError(
                f"{where}: {what} no site of the program; the column without a name looks like row numbers: "
                "leave it out when you write the file (in pandas, index=False)"
            )
        hint = (
            separator_hint(tidy)
            or nearest_name(unknown[0], wanted)
            or f"; the program's columns are {first_few(wanted)}"
        )
        raise UserError(f"{where}: {what} no site of the program{hint}")
    missing = [name for name in wanted if name not in places]
    if missing:
        names = first_few([repr(name) for name in missing])
        what = f"the column {names} is" if len(missing) == 1 else f"the columns {names} are"
        raise UserError(f"{where}: {what} missing")
    return [places[name] for name in wanted]


def distinct_names(found: Sequence[str], *, where: str) -> list[str]:
    """Give the names of columns without the blanks around and in them.

    Args:
        found: The columns' names in the order of the file.
        where: What to call the file in a message.

    Raises:
        UserError: A name comes twice.
    """
    tidy = [_tidy(name) for name in found]
    seen: set[str] = set()
    for name in tidy:
        if name in seen:
            raise UserError(f"{where}: the column {name!r} comes twice; every column needs its own name")
        seen.add(name)
    return tidy


def _tidy(name: str) -> str:
    """Leave out the blanks of ``x[1, 2]``."""
    name = name.strip()
    if name.endswith("]"):
        base, bracket, inside = name.rpartition("[")
        if bracket and re.fullmatch(r"[\d,\s]+", inside[:-1]):
            return f"{base.strip()}[{''.join(inside.split())}"
    return name


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
