"""Pictures of examples that are images: samples beside data, and images ranked by their log probability."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.report.canvas import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["draw_image_panels", "draw_ranked_images", "image_shape"]

SMALLEST_SQUARE = 16


def image_shape(sites: Mapping[str, tuple[int, ...]], flag: str | None = None) -> tuple[int, int] | None:
    """Tell whether examples are images, and of which size.

    Args:
        sites: Shape of each site of the example.
        flag: What the user said: ``"8x8"`` (height, width), ``"none"``, or None to go by the shapes: one site with two
            dimensions, or one flat site whose size is a perfect square of at least 16.

    Returns:
        Height and width, or None where examples are no images.

    Raises:
        UserError: The flag cannot be read or does not fit the examples.
    """
    size = sum(math.prod(shape) for shape in sites.values())
    if flag is not None:
        if flag.lower() == "none":
            return None
        read = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", flag)
        if read is None:
            raise UserError(f"the size of an image is written HEIGHTxWIDTH, such as 8x8, or none; not {flag!r}")
        height, width = int(read[1]), int(read[2])
        if height * width != size:
            raise UserError(f"an image of {height}x{width} has {height * width} pixels; an example has {size} elements")
        return height, width
    if len(sites) != 1:
        return None
    (shape,) = sites.values()
    long = [extent for extent in shape if extent != 1]
    if len(long) == 2 and min(long) >= 3:
        return long[0], long[1]
    side = math.isqrt(size)
    if len(long) == 1 and size >= SMALLEST_SQUARE and side * side == size:
        return side, side
    return None


def draw_image_panels(
    path: str | os.PathLike[str],
    panels: Mapping[str, Tensor],
    *,
    shape: tuple[int, int],
    across: int = 8,
    down: int = 8,
    title: str | None = None,
) -> None:
    """Draw grids of images side by side in one greyscale.

    Args:
        path: The picture's file.
        panels: Title of each grid and its images, shape ``[rows, D]``; the first ``across * down`` are drawn.
        shape: Height and width of an image, H W = D.
        across: Images in a row of a grid.
        down: Most rows of a grid.
        title: Over the whole picture.

    Raises:
        UserError: The picture cannot be written.
    """
    tallest = max(min(down, math.ceil(len(images) / across)) for images in panels.values())
    low, high = _range(list(panels.values()))
    figure = new_figure(0.55 * across * len(panels) + 0.3, 0.55 * max(tallest, 1) * shape[0] / shape[1] + 0.7)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.set_layout_engine("constrained", wspace=0.06)
    for axes, (name, images) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        mosaic = _mosaic(images[: across * down], shape, across=across, rows=tallest)
        axes.imshow(mosaic, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        _bare(axes)
    save_figure(figure, path)


def draw_ranked_images(
    path: str | os.PathLike[str],
    groups: Mapping[str, tuple[Tensor, Sequence[int], Sequence[float]]],
    *,
    shape: tuple[int, int],
    across: int = 8,
) -> None:
    """Draw images in the order of their log probability, each with its row number and its log probability.

    Args:
        path: The picture's file.
        groups: Title of each group; its images in order, shape ``[n, D]``, their row numbers and their log
            probabilities in nats.
        shape: Height and width of an image, H W = D.
        across: Images in a row.

    Raises:
        UserError: The picture cannot be written.
    """
    low, high = _range([images for images, _, _ in groups.values()])
    downs = [max(1, math.ceil(len(rows) / across)) for _, rows, _ in groups.values()]
    cell = 0.85
    figure = new_figure(cell * across, sum((cell * shape[0] / shape[1] + 0.32) * down + 0.35 for down in downs))
    parts = figure.subfigures(len(groups), 1, height_ratios=[down + 0.3 for down in downs], squeeze=False)[:, 0]
    for part, (name, (images, rows, scores)), down in zip(parts, groups.items(), downs, strict=True):
        _ranked_group(part, name, (down, across), [image.reshape(shape) for image in images], rows, scores, (low, high))
    save_figure(figure, path)


def _ranked_group(
    part: SubFigure,
    name: str,
    grid: tuple[int, int],
    images: Sequence[Tensor],
    rows: Sequence[int],
    scores: Sequence[float],
    limits: tuple[float, float],
) -> None:
    part.suptitle(name, fontsize=10)
    cells = part.subplots(*grid, squeeze=False).ravel()
    for cell in cells:
        _bare(cell)
        cell.set_frame_on(False)
    for cell, image, row, score in zip(cells, images, rows, scores, strict=False):
        cell.imshow(
            image.detach().cpu().float().numpy(),
            cmap="gray_r",
            vmin=limits[0],
            vmax=limits[1],
            interpolation="nearest",
        )
        cell.set_xlabel(f"row {row}\n{score:.1f}", fontsize=7, labelpad=2)


def _mosaic(images: Tensor, shape: tuple[int, int], *, across: int, rows: int) -> npt.NDArray[np.float32]:
    """Lay images [n, D] out in one image with blank lines between them."""
    height, width = shape
    canvas = torch.full((rows * (height + 1) - 1, across * (width + 1) - 1), float("nan"))
    for index, image in enumerate(images):
        top, left = index // across * (height + 1), index % across * (width + 1)
        canvas[top : top + height, left : left + width] = image.detach().cpu().float().reshape(shape)
    return canvas.numpy()


def _range(groups: Sequence[Tensor]) -> tuple[float, float]:
    filled = [images for images in groups if images.numel()]
    if not filled:
        return 0.0, 1.0
    low = min(float(images.min()) for images in filled)
    high = max(float(images.max()) for images in filled)
    return low, high if high > low else low + 1.0


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
