"""Files of results that long runs go on from: JSON lines, one for each cell that is done."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

from emfc import __version__
from emfc.cli.console import say
from emfc.data.atomic import check_target
from emfc.errors import UserError

__all__ = ["check_keep", "check_pages", "keep_cell", "read_cells", "source_digest", "told_interruption"]

SHORT = 12
Cell = TypeVar("Cell")


def read_cells(path: Path | None, read: Callable[[str], Cell], *, what: str, beginning: str) -> list[Cell]:
    """Cells of earlier runs; one that was cut off when a run was killed is left out, and that is told.

    Args:
        path: The file; none where it is None or doesn't exist.
        read: Makes a cell of a line, or raises `ValueError`.
        what: The command that writes such files.
        beginning: What each line begins with.

    Raises:
        UserError: The file is of something else, or cannot be read.
    """
    if path is None or not path.exists():
        return []
    _require_file(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no text; it needs results of {what}") from error
    cells = []
    for number, line in enumerate(lines, 1):
        try:
            cells += [read(line)] if line else []
        except ValueError as error:
            begins = line.startswith(beginning) or (number == len(lines) and beginning.startswith(line))
            if not (begins and _cut_off(line)):
                raise UserError(f"{path} does not hold results of {what}; see line {number}") from error
            say(f"{path}: line {number} is cut off; its cell is left out")
    return cells


def check_keep(path: Path | None) -> None:
    """Check, before anything is measured, that cells can be added to a file.

    Raises:
        UserError: It is no file, or it may not be written to.
    """
    if path is None:
        return
    check_target(path)
    if not os.path.lexists(path):
        return
    _require_file(path)
    try:
        path.open("ab").close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_pages(outputs: Sequence[Path], kept: Sequence[Path] = ()) -> None:
    """Refuse pages and documents that cannot be written, before anything is measured.

    Args:
        outputs: Files to write.
        kept: Files of cells, which are not to be written over.

    Raises:
        UserError: An ending is unknown, a file holds cells, or it cannot be written.
    """
    for target in outputs:
        if target.resolve() in [path.resolve() for path in kept]:
            raise UserError(f"cannot write {target}: it is the file that cells are kept in; give another name")
        if target.suffix.lower() not in (".md", ".json"):
            raise UserError(f"cannot write {target}: the ending must be .md or .json")
        check_target(target)


def told_interruption(keep: Path | None) -> str:
    """What is left of a run that Ctrl-C ended."""
    if keep is None:
        return "no cell is kept; give a file with --keep"
    return f"the cells that are done are kept in {keep}" if keep.is_file() else "no cell is kept"


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is not a file that cells can be kept in; give another name")


def keep_cell(path: Path | None, cell: Any) -> None:
    """Add a cell, a dataclass, to the file, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        return
    try:
        with path.open("a+b", buffering=0) as file:
            length = file.tell()
            line = ("\n" * (length > 0 and not _ends_line(file)) + json.dumps(asdict(cell)) + "\n").encode()
            try:
                written = file.write(line)
            except OSError:
                file.truncate(length)
                raise
            if written != len(line):
                file.truncate(length)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _ends_line(file: RawIOBase) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _cut_off(line: str) -> bool:
    """Whether the end of a line is missing."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


@cache
def source_digest(path: Path, *others: Path) -> str:
    """A short digest of a program file, comments and docstrings left out, of files of data and of emfc's version.

    Raises:
        UserError: A file cannot be read.
    """
    total = hashlib.sha256(__version__.encode())
    try:
        total.update(ast.dump(_bare(ast.parse(path.read_bytes()))).encode())
        for other in others:
            total.update(other.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read {getattr(error, 'filename', None) or path}: {error}") from error
    return total.hexdigest()[:SHORT]


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
