"""Curves: the course of training, bundles of time series, and examples of few dimensions."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from emfc.data.columns import column_names
from emfc.report.canvas import DATA_COLOUR, SAMPLE_COLOUR, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_examples", "draw_series", "draw_training_curves", "series_of"]

MOST_PANELS = 6
MOST_NAMED = 16
MARGIN = 0.25
OTHERS = "other elements"
COLOURS = (DATA_COLOUR, SAMPLE_COLOUR, "#5f8f5a", "#8a6bb1", "#b8912f", "#4f9a9a")


def draw_training_curves(
    path: str | os.PathLike[str],
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    unit: str = "nats per example",
) -> None:
    """Draw training and validation loss over the epochs, one colour for each flow.

    Args:
        path: The picture's file.
        histories: Name of each flow and its losses: ``"train"`` and ``"validation"``, one number for each epoch.
        unit: What the losses are in.

    Raises:
        UserError: The picture cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    shown: list[float] = []
    for index, (name, history) in enumerate(histories.items()):
        colour = COLOURS[index % len(COLOURS)]
        for part, style, width in (("train", ":", 1.0), ("validation", "-", 1.6)):
            losses = list(history.get(part, ()))
            if not losses:
                continue
            axes.plot(
                range(1, len(losses) + 1),
                losses,
                style,
                color=colour,
                linewidth=width,
                marker="x" if len(losses) == 1 else None,
                label=f"{name}, {part}",
            )
            shown.extend(loss for loss in losses[len(losses) // 20 :] if math.isfinite(loss))
        best = _best(history.get("validation", ()))
        if best is not None:
            axes.plot([best + 1], [history["validation"][best]], "o", color=colour, markersize=5)
    if shown:
        low, high = min(shown), max(shown)
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.legend(fontsize=8, frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"negative log likelihood, {unit}")
    axes.set_title("Training (a dot marks the weights that were kept)", fontsize=10)
    _tidy(axes)
    save_figure(figure, path)


def series_of(sites: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """Find the time series in an example.

    Sites whose names differ by a number (``x_0``, ``x_1``, ...) are one series, in the order of the numbers; so is a
    site with a first dimension of two or more, once for each element of its other dimensions. What is left over is a
    series of its own.

    Args:
        sites: Shape of each site, in the order of the example.

    Returns:
        Name of each series and the positions of its points in the flat example.
    """
    numbered: dict[str, list[tuple[int, int]]] = {}
    series: dict[str, list[int]] = {}
    rest: list[int] = []
    start = 0
    for site, shape in sites.items():
        size = math.prod(shape)
        read = re.fullmatch(r"(.*?)[_\[\-. ]*(\d+)\]?", site)
        if shape and shape[0] >= 2 and read is None:
            width = size // shape[0]
            for part in range(width):
                name = site if width == 1 else f"{site}, part {part}"
                series[name] = list(range(start + part, start + size, width))
        elif read is not None and read[1]:
            for part in range(size):
                name = read[1] if size == 1 else f"{read[1]}, part {part}"
                numbered.setdefault(name, []).append((int(read[2]), start + part))
        else:
            rest.extend(range(start, start + size))
        start += size
    for name, points in numbered.items():
        positions = [position for _, position in sorted(points)]
        if len(positions) > 1:
            series[name] = positions
        else:
            rest.extend(positions)
    if rest:
        series[OTHERS] = sorted(rest)
    return series


def draw_series(
    path: str | os.PathLike[str],
    panels: Mapping[str, Tensor],
    sites: Mapping[str, tuple[int, ...]],
    *,
    most: int = 60,
    frame: Tensor | None = None,
) -> None:
    """Draw bundles of time series side by side, such as data and samples; one row of axes for each series.

    Args:
        path: The picture's file.
        panels: Title of each bundle and its examples, shape ``[rows, D]``.
        sites: Shape of each site, in the order of the example.
        most: Examples drawn of each bundle.
        frame: Examples ``[rows, D]`` whose range the axes keep to, with a margin; by default they show everything.

    Raises:
        UserError: The picture cannot be written.
    """
    series = series_of(sites)
    names = column_names(sites)
    shown = list(series.items())[:MOST_PANELS]
    left = len(series) - len(shown)
    figure = new_figure(4.2 * len(panels), 1.9 * len(shown) + 0.6)
    grid = figure.subplots(len(shown), len(panels), squeeze=False, sharex="row", sharey="row")
    for row, (name, positions) in zip(grid, shown, strict=True):
        for index, (axes, (title, examples)) in enumerate(zip(row, panels.items(), strict=True)):
            lines = examples[:most, positions].detach().cpu().float().numpy()
            colour = COLOURS[min(index, 1)]
            if name == OTHERS and len(positions) <= MOST_NAMED:
                places = range(len(positions))
                axes.plot(places, lines.T, ".", color=colour, alpha=0.45, markersize=3)
                axes.set_xticks(places, [names[position] for position in positions], rotation=30, ha="right")
                axes.margins(x=0.2)
            else:
                joined = "" if name == OTHERS else "-"
                marker = "." if lines.shape[1] < 30 or not joined else None
                axes.plot(lines.T, joined, color=colour, linewidth=0.7, alpha=0.45, marker=marker, markersize=3)
            axes.set_title(f"{title}: {name}", fontsize=9)
            _tidy(axes)
        if frame is not None:
            row[0].set_ylim(*_limits(frame[:, positions]))
    if left:
        figure.supxlabel(f"{left} more series are not drawn", fontsize=8)
    save_figure(figure, path)


def draw_examples(
    path: str | os.PathLike[str],
    panels: Mapping[str, Tensor],
    sites: Mapping[str, tuple[int, ...]],
    *,
    frame: Tensor | None = None,
) -> None:
    """Draw examples that are no images: histograms for D = 1, points for D = 2, bundles of series otherwise.

    Args:
        path: The picture's file.
        panels: Title of each group and its examples, shape ``[rows, D]``.
        sites: Shape of each site, in the order of the example.
        frame: Examples ``[rows, D]`` whose range the axes keep to, with a margin; by default they show everything.

    Raises:
        UserError: The picture cannot be written.
    """
    dim = next(iter(panels.values())).shape[-1]
    if dim > 2:
        draw_series(path, panels, sites, frame=frame)
        return
    figure = new_figure(4.0 * len(panels), 3.8)
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=dim == 2)[0]
    for index, (axes, (title, examples)) in enumerate(zip(grid, panels.items(), strict=True)):
        values = examples.detach().cpu().float().numpy()
        colour = COLOURS[min(index, 1)]
        if dim == 1:
            axes.hist(values[:, 0], bins=50, density=True, color=colour)
        else:
            axes.plot(values[:, 0], values[:, 1], ".", color=colour, markersize=2, alpha=0.5)
        axes.set_title(title, fontsize=10)
        _tidy(axes)
    if frame is not None:
        grid[0].set_xlim(*_limits(frame[:, 0]))
        if dim == 2:
            grid[0].set_ylim(*_limits(frame[:, 1]))
    save_figure(figure, path)


def _limits(values: Tensor) -> tuple[float, float]:
    """Range of the values, with a margin."""
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * (high - low) or 0.5
    return low - margin, high + margin


def _best(losses: Sequence[float]) -> int | None:
    finite = [(loss, index) for index, loss in enumerate(losses) if math.isfinite(loss)]
    return min(finite)[1] if finite else None


def _tidy(axes: Axes) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    axes.tick_params(labelsize=8)
