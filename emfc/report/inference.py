"""Pictures of posteriors: marginals, pairs, the course of a fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emfc.data.columns import column_names
from emfc.report.canvas import DATA_COLOUR, SAMPLE_COLOUR, new_figure, save_figure
from emfc.report.curves import OTHERS, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_elbo", "draw_marginals", "draw_pairs", "draw_predictive"]

Array = npt.NDArray[np.float64]

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
LONG = 16
MOST_BARS = 60
MOST_ROWS = 40
MOST_BANDS = 8
MOST_PAIRS = 4
POINTS = 1500


def draw_marginals(
    path: str | os.PathLike[str],
    sites: Mapping[str, tuple[int, ...]],
    draws: Array,
    weights: Array,
    *,
    title: str,
) -> None:
    """Draw the marginal of each element: its density, its median, and bars over 50 % and 90 %.

    Elements of very different size get panels of their own. Long series, such as a vector or sites with numbers in
    their names, become bands.

    Args:
        path: The picture's file.
        sites: Shape of each site, in the order of the example.
        draws: The draws ``[S, D]``.
        weights: Weights of the draws ``[S]`` with the sum 1.
        title: Over the picture.

    Raises:
        UserError: The picture cannot be written.
    """
    names = column_names(sites)
    series = {name: held for name, held in series_of(sites).items() if len(held) >= LONG and name != OTHERS}
    inside = {place for held in series.values() for place in held}
    single = [place for place in range(len(names)) if place not in inside]
    left = max(len(single) - MOST_ROWS, 0) + sum(map(len, list(series.values())[MOST_BANDS:]))
    single, bands = single[:MOST_ROWS], list(series.items())[:MOST_BANDS]
    shown = single + [place for _, held in bands for place in held]
    quantiles = {place: _quantiles(draws[:, place], weights, LEVELS) for place in shown}
    groups = _groups(single, quantiles)
    heights = [0.34 * (len(group) + 0.4) + 0.4 for group in groups] + [2.0] * len(bands)
    figure = new_figure(7.2, sum(heights) + 0.9)
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, group in zip(grid, groups, strict=False):
        _forest(axes, group, names, draws, weights, quantiles)
    for axes, (name, held) in zip(grid[len(groups) :], bands, strict=True):
        table = np.stack([quantiles[place] for place in held], 1)
        _bands(axes, table)
        axes.set_title(name, fontsize=9)
        axes.margins(x=0.02)
    for axes in grid:
        _tidy(axes)
    figure.suptitle(title, fontsize=10)
    told = "median, 50 % and 90 % intervals" + (", density" if groups else "")
    figure.supxlabel(told + (f"; {left} more elements are not drawn" if left else ""), fontsize=8)
    save_figure(figure, path)


def _forest(
    axes: Axes,
    group: Sequence[int],
    names: Sequence[str],
    draws: Array,
    weights: Array,
    quantiles: Mapping[int, Array],
) -> None:
    """Elements under each other on one axis."""
    low = min(quantiles[place][0] for place in group)
    high = max(quantiles[place][-1] for place in group)
    margin = 0.18 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    for row, place in enumerate(group):
        held = quantiles[place]
        _marginal(axes, -row, draws[:, place], weights, limits)
        axes.plot(held[[0, 4]], [-row, -row], color=SAMPLE_COLOUR, linewidth=1.2)
        axes.plot(held[[1, 3]], [-row, -row], color=SAMPLE_COLOUR, linewidth=3.2, solid_capstyle="butt")
        axes.plot(held[2], -row, "o", color="white", markeredgecolor=SAMPLE_COLOUR, markersize=4)
    axes.set_yticks([-row for row in range(len(group))], [names[place] for place in group])
    axes.set_ylim(-len(group) + 0.5, 0.95)
    axes.set_xlim(*limits)
    if limits[0] < 0 < limits[1]:
        axes.axvline(0, color="0.75", linewidth=0.6, zorder=0)


def _bands(axes: Axes, table: Array) -> None:
    """Quantiles ``[5, n]`` over their places: bars for few, bands for many."""
    low, lower, middle, upper, high = table
    places = np.arange(table.shape[1])
    if table.shape[1] > MOST_BARS:
        axes.fill_between(places, low, high, color=SAMPLE_COLOUR, alpha=0.18, linewidth=0)
        axes.fill_between(places, lower, upper, color=SAMPLE_COLOUR, alpha=0.3, linewidth=0)
    else:
        axes.vlines(places, low, high, color=SAMPLE_COLOUR, linewidth=1.4, alpha=0.6)
        axes.vlines(places, lower, upper, color=SAMPLE_COLOUR, linewidth=4, alpha=0.6)
    axes.plot(places, middle, color=SAMPLE_COLOUR, linewidth=0.8)


def _groups(single: Sequence[int], quantiles: Mapping[int, Array]) -> list[list[int]]:
    """Neighbouring elements whose ranges are of like size and place."""
    groups: list[list[int]] = []
    for place in single:
        if groups:
            together = np.stack([quantiles[other] for other in (*groups[-1], place)])
            span = together[:, -1].max() - together[:, 0].min()
            if span <= 12 * max(float((together[:, -1] - together[:, 0]).min()), 1e-300):
                groups[-1].append(place)
                continue
        groups.append([place])
    return groups


def _marginal(axes: Axes, base: float, values: Array, weights: Array, limits: tuple[float, float]) -> None:
    """A density as a filled curve over its row, 0.75 rows high."""
    inside = (values >= limits[0]) & (values <= limits[1])
    if not inside.any():
        return
    spread = np.subtract(*_quantiles(values, weights, np.array([0.75, 0.25]))) / 1.35
    size = 1 / float((weights**2).sum())
    width = max(float(spread), 1e-12) * 1.06 * size**-0.2
    places = np.linspace(*limits, 400)
    counts, edges = np.histogram(values[inside], bins=400, range=limits, weights=weights[inside])
    centres = (edges[1:] + edges[:-1]) / 2
    width = max(width, 1.5 * (edges[1] - edges[0]))
    density = np.exp(-0.5 * ((places[:, None] - centres) / width) ** 2) @ counts
    density[(places < values.min()) | (places > values.max())] = 0
    axes.fill_between(
        places, base, base + 0.75 * density / max(density.max(), 1e-300), color=DATA_COLOUR, alpha=0.3, linewidth=0
    )


def draw_pairs(
    path: str | os.PathLike[str], names: Sequence[str], draws: Array, log_weights: Array, *, title: str
) -> None:
    """Draw a few elements against each other; the larger and darker a dot, the larger its weight.

    Args:
        path: The picture's file.
        names: Names of the elements, at most four of which are drawn.
        draws: Their draws ``[S, D]``.
        log_weights: Log weights of the draws ``[S]``.
        title: Over the picture.

    Raises:
        UserError: The picture cannot be written.
    """
    count = min(len(names), MOST_PAIRS)
    held, logs = draws[:POINTS, :count], log_weights[:POINTS]
    excess = np.clip(np.nan_to_num(logs - np.median(log_weights), neginf=-4.0), -4.0, 4.0)
    order = np.argsort(excess)
    figure = new_figure(2.1 * count + 0.9, 2.1 * count + 0.5)
    grid = figure.subplots(count, count, squeeze=False)
    dots: Any = None
    for row in range(count):
        for column in range(count):
            axes = grid[row][column]
            if column > row:
                axes.set_axis_off()
                continue
            if row == column:
                axes.hist(held[:, row], bins=40, color=DATA_COLOUR, alpha=0.6)
                axes.set_yticks([])
            else:
                dots = axes.scatter(
                    held[order, column],
                    held[order, row],
                    c=excess[order],
                    s=2 + 2.5 * np.exp(0.5 * np.maximum(excess[order], 0)),
                    cmap="coolwarm",
                    vmin=-4,
                    vmax=4,
                    linewidths=0,
                    alpha=0.7,
                )
            if row == count - 1:
                axes.set_xlabel(names[column], fontsize=8)
            else:
                axes.set_xticklabels([])
            if column == 0 and row:
                axes.set_ylabel(names[row], fontsize=8)
            elif column and row != column:
                axes.set_yticklabels([])
            _tidy(axes)
    if dots is not None:
        bar = figure.colorbar(dots, ax=grid, shrink=0.5, aspect=30)
        bar.set_label("log weight, from the median", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def draw_elbo(path: str | os.PathLike[str], history: Sequence[tuple[float, float]], *, elbo: float) -> None:
    """Draw the course of a fit.

    Args:
        path: The picture's file.
        history: Steps and the ELBO estimated there.
        elbo: The ELBO at the end.

    Raises:
        UserError: The picture cannot be written.
    """
    steps = np.array([step for step, _ in history], dtype=float)
    values = np.array([value for _, value in history], dtype=float)
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    axes.plot(steps, values, color=DATA_COLOUR, linewidth=1.0, marker="." if len(steps) < 40 else None)
    axes.axhline(elbo, color=SAMPLE_COLOUR, linewidth=0.8, linestyle="--", label=f"at the end: {elbo:.3f}")
    late = values[len(values) // 5 :]
    late = late[np.isfinite(late)]
    if len(late):
        low, high = min(float(late.min()), elbo), max(float(late.max()), elbo)
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.set_ylabel("ELBO, nats")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_title("Course of the fit", fontsize=10)
    _tidy(axes)
    save_figure(figure, path)


def draw_predictive(
    path: str | os.PathLike[str], data: Mapping[str, Array], predicted: Mapping[str, Array], *, title: str
) -> None:
    """Draw data over the 50 % and 90 % intervals of posterior predictive draws, one panel for each site.

    Args:
        path: The picture's file.
        data: The data by site.
        predicted: Draws of new data by site, ``[n, *site_shape]``.
        title: Over the picture.

    Raises:
        UserError: The picture cannot be written.
    """
    panels = _series(data, predicted)
    left = len(panels) - 6
    panels = panels[:6]
    figure = new_figure(7.2, 2.2 * len(panels) + 0.6)
    for axes, (name, values, drawn) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        table = np.quantile(drawn, LEVELS, axis=0)
        places, low, high = np.arange(len(values)), table[0], table[-1]
        _bands(axes, table)
        outside = ((values < low) | (values > high)).mean()
        axes.plot(places, values, "o", color=DATA_COLOUR, markersize=2.5 if len(values) > MOST_BARS else 4)
        axes.set_title(f"{name}: {100 * (1 - outside):.0f} % of the data in the 90 % intervals", fontsize=9)
        axes.margins(x=0.02 if len(values) > 10 else 0.1)
        _tidy(axes)
    figure.suptitle(title, fontsize=10)
    if left > 0:
        figure.supxlabel(f"{left} more sites are not drawn", fontsize=8)
    save_figure(figure, path)


def _series(data: Mapping[str, Array], predicted: Mapping[str, Array]) -> list[tuple[str, Array, Array]]:
    """Data sites with several numbers each by itself; all single numbers together."""
    panels = []
    single = [name for name, values in data.items() if values.size == 1]
    for name, values in data.items():
        if values.size > 1:
            panels.append((name, values.reshape(-1), predicted[name].reshape(len(predicted[name]), -1)))
    if single:
        values = np.array([float(data[name].reshape(-1)[0]) for name in single])
        drawn = np.stack([predicted[name].reshape(-1) for name in single], 1)
        title = single[0] if len(single) == 1 else f"{single[0]} to {single[-1]}"
        panels.insert(0, (title, values, drawn))
    return panels


def _quantiles(values: Array, weights: Array, levels: Array) -> Array:
    order = np.argsort(values)
    steps = np.cumsum(weights[order]) - weights[order] / 2
    return np.asarray(np.interp(levels, steps, values[order]))


def _tidy(axes: Axes) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    axes.tick_params(labelsize=8)
