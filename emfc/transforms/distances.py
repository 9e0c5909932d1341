"""Distances from the ends of a support, with derivatives that stay numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["bounded_exp", "steady"]


def _least(dtype: torch.dtype) -> float:
    """Distance below which reciprocals are so large that a multiple of one may overflow."""
    return 2**10 * torch.finfo(dtype).tiny


def steady(coordinate: Tensor, *, both: bool = False) -> Tensor:
    """The coordinate, without derivatives where what it stands for is so near an end that theirs overflow.

    Args:
        coordinate: Log of the distance to the lower end, or the log odds between two ends.
        both: Whether there are two.
    """
    limit = -math.log(_least(coordinate.dtype))
    near = coordinate.clamp(-limit, limit if both else None)
    return near + (coordinate.detach() - near.detach())


def bounded_exp(coordinate: Tensor) -> Tensor:
    """Exponential that neither overflows nor vanishes."""
    info = torch.finfo(coordinate.dtype)
    return torch.exp(coordinate.clamp(math.log(info.tiny) - 15, math.log(info.max) * (1 - 2 * info.eps)))
