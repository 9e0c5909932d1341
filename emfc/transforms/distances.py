"""Distances from the ends of a support, with derivatives that stay numbers, and the numbers next to an end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["next_number", "positive", "positive_exp", "steady"]


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


def positive_exp(coordinate: Tensor) -> Tensor:
    """Exponential that neither overflows nor vanishes."""
    info = torch.finfo(coordinate.dtype)
    return torch.exp(coordinate.clamp(math.log(info.tiny) - 15, math.log(info.max) * (1 - 2 * info.eps)))


def positive(value: Tensor) -> Tensor:
    """At least the smallest positive number."""
    info = torch.finfo(value.dtype)
    return value.clamp(min=info.tiny * info.eps)


def next_number(end: Tensor, upward: bool) -> Tensor:
    """The number next to an end, by its bits where a compiler would call a function for every value."""
    if not torch.compiler.is_compiling():
        return torch.nextafter(end, torch.full_like(end, math.inf if upward else -math.inf))
    integer = torch.int32 if end.dtype == torch.float32 else torch.int64
    step = torch.where(end > 0 if upward else end <= 0, 1, -1).to(integer)
    smallest = math.copysign(torch.finfo(end.dtype).smallest_normal * torch.finfo(end.dtype).eps, 1 if upward else -1)
    return torch.where(end == 0, smallest, (end.view(integer) + step).view(end.dtype))
