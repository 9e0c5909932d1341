"""One group of normal sites with one scale: its log density and the derivatives of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LIMITS",
    "Part",
    "Term",
    "group_density",
    "group_gradients",
    "per_example",
    "scale_of",
    "spread_of",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Term:
    """What is known of a class of normal sites, or of a group of classes with one scale.

    Attributes:
        size: Elements of all its sites.
        logarithm: Whether its scale is given as a logarithm.
        number: The scale, or its logarithm, where it is one number known beforehand; there is then no tensor.
        shift: A number to be added to the class's log density.
        count: Number of classes; the differences of a group stand before its scale.
    """

    size: int
    logarithm: bool
    number: float | None = None
    shift: float = 0.0
    count: int = 1

    @property
    def constant(self) -> float:
        """What does not depend on values or scales."""
        return self.shift - _HALF_LOG_TWO_PI * self.size


class Part(NamedTuple):
    """How one group was found in a call.

    Attributes:
        spread: How many of the elements share a scale.
        scale: One number for all, or None.
        single: The dimensions over which squares are summed before the division.
    """

    spread: int
    scale: float | None
    single: tuple[int, ...] = ()


def per_example(value: Tensor, spread: int) -> Tensor:
    """Sum per example ``[B or 1]`` of numbers that stand for `spread` elements each."""
    total = value.flatten(1).sum(-1) if value.numel() > value.shape[0] else value.reshape(-1)
    return total * spread if spread > 1 else total


def scale_of(term: Term, difference: Tensor, scale: Tensor | None) -> Tensor:
    """The scale as a tensor."""
    if scale is not None:
        return scale
    if term.number is None:
        raise ValueError("a class has a scale")
    return difference.new_full((1,) * difference.ndim, term.number)


def spread_of(differences: Sequence[Tensor], scale: Tensor) -> int:
    count = sum(math.prod(difference.shape[1:]) for difference in differences)
    return count // max(math.prod(scale.shape[1:]), 1)


def _summed(values: Sequence[Tensor], dims: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """Squares summed over some dimensions, of all values together."""
    first, *others = values
    total = _squares(first, dims, keepdim=keepdim)
    for value in others:
        total += _squares(value, dims, keepdim=keepdim)
    return total


def _squares(value: Tensor, dims: tuple[int, ...], *, keepdim: bool) -> Tensor:
    """Squares summed over all but the first dimension, or over some that are kept."""
    squares = value * value
    if not keepdim and squares.numel() == len(squares):
        return squares.reshape(-1)
    return squares.sum(dims, keepdim=keepdim)


def _column(value: Tensor, rank: int) -> Tensor:
    """Numbers of examples ``[B]`` beside arrays of some rank."""
    return value.reshape(-1, *[1] * (rank - 1))


LIMITS = {dtype: torch.finfo(dtype).tiny ** 0.35 for dtype in (torch.float32, torch.float64)}
"""Scales between this and its reciprocal have squares far from overflow and underflow."""


def _one_number(term: Term, scale: Tensor | None, dtype: torch.dtype) -> float | None:
    """The scale of a class where it is one number whose square is safe."""
    number = term.number
    if number is None and scale is not None and scale.numel() == 1:
        number = scale.item()
    if number is None:
        return None
    limit = LIMITS[dtype]
    if term.logarithm:
        number = math.exp(number) if abs(number) < -math.log(limit) else 0.0
    return number if limit < number < 1 / limit else None


def group_density(
    term: Term, differences: Sequence[Tensor], scale: Tensor | None
) -> tuple[Tensor, float, float, Part, tuple[Tensor, ...]]:
    """A group's part of the sum, without gradients.

    Returns:
        What ``[B]`` counts how often, a number to be added, how it was found, and what the backward needs beside the
        inputs: the sum of squares, or the noise of each class and the reciprocal scale.
    """
    first = differences[0]
    dims = tuple(range(1, first.ndim))
    number = _one_number(term, scale, first.dtype)
    if number is not None:
        squares = _summed(differences, dims)
        part = Part(term.size, number)
        return squares, -0.5 / (number * number), -term.size * math.log(number), part, (squares,)
    scale = scale_of(term, first, scale)
    spread = spread_of(differences, scale)
    limit = LIMITS[scale.dtype]
    if spread > 1 and not term.logarithm and scale.numel():
        least, most = scale.aminmax()
        if least.item() > limit and most.item() < 1 / limit:
            single = tuple(dim for dim in dims if scale.shape[dim] == 1)
            squares = _summed(differences, single, keepdim=True) / (scale * scale)
            total = per_example(squares, 1).mul(-0.5).sub_(per_example(scale.log(), 1), alpha=spread)
            return total, 1.0, 0.0, Part(spread, None, single), (squares,)
    inverse = torch.exp(-scale) if term.logarithm else scale.reciprocal()
    noises = [difference * inverse for difference in differences]
    log_scale = scale if term.logarithm else scale.log()
    total = _summed(noises, dims).mul_(-0.5).sub_(per_example(log_scale, spread))
    return total, 1.0, 0.0, Part(spread, None), (*noises, inverse)


def group_gradients(
    term: Term,
    part: Part,
    kept: Sequence[Tensor],
    gradient: Tensor,
    common: float | None,
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of a group's differences and its scale; `common` is that of all examples where they have the same."""
    if part.scale is not None:
        return _backward_of_number(term, part, kept[0], gradient, common, tensors, wanted)
    differences, scale = [tensor for tensor in tensors[:-1] if tensor is not None], tensors[-1]
    column = _column(gradient, differences[0].ndim)
    scale = scale_of(term, differences[0], scale)
    results: list[Tensor | None] = [None] * len(tensors)
    if part.single:
        (squares,) = kept
        if any(wanted[:-1]):
            weight = (column / (scale * scale)).neg_()
            results[:-1] = [
                difference * weight if needed else None
                for difference, needed in zip(differences, wanted[:-1], strict=True)
            ]
        if wanted[-1]:
            relative = ((squares - part.spread) * column).sum_to_size(scale.shape)
            results[-1] = relative / scale
        return results
    *noises, inverse = kept
    results[:-1] = [
        (noise * inverse).mul_(-column) if needed else None for noise, needed in zip(noises, wanted[:-1], strict=True)
    ]
    if wanted[-1]:
        relative = reduce(add, [(noise * noise * column).sum_to_size(scale.shape) for noise in noises])
        relative = relative - (column * part.spread).expand(-1, *scale.shape[1:]).sum_to_size(scale.shape)
        results[-1] = relative if term.logarithm else relative / scale
    return results


def _backward_of_number(
    term: Term,
    part: Part,
    squares: Tensor,
    gradient: Tensor,
    common: float | None,
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The same where the scale is one number."""
    number, results = part.scale or 1.0, list(tensors)
    precision = 1 / (number * number)
    weight: float | Tensor | None = None
    for place in range(len(wanted) - 1):
        difference = tensors[place]
        if not wanted[place] or difference is None:
            results[place] = None
            continue
        if weight is None:
            weight = (common if common is not None else _column(gradient, difference.ndim)) * -precision
        results[place] = difference * weight
    scale = tensors[-1]
    if not wanted[-1] or scale is None:
        results[-1] = None
        return results
    if common is not None:
        slope = common * (squares.sum().item() * precision - len(squares) * part.spread)
    else:
        slope = torch.dot(gradient, squares).item() * precision - gradient.sum().item() * part.spread
    results[-1] = scale.new_full(scale.shape, slope if term.logarithm else slope / number)
    return results
