"""The file of cells that are done: JSON lines, one for each cell, so that a long run can go on where it stopped."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter

from emfc import __version__
from emfc.cli.bench.paper_cells import Cell
from emfc.errors import UserError

__all__ = ["keep_cell", "kept_cells", "source_digest"]

SHORT = 12
_CELL = TypeAdapter(Cell)
BEGINNING = '{"request": '


def kept_cells(path: Path | None) -> list[Cell]:
    """Cells of earlier runs; one that was cut off when a run was killed is left out.

    Args:
        path: The file; none where it is None or doesn't exist.

    Raises:
        UserError: The file is of something else.
    """
    if path is None or not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no text; it needs results of emfc bench paper") from error
    cells = []
    for number, line in enumerate(lines, 1):
        try:
            cells += [_CELL.validate_json(line)] if line else []
        except ValueError as error:
            if not (line.startswith(BEGINNING) and _cut_off(line)):
                raise UserError(f"{path} does not hold results of emfc bench paper; see line {number}") from error
    return cells


def keep_cell(path: Path | None, cell: Cell) -> None:
    """Add a cell to the file.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        return
    try:
        with path.open("a+b") as file:
            cut_off = file.tell() > 0 and not _ends_line(file)
            file.write(("\n" * cut_off + json.dumps(asdict(cell)) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _ends_line(file: BinaryIO) -> bool:
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
