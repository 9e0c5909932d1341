"""Run folders on disk: made aside and renamed, so that one appears whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emfc.cli.console import finite_or_none
from emfc.data.atomic import write_text
from emfc.errors import UserError

if TYPE_CHECKING:
    import torch

    from emfc.flows import EmbeddedModelFlow

__all__ = ["choose_run", "known_image", "load_run", "new_run", "read_metrics", "write_json"]

MANIFEST = "manifest.json"
METRICS = "metrics.json"
OURS = {
    MANIFEST,
    METRICS,
    "program.safetensors",
    "weights.safetensors",
    "training.safetensors",
    "history.json",
    "training.png",
    "graph.png",
    "samples.png",
    "ranked.png",
    "baseline",
    "spline",
    "copula",
}


def choose_run(path: Path | None, name: str, *, overwrite: bool) -> Path:
    """Settle on the run folder before any work is done.

    Args:
        path: What the user asked for, or None for the first free ``runs/NAME``, ``runs/NAME-2``, ...
        name: Name of the program.
        overwrite: Whether a run that is there may be replaced.

    Returns:
        The folder, which may not exist yet.

    Raises:
        UserError: Something is there that is no run of ours, or a run that may not be replaced, or nothing can be
            written there.
    """
    if path is None:
        path, number = Path("runs") / name, 1
        while path.exists() and not overwrite:
            number += 1
            path = Path("runs") / f"{name}-{number}"
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --out needs a folder")
    if path.is_dir() and any(path.iterdir()):
        if not (path / MANIFEST).is_file():
            raise UserError(f"{path} holds something that is no run of emfc; choose another --out")
        if not overwrite:
            raise UserError(f"{path} holds a run already; give --overwrite to replace it, or choose another --out")
    above = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    if not os.access(above, os.W_OK):
        raise UserError(f"the run folder {path} cannot be made: {above} may not be written to")
    return path


@contextmanager
def new_run(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path`` to write a run to; it takes the place of ``path`` when the block ends well.

    Files in a replaced run that are none of ours are carried over.

    Args:
        path: The run folder, as `choose_run` gave it.

    Yields:
        The folder to write to.

    Raises:
        UserError: The operating system refuses to write.
    """
    token = secrets.token_hex(4)
    aside = path.with_name(f".{path.name}.{token}.part")
    old = path.with_name(f".{path.name}.{token}.old")
    try:
        try:
            aside.mkdir(parents=True)
            yield aside
            if path.exists():
                path.rename(old)
            aside.rename(path)
            if old.exists():
                for entry in [entry for entry in old.iterdir() if entry.name not in OURS]:
                    shutil.move(entry, path / entry.name)
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror or error}") from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file; numbers that are not finite become null."""
    write_text(path, json.dumps(finite_or_none(document), indent=2) + "\n")


def load_run(path: str, *, device: torch.device) -> EmbeddedModelFlow:
    """Load the flow of a run folder, ready for evaluation.

    Raises:
        UserError: The folder is missing, damaged, tampered with or from a newer version.
    """
    from emfc.flows import load

    flow = load(path, device=device)
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
