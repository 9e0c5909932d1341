"""A drawing of a program's graph: one box for each site, one arrow for each dependence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emfc.report.canvas import new_figure, save_figure
from emfc.report.layout import Place, layered_layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GraphNode", "draw_graph"]

MOST_NODES = 200
SHOWN_NODES = 60
CHARACTER = 0.082
LINE = 0.17


@dataclass(frozen=True)
class GraphNode:
    """What the drawing tells of a site.

    Attributes:
        name: The site.
        parents: Sites that its parameters depend on.
        lines: Further lines of text, such as family, shape and plates.
        observed: Shaded.
        summed_out: Dashed.
    """

    name: str
    parents: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    observed: bool = False
    summed_out: bool = False


def draw_graph(path: str | os.PathLike[str], nodes: Sequence[GraphNode], *, title: str | None = None) -> None:
    """Draw a program's graph in layers, parents above children.

    Observed sites are shaded, latent sites that the compiler sums out are dashed. Of more than 200 sites the first 60
    are drawn, and the picture says so.

    Args:
        path: The picture's file, ``.png``, ``.svg`` or ``.pdf``.
        nodes: The sites in the order of the program, so that parents come first.
        title: Over the picture.

    Raises:
        UserError: The picture cannot be written.
    """
    shown = list(nodes) if len(nodes) <= MOST_NODES else list(nodes[:SHOWN_NODES])
    notes = [title] if title else []
    if len(shown) < len(nodes):
        notes.append(
            f"the first {len(shown)} of {len(nodes):,} sites; the other {len(nodes) - len(shown):,} are left out"
        )
    if not shown:
        notes.append("a program without sites")
    legend = _legend(shown)
    width, height = _box_size(shown)
    step_x, step_y = width + 0.45, height + 0.55
    places = layered_layout({node.name: node.parents for node in shown})
    right = max((place.x for place in places.values()), default=0.0) * step_x + width
    bottom = max((place.y for place in places.values()), default=0.0) * step_y + height
    text_width = CHARACTER * max((len(note) for note in [*notes, legend]), default=0)
    page = (max(right, text_width) + 0.4, bottom + 0.4 + 0.25 * (len(notes) + bool(legend)))
    figure = new_figure(*page)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, page[0])
    axes.set_ylim(page[1], 0)
    axes.set_axis_off()
    top = 0.2 + 0.25 * len(notes)
    shift = (page[0] - right) / 2
    centres = {
        name: Place(shift + place.x * step_x + width / 2, top + place.y * step_y + height / 2)
        for name, place in places.items()
    }
    for index, note in enumerate(notes):
        axes.text(page[0] / 2, 0.2 + 0.25 * index, note, ha="center", va="center", fontsize=9 if index else 10)
    _draw_edges(axes, shown, centres, (width, height))
    for node in shown:
        _draw_box(axes, node, centres[node.name], width, height)
    if legend:
        axes.text(page[0] / 2, page[1] - 0.15, legend, ha="center", va="center", fontsize=8, color="#555555")
    save_figure(figure, path, dpi=110)


def _legend(nodes: Sequence[GraphNode]) -> str:
    parts = []
    if any(node.observed for node in nodes):
        parts.append("shaded: observed")
    if any(node.summed_out for node in nodes):
        parts.append("dashed: summed out by the compiler")
    return "; ".join(parts)


def _box_size(nodes: Sequence[GraphNode]) -> tuple[float, float]:
    longest = max((len(text) for node in nodes for text in (node.name, *node.lines)), default=8)
    lines = max((1 + len(node.lines) for node in nodes), default=1)
    return max(0.9, CHARACTER * longest + 0.2), LINE * lines + 0.16


def _draw_box(axes: Axes, node: GraphNode, centre: Place, width: float, height: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (centre.x - width / 2, centre.y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="#d8d8d8" if node.observed else "white",
            edgecolor="#444444",
            linestyle="--" if node.summed_out else "-",
            linewidth=1.0,
            zorder=2,
        )
    )
    texts = (node.name, *node.lines)
    for index, text in enumerate(texts):
        y = centre.y + LINE * (index - (len(texts) - 1) / 2)
        weight = "bold" if index == 0 else "normal"
        axes.text(centre.x, y, text, ha="center", va="center", fontsize=8, fontweight=weight, zorder=3)


def _draw_edges(axes: Axes, nodes: Sequence[GraphNode], centres: Mapping[str, Place], box: tuple[float, float]) -> None:
    from matplotlib.patches import FancyArrowPatch

    crowd = sum(len(node.parents) for node in nodes)
    alpha = 0.9 if crowd <= 150 else 0.5 if crowd <= 1000 else 0.25
    for node in nodes:
        for parent in node.parents:
            if parent not in centres:
                continue
            start, end = centres[parent], centres[node.name]
            drop, along = _sign(end.y - start.y), _sign(end.x - start.x)
            lean_x, lean_y = (0.0, drop * box[1] / 2) if drop else (along * box[0] / 2, 0.0)
            far = abs(end.y - start.y) > 2.2 * box[1] + 0.6
            axes.add_patch(
                FancyArrowPatch(
                    (start.x + lean_x, start.y + lean_y),
                    (end.x - lean_x, end.y - lean_y),
                    arrowstyle="-|>",
                    mutation_scale=9,
                    shrinkA=0,
                    shrinkB=1,
                    linewidth=0.8,
                    color="#555555",
                    alpha=alpha,
                    connectionstyle="arc3,rad=0.12" if far else "arc3",
                    zorder=1,
                )
            )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
