"""Cost against length, on logarithmic scales."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from emfc.report.canvas import DATA_COLOUR, SAMPLE_COLOUR, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist

__all__ = ["draw_costs"]

ACROSS = 4
STYLES = (("-", SAMPLE_COLOUR), ("--", DATA_COLOUR), (":", "#5f8f5a"), ("-.", "#8a6bb1"))


def draw_costs(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    *,
    length: str = "steps",
    cost: str = "milliseconds",
) -> None:
    """Draw cost against length, one panel for each subject and one line for each way to compute it.

    Args:
        path: The picture's file.
        panels: Title of each panel, and for each way its points ``(length, cost)``.
        length: What the horizontal axis says.
        cost: What the vertical axis says.

    Raises:
        UserError: The picture cannot be written.
    """
    across = max(1, min(ACROSS, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure = new_figure(2.8 * across + 0.4, 2.2 * down + 0.6)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    handles: dict[str, Artist] = {}
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for name, points in lines.items():
            style, colour = STYLES[names.index(name) % len(STYLES)]
            ordered = sorted(points)
            drawn = axes.plot(
                [at for at, _ in ordered],
                [value for _, value in ordered],
                style,
                color=colour,
                marker="o",
                markersize=3,
            )
            handles.setdefault(name, drawn[0])
        lengths = sorted({at for points in lines.values() for at, _ in points})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{at:,}" for at in lengths])
        axes.minorticks_off()
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(length, fontsize=9)
    figure.supylabel(cost, fontsize=9)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper center", ncols=4, fontsize=8, frameon=False
        )
    save_figure(figure, path)
