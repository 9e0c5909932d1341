"""Lower triangles of matrices as vectors, in the order of rows, and sums of squares that don't overflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from emfc.transforms.base import LadjTransform

__all__ = ["TriangleMap", "log_sums_of_squares", "packed", "side_of_triangle", "triangle"]


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


class TriangleMap(LadjTransform):
    """A bijection from real vectors to square matrices that have as many free elements as a lower triangle.

    Attributes:
        diagonal: Whether the triangle has its diagonal.
    """

    domain = constraints.real_vector
    diagonal: ClassVar[bool]

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """A square matrix for each vector."""
        side = side_of_triangle(shape[-1], diagonal=self.diagonal)
        return Size((*shape[:-1], side, side))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """A vector for each square matrix."""
        side = shape[-1]
        return Size((*shape[:-2], side * (side + (1 if self.diagonal else -1)) // 2))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def log_sums_of_squares(value: Tensor) -> Tensor:
    """Logs of the running sums of squares along the last dimension, without over- or underflow of a square."""
    result: Tensor = torch.logcumsumexp(2 * value.abs().clamp(min=torch.finfo(value.dtype).tiny).log(), -1)
    return result
