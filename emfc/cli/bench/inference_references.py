"""Where the targets' programs, data and reference posteriors are read from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfc.cli.bench.inference_targets import InferenceTarget
from emfc.errors import UserError

__all__ = ["Moments", "Prepared", "find_models", "prepare"]

_ELEMENT = re.compile(r"(?P<name>.*)\[(?P<index>\d+)\]$")


@dataclass(frozen=True)
class Moments:
    """Reference means and standard deviations of one quantity."""

    mean: Tensor
    sd: Tensor


@dataclass(frozen=True)
class Prepared:
    """A target with everything that is needed to measure it.

    Attributes:
        target: The target.
        model: Its program, with the keyword arguments of the target.
        data: Arguments that it is conditioned on.
        moments: Reference of each quantity; None where there is none.
        missing: What isn't there, in words.
    """

    target: InferenceTarget
    model: Callable[..., Any]
    data: Mapping[str, Tensor]
    moments: Mapping[str, Moments] | None
    missing: str | None = None


def find_models(folder: Path | None) -> Path:
    """The folder of the programs: the one given, ``models`` here, or the one beside the package.

    Raises:
        UserError: There is none.
    """
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"the folder {folder} does not exist; --models takes the folder models/ of emfc")
        return folder
    for place in (Path("models"), Path(__file__).resolve().parents[3] / "models"):
        if (place / "brownian_bridge.py").is_file():
            return place
    raise UserError("the programs of the benchmark are not here; give the folder models/ of emfc with --models")


def prepare(target: InferenceTarget, models: Path, reference: Path | None) -> Prepared | str:
    """Load a target's program, data and reference, in the default dtype.

    Args:
        target: The target.
        models: Folder of the programs.
        reference: Folder of data and references.

    Returns:
        What to measure; or, where the real data are missing, a sentence that says so.

    Raises:
        UserError: A file is there and can't be read.
    """
    from emfc.cli.loader import load_program

    program = load_program(str(models / target.program), target.settings)
    model = partial(program.model, **program.settings) if program.settings else program.model
    if program.data is None:
        raise UserError(f"{program.path} has no data()")
    path = None
    if target.data is not None:
        if reference is None:
            return f"{target.title}: its data are not part of emfc; give their folder with --reference"
        path = reference / target.data
        if not path.is_file():
            return f"{target.title}: {path} does not exist"
    data = program.data() if path is None else program.data(path)
    if reference is None:
        return Prepared(target, model, data, None, f"{target.title}: no reference means without --reference")
    moments = _moments(target, reference)
    missing = None if moments is not None else f"{target.title}: {reference} has no reference means of it"
    return Prepared(target, model, data, moments, missing)


def _moments(target: InferenceTarget, reference: Path) -> dict[str, Moments] | None:
    kind, _, name = target.reference.partition("/")
    path = reference / ("posteriordb/reference_summaries.json" if kind == "posteriordb" else target.reference)
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text())
        return _summaries(held[name]["params"]) if kind == "posteriordb" else _ground_truth(held)
    except (KeyError, TypeError, ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not a reference of {target.title}: {type(error).__name__}: {error}") from error


def _summaries(params: Mapping[str, Mapping[str, float]]) -> dict[str, Moments]:
    """Moments of posteriordb's parameters, whose elements are called ``name[1]``, ``name[2]``, ..."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    scalars = set()
    for name, moments in params.items():
        found = _ELEMENT.match(name)
        grouped.setdefault(found["name"] if found else name, []).append((moments["mean"], moments["sd"]))
        if found is None:
            scalars.add(name)
    return {
        name: Moments(*(torch.tensor(column[0] if name in scalars else column) for column in zip(*pairs, strict=True)))
        for name, pairs in grouped.items()
    }


def _ground_truth(held: Mapping[str, Any]) -> dict[str, Moments]:
    """Moments of the inference gym's ``IDENTITY_<PARAM>_MEAN``; the name of a joint parameter is empty."""
    spread = "_STANDARD_DEVIATION"
    found = {}
    for key, value in held.items():
        if key.startswith("IDENTITY") and key.endswith(spread):
            stem = key.removesuffix(spread)
            name = stem.removeprefix("IDENTITY").removeprefix("_").lower()
            found[name] = Moments(torch.tensor(held[f"{stem}_MEAN"]), torch.tensor(value))
    return found
