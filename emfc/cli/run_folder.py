"""Run folders on disk: made aside and renamed, so that one appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emfc.cli.console import finite_or_none
from emfc.cli.training_folder import (
    CONFIGURATION,
    MANIFEST,
    METRICS,
    REPLACED,
    bring_back,
    has_unfinished,
    newest_unfinished,
    unfinished_hint,
)
from emfc.data.atomic import write_text
from emfc.errors import UserError

if TYPE_CHECKING:
    import torch

    from emfc.flows import EmbeddedModelFlow

__all__ = [
    "METRICS",
    "choose_run",
    "holds_finished",
    "known_image",
    "load_run",
    "new_run",
    "read_metrics",
    "write_json",
]


def choose_run(
    path: Path | None, name: str, *, overwrite: bool, resume: bool = False, manifest: str = MANIFEST
) -> Path:
    """Settle on the run folder before any work is done.

    Args:
        path: What the user asked for, or None for the first free ``runs/NAME``, ``runs/NAME-2``, ..., or, to go on,
            that of the newest unfinished training.
        name: Name of the program.
        overwrite: Whether a run that is there may be replaced.
        resume: Whether to go on from an unfinished training; the run that its interruption left may be replaced.
        manifest: File by which a run of the kind is known.

    Returns:
        The folder, which may not exist yet.

    Raises:
        UserError: Something is there that is no run of ours, or a run that may not be replaced, or nothing can be
            written there, or there is nothing to go on from.
    """
    if path is None:
        path = _default_run(name, overwrite=overwrite, resume=resume)
    elif path.name in ("", ".."):
        path = path.resolve()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --out needs a folder")
    if path.is_dir() and any(path.iterdir()):
        _require_replaceable(path, overwrite=overwrite, resume=resume, manifest=manifest)
    _require_writable(path)
    if resume and not has_unfinished(path):
        raise UserError(f"there is no unfinished training of {path} to go on from; leave out --resume to begin one")
    return path


def _require_writable(path: Path) -> None:
    """Try, in the nearest folder that exists, whether a run folder and the folders above it can be made."""
    parents = path.absolute().parents
    above = next(parent for parent in parents if os.path.lexists(parent))
    if not above.is_dir():
        raise UserError(f"the run folder {path} cannot be made: {above} is not a folder")
    for folder in (above, path):
        if not folder.is_dir():
            continue
        try:
            if not os.access(folder, os.W_OK):
                raise PermissionError
            Path(tempfile.mkdtemp(prefix=".emfc-", dir=folder)).rmdir()
        except OSError as error:
            raise UserError(f"the run folder {path} cannot be made: {folder} may not be written to") from error


def _default_run(name: str, *, overwrite: bool, resume: bool) -> Path:
    first = path = Path("runs") / name
    if resume:
        return newest_unfinished(first) or first
    number = 1
    while not overwrite and (path.exists() or has_unfinished(path)):
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _require_replaceable(path: Path, *, overwrite: bool, resume: bool, manifest: str) -> None:
    if (path / CONFIGURATION).is_file():
        raise UserError(f"{path} holds a training that did not end; give --out RUN --resume to go on, or another --out")
    if not (path / manifest).is_file():
        raise UserError(f"{path} holds something that is no run of emfc; choose another --out")
    if overwrite or (resume and not holds_finished(path)):
        return
    if has_unfinished(path) and not resume and not holds_finished(path):
        raise UserError(
            f"{path} holds an interrupted run; give --resume to go on with it, --overwrite to replace it, "
            "or choose another --out"
        )
    raise UserError(f"{path} holds a run already; give --overwrite to replace it, or choose another --out")


def holds_finished(path: Path) -> bool:
    """Whether a folder holds a run whose training came to its end."""
    return (path / MANIFEST).is_file() and not read_metrics(str(path)).get("interrupted", False)


@contextmanager
def new_run(path: Path, *, inside: Path) -> Iterator[Path]:
    """Give a folder to write a run to; it takes the place of ``path`` when the block ends well.

    Files in a replaced run that are none of ours are carried over.

    Args:
        path: The run folder, as `choose_run` gave it.
        inside: A folder beside ``path``, in which the new run is written and the old one put away.

    Yields:
        The folder to write to.

    Raises:
        UserError: The operating system refuses to write.
    """
    aside, old = inside / "finished", inside / REPLACED
    try:
        try:
            shutil.rmtree(aside, ignore_errors=True)
            bring_back(inside, path)
            aside.mkdir()
            yield aside
            if path.exists():
                path.rename(old)
            aside.rename(path)
        finally:
            bring_back(inside, path)
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the run folder {path}: {error.strerror or error}") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file; numbers that are not finite become null."""
    write_text(path, json.dumps(finite_or_none(document), indent=2) + "\n")


def load_run(path: str, *, device: torch.device) -> EmbeddedModelFlow:
    """Load the flow of a run folder, ready for evaluation.

    Raises:
        UserError: The folder is missing, damaged, tampered with or from a newer version.
    """
    from emfc.flows import load

    if (Path(path) / MANIFEST).is_dir():
        raise UserError(f"{path} is not a run folder: its {MANIFEST} is a folder")
    try:
        flow = load(path, device=device)
    except UserError as error:
        if (Path(path) / MANIFEST).exists():
            raise
        raise UserError(f"{error}{unfinished_hint(Path(path))}") from error
    flow.eval()
    return flow


def read_metrics(path: str) -> dict[str, Any]:
    """Read what ``emfc train`` noted of a run; empty where nothing is readable, since the flow needs none of it."""
    try:
        document = json.loads((Path(path) / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def known_image(path: str) -> str | None:
    """Give what ``emfc train`` found of images in a run: ``"8x8"``, ``"none"``, or None where it noted nothing."""
    metrics = read_metrics(path)
    return str(metrics["image"] or "none") if "image" in metrics else None
