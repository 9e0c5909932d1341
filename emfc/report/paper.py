"""Pictures of experiments: gates over time or pixels, and learning curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from emfc.report.canvas import DATA_COLOUR, SAMPLE_COLOUR, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["draw_gates", "draw_learning_curves"]

ACROSS = 3
COLOURS = (DATA_COLOUR, SAMPLE_COLOUR, "#5f8f5a", "#8a6bb1", "#b8912f", "#4f9a9a")
STYLES = ("-", "--", "-.", ":")


def draw_gates(
    path: str | os.PathLike[str],
    panels: Mapping[str, Sequence[Sequence[float]]],
    *,
    title: str,
    image: tuple[int, int] | None = None,
    along: str = "site or element, in the order of the program",
    width: float = 3.4,
) -> None:
    """Draw gates over the sites or elements of an example, one panel for each flow and one line for each training.

    Args:
        path: The picture's file.
        panels: Title of each flow; for each of its trainings the gates in the order of the example.
        title: Over the picture.
        image: Height and width, where examples are images with a gate for each pixel; their mean over the trainings is
            then drawn as an image.
        along: What the horizontal axes say.
        width: Of a panel, in inches.

    Raises:
        UserError: The picture cannot be written.
    """
    across = max(1, min(ACROSS, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure = new_figure(max(width * across, 6.4) + 0.4, 2.3 * down + 0.8)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    drawn = None
    for axes, (name, trainings) in zip(grid, panels.items(), strict=False):
        axes.set_title(name, fontsize=9)
        if image is not None and all(len(gates) == image[0] * image[1] for gates in trainings):
            mean = np.mean(np.asarray(trainings, dtype=np.float64), axis=0).reshape(image)
            drawn = axes.imshow(mean, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            continue
        for gates in trainings:
            marker = "." if len(gates) < 40 else None
            axes.plot(range(len(gates)), gates, color=SAMPLE_COLOUR, alpha=0.6, linewidth=1.0, marker=marker)
        axes.set_ylim(-0.04, 1.04)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if max(map(len, trainings), default=1) < 2:
            axes.set_xlim(-0.5, 0.5)
        _tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=list(grid), shrink=0.8).ax.tick_params(labelsize=8)
    figure.supxlabel(f"{along}; a gate of 1 is the program, 0 the learned layers alone", fontsize=8)
    figure.supylabel("gate", fontsize=8)
    save_figure(figure, path)


def draw_learning_curves(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]],
    *,
    what: Mapping[str, str],
    title: str = "",
) -> None:
    """Draw loss against the number of training examples, one panel for each task and one line for each flow.

    Where no loss is below zero, both axes are logarithmic.

    Args:
        path: The picture's file.
        panels: Title of each panel; for each flow its points ``(examples, mean, standard error)``. A standard error
            that is not finite is not drawn.
        what: What the vertical axis of each panel says.
        title: Over the picture.

    Raises:
        UserError: The picture cannot be written.
    """
    across = max(1, min(ACROSS, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure = new_figure(3.4 * across + 0.4, 2.9 * down + 0.7)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    handles: dict[str, Artist] = {}
    for axes, (panel, lines) in zip(grid, panels.items(), strict=False):
        for name, points in lines.items():
            place = names.index(name)
            shown = sorted(point for point in points if math.isfinite(point[1]))
            errors = [error if math.isfinite(error) else 0.0 for _, _, error in shown]
            drawn = axes.errorbar(
                [size for size, _, _ in shown],
                [mean for _, mean, _ in shown],
                yerr=errors,
                color=COLOURS[place % len(COLOURS)],
                linestyle=STYLES[place // len(COLOURS) % len(STYLES)],
                marker="o",
                markersize=3,
                linewidth=1.4,
                capsize=2,
            )
            handles.setdefault(name, drawn.lines[0])
        sizes = sorted({size for points in lines.values() for size, _, _ in points})
        axes.set_xscale("log")
        if all(mean > 0 for points in lines.values() for _, mean, _ in points if math.isfinite(mean)):
            axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        axes.minorticks_off()
        axes.set_title(panel, fontsize=9)
        axes.set_ylabel(what.get(panel, ""), fontsize=8)
        _tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("training examples", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper center", ncols=4, fontsize=8, frameon=False
        )
    save_figure(figure, path)


def _tidy(axes: Axes) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    axes.tick_params(labelsize=8)
