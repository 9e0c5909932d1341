"""Files and folders that are complete at every moment, also when the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from emfc.errors import UserError

__all__ = ["remove_leftovers", "write_bytes", "write_folder"]

ASIDE = ".emfc-aside-"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file aside, flushes it to the disk and renames it.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=ASIDE, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder that is not there yet, as a whole: aside, then renamed.

    Raises:
        UserError: If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=path.parent))
        try:
            for name, content in files.items():
                write_bytes(aside / name, content)
            os.chmod(aside, 0o755)
            os.rename(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def remove_leftovers(path: Path) -> None:
    """Removes what a killed process left aside in a folder."""
    for leftover in path.glob(f"{ASIDE}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
