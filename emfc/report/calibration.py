"""Pictures of simulation-based calibration: histograms of ranks, and their distribution functions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from emfc.report.canvas import DATA_COLOUR, SAMPLE_COLOUR, new_figure, save_figure

if TYPE_CHECKING:
    from emfc.inference.ranks import Calibration

__all__ = ["draw_ranks"]

MOST = 16
ACROSS = 4


def draw_ranks(path: str | os.PathLike[str], calibration: Calibration, *, title: str) -> None:
    """Draw, for each element, the histogram of its ranks and the distance of their distribution function from uniform.

    The elements with the smallest p-values come first; the grey band is where uniform ranks stay.

    Args:
        path: The picture's file.
        calibration: The ranks.
        title: Over the picture.

    Raises:
        UserError: The picture cannot be written.
    """
    elements = calibration.elements()
    order = sorted(range(len(elements)), key=lambda place: (elements[place].inside, elements[place].p_value))[:MOST]
    across = min(ACROSS, len(order))
    rows = -(-len(order) // across)
    figure = new_figure(2.7 * across + 0.3, 3.3 * rows + 0.8)
    grid = figure.subplots(2 * rows, across, squeeze=False)
    count, largest = calibration.simulations, calibration.draws
    low, high = (side.numpy() for side in calibration.band())
    points = np.arange(1, largest + 1) / (largest + 1)
    histogram = calibration.histogram().numpy()
    expected = count / calibration.bins
    noise = 1.96 * np.sqrt(expected * (1 - 1 / calibration.bins))
    for axes in grid.ravel():
        axes.set_axis_off()
    for number, place in enumerate(order):
        top, bottom = (grid[2 * (number // across) + half][number % across] for half in (0, 1))
        colour = DATA_COLOUR if elements[place].inside else SAMPLE_COLOUR
        for axes in (top, bottom):
            axes.set_axis_on()
            axes.tick_params(labelsize=7)
            axes.spines["top"].set_visible(False)
            axes.spines["right"].set_visible(False)
        edges = np.linspace(0, 1, calibration.bins + 1)
        top.axhspan(max(expected - noise, 0), expected + noise, color="0.9", linewidth=0)
        top.stairs(histogram[place], edges, fill=True, color=colour, alpha=0.7)
        top.axhline(expected, color="0.5", linewidth=0.6)
        top.set_title(f"{elements[place].name}, p = {elements[place].p_value:.2g}", fontsize=8)
        top.set_xlim(0, 1)
        top.set_xticks([])
        under = np.cumsum(np.bincount(calibration.ranks[:, place].numpy(), minlength=largest + 1))[:-1]
        bottom.fill_between(points, low / count - points, high / count - points, color="0.9", linewidth=0)
        bottom.plot(points, under / count - points, color=colour, linewidth=1.2)
        bottom.axhline(0, color="0.5", linewidth=0.6)
        bottom.set_xlim(0, 1)
    told = f"{title}: ranks of {count} prior draws among {largest} posterior draws"
    left = len(elements) - len(order)
    figure.suptitle(told + (f" ({left} more elements are not drawn)" if left else ""), fontsize=10)
    figure.supxlabel("above: rank histogram; below: distribution function minus uniform, 95 % band", fontsize=8)
    save_figure(figure, path)
