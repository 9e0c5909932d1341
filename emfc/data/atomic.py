"""Files that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emfc.errors import UserError

__all__ = ["check_target", "replacing", "write_text"]


def check_target(path: str | os.PathLike[str]) -> Path:
    """Check, before any work is done, that a file can be written at ``path``.

    Args:
        path: The file to be written.

    Returns:
        The same path as a `pathlib.Path`.

    Raises:
        UserError: The path is a folder, or its folder is missing or may not be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; give the name of a file")
    parent = target.parent
    if not parent.is_dir():
        raise UserError(f"cannot write {target}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {target}: the folder {parent} may not be written to")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    The name beside it has the same ending, so that writers which go by the ending work. When the block raises, what
    was written aside is removed and ``path`` stays as it was.

    Args:
        path: The file to be written or replaced.

    Yields:
        The path to write to.

    Raises:
        UserError: The operating system refuses to write.
    """
    target = check_target(path)
    aside = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        try:
            yield aside
            os.replace(aside, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file aside, then rename it.

    Args:
        path: The file to be written or replaced.
        text: All of its text.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
