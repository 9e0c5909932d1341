"""Values put together from others: what is left of stacking and concatenation in the code of a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emfc.layers.readers import Picker

__all__ = ["Join", "stack"]


def stack(*pieces: Tensor) -> Tensor:
    """Vectors of numbers; each element's own lie together, where operations on them are fast."""
    sizes = [piece.shape for piece in pieces]
    if any(size != sizes[0] for size in sizes):
        pieces = torch.broadcast_tensors(*pieces)
    return torch.stack(pieces).movedim(0, -1)


@dataclass(frozen=True, eq=False)
class Join:
    """Elements picked from values side by side."""

    picker: Picker
    lead: int

    def __call__(self, *pieces: Tensor) -> Tensor:
        lead = self.lead
        sizes = [piece.shape[:lead] for piece in pieces]
        if any(size != sizes[0] for size in sizes):
            shape = torch.broadcast_shapes(*sizes)
            pieces = tuple(piece.expand(*shape, piece.shape[-1]) for piece in pieces)
        return self.picker(torch.cat(pieces, -1))
