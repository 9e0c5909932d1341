"""What the benchmark of the paper found: rows for the terminal, a page of Markdown, a document for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from emfc.cli.bench.paper_cells import Cell, Request
from emfc.cli.bench.paper_cost import StepCost, cost_goals
from emfc.cli.bench.paper_goals import Reached, reached, reached_when_wrong
from emfc.cli.bench.paper_recipes import Group, group_of, told_group, told_recipe
from emfc.cli.bench.paper_rows import KINDS, row_title
from emfc.cli.bench.paper_summary import Estimate, Summary, by_recipe, mixed, summaries
from emfc.cli.bench.paper_tasks import TASKS

__all__ = ["COLUMNS", "GOAL_COLUMNS", "Results", "as_document", "as_markdown", "goal_rows", "table_rows", "tables"]

STUDIES = {
    "main": "Programs in flows",
    "wrong": "Programs that are wrong",
    "few": "Few training examples",
}
COLUMNS = (
    "flow",
    "NLL",
    "less MAF",
    "above best",
    "gates",
    "parameters",
    "steps",
    "seconds",
    "of processor",
    "seeds",
)
GOAL_COLUMNS = ("task", "goal", "at most", "reached", "by", "met")
DIFFERENT_SOURCE = "its programs or data were changed between cells, of which those of the same ones are compared"
COST_COLUMNS = ("task", "MAF, ms", "GEMF-T, ms", "ratio")


@dataclass
class Results:
    """Everything that a run found.

    Attributes:
        cells: Cells by study.
        failures: Cells that came to nothing, and why.
        missing: What was left out, in sentences.
        costs: Costs of training steps.
        pictures: Pictures by study: title and path from the page.
    """

    cells: dict[str, list[Cell]] = field(default_factory=dict)
    failures: list[tuple[Request, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    costs: list[StepCost] = field(default_factory=list)
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def goals(self) -> list[Reached]:
        """Goals that the figures say something about."""
        failed = [request for request, _ in self.failures]
        main = reached(summaries(self.cells.get("main", [])), failed)
        return [*main, *cost_goals(self.costs), *reached_when_wrong(summaries(self.cells.get("wrong", [])))]

    @property
    def left_out(self) -> list[str]:
        """What has no figures, and why."""
        seeds: dict[tuple[str, str], list[str]] = {}
        for request, reason in self.failures:
            seeds.setdefault((told_row(request), reason), []).append(str(request.seed))
        told = [
            f"{row}, seed{'s' if len(held) > 1 else ''} {', '.join(held)}: {reason}"
            for (row, reason), held in seeds.items()
        ]
        tables = [mixed(summaries(cells), lambda cell: cell.request.source) for cells in self.cells.values()]
        apart = [f"{title}: {DIFFERENT_SOURCE}" for titles in tables for title in titles]
        return [*self.missing, *apart, *told]


def told_request(request: Request) -> str:
    """A cell in words."""
    return f"{told_row(request)}, seed {request.seed}"


def told_row(request: Request) -> str:
    """A cell in words, but for its seed."""
    return f"{told_group(group_of(request))}, {request.row}"


def tables(cells: Sequence[Cell]) -> dict[Group, list[Summary]]:
    """Summaries of one study by what they have in common."""
    return {group: list(held) for group, held in groupby(summaries(cells), key=lambda summary: summary.group)}


def table_rows(found: Sequence[Summary]) -> list[list[str]]:
    """Rows of `COLUMNS`."""
    return [_row(summary) for summary in found]


def _row(summary: Summary) -> list[str]:
    cells, task = summary.cells, TASKS[summary.group.task]
    gates = summary.gates
    return [
        row_title(summary.row, task),
        _estimate(summary.nll),
        _estimate(summary.difference, signed=True) + _fewer(summary),
        _estimate(summary.above),
        "" if gates is None else " / ".join(f"{value:.2f}" for value in gates),
        f"{cells[0].parameters:,}",
        f"{summary.mean_of('steps'):,.0f}",
        _seconds(summary.mean_of("seconds")),
        _seconds(summary.mean_of("processor")),
        str(len(cells)),
    ]


def _fewer(summary: Summary) -> str:
    """How many seeds a difference is of, where it is of fewer than the loss is."""
    apart = summary.difference
    if apart is None or apart.count == len(summary.cells):
        return ""
    return f" ({apart.count} seed{'s' if apart.count > 1 else ''})"


def goal_rows(goals: Sequence[Reached]) -> list[list[str]]:
    """Rows of `GOAL_COLUMNS`."""
    return [
        [
            TASKS[goal.task].title,
            goal.what,
            f"{goal.limit:g}",
            _digits(goal.value),
            goal.where,
            "yes" if goal.met else "no",
        ]
        for goal in goals
    ]


def as_markdown(results: Results) -> str:
    """The same as a page of Markdown."""
    parts = [f"# The paper's experiments\n\n{TOLD.format(matched=_matched(results))}\n"]
    for study, cells in results.cells.items():
        parts.append(f"\n## {STUDIES[study]}\n")
        if study == "few":
            parts.append(f"\n{_few(cells)}")
        for held in () if study == "few" else tables(cells).values():
            parts.append(f"\n### {held[0].title}\n\n{_about(held)}\n\n{_markdown(COLUMNS, table_rows(held))}")
        parts += [f"\n![{title}]({path})\n" for title, path in results.pictures.get(study, {}).items()]
    goals = goal_rows(results.goals)
    if results.costs:
        rows = [[TASKS[cost.task].title, *cost.told] for cost in results.costs]
        parts.append(f"\n## A step of training\n\n{_markdown(COST_COLUMNS, rows)}")
    if goals:
        parts.append(f"\n## Goals\n\n{_markdown(GOAL_COLUMNS, goals, left=2)}")
    if results.left_out:
        parts.append("\n## Not measured\n\n" + "".join(f"- {sentence}\n" for sentence in results.left_out))
    return "".join(parts)


def as_document(results: Results) -> dict[str, Any]:
    """The same for JSON, with every cell but the examples that it drew."""
    return {
        "cells": {study: [_cell(cell) for cell in cells] for study, cells in results.cells.items()},
        "rows": {study: [_summary(held) for held in summaries(cells)] for study, cells in results.cells.items()},
        "costs": [asdict(cost) for cost in results.costs],
        "goals": [asdict(goal) for goal in results.goals],
        "missing": results.left_out,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in asdict(cell).items() if name != "samples"}


def _summary(summary: Summary) -> dict[str, Any]:
    group = summary.group
    estimates = {"nll": summary.nll, "difference": summary.difference, "above": summary.above}
    return {
        "task": group.task,
        "protocol": group.protocol,
        "examples": group.examples,
        "recipe": group.recipe._asdict(),
        "row": summary.row.key,
        **{name: None if value is None else asdict(value) for name, value in estimates.items()},
        "gates": summary.gates,
        "parameters": summary.cells[0].parameters,
        "seconds": summary.mean_of("seconds"),
        "processor": summary.mean_of("processor"),
    }


TOLD = """Written by `emfc bench paper` and `paper-report`. Negative log likelihoods (NLL) are in nats, on fresh test
examples, as means and standard errors over seeds; lower is better. *Less MAF* is the paired difference to MAF, which
has the same training and test examples in each seed. *Above best* is less the value of the process that the data come
from, on the same test examples where its density is known. *Gates* are the least, the mean and the largest. All flows
of a table have the same activation. All but MAF-L and the program alone have the width of hidden layers whose number of
parameters is nearest to MAF's{matched}. Times are of training, on one thread. Goals of NLL are held against the best
possible plus *above best*, which has the same mean and less noise."""


def _matched(results: Results) -> str:
    """The largest difference of the numbers of parameters that are matched, in words; nothing where none is."""
    apart = [
        (abs(cell.parameters / cell.baseline_parameters - 1), told_row(cell.request))
        for cells in results.cells.values()
        for cell in cells
        if KINDS[cell.request.kind].matched
    ]
    if not apart:
        return ""
    most, row = max(apart, key=lambda pair: pair[0])
    return f"; the largest difference is {100 * most:.2g} % ({row})" if most else "; here all have the same number"


def _about(found: Sequence[Summary]) -> str:
    """Sizes, length of training and best value of a table."""
    group = found[0].group
    words = [f"D = {TASKS[group.task].dim}", *told_recipe(group.recipe)]
    floor = TASKS[group.task].floor
    return "; ".join(words if floor is None else [*words, f"best possible {floor:g}"]) + "."


def _few(cells: Sequence[Cell]) -> str:
    """A table for each way of training: a line for each flow, a column for each number of examples."""
    told = "Nats above the best possible after training on so many examples, a tenth of them kept for validation.\n"
    return told + "".join(
        f"\n{'; '.join(told_recipe(recipe))}.\n\n{_curves(held)}"
        for recipe, held in by_recipe(summaries(cells)).items()
    )


def _curves(found: Sequence[Summary]) -> str:
    sizes = sorted({summary.group.examples or 0 for summary in found})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for summary in found:
        task = TASKS[summary.group.task]
        shown = summary.nll if summary.above is None else summary.above
        title = task.title + (" (NLL)" if summary.above is None else "")
        lines.setdefault((title, row_title(summary.row, task)), {})[summary.group.examples or 0] = _estimate(shown)
    columns = ("task", "flow", *(f"{size:,}" for size in sizes))
    rows = [[*titles, *(values.get(size, "") for size in sizes)] for titles, values in lines.items()]
    return _markdown(columns, rows, left=2)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    sides = ["---"] * left + ["---:"] * (len(columns) - left)
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, sides, *rows))


def _estimate(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    told = _digits(value.mean, signed=signed)
    return told + (f" ± {_digits(value.error)}" if math.isfinite(value.error) else "")


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _digits(value: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "not finite"
    sign = "+" if signed else ""
    return f"{value:{sign}.1f}" if abs(value) >= 1000 else f"{value:{sign}.3f}"
