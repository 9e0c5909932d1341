"""Means over seeds, and paired differences to the baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from emfc.cli.bench.paper_cells import Cell
from emfc.cli.bench.paper_recipes import Group, Recipe, group_of, group_titles, told_group
from emfc.cli.bench.paper_rows import BASELINE, KINDS, Row
from emfc.cli.bench.paper_tasks import TASKS

__all__ = ["Estimate", "Summary", "by_recipe", "difference", "estimate", "mixed", "summaries"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        error: Its standard error; not a number for one seed.
        count: Number of seeds.
    """

    mean: float
    error: float
    count: int


@dataclass(frozen=True)
class Summary:
    """What a row came to over all seeds.

    Attributes:
        group: What it has in common with the other rows of its table.
        title: That table in words, told apart from others of the same task.
        row: The row.
        cells: Its cells, by seed.
        nll: Negative log likelihood of test examples, nats.
        difference: The same less that of the baseline, by pairs with the same seed.
        above: The same less the best possible.
    """

    group: Group
    title: str
    row: Row
    cells: tuple[Cell, ...]
    nll: Estimate
    difference: Estimate | None
    above: Estimate | None

    @property
    def apart(self) -> str:
        """How the table's title goes on after its task, to tell it apart from others; empty where it need not."""
        return self.title.removeprefix(told_group(self.group))

    @property
    def embedded(self) -> bool:
        """Whether a program stands among learned layers."""
        return KINDS[self.row.kind].embedded

    @property
    def gates(self) -> tuple[float, float, float] | None:
        """Least, mean and largest of all gates of all seeds."""
        values = [value for cell in self.cells for value in cell.all_gates]
        return (min(values), statistics.fmean(values), max(values)) if values else None

    def mean_of(self, name: str) -> float:
        """Mean of a number of the cells, such as ``"seconds"``."""
        return statistics.fmean(float(getattr(cell, name)) for cell in self.cells)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of some numbers."""
    count = len(values)
    if not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, count)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(statistics.fmean(values), error, count)


def difference(cells: Iterable[Cell], others: Iterable[Cell]) -> Estimate | None:
    """Mean of the paired differences of losses, of cells with the same seed and data; None where there are no pairs."""
    theirs = {(cell.request.seed, cell.request.source): cell.nll for cell in others}
    mine = {(cell.request.seed, cell.request.source): cell.nll for cell in cells}
    pairs = [nll - theirs[pair] for pair, nll in mine.items() if pair in theirs]
    return estimate(pairs) if pairs else None


def summaries(cells: Iterable[Cell]) -> list[Summary]:
    """Summarise cells that belong to one study.

    Args:
        cells: The cells, each once.

    Returns:
        One summary for each row of each task, protocol and number of examples, in the order of the tasks, of their
        programs and of the kinds of flows; the smallest number of examples first.
    """
    groups: dict[Group, dict[Row, list[Cell]]] = {}
    for cell in cells:
        request = cell.request
        group = group_of(request)
        groups.setdefault(group, {}).setdefault(Row(request.kind, request.program), []).append(cell)
    places = {key: place for place, key in enumerate(TASKS)}
    order = sorted(groups, key=lambda held: (places[held.task], held.protocol != "paper", held.examples or 0))
    titles = group_titles(order)
    found = []
    for group in order:
        rows = groups[group]
        baseline = rows.get(Row(BASELINE, None), [])
        for row in sorted(rows, key=lambda row: _place(row, group.task)):
            held = rows[row]
            held.sort(key=lambda cell: cell.request.seed)
            apart = None if row == Row(BASELINE, None) else difference(held, baseline)
            nll = estimate([cell.nll for cell in held])
            found.append(Summary(group, titles[group], row, tuple(held), nll, apart, _above(held)))
    return found


def _place(row: Row, task: str) -> tuple[int, int]:
    """Where a row stands in its table."""
    programs = [None, *TASKS[task].programs]
    return list(KINDS).index(row.kind), programs.index(row.program)


def _above(cells: Sequence[Cell]) -> Estimate | None:
    """How far losses are above the best possible: above that of the same test examples, where it is known."""
    floor = TASKS[cells[0].request.task].floor
    best = [floor if cell.best_nll is None else cell.best_nll for cell in cells]
    known = [value for value in best if value is not None]
    if len(known) < len(cells):
        return None
    return estimate([cell.nll - value for cell, value in zip(cells, known, strict=True)])


def mixed(found: Iterable[Summary], of: Callable[[Cell], str]) -> list[str]:
    """Titles of tables whose cells differ in something, such as the code that measured them."""
    held: dict[str, set[str]] = {}
    for summary in found:
        held.setdefault(summary.title, set()).update(map(of, summary.cells))
    return [title for title, values in held.items() if len(values) > 1]


def by_recipe(found: Iterable[Summary]) -> dict[Recipe, list[Summary]]:
    """Summaries of learning curves by the recipe, each with a table and a picture of its own."""
    recipes: dict[Recipe, list[Summary]] = {}
    for summary in found:
        if summary.group.examples is not None:
            recipes.setdefault(summary.group.recipe, []).append(summary)
    return recipes
