"""Which cells a run of the benchmark of the paper consists of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emfc.cli.bench.keeping import source_digest
from emfc.cli.bench.paper_cells import Cell, Request
from emfc.cli.bench.paper_recipes import group_of
from emfc.cli.bench.paper_rows import BASELINE, KINDS, Row, read_row
from emfc.cli.bench.paper_tasks import FEW_TASKS, TASKS, PaperTask
from emfc.errors import UserError

__all__ = ["SIZES", "STEPS", "STUDIES", "Options", "by_study", "plan"]

STUDIES = ("main", "wrong", "few")
STEPS = {"main": 5_000, "wrong": 5_000, "few": 2_000}
SIZES = (50, 200, 1_000, 5_000, 50_000)
WRONG_KINDS = ("gemf-t", "gemf-t-element", "gemf-m")
FEW_ROWS = (BASELINE, "gemf-t", "gemf-t:right")


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        studies: Of `STUDIES`.
        tasks: Keys of tasks; None for those of each study.
        rows: Rows; None for those of each study and task.
        seeds: Number of seeds.
        first_seed: The first of them.
        steps: Steps of training; None for those of each study.
        minutes: Minutes instead of steps.
        sizes: Numbers of examples of the learning curves.
        protocols: Of ``"paper"`` and ``"held-out"``.
        batch: Examples of a step.
        hidden: Widths of the baseline; None for those of each task.
        transforms: Layers of the baseline; None for those of each task.
        activation: None for the default.
        learning_rate: None for the default.
        test_rows: Examples to test on; None for the number of each task.
        dtype: Floating-point type.
        models: Folder of the programs.
        file: The user's images.
    """

    studies: tuple[str, ...]
    tasks: tuple[str, ...] | None
    rows: tuple[str, ...] | None
    seeds: int
    first_seed: int
    steps: int | None
    minutes: float | None
    sizes: tuple[int, ...]
    protocols: tuple[str, ...]
    batch: int
    hidden: tuple[int, ...] | None
    transforms: int | None
    activation: str | None
    learning_rate: float | None
    test_rows: int | None
    dtype: str
    models: Path
    file: Path | None


def plan(options: Options) -> tuple[dict[str, list[Request]], list[str]]:
    """Lay out all cells.

    Args:
        options: What the user asked for.

    Returns:
        The cells of each study, one seed after the other, so that an early stop leaves every row; and what is left
        out, in sentences.

    Raises:
        UserError: A row is unknown, or nothing is left to measure.
    """
    _require_programs(options)
    planned: dict[str, list[Request]] = {}
    missing: list[str] = []
    reasons: list[str] = []
    for study in options.studies:
        tasks = [TASKS[key] for key in options.tasks or _tasks_of(study)]
        chosen = []
        for task in tasks:
            reason = _why_not(task, study, options)
            if reason is None:
                chosen.append((task, _rows_of(task, study, options.rows)))
                continue
            reasons.append(f"{task.title}: {reason}")
            if options.tasks is not None or task.needs_file:
                missing.append(reasons[-1])
        requests = [request for task, rows in chosen for request in _requests(task, rows, study, options)]
        planned[study] = sorted(requests, key=lambda request: request.seed)
    if not any(planned.values()):
        raise UserError(f"nothing can be measured: {(missing or reasons)[-1]}")
    return planned, list(dict.fromkeys(missing))


def _require_programs(options: Options) -> None:
    """Refuse a row with a program that no task has which was asked for."""
    asked = dict.fromkeys(key for study in options.studies for key in options.tasks or _tasks_of(study))
    known = list(dict.fromkeys(program for key in asked for program in TASKS[key].programs))
    for row in options.rows or ():
        _, colon, program = row.partition(":")
        if colon and program not in known and KINDS.get(row.partition(":")[0], KINDS[BASELINE]).placement is not None:
            raise UserError(
                f"no task that was asked for has the program {program!r} of the row {row!r}; known here are "
                f"{', '.join(known)}"
            )


def _tasks_of(study: str) -> Sequence[str]:
    return FEW_TASKS if study == "few" else list(TASKS)


def _why_not(task: PaperTask, study: str, options: Options) -> str | None:
    if task.needs_file and options.file is None:
        return "its images are not part of emfc; give their file with --images"
    if study == "wrong" and not task.wrong_programs:
        return "it has no wrong programs"
    if task.protocols and not set(task.protocols) & set(options.protocols):
        return f"it has the protocols {' and '.join(task.protocols)}"
    if not (options.models / task.file).is_file():
        return f"{options.models / task.file} does not exist"
    return None


def _rows_of(task: PaperTask, study: str, rows: Sequence[str] | None) -> list[Row]:
    """Rows of a task; those that were asked for, as far as it has their programs."""
    if rows is None and study == "wrong":
        asked = [BASELINE, *(f"{kind}:{key}" for key in task.wrong_programs for kind in WRONG_KINDS)]
    elif rows is None:
        asked = list(FEW_ROWS if study == "few" else task.rows)
    elif study == "wrong":
        asked = [word for row in rows for word in _with_wrong(row, task)]
    else:
        asked = list(rows)
    found = [read_row(text, task) for text in asked]
    return list(dict.fromkeys(row for row in found if row is not None))


def _with_wrong(row: str, task: PaperTask) -> list[str]:
    """A row that names no program is one with each of the wrong programs."""
    if ":" in row or row not in KINDS or KINDS[row].placement is None:
        return [row]
    return [f"{row}:{key}" for key in task.wrong_programs]


def _settings(task: PaperTask, row: Row, supports: str) -> str:
    """What the task and the program are called with, and where the program starts; empty where all is default."""
    program = task.programs[row.program or supports]
    held = {
        "task": dict(task.settings),
        "program": dict(program.settings),
        "start": None if row.program is None else program.start,
    }
    chosen = {name: value for name, value in held.items() if value}
    return json.dumps(chosen, sort_keys=True, default=str) if chosen else ""


def _requests(task: PaperTask, rows: Sequence[Row], study: str, options: Options) -> Iterator[Request]:
    supports = _supports(task) if study == "wrong" else next(iter(task.programs))
    sizes: Sequence[int | None] = options.sizes if study == "few" else (None,)
    protocols: Sequence[str | None] = [name for name in task.protocols if name in options.protocols] or (None,)
    others = [options.file.resolve()] if task.needs_file and options.file is not None else []
    source = source_digest(options.models / task.file, *others)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for protocol in protocols:
            for size in sizes:
                for row in rows:
                    yield Request(
                        task=task.key,
                        kind=row.kind,
                        program=row.program,
                        supports=supports if row.program is None else row.program,
                        seed=seed,
                        steps=None if options.minutes is not None else options.steps or STEPS[study],
                        minutes=options.minutes,
                        examples=size,
                        protocol=protocol,
                        batch=options.batch,
                        hidden=options.hidden or task.hidden,
                        transforms=options.transforms or task.transforms,
                        activation=options.activation,
                        learning_rate=options.learning_rate,
                        test_rows=options.test_rows or task.test_rows,
                        dtype=options.dtype,
                        source=source,
                        settings=_settings(task, row, supports),
                        file=str(others[0]) if others else None,
                        models=str(options.models),
                    )


def by_study(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Sort cells of any runs into the studies that they are of.

    Flows without program belong to the study of wrong programs where these have their supports, and to the main one
    where that has other rows in the same table.

    Args:
        cells: The cells; of two with the same request the last one counts, also where the program's file or
            settings have changed.

    Returns:
        Cells of each study that has some.
    """
    latest = {replace(cell.request, source="", settings="").identity: cell for cell in cells}.values()
    found: dict[str, list[Cell]] = {study: [] for study in STUDIES}
    wrong = {group_of(cell.request) for cell in latest if _is_wrong(cell.request)}
    right = {group_of(cell.request) for cell in latest if cell.request.program and not _is_wrong(cell.request)}
    for cell in latest:
        request, task, group = cell.request, TASKS[cell.request.task], group_of(cell.request)
        if request.examples is not None:
            found["few"].append(cell)
        elif request.program is not None:
            found["wrong" if _is_wrong(request) else "main"].append(cell)
        elif request.supports != next(iter(task.programs)):
            found["wrong"].append(cell)
        else:
            if group in right or group not in wrong:
                found["main"].append(cell)
            if group in wrong and request.supports == _supports(task):
                found["wrong"].append(cell)
    return {study: held for study, held in found.items() if held}


def _is_wrong(request: Request) -> bool:
    return request.program in TASKS[request.task].wrong_programs


def _supports(task: PaperTask) -> str:
    """Key of the program whose supports flows without program have beside wrong ones."""
    return task.wrong_supports or next(iter(task.programs))
