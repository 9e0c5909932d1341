"""Goals of the benchmark of the paper, as data, and whether the figures reach them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emfc.cli.bench.paper_cells import Request
from emfc.cli.bench.paper_recipes import Group
from emfc.cli.bench.paper_rows import KINDS, Row, row_title
from emfc.cli.bench.paper_summary import Estimate, Summary, difference
from emfc.cli.bench.paper_tasks import TASKS

__all__ = ["CLOSED", "GOALS", "PaperGoal", "Reached", "reached", "reached_when_wrong"]

CLOSED = 0.5
"""Gates are closed when their mean is at most this."""

BATCH, LONG = 100, 5_000
"""Examples of a step, and steps, of trainings that count as long."""


@dataclass(frozen=True)
class PaperGoal:
    """Something to reach; the best of the rows that it speaks of is held against it.

    Attributes:
        task: Key of the task.
        limit: At most this many nats.
        measure: ``"nll"``, taken as the best possible plus what the flow is above that of the same test examples, which
            has the same mean and less noise; ``"above"`` the best possible; or a ``"difference"``.
        programs: Programs of the rows that it speaks of.
        named: What these are called together; None for their titles.
        bare: Whether the program alone counts too.
        against: Kind of the flow of a difference.
        errors: Standard errors of the difference that are added to it.
        steps: Least steps of the training that it speaks of; None for any.
        minutes: Most minutes of processor time of it.
        protocol: Its protocol.
        splines: Whether flows on splines count.
    """

    task: str
    limit: float
    measure: str = "nll"
    programs: tuple[str, ...] = ("c",)
    named: str | None = None
    bare: bool = False
    against: str = "maf"
    errors: float = 0.0
    steps: int | None = None
    minutes: float | None = None
    protocol: str | None = None
    splines: bool = False

    @property
    def what(self) -> str:
        """What is measured, in words."""
        titles = " or ".join(TASKS[self.task].programs[key].title for key in self.programs)
        words = [f"{self.named or titles} embedded" + (" or alone" if self.bare else "")]
        if self.measure == "above":
            words.append("nats above the best possible")
        if self.measure == "difference":
            apart = f"difference to {KINDS[self.against].title}"
            words.append(apart + (f" and {self.errors:g} standard errors" if self.errors else ""))
        if self.steps is not None:
            words.append(f"{self.steps:,} steps or more")
        if self.minutes is not None:
            words.append(f"within {self.minutes:g} minutes")
        if self.protocol is not None:
            words.append(f"{self.protocol} protocol")
        return ", ".join(words)


@dataclass(frozen=True)
class Reached:
    """A goal and what was reached.

    Attributes:
        task: Key of the task.
        what: What is measured.
        limit: The number to reach, at most.
        value: What was reached, not a number where training failed.
        where: The row that reached it.
        met: Whether the goal is reached.
    """

    task: str
    what: str
    limit: float
    value: float
    where: str
    met: bool


_BLOCKS: dict[str, Any] = {"programs": ("h", "pooled", "by"), "named": "any hierarchical program"}
"""Hierarchical programs of blocks: the paper's, with nothing to learn, and those whose parameters are learned."""

GOALS = (
    PaperGoal("brownian", -26.30, steps=LONG),
    PaperGoal("brownian", -26.45, minutes=10),
    PaperGoal("ornstein-uhlenbeck", 24.10, steps=LONG),
    PaperGoal("ornstein-uhlenbeck", 24.08, programs=("right",), bare=True, steps=LONG),
    PaperGoal("lorenz", -160.0, programs=("c", "s"), steps=LONG),
    PaperGoal("lorenz", -210.0, programs=("c", "s"), minutes=10),
    PaperGoal("lorenz", -50.0, "difference", programs=("c", "s"), steps=LONG),
    PaperGoal("lorenz", 0.5, "above", programs=("right",), bare=True),
    PaperGoal("van-der-pol", 1.0, "above", programs=("right",), bare=True),
    PaperGoal("eight-gaussians", 0.02, "above", programs=("m",), splines=True),
    PaperGoal("checkerboard", 0.05, "above", programs=("m",), splines=True),
    PaperGoal("digits", -60.0, "difference", programs=("h",), protocol="paper"),
    PaperGoal("digits", -40.0, "difference", programs=("h",), against="maf-l", protocol="paper"),
    PaperGoal("digits", 0.0, "difference", programs=("h",), errors=2.0, protocol="held-out"),
    PaperGoal("digits", 0.0, "difference", programs=("h",), against="maf-l", errors=2.0, protocol="held-out"),
    PaperGoal("digits", -60.0, "difference", **_BLOCKS, protocol="paper"),
    PaperGoal("digits", -40.0, "difference", **_BLOCKS, against="maf-l", protocol="paper"),
    PaperGoal("digits", 0.0, "difference", **_BLOCKS, errors=2.0, protocol="held-out"),
    PaperGoal("digits", 0.0, "difference", **_BLOCKS, against="maf-l", errors=2.0, protocol="held-out"),
)
"""What the figures have to reach."""

FINITE = "middle"
"""Where the official code's program gave no finite loss on the Lorenz system."""


def reached(found: Sequence[Summary], failed: Sequence[Request] = ()) -> list[Reached]:
    """Hold the figures of the main study against the goals.

    Args:
        found: Summaries of any tasks and rows.
        failed: Cells that came to nothing, as far as they are known.

    Returns:
        One entry for each goal that the figures say something about.
    """
    return [*(entry for goal in GOALS for entry in _reached(goal, found)), *_finite(found, failed)]


def _reached(goal: PaperGoal, found: Sequence[Summary]) -> Iterator[Reached]:
    """The best row; of differences, where there are several tables, also the best in that whose other flow is best."""
    values = [
        (value, summary)
        for summary in found
        if _speaks_of(goal, summary) and (value := _value(goal, summary, found)) is not None
    ]
    if not values:
        return
    yield _best(goal, goal.what, values)
    others = {
        other.group: _loss(other)
        for _, summary in values
        for other in found
        if goal.measure == "difference" and other.group == summary.group and other.row == Row(goal.against, None)
    }
    if len(others) > 1:
        strongest = min(others, key=lambda group: others[group])
        held = [(value, summary) for value, summary in values if summary.group == strongest]
        yield _best(goal, f"{goal.what}, where {KINDS[goal.against].title} is best", held)


def _best(goal: PaperGoal, what: str, values: Sequence[tuple[float, Summary]]) -> Reached:
    value, best = min(values, key=lambda pair: (math.isnan(pair[0]), pair[0]))
    return Reached(goal.task, what, goal.limit, value, _where(best), value <= goal.limit)


def _loss(summary: Summary) -> float:
    """The loss of a row, less that of the best possible where it is known; infinite where training failed."""
    loss = (summary.above or summary.nll).mean
    return loss if math.isfinite(loss) else math.inf


def _where(summary: Summary) -> str:
    """The row that a figure comes from, and in what its table differs from others of the same task."""
    return row_title(summary.row, TASKS[summary.group.task]) + summary.apart


def _speaks_of(goal: PaperGoal, summary: Summary) -> bool:
    request, kind = summary.cells[0].request, KINDS[summary.row.kind]
    chosen = kind.placement in ("top", "middle") and (goal.splines or kind.backbone in ("maf", None))
    return (
        request.task == goal.task
        and request.protocol == goal.protocol
        and request.examples is None
        and summary.row.program in goal.programs
        and chosen
        and (goal.bare or kind.embedded)
        and (goal.steps is None or _long_enough(request, goal.steps))
        and (goal.minutes is None or _within(summary, goal.minutes))
    )


def _long_enough(request: Request, steps: int) -> bool:
    return request.steps is not None and request.steps >= steps and request.batch == BATCH


def _within(summary: Summary, minutes: float) -> bool:
    """Whether that was measured with so many minutes at most, or with many steps that took no longer."""
    request = summary.cells[0].request
    short = all(cell.processor <= 60 * minutes for cell in summary.cells)
    return (request.minutes is not None and request.minutes <= minutes) or (short and _long_enough(request, LONG))


def _value(goal: PaperGoal, summary: Summary, found: Sequence[Summary]) -> float | None:
    chosen: Estimate | None = summary.nll
    floor = TASKS[goal.task].floor
    if goal.measure == "nll" and summary.above is not None and floor is not None:
        return floor + summary.above.mean
    if goal.measure == "above":
        chosen = summary.above
    elif goal.measure == "difference":
        others = [other for other in found if other.group == summary.group and other.row == Row(goal.against, None)]
        chosen = difference(summary.cells, others[0].cells) if others else None
    if chosen is None:
        return None
    return chosen.mean + (goal.errors * chosen.error if goal.errors else 0.0)


def _finite(found: Sequence[Summary], failed: Sequence[Request]) -> Iterator[Reached]:
    """Trainings that failed: those that are known to have, or seeds that a row lacks and others of its table have."""

    def counts(request: Request) -> bool:
        kind = KINDS[request.kind]
        return request.task == "lorenz" and kind.placement == FINITE and kind.backbone == "maf"

    rows = [summary for summary in found if counts(summary.cells[0].request)]
    seeds: dict[Group, set[int]] = {}
    for summary in found:
        seeds.setdefault(summary.group, set()).update(cell.request.seed for cell in summary.cells)
    done = [cell for summary in rows for cell in summary.cells]
    not_kept = sum(len(seeds[summary.group]) for summary in rows) - len(done)
    lost = max(sum(map(counts, failed)), not_kept)
    if done or lost:
        bad = lost + sum(not math.isfinite(cell.nll) for cell in done)
        told = f"program in the middle, trainings without a finite loss, of {len(done) + lost}"
        yield Reached("lorenz", told, 0.0, float(bad), "all", bad == 0)


def reached_when_wrong(found: Sequence[Summary]) -> list[Reached]:
    """Hold rows with wrong programs against the goals: no worse than the baseline, and gates that close.

    Args:
        found: Summaries of the study of wrong programs.

    Returns:
        Two entries for each wrong program that gated rows embed: the worst of these rows counts.
    """
    entries: list[Reached] = []
    groups: dict[tuple[Group, str], list[Summary]] = {}
    for summary in found:
        program = summary.row.program
        if program in TASKS[summary.group.task].wrong_programs and summary.gates is not None:
            groups.setdefault((summary.group, str(program)), []).append(summary)
    for (group, program), rows in groups.items():
        task = group.task
        title = TASKS[task].programs[program].title
        title += "" if group.protocol is None else f", {group.protocol} protocol"
        apart = [(_worse(summary.difference), summary) for summary in rows if summary.difference is not None]
        if apart:
            what = f"{title}, difference to MAF less one standard error"
            entries.append(_worst(task, what, 0.0, apart))
        gates = [(summary.gates[1], summary) for summary in rows if summary.gates is not None]
        entries.append(_worst(task, f"{title}, mean gate", CLOSED, gates))
    return entries


def _worse(apart: Estimate) -> float:
    return apart.mean - (apart.error if math.isfinite(apart.error) else 0.0)


def _worst(task: str, what: str, limit: float, values: Sequence[tuple[float, Summary]]) -> Reached:
    value, summary = max(values, key=lambda pair: (math.isnan(pair[0]), pair[0]))
    return Reached(task, what, limit, value, _where(summary), value <= limit)
