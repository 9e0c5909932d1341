"""``emfc bench paper-report``: tables and pictures of the cells that runs of ``emfc bench paper`` have kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emfc.cli.options import JsonOption
from emfc.errors import UserError

if TYPE_CHECKING:
    from emfc.cli.bench.paper_cells import Request

__all__ = ["bench_paper_report", "register"]

DIFFERENT_CODE = "cells were measured by different versions of the code of emfc"


def register(app: typer.Typer) -> None:
    """Add the command to the group ``emfc bench``."""
    app.command("paper-report", epilog="Example: emfc bench paper-report series.jsonl digits.jsonl -o paper.md")(
        bench_paper_report
    )


def bench_paper_report(
    files: Annotated[list[Path], typer.Argument(help="Files that emfc bench paper has kept cells in.")],
    cost: Annotated[bool, typer.Option("--cost", help="Also time a step of training on each task.")] = False,
    models: Annotated[
        Path | None,
        typer.Option("--models", metavar="FOLDER", help="Programs.  [default: emfc's own models/]"),
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", help="File to write, .md or .json. Repeatable.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="FOLDER", help="Folder for pictures; made if need be.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Gather what runs of emfc bench paper have kept, with any options, into one report."""
    from emfc.cli.bench.inference_references import find_models
    from emfc.cli.bench.paper_keep import kept_cells
    from emfc.cli.bench.paper_output import check_outputs, show_results, write_results
    from emfc.cli.bench.paper_plan import by_study
    from emfc.cli.bench.paper_run import time_steps
    from emfc.cli.bench.paper_summary import mixed, summaries
    from emfc.cli.bench.paper_table import Results

    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file; give files that emfc bench paper --keep has written")
    check_outputs(output or [], pictures, files)
    folder = str(find_models(models))
    kept = [replace(cell, request=replace(cell.request, models=folder)) for path in files for cell in kept_cells(path)]
    for cell in kept:
        _require_known(cell.request)
    cells = by_study(kept)
    if not cells:
        raise UserError(f"{' and '.join(map(str, files))} hold no cells that are done")
    results = Results(cells)
    if len({cell.code for held in cells.values() for cell in held}) > 1:
        tables = [mixed(summaries(held), lambda cell: cell.code) for held in cells.values()]
        within = "; ".join(dict.fromkeys(title for titles in tables for title in titles))
        results.missing.append(f"{DIFFERENT_CODE}; within one table: {within or 'nowhere'}")
    if cost:
        time_steps(results, {study: [cell.request for cell in held] for study, held in cells.items()})
    show_results(results, as_json=as_json)
    write_results(results, output or [], pictures)


def _require_known(request: Request) -> None:
    """Refuse a cell of a task, row or program that this version doesn't have."""
    from emfc.cli.bench.paper_rows import KINDS
    from emfc.cli.bench.paper_tasks import TASKS

    known = request.task in TASKS and request.kind in KINDS
    programs = TASKS[request.task].programs if known else {}
    if not known or request.supports not in programs or not (request.program is None or request.program in programs):
        raise UserError(
            f"a cell of the task {request.task!r} and the row {request.row!r} is not of this version of emfc; "
            "measure it again"
        )
