"""What a model is conditioned on: read from a file or the program's ``data()``, and given to the model by name."""

from __future__ import annotations

import functools
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfc.cli.loader import UserProgram
from emfc.data import distinct_names, first_few, nearest_name
from emfc.errors import UserError

__all__ = ["Conditioned", "condition_program", "read_observations"]

ENDINGS = (".npz", ".csv", ".json", ".parquet")


@dataclass(frozen=True)
class Conditioned:
    """A model with its data.

    Attributes:
        model: The model, conditioned on those data that are sample sites.
        arguments: Its keyword arguments, with the data among them.
        names: Names of the data.
        where: Where the data came from.
    """

    model: Callable[..., Any]
    arguments: dict[str, Any]
    names: tuple[str, ...]
    where: str


def condition_program(program: UserProgram, data: Path | None, *, seed: int) -> Conditioned:
    """Give data to a program: what its model takes as an argument as that, the rest as values of sample sites.

    Args:
        program: The program.
        data: File with the data, or None for the program's ``data()``, if it has one.
        seed: For ``data()``.

    Raises:
        UserError: A name is unknown, a shape is wrong, or a value is no number.
        CompileError: The program is refused.
    """
    if data is not None:
        where, given = str(data), read_observations(data)
        twice = [name for name in given if name in program.settings]
        if twice:
            raise UserError(f"{twice[0]!r} is given by --set and by {where}; give it once")
    elif program.data is not None:
        where, given = f"data() of {program.path}", _from_hook(program, seed=seed)
    else:
        where, given = "", {}
    values = {name: _tensor(value, f"{where}: {name!r}", missing=program.takes(name)) for name, value in given.items()}
    taken = {name: value for name, value in values.items() if program.takes(name) and name not in program.settings}
    filled = replace(program, data=program.data if data is None else None, settings={**taken, **program.settings})
    arguments = filled.arguments(seed=seed)
    sites = {name: value for name, value in values.items() if not program.takes(name)}
    if not sites:
        return Conditioned(program.model, arguments, tuple(values), where)
    return Conditioned(_conditioned(program, arguments, sites, where), arguments, tuple(values), where)


def _conditioned(
    program: UserProgram, arguments: Mapping[str, Any], sites: Mapping[str, Any], where: str
) -> Callable[..., Any]:
    """The model with values of its sample sites, after a look at what sites it has."""
    from pyro import poutine

    from emfc.compiler import parse_target

    known = {site.name: site for site in parse_target(program.model, **arguments).program.sites}
    held = {}
    for name, value in sites.items():
        if name not in known:
            likely = nearest_name(name, known) or f"; its sites are {first_few(list(known))}"
            raise UserError(
                f"{where} has {name!r}, which is neither an argument nor a sample site of the model{likely}"
            )
        held[name] = _fitted(value, known[name], where)
    return functools.partial(poutine.condition, data=held)(program.model)


def _fitted(value: Any, site: Any, where: str) -> Tensor:
    """Data in the shape and type of their site."""
    if value is None or isinstance(value, str):
        told = "nothing (null)" if value is None else f"the text {value!r}"
        raise UserError(f"{where}: {site.name!r} is {told}; a sample site takes numbers, of shape {list(site.shape)}")
    tensor = torch.as_tensor(value)
    if not site.discrete:
        tensor = tensor.to(torch.get_default_dtype())
    if tuple(tensor.shape) == (1, *site.shape):
        tensor = tensor[0]
    if tuple(tensor.shape) != site.shape:
        several = tuple(tensor.shape[1:]) == site.shape
        hint = "; a posterior is of one data set, not of many examples: give one with --data FILE" if several else ""
        raise UserError(
            f"{where}: {site.name!r} has shape {list(tensor.shape)}; the model's site has {list(site.shape)}{hint}"
        )
    return tensor


def _from_hook(program: UserProgram, *, seed: int) -> dict[str, Any]:
    given = program.call_data(seed=seed)
    if not isinstance(given, Mapping):
        raise UserError(
            f"data() of {program.path} must return a mapping from names to arrays, not {type(given).__name__}, "
            "to infer from it; give data with --data FILE"
        )
    return {str(name): value for name, value in given.items()}


def _tensor(value: Any, where: str, *, missing: bool) -> Any:
    """An array as a tensor, floating-point numbers in the default type; whole numbers, text and None as they are.

    What is ``missing`` (NaN) is for the model to deal with where it is the model's argument; a site cannot have it.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} is not an array of numbers but {type(value).__name__}") from error
    if not tensor.is_floating_point():
        return tensor
    bad = tensor.isinf() if missing else ~tensor.isfinite()
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        told = "NaN (no number)" if bool(tensor[tuple(place)].isnan()) else "infinity"
        at = f" at [{','.join(map(str, place))}]" if place else ""
        raise UserError(f"{where} has {told}{at}; leave missing values out, or make them latent sites of the model")
    return tensor.to(torch.get_default_dtype())


def read_observations(path: Path) -> dict[str, Any]:
    """Read named arrays from a file.

    ``.npz``: one key per name. ``.json``: an object of numbers and nested lists. ``.csv`` and ``.parquet``: a column
    ``name`` is a vector of as many numbers as there are rows; columns ``name[0]``, ``name[1]`` are a matrix, or with
    one row a vector. Whole numbers stay whole numbers.

    Raises:
        UserError: The file is missing, of another format or damaged.
    """
    if not path.is_file():
        raise UserError(f"the data file {path} does not exist")
    ending = path.suffix.lower()
    if ending == ".npz":
        return _read_npz(path)
    if ending == ".json":
        return _read_json(path)
    if ending in (".csv", ".parquet"):
        return _read_columns(path)
    raise UserError(f"cannot read {path}: data to condition on come in {', '.join(ENDINGS)}")


def _read_npz(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path} holds pickled objects, which are never loaded; save plain arrays") from error
        raise UserError(f"{path} is damaged or not a .npz file") from error
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path}: the array {key!r} is not numeric (it is {array.dtype})")
    return arrays


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _once(path, pairs))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable .json file") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold an object of names and arrays, not {type(document).__name__}")
    return document


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object of a JSON file, each of which has its own name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: the name {twice!r} comes twice; every array needs its own name")
    return found


def _read_columns(path: Path) -> dict[str, Any]:
    """Columns by name; those with an index in brackets side by side."""
    from emfc.data.formats import Columns, read_csv, read_parquet

    table: Columns = read_csv(path) if path.suffix.lower() == ".csv" else read_parquet(path)
    plain: dict[str, Any] = {}
    indexed: dict[str, dict[tuple[int, ...], Any]] = {}
    for name, column in zip(distinct_names(table.names, where=str(path)), table.values, strict=True):
        read = re.fullmatch(r"(.+)\[(\d+(?:,\d+)*)\]", name)
        if read is None:
            plain[name] = _whole(column)
        else:
            place = tuple(map(int, read[2].split(",")))
            if place in indexed.setdefault(read[1], {}):
                raise UserError(f"{path}: the column {name!r} comes twice; every column needs its own name")
            indexed[read[1]][place] = column
    for name, columns in indexed.items():
        if name in plain:
            raise UserError(f"{path}: {name!r} is one column and several with an index as well; leave one of these out")
        places = sorted(columns)
        if len({len(place) for place in places}) > 1:
            raise UserError(f"{path}: the columns of {name!r} have indices of different lengths")
        shape = tuple(max(place[axis] for place in places) + 1 for axis in range(len(places[0])))
        if math.prod(shape) != len(places):
            raise UserError(f"{path}: columns of {name!r} are missing: {len(places)} of {math.prod(shape)} are there")
        matrix = np.stack([columns[place] for place in places], 1).reshape(-1, *shape)
        plain[name] = _whole(matrix[0] if len(matrix) == 1 else matrix)
    return plain


def _whole(values: Any) -> Any:
    """Whole numbers as such where all are."""
    finite = np.isfinite(values).all()
    return values.astype(np.int64) if finite and (values == np.round(values)).all() else values
