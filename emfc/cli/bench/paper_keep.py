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

from emfc import __version__
from emfc.cli.bench.paper_cells import Cell, Request
from emfc.errors import UserError

__all__ = ["keep_cell", "kept_cells", "source_digest"]

SHORT = 12
BEGINNING = '{"request": '


def kept_cells(path: Path | None) -> list[Cell]:
    """Cells of earlier runs; one that was cut off when a run was killed is left out.

    Raises:
        UserError: The file is of something else.
    """
    from emfc.data.atomic import check_target

    if path is None:
        return []
    check_target(path)
    if not path.exists():
        return []
    try:
        cells = [_cell(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{path} does not hold results of emfc bench paper; give another file to --keep") from error
    return [cell for cell in cells if cell is not None]


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


def _cell(line: str) -> Cell | None:
    try:
        document = json.loads(line)
    except ValueError:
        if line.startswith(BEGINNING):
            return None
        raise
    request = document.pop("request")
    request["hidden"], document["hidden"] = tuple(request["hidden"]), tuple(document["hidden"])
    return Cell(Request(**request), **document)


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
