"""Pictures that go with a run or with scored data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfc.cli.examples import split_draws
from emfc.report import draw_examples, draw_image_panels, draw_ranked_images, draw_training_curves

__all__ = ["draw_ranks", "draw_samples", "draw_training", "draw_values", "flat_draws", "ranking"]

GRID = 64
POINTS = 1000
RANKED = 16


def draw_training(path: Path, histories: Mapping[str, Sequence[Any]]) -> None:
    """Draw the course of training from the rows of each flow's history."""
    curves = {
        name: {"train": [row.train_nll for row in rows], "validation": [row.validation_nll for row in rows]}
        for name, rows in histories.items()
    }
    draw_training_curves(path, curves)


def flat_draws(flow: Any, draws: Tensor) -> Tensor:
    """Give draws ``[rows, D]`` as raw values, whole numbers where the data were, shape ``[rows, D]``."""
    parts = split_draws(flow, draws)
    return torch.cat([values.reshape(len(draws), -1).to(draws.dtype) for values in parts.values()], dim=1).cpu()


def draw_samples(
    path: Path, flow: Any, data: Tensor, *, context: Tensor | None, image: tuple[int, int] | None, title: str
) -> None:
    """Draw samples of a flow beside data.

    Args:
        path: The picture's file.
        flow: The flow.
        data: Raw examples, shape ``[rows, D]``.
        context: Contexts of the data, if the flow is conditional; the samples have those.
        image: Size of an image, where examples are images.
        title: Over the picture.
    """
    most = GRID if data.shape[1] > 2 else POINTS
    count = most if context is None else min(most, len(data))
    with torch.no_grad():
        drawn = flow().sample((count,)) if context is None else flow(context[:count]).sample()
    panels = {"data": data[:most].float(), "samples": flat_draws(flow, drawn).float()}
    if image is None:
        draw_examples(path, panels, flow.layer.example_sites)
    else:
        draw_image_panels(path, panels, shape=image, title=title)


def draw_values(path: Path, values: Tensor, *, image: tuple[int, int]) -> None:
    """Draw a grid of images, shape ``[rows, D]``."""
    draw_image_panels(path, {f"{len(values)} samples": values[: 16 * 16].float()}, shape=image, across=16, down=16)


def ranking(log_prob: Tensor, count: int, *, highest: bool) -> list[int]:
    """Give the rows of the highest or lowest log probabilities, the most extreme first."""
    order = torch.sort(log_prob, descending=highest, stable=True).indices
    return [int(row) for row in order[:count]]


def draw_ranks(
    path: Path,
    data: Tensor,
    log_prob: Tensor,
    *,
    rows: Sequence[int] | None = None,
    top: int = RANKED,
    bottom: int = RANKED,
    image: tuple[int, int],
) -> None:
    """Draw the most and the least probable images.

    Args:
        path: The picture's file.
        data: Raw examples, shape ``[rows, D]``.
        log_prob: Their log densities in nats.
        rows: What to call each row in the picture; by default its number.
        top: How many of the most probable to draw.
        bottom: How many of the least probable to draw.
        image: Size of an image.
    """
    names = list(range(len(data))) if rows is None else list(rows)
    groups = {}
    for title, count, highest in (("most probable", top, True), ("least probable", bottom, False)):
        chosen = ranking(log_prob, count, highest=highest)
        if chosen:
            scores = [float(log_prob[row]) for row in chosen]
            groups[f"{title} (nats)"] = (data[chosen].float(), [names[row] for row in chosen], scores)
    draw_ranked_images(path, groups, shape=image)
