"""``emfc bench paper-report``: tables and pictures of the cells that runs of ``emfc bench paper`` have kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from emfc.cli.options import JsonOption
from emfc.errors import UserError

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
    from emfc.cli.bench.paper_table import Results

    for path in files:
        if not path.is_file():
            raise UserError(f"{path} does not exist; give files that emfc bench paper --keep has written")
    check_outputs(output or [], pictures)
    folder = str(find_models(models))
    kept = [cell for path in files for cell in kept_cells(path)]
    if not kept:
        raise UserError(f"{' and '.join(map(str, files))} hold no cells that are done")
    cells = by_study([replace(cell, request=replace(cell.request, models=folder)) for cell in kept])
    results = Results(cells)
    if len({cell.code for held in cells.values() for cell in held}) > 1:
        results.missing.append(DIFFERENT_CODE)
    if cost:
        time_steps(results, {study: [cell.request for cell in held] for study, held in cells.items()})
    show_results(results, as_json=as_json)
    write_results(results, output or [], pictures)
