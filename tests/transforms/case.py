"""One line of the table of families."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mpmath as mp
import torch
from torch import Tensor
from torch import distributions as td

from emfc.transforms import from_normal


class Free(NamedTuple):
    """The elements of a value that a density is taken with respect to: how to pick them, and the value they make."""

    pick: Callable[[Tensor], Tensor]
    fill: Callable[[Tensor], Tensor]


def _lower(diagonal: int) -> Callable[[Tensor], Tensor]:
    def pick(matrix: Tensor) -> Tensor:
        rows, columns = torch.tril_indices(*matrix.shape[-2:], diagonal)
        return matrix[..., rows, columns]

    return pick


def _matrix(vector: Tensor, side: int, diagonal: int) -> Tensor:
    rows, columns = torch.tril_indices(side, side, diagonal)
    places = (rows * side + columns).expand(vector.shape)
    flat = vector.new_zeros(*vector.shape[:-1], side * side).scatter(-1, places, vector)
    return flat.unflatten(-1, (side, side))


def _side(vector: Tensor, step: int) -> int:
    return (math.isqrt(8 * vector.shape[-1] + 1) + step) // 2


def _unit_rows(vector: Tensor) -> Tensor:
    lower = _matrix(vector, _side(vector, 1), -1)
    return lower + torch.diag_embed((1 - lower.square().sum(-1)).sqrt())


def _correlations(vector: Tensor) -> Tensor:
    lower = _matrix(vector, _side(vector, 1), -1)
    return lower + lower.mT + torch.eye(lower.shape[-1], dtype=vector.dtype)


def _symmetric(vector: Tensor) -> Tensor:
    lower = _matrix(vector, _side(vector, -1), 0)
    return lower + lower.tril(-1).mT


EVERY = Free(lambda value: value, lambda free: free)
SIMPLEX = Free(lambda value: value[..., :-1], lambda free: torch.cat((free, 1 - free.sum(-1, keepdim=True)), -1))
UNIT_ROWS = Free(_lower(-1), _unit_rows)
CORRELATIONS = Free(_lower(-1), _correlations)
SYMMETRIC = Free(_lower(0), _symmetric)


@dataclass(frozen=True)
class Case:
    """A distribution built from named parameters, and its mpmath tails for the parameters of one element.

    Attributes:
        free: The elements of a value that can vary.
        reach: Size of noise beyond which the values of a vector are rounded too coarsely for a round trip.
        half: Whether torch can make the distribution from half-precision parameters.
        mapped: Whether torch can make it inside `vmap`.
        sampled: Whether torch samples from the density that it tells.
    """

    build: Callable[..., td.Distribution]
    parameters: dict[str, Any]
    tails: Callable[..., tuple[mp.mpf, mp.mpf]] | None = None
    event_dim: int = 0
    discrete: bool = False
    gate: bool = True
    fixed: dict[str, Any] = field(default_factory=dict)
    free: Free = EVERY
    reach: float = math.inf
    half: bool = True
    mapped: bool = True
    sampled: bool = True

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Tensor]:
        return [torch.tensor(value, dtype=dtype, device=device) for value in self.parameters.values()]

    def dist(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> td.Distribution:
        return self.build(*self.tensors(dtype, device))

    def element(self, index: int) -> list[Any]:
        """Parameters of one batch element, as numbers or lists."""
        return [value[index] for value in self.parameters.values()]

    def noise_shape(self) -> tuple[int, ...]:
        dist = self.dist(torch.float64)
        return tuple(from_normal(dist).inverse_shape(dist.batch_shape + dist.event_shape))

    def value_shape(self) -> tuple[int, ...]:
        dist = self.dist(torch.float64)
        return (*dist.batch_shape, *dist.event_shape)
