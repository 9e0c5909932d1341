"""Networks from data to the context of an amortised flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SetNetwork", "perceptron", "rows_of"]


class SetNetwork(nn.Module):
    """A network of rows whose order does not count: rows are embedded, averaged and read.

    Args:
        sizes: For each data site its number of rows and the elements of one.
        width: Width of the hidden layers and of the context.
        dtype: Of the parameters.
    """

    def __init__(self, sizes: list[tuple[int, int]], width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = sizes
        self.rows = nn.ModuleList(perceptron(2 * elements, width, width, dtype) for _, elements in sizes)
        self.read = perceptron(width * len(sizes), width, width, dtype)

    def forward(self, data: Tensor) -> Tensor:
        """Context ``[*, C]`` of two descriptions of the flat data, side by side ``[*, 2 O]``."""
        parts, start, half = [], 0, data.shape[-1] // 2
        for (count, elements), network in zip(self.sizes, self.rows, strict=True):
            both = [data[..., begin + start : begin + start + count * elements] for begin in (0, half)]
            rows = torch.cat([held.reshape(*held.shape[:-1], count, elements) for held in both], -1)
            parts.append(network(rows).mean(-2))
            start += count * elements
        return self.read(torch.cat(parts, -1))  # type: ignore[no-any-return]


def rows_of(site: Any) -> tuple[int, int]:
    """Number of rows of a data site, and elements of one: what stands in plates, and what does not."""
    batch = site.shape[: len(site.shape) - site.event_dim]
    count = math.prod(batch)
    return count, site.size // count


def perceptron(inputs: int, width: int, outputs: int, dtype: torch.dtype) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width, dtype=dtype),
        nn.SiLU(),
        nn.Linear(width, width, dtype=dtype),
        nn.SiLU(),
        nn.Linear(width, outputs, dtype=dtype),
    )
