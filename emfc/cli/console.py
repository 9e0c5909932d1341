"""What the commands say: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["finite_or_none", "plus_minus", "print_json", "print_table", "say"]


def say(text: str) -> None:
    """Say a sentence on standard error."""
    print(text, file=sys.stderr, flush=True)


def plus_minus(value: float, error: float, *, digits: int = 2) -> str:
    """Write a number and its standard error, which is left out where there is none."""
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


def print_json(document: Mapping[str, Any]) -> None:
    """Print a result as JSON; numbers that are not finite become null, since JSON has none."""
    print(json.dumps(finite_or_none(document), indent=2))


def finite_or_none(value: Any) -> Any:
    """Give the same nested value with None in the place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(
    columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, title: str | None = None, turn: bool = False
) -> None:
    """Print a table on standard output; text that is not for a terminal is never folded.

    Args:
        columns: Heading and alignment, ``"left"`` or ``"right"``, of each column.
        rows: The cells.
        title: Over the table.
        turn: Whether rows and columns change places on a terminal that is too narrow for the numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=400)
    if turn and _least_width(columns, rows) > console.width:
        (corner, *headings), flipped = (heading for heading, _ in columns), list(zip(*rows, strict=True))
        columns = [(corner, "left"), *((name, "right") for name in flipped[0])]
        rows = [[heading, *cells] for heading, cells in zip(headings, flipped[1:], strict=True)]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, alignment in columns:
        table.add_column(heading, justify="right" if alignment == "right" else "left")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)


def _least_width(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> int:
    """Width at which only headings and words fold, never a number."""
    total = 0
    for place, (heading, alignment) in enumerate(columns):
        cells = [row[place] for row in rows]
        kept = cells if alignment == "right" else [word for cell in cells for word in cell.split()]
        total += 3 + max(len(text) for text in (*heading.split(), *kept))
    return total
