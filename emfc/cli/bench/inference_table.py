"""What inference reached, as medians over seeds, beside its goals: rows for the terminal, Markdown and JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emfc.cli.bench.inference_cells import Cell
from emfc.cli.bench.inference_nuts import NUTS, PEER_NUTS
from emfc.cli.bench.inference_targets import TARGETS

__all__ = ["COLUMNS", "NUTS_COLUMNS", "Reached", "as_document", "as_markdown", "nuts_rows", "reached", "rows"]

OURS = "emfc"
TITLES = {NUTS: "NUTS through the guide", PEER_NUTS: "NUTS through AutoIAFNormal"}
COLUMNS = (
    "target",
    "way",
    "gap",
    "k-hat",
    "worst mean error",
    "sd ratios",
    "steps",
    "seconds",
    "of processor",
    "goals",
)
NUTS_COLUMNS = (
    "target",
    "way",
    "effective draws",
    "per second",
    "divergences",
    "worst mean error",
    "seconds",
    "of processor",
    "goals",
)


@dataclass(frozen=True)
class Reached:
    """A goal and what was reached.

    Attributes:
        target: Key of the target.
        what: What is measured.
        limit: The goal, in words.
        value: Median over seeds.
        met: Whether the goal is reached.
        stretch: Whether this is a goal that is only hoped for.
    """

    target: str
    what: str
    limit: str
    value: str
    met: bool
    stretch: bool = False


def _median(cells: Sequence[Cell], read: Callable[[Cell], float | None]) -> float | None:
    found = [value for value in map(read, cells) if value is not None]
    if not found:
        return None
    return math.nan if any(math.isnan(value) for value in found) else statistics.median(found)


def _grouped(cells: Sequence[Cell], *, sampled: bool) -> dict[tuple[str, str], list[Cell]]:
    """Cells by target and way, in the order of the targets; those of samplers or the others."""
    places = {key: place for place, key in enumerate(TARGETS)}
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: places[cell.target]):
        if (cell.way in (NUTS, PEER_NUTS)) == sampled:
            groups.setdefault((cell.target, cell.way), []).append(cell)
    return groups


def reached(cells: Sequence[Cell]) -> list[Reached]:
    """Hold medians over seeds against the goals.

    Args:
        cells: What was measured, of any targets and ways.

    Returns:
        One entry for each goal that the cells say something about.
    """
    found: list[Reached] = []
    for (key, way), group in _grouped(cells, sampled=False).items():
        if way == OURS:
            found += _fit_goals(key, group)
    sampled = _grouped(cells, sampled=True)
    for (key, way), group in sampled.items():
        if way == NUTS:
            found += _nuts_goals(key, group, sampled.get((key, PEER_NUTS), []))
    return found


def _fit_goals(key: str, group: Sequence[Cell]) -> Iterator[Reached]:
    goals = TARGETS[key].goals
    if goals is None:
        return
    gap, khat = _median(group, lambda cell: cell.gap), _median(group, lambda cell: cell.khat)
    error = _median(group, lambda cell: cell.mean_error)
    least, most = _median(group, lambda cell: cell.least_ratio), _median(group, lambda cell: cell.most_ratio)
    if gap is not None:
        yield Reached(key, "gap", f"at most {goals.gap:g}", _number(gap), gap <= goals.gap)
        yield Reached(key, "gap", f"at most {goals.stretch:g}", _number(gap), gap <= goals.stretch, stretch=True)
    if khat is not None:
        yield Reached(key, "k-hat", f"below {goals.khat:g}", f"{khat:.2f}", khat < goals.khat)
    if error is not None:
        told = f"{error:.3f}"
        yield Reached(key, "worst mean error", f"at most {goals.mean:g}", told, error <= goals.mean)
        if goals.mean_stretch is not None:
            hoped = goals.mean_stretch
            yield Reached(key, "worst mean error", f"at most {hoped:g}", told, error <= hoped, stretch=True)
    if least is not None and most is not None:
        low, high = goals.ratios
        told, met = f"{least:.3f} to {most:.3f}", low <= least and most <= high
        yield Reached(key, "sd ratios", f"{low:g} to {high:g}", told, met)


def _nuts_goals(key: str, group: Sequence[Cell], peers: Sequence[Cell]) -> Iterator[Reached]:
    goals = TARGETS[key].nuts
    if goals is None:
        return
    ess, took = _median(group, lambda cell: cell.ess), _median(group, lambda cell: cell.seconds)
    rate, peer = _median(group, lambda cell: cell.ess_per_second), _median(peers, lambda cell: cell.ess_per_second)
    error = _median(group, lambda cell: cell.mean_error)
    divergences = sum(cell.divergences or 0 for cell in group)
    if goals.ess is not None and ess is not None:
        yield Reached(key, "NUTS, effective draws", f"at least {goals.ess:g}", f"{ess:.0f}", ess >= goals.ess)
    if goals.seconds is not None and took is not None:
        yield Reached(key, "NUTS, seconds", f"at most {goals.seconds:g}", f"{took:.0f}", took <= goals.seconds)
    if goals.over_peer is not None and rate is not None and peer:
        told = f"{rate / peer:.2f}"
        what = "NUTS, draws per second over AutoIAFNormal"
        yield Reached(key, what, f"at least {goals.over_peer:g}", told, rate >= goals.over_peer * peer)
    if error is not None:
        yield Reached(key, "NUTS, worst mean error", f"at most {goals.mean:g}", f"{error:.3f}", error <= goals.mean)
    yield Reached(key, "NUTS, divergences", "none", str(divergences), divergences == 0)


def rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Cells of `COLUMNS`, one row for each target and way of fitting."""
    held = reached(cells)
    return [
        [
            TARGETS[key].title,
            way,
            _number(_median(group, lambda cell: cell.gap)),
            _fixed(_median(group, lambda cell: cell.khat), 2),
            _fixed(_median(group, lambda cell: cell.mean_error), 3),
            _range(group),
            _fixed(_median(group, lambda cell: cell.steps), 0),
            _fixed(_median(group, lambda cell: cell.seconds), 1),
            _fixed(_median(group, lambda cell: cell.processor), 1),
            _goals(key, held, sampled=False) if way == OURS else "",
        ]
        for (key, way), group in _grouped(cells, sampled=False).items()
    ]


def nuts_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Cells of `NUTS_COLUMNS`, one row for each target and sampler."""
    held = reached(cells)
    return [
        [
            TARGETS[key].title,
            TITLES[way],
            _fixed(_median(group, lambda cell: cell.ess), 0),
            _number(_median(group, lambda cell: cell.ess_per_second)),
            str(sum(cell.divergences or 0 for cell in group)),
            _fixed(_median(group, lambda cell: cell.mean_error), 3),
            _fixed(_median(group, lambda cell: cell.seconds), 1),
            _fixed(_median(group, lambda cell: cell.processor), 1),
            _goals(key, held, sampled=True) if way == NUTS else "",
        ]
        for (key, way), group in _grouped(cells, sampled=True).items()
    ]


def _goals(key: str, held: Sequence[Reached], *, sampled: bool) -> str:
    mine = [goal for goal in held if goal.target == key and goal.what.startswith("NUTS") == sampled]
    required = [goal for goal in mine if not goal.stretch]
    if not required:
        return ""
    missed = [f"{goal.what.removeprefix('NUTS, ')} {goal.limit}" for goal in required if not goal.met]
    hoped = [goal for goal in mine if goal.stretch]
    told = "missed: " + "; ".join(missed) if missed else "met"
    return told + (", stretch too" if not missed and hoped and all(goal.met for goal in hoped) else "")


def as_markdown(cells: Sequence[Cell], missing: Sequence[str] = ()) -> str:
    """The same as a page of Markdown."""
    count = len({cell.seed for cell in cells})
    told = (
        f"Written by `emfc bench inference`: medians over {count} {'seeds' if count > 1 else 'seed'}, one thread, "
        "float64. The gap is the exact log evidence less the ELBO, in nats; errors of means and ratios of standard "
        "deviations are against the reference posterior, the worst of all parameters."
    )
    parts = {
        "Fits": _markdown(COLUMNS, rows(cells)),
        "Samplers": _markdown(NUTS_COLUMNS, nuts_rows(cells)),
        "Not measured": "".join(f"- {sentence}\n" for sentence in missing),
    }
    return f"# Inference\n\n{told}\n" + "".join(f"\n## {title}\n\n{text}" for title, text in parts.items() if text)


def as_document(cells: Sequence[Cell], missing: Sequence[str] = ()) -> dict[str, Any]:
    """The same for JSON, with every cell."""
    return {
        "cells": [asdict(cell) | {"ess_per_second": cell.ess_per_second} for cell in cells],
        "goals": [asdict(goal) for goal in reached(cells)],
        "missing": list(missing),
    }


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    sides = ["---", "---", *("---:" for _ in columns[3:]), "---"]
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, sides, *lines))


def _range(group: Sequence[Cell]) -> str:
    least, most = _median(group, lambda cell: cell.least_ratio), _median(group, lambda cell: cell.most_ratio)
    return "" if least is None or most is None else f"{_fixed(least, 2)}–{_fixed(most, 2)}"


def _fixed(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.2g}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}"
