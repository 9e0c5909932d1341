"""Pieces: many sites of a class in turn, each piece computed again for its gradients, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emfc.layers.columns import direct

__all__ = ["in_pieces"]


def in_pieces(function: Callable[..., Tensor], own: Tensor, arguments: Sequence[Tensor], rows: int) -> Tensor:
    """Sum of a function over pieces of the second dimension.

    Args:
        function: Of the values ``[B, rows, ...]`` and of the arguments of the same rows; returns ``[B]``.
        own: ``[B, n, ...]``.
        arguments: ``[B or 1, n or 1, ...]``.
        rows: How many at a time.
    """
    count = own.shape[1]
    lots = -(-count // rows)
    parts = [own.split(rows, 1)]
    parts += [value.split(rows, 1) if value.shape[1] == count else (value,) * lots for value in arguments]
    watched = torch.is_grad_enabled() and any(value.requires_grad for value in (own, *arguments))
    total: Tensor | None = None
    for piece in zip(*parts, strict=True):
        if watched and direct():
            value: Tensor = checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False)
        else:
            value = function(*piece)
        total = value if total is None else total + value
    if total is None:
        raise ValueError("there are no sites")
    return total
