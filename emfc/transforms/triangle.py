"""Lower triangles of matrices as vectors, in the order of rows, and sums of squares that don't overflow."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["log_sums_of_squares", "packed", "side_of_triangle", "triangle"]


def side_of_triangle(count: int, *, diagonal: bool) -> int:
    """Side of the square matrix whose lower triangle has this many elements, with its diagonal or without.

    Raises:
        ValueError: If there is none.
    """
    side: int = round(((8 * count + 1) ** 0.5 + (-1 if diagonal else 1)) / 2)
    if side * (side + (1 if diagonal else -1)) // 2 != count:
        raise ValueError(f"{count} numbers do not fill the lower triangle of a square matrix.")
    return side


def _places(side: int, diagonal: bool, like: Tensor) -> Tensor:
    indices: Tensor = torch.tril_indices(side, side, 0 if diagonal else -1, device=like.device)
    return indices[0] * side + indices[1]


def triangle(vector: Tensor, *, diagonal: bool) -> Tensor:
    """Matrices [..., d, d] with these numbers as lower triangle, row by row, and zeros elsewhere."""
    side = side_of_triangle(vector.shape[-1], diagonal=diagonal)
    places = _places(side, diagonal, vector).expand(vector.shape)
    flat = vector.new_zeros(*vector.shape[:-1], side * side).scatter(-1, places, vector)
    return flat.reshape(*vector.shape[:-1], side, side)


def packed(matrix: Tensor, *, diagonal: bool) -> Tensor:
    """The lower triangle of matrices [..., d, d] as a vector, row by row."""
    side = matrix.shape[-1]
    return matrix.flatten(-2).index_select(-1, _places(side, diagonal, matrix))


def log_sums_of_squares(value: Tensor) -> Tensor:
    """Logs of the running sums of squares along the last dimension, without over- or underflow of a square."""
    result: Tensor = torch.logcumsumexp(2 * value.abs().clamp(min=torch.finfo(value.dtype).tiny).log(), -1)
    return result
