"""The figures as a Markdown page, as JSON, and as rows for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from emfc.cli.bench.figures import COMPILE, Figure
from emfc.cli.bench.goals import Finding, findings
from emfc.cli.bench.subjects import SUBJECTS

__all__ = ["GOAL_COLUMNS", "RATIO_COLUMNS", "as_document", "as_markdown", "goal_rows", "ratio_rows", "title_of"]

LONG_TITLES = {"chain": "chain of Normal sites", "tree": "binary tree of Normal sites"}
RATIO_COLUMNS = (
    "program",
    "measure",
    "T",
    "B",
    "ms",
    "over hand-written",
    "Pyro over ours",
    "site by site over ours",
    "operations",
    "hand-written",
    "memory over hand-written",
)
GOAL_COLUMNS = ("measure", "goal", "worst", "where", "")
COMPILE_COLUMNS = ("program", "sites or steps", "seconds", "GiB at the highest")


def title_of(program: str) -> str:
    """What a program is called."""
    return SUBJECTS[program].title if program in SUBJECTS else LONG_TITLES[program]


def ratio_rows(figures: Sequence[Figure]) -> list[list[str]]:
    """Cells of `RATIO_COLUMNS`, one row for each figure but those of compiling."""
    return [
        [
            title_of(figure.program),
            figure.measure,
            str(figure.steps),
            str(figure.batch),
            _digits(1e3 * figure.seconds),
            _ratio(figure.over_hand),
            _ratio(figure.pyro_over),
            _ratio(figure.plain_over),
            _count(figure.operations),
            _count(figure.operations_by_hand),
            _ratio(figure.kept / figure.kept_by_hand if figure.kept is not None and figure.kept_by_hand else None),
        ]
        for figure in figures
        if figure.measure != COMPILE
    ]


def goal_rows(found: Sequence[Finding]) -> list[list[str]]:
    """Cells of `GOAL_COLUMNS`, one row for each goal."""
    return [
        [
            finding.what,
            f"{'at least' if finding.at_least else 'at most'} {finding.limit:g}",
            _ratio(finding.value),
            finding.where,
            "met" if finding.met else "missed",
        ]
        for finding in found
    ]


def as_markdown(figures: Sequence[Figure]) -> str:
    """The figures as a page of Markdown: goals, ratios, compiling."""
    compiled = [
        [
            title_of(figure.program),
            f"{figure.steps:,}",
            _digits(figure.seconds),
            "" if figure.peak is None else f"{figure.peak / 2**30:.2f}",
        ]
        for figure in figures
        if figure.measure == COMPILE
    ]
    parts = {
        "Goals": _markdown(GOAL_COLUMNS, goal_rows(findings(figures))),
        "Ratios": _markdown(RATIO_COLUMNS, ratio_rows(figures)),
        "Parsing and compiling": _markdown(COMPILE_COLUMNS, compiled),
    }
    told = "Written by `emfc bench`: ratios of times taken in turns, medians within one run on one thread."
    return f"# Cost of programs\n\n{told}\n" + "".join(
        f"\n## {title}\n\n{table}" for title, table in parts.items() if table
    )


def as_document(figures: Sequence[Figure]) -> dict[str, Any]:
    """The same for JSON."""
    goals = [{**asdict(finding), "met": finding.met} for finding in findings(figures)]
    return {"figures": [asdict(figure) for figure in figures], "goals": goals}


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One table; columns of numbers are set to the right."""
    if not rows:
        return ""
    numbers = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    lines = [columns, ["---:" if number else "---" for number in numbers], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit()


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
