"""Where results of the benchmark of the paper go: the terminal, files, pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from emfc.cli.bench.keeping import check_pages
from emfc.cli.bench.paper_pictures import draw_pictures
from emfc.cli.bench.paper_table import (
    COLUMNS,
    GOAL_COLUMNS,
    Results,
    as_document,
    as_markdown,
    goal_rows,
    table_rows,
    tables,
)
from emfc.cli.console import finite_or_none, print_json, print_table, say
from emfc.data.atomic import check_target, write_text
from emfc.errors import UserError

__all__ = ["check_outputs", "show_results", "write_results"]


def check_outputs(outputs: Sequence[Path], pictures: Path | None, kept: Sequence[Path]) -> None:
    """Refuse files that cannot be written before anything is measured; make the folder of pictures.

    Args:
        outputs: Files to write.
        pictures: The folder of pictures.
        kept: Files of cells, which are not to be written over.

    Raises:
        UserError: An ending is unknown, a file holds cells, or a file or the folder cannot be written.
    """
    check_pages(outputs, kept)
    if pictures is None:
        return
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {pictures}: {error.strerror}") from error
    check_target(pictures / "picture.png")


def show_results(results: Results, *, as_json: bool) -> None:
    """Print tables and goals, or all as JSON."""
    if as_json:
        print_json(as_document(results))
        return
    sides = ("left", *("right",) * (len(COLUMNS) - 1))
    for cells in results.cells.values():
        for found in tables(cells).values():
            print_table(list(zip(COLUMNS, sides, strict=True)), table_rows(found), title=found[0].title)
    goals = goal_rows(results.goals)
    if goals:
        sides = ("left", "left", "right", "right", "left", "left")
        print_table(list(zip(GOAL_COLUMNS, sides, strict=True)), goals, title="Goals")


def _draw(results: Results, folder: Path) -> tuple[dict[str, dict[str, Path]], list[Exception]]:
    drawn, faults = draw_pictures(results.cells, folder)
    for paths in drawn.values():
        for path in paths.values():
            say(f"wrote {path}")
    return drawn, faults


def write_results(results: Results, outputs: Sequence[Path], pictures: Path | None) -> None:
    """Draw the pictures, and write pages and documents.

    Raises:
        UserError: Something cannot be written.
    """
    drawn: dict[str, dict[str, Path]] = {}
    faults: list[Exception] = []
    if pictures is not None:
        drawn, faults = _draw(results, pictures)
    for target in outputs:
        if target.suffix.lower() == ".md":
            beside = target.resolve().parent
            results.pictures = {
                study: {title: _relative(path, beside) for title, path in paths.items()}
                for study, paths in drawn.items()
            }
            text = as_markdown(results)
        else:
            text = json.dumps(finite_or_none(as_document(results)), indent=2) + "\n"
        write_text(target, text)
        say(f"wrote {target}")
    if faults:  # only now: pages of what took hours are written all the same
        raise faults[0]


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()
