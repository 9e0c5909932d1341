"""Pictures of the benchmark of the paper: samples beside data, gates, learning curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfc.cli.bench.paper_cells import SAMPLES, Cell, Request, data_source, load_task_program
from emfc.cli.bench.paper_recipes import told_recipe
from emfc.cli.bench.paper_rows import BASELINE, KINDS, Row, row_title
from emfc.cli.bench.paper_summary import Summary, by_recipe, summaries
from emfc.cli.bench.paper_table import tables
from emfc.cli.bench.paper_tasks import TASKS, PaperTask
from emfc.report import draw_examples, draw_image_panels
from emfc.report.paper import draw_gates, draw_learning_curves

__all__ = ["draw_pictures"]

ENDING = ".png"
RIGHT = "right"
ACROSS, IMAGES_OF_BLOCK = 5, 10


Drawing = tuple[str, Path, Callable[[Path], bool]]
"""Title and path of a picture, and what draws it, if there is something to draw."""


def draw_pictures(
    cells: Mapping[str, Sequence[Cell]], folder: Path
) -> tuple[dict[str, dict[str, Path]], list[Exception]]:
    """Draw everything that the cells have; a picture that fails leaves the others alone.

    Args:
        cells: Cells by study.
        folder: Where the pictures go; it exists.

    Returns:
        By study, title and path of each picture; and why others could not be drawn.
    """
    drawn: dict[str, dict[str, Path]] = {}
    faults: list[Exception] = []
    for study, held in cells.items():
        found = drawn.setdefault(study, {})
        for title, path, draw in _curves(held, folder) if study == "few" else _of_tables(held, folder, study):
            try:
                if draw(path):
                    found[title] = path
            except Exception as error:  # is raised when the others and the pages are written
                faults.append(error)
    return drawn, faults


def _curves(cells: Sequence[Cell], folder: Path) -> Iterator[Drawing]:
    recipes = by_recipe(summaries(cells))
    for number, (recipe, curves) in enumerate(recipes.items(), 1):
        path = folder / f"paper-learning-curves{'' if len(recipes) == 1 else f'-{number}'}{ENDING}"
        yield f"Learning curves: {'; '.join(told_recipe(recipe))}", path, partial(_draw_curves, found=curves)


def _of_tables(cells: Sequence[Cell], folder: Path, study: str) -> Iterator[Drawing]:
    for group, rows in tables(cells).items():
        told, task = rows[0].title, TASKS[group.task]
        apart = re.sub(r"[^a-z0-9.]+", "-", rows[0].apart.lower()).strip("-")
        words = ("paper", group.task, group.protocol, apart, "" if study == "main" else study)
        stem = "-".join(word for word in words if word)
        if study == "main":
            path = folder / f"{stem}-samples{ENDING}"
            yield f"Samples: {told}", path, partial(_draw_samples, rows=rows, task=task)
        path = folder / f"{stem}-gates{ENDING}"
        yield f"Gates: {told}", path, partial(_draw_gates, rows=rows, task=task, title=told)


def _draw_samples(path: Path, rows: Sequence[Summary], task: PaperTask) -> bool:
    chosen = _worth_showing(rows)
    if not chosen:
        return False
    request = next(iter(chosen.values())).request
    data, sites = _data(request, task)
    panels = {"data": data}
    for title, cell in chosen.items():
        panels[title] = torch.tensor(cell.samples)
    if task.picture == "blocks" and task.image is not None:
        height, width = task.image
        shown = slice(IMAGES_OF_BLOCK * height * width)
        images = {
            title: values[:, shown].exp().clamp(max=1).reshape(-1, height * width) for title, values in panels.items()
        }
        blocks = f"{task.title}: a block in each row, its mean first"
        draw_image_panels(path, images, shape=task.image, across=IMAGES_OF_BLOCK, down=SAMPLES["blocks"], title=blocks)
    elif task.picture == "images" and task.image is not None:
        levels = {title: values.sigmoid() for title, values in panels.items()}
        draw_image_panels(path, levels, shape=task.image, across=5, down=5, title=task.title)
    else:
        draw_examples(path, panels, sites, frame=data)
    return True


def _worth_showing(rows: Sequence[Summary]) -> dict[str, Cell]:
    """The baseline, the best flow with an ordinary program and the best with the right one, if they drew examples."""
    shown: dict[str, Cell] = {}
    groups: list[list[Summary]] = [
        [summary for summary in rows if summary.row == Row(BASELINE, None)],
        [summary for summary in rows if summary.embedded and summary.row.program != RIGHT],
        [summary for summary in rows if summary.row.program == RIGHT],
    ]
    for group in groups:
        drawn = [
            (summary.nll.mean, number, cell)
            for number, summary in enumerate(group)
            for cell in [cell for cell in summary.cells if cell.samples][:1]
            if math.isfinite(summary.nll.mean)
        ]
        if drawn:
            _, number, cell = min(drawn, key=lambda found: found[:2])
            shown[row_title(group[number].row, TASKS[cell.request.task])] = cell
    return shown


def _data(request: Request, task: PaperTask) -> tuple[Tensor, Any]:
    """Examples ``[n, D]`` in the order of the task's programs, and the shapes of their sites."""
    from emfc.cli.bench.paper_training import TEST_SEED
    from emfc.cli.options import numeric_defaults
    from emfc.compiler import compile as compile_program

    with numeric_defaults(request.dtype, request.seed):
        program = load_task_program(task, request.supports, Path(request.models))
        layer = compile_program(program.parse(seed=request.seed))
        data = data_source(program, task, request, "test")
        values = data(n=SAMPLES[task.picture], seed=TEST_SEED + request.seed)
        generator = torch.Generator().manual_seed(request.seed)
        packed = values if isinstance(values, Tensor) else layer.pack(values, generator=generator)
        return packed, layer.example_sites


def _draw_gates(path: Path, rows: Sequence[Summary], task: PaperTask, *, title: str) -> bool:
    panels = {
        row_title(summary.row, task): [cell.all_gates for cell in summary.cells]
        for summary in rows
        if KINDS[summary.row.kind].gate is not None
    }
    if not panels:
        return False
    image = task.image if task.picture in ("images", "blocks") else None
    if image is not None and task.picture == "blocks":
        panels = {name: [_side_by_side(gates, image) for gates in held] for name, held in panels.items()}
        image = (image[0] * (task.dim // (image[0] * image[1]) // ACROSS), image[1] * ACROSS)
    draw_gates(path, panels, title=f"Gates after training: {title}", image=image)
    return True


def _side_by_side(gates: Sequence[float], image: tuple[int, int]) -> list[float]:
    """Gates of the pixels of some images as those of one image, in which they stand in rows."""
    height, width = image
    if len(gates) % (ACROSS * height * width):
        return list(gates)
    return [float(gate) for gate in np.asarray(gates).reshape(-1, ACROSS, height, width).swapaxes(1, 2).ravel()]


def _draw_curves(path: Path, found: Sequence[Summary]) -> bool:
    panels: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    what: dict[str, str] = {}
    for summary in found:
        shown = summary.nll if summary.above is None else summary.above
        panel = TASKS[summary.group.task].title
        what[panel] = "NLL, nats" if summary.above is None else "nats above the best possible"
        name = KINDS[summary.row.kind].title + {None: "", RIGHT: ", right"}.get(summary.row.program, ", program")
        point = (summary.group.examples or 0, shown.mean, shown.error)
        panels.setdefault(panel, {}).setdefault(name, []).append(point)
    draw_learning_curves(path, panels, what=what)
    return True
