"""Blocks of a linear recurrence solved as matrix products, with a backward pass that goes through time once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from emfc.layers.columns import plain_gradient

__all__ = ["Block", "solve_by_matrices"]


@dataclass(frozen=True, eq=False)
class Block:
    """One level of a recurrence, cut into blocks.

    Attributes:
        steps: K.
        state: Elements of the state p d that a block hands on.
        matrix: What the block's values are of its offsets ``[*, blocks or 1, K d, K d]``, or None.
        coefficients: In its place ``[*, blocks or 1, K, p, d, d]``.
        carried: What they are of the state before the block ``[*, blocks or 1, K d, p d]``, None where there is one
            block.
    """

    steps: int
    state: int
    matrix: Tensor | None
    coefficients: Tensor
    carried: Tensor | None


Plain = Callable[[Sequence[Block], Tensor], Tensor]
"""A function that solves a recurrence by operations that have derivatives of every kind."""


def solve_by_matrices(levels: Sequence[Block], offsets: Tensor, plain: Plain) -> Tensor:
    """Values ``[B, P, S, T, d]`` of a recurrence whose levels all have matrices.

    Args:
        levels: The recurrence.
        offsets: In the shape of the values.
        plain: Solves the same where the gradient has derivatives; this function stays outside function transforms.
    """
    tensors = [held for level in levels for held in (level.matrix, level.carried) if held is not None]
    if not torch.is_grad_enabled() or not any(held.requires_grad for held in (offsets, *tensors)):
        return _forward(levels, offsets, [])
    return _Solved.apply(offsets, tuple(levels), plain, *tensors)  # type: ignore[no-any-return, no-untyped-call]


def _forward(levels: Sequence[Block], offsets: Tensor, kept: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Values, and for each level the blocks of its offsets and the states before its blocks."""
    level = levels[0]
    matrix = level.matrix
    if matrix is None:
        raise RuntimeError("a block is solved as a matrix product where it has a matrix")
    lead, (length, size) = offsets.shape[:-2], offsets.shape[-2:]
    flat = _in_blocks(offsets, level.steps)
    values = _product(flat, matrix)
    states = None
    place = len(kept)
    kept.append((flat, None))
    if level.carried is not None:
        ends = values[..., :-1, -level.state :].clone()  # the values are written to below
        states = pad(_forward(levels[1:], ends, kept), (0, 0, 1, 0))
        kept[place] = (flat, states)
        if _alone(level.carried):
            rows = values.reshape(-1, values.shape[-1])
            values = rows.addmm_(states.reshape(-1, level.state), level.carried[0, 0, 0, 0].T).view(values.shape)
        else:
            values = values + _product(states, level.carried)
    return values.reshape(*lead, -1 if values.numel() else 0, size)[..., :length, :]


def _backward(
    levels: Sequence[Block], gradient: Tensor, kept: Sequence[tuple[Tensor, Tensor | None]], wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient of the offsets, and of every level's matrices where wanted."""
    level, (flat, states) = levels[0], kept[0]
    length = gradient.shape[-2]
    held = _in_blocks(gradient, level.steps)
    if level.matrix is None:
        raise RuntimeError("a block is solved as a matrix product where it has a matrix")
    rest: list[Tensor | None] = []
    own: list[Tensor | None] = []
    if level.carried is not None and states is not None:
        own.append(_outer(held, states, level.carried) if wanted[1] else None)
        moved = _product(held, level.carried.mT)[..., 1:, :]
        ends, rest = _backward(levels[1:], moved, kept[1:], wanted[2:])
        if held.data_ptr() == gradient.data_ptr():
            held = held.clone()
        held[..., :-1, -level.state :] += ends
    first = _outer(held, flat, level.matrix) if wanted[0] else None
    result = _product(held, level.matrix.mT)
    size = gradient.shape[-1]
    offsets = result.reshape(*gradient.shape[:-2], -1 if result.numel() else 0, size)[..., :length, :]
    return offsets, [first, *own, *rest]


def _in_blocks(value: Tensor, steps: int) -> Tensor:
    """``[*, T, d]`` as ``[*, blocks, K d]``, with zeros at the end."""
    length, size = value.shape[-2:]
    blocks = -(-length // steps)
    missing = blocks * steps - length
    padded = pad(value, (0, 0, 0, missing)) if missing else value
    return padded.reshape(*value.shape[:-2], blocks, steps * size)


def _alone(matrix: Tensor) -> bool:
    """Whether one matrix is used for all blocks."""
    return matrix.shape[:-2].numel() == 1


def _product(value: Tensor, matrix: Tensor) -> Tensor:
    """Each block ``[*, j]`` times its matrix ``[*, i, j]``."""
    if _alone(matrix):
        return value @ matrix[0, 0, 0, 0].T
    return torch.einsum("bpstj,bpstij->bpsti", value, matrix)


def _outer(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """Gradient of a matrix: outer products summed over the dimensions that it has not."""
    kept = "".join(name for name, size in zip("bpst", like.shape, strict=False) if size > 1)
    return torch.einsum(f"bpsti,bpstj->{kept}ij", left, right).reshape(like.shape)


class _Solved(torch.autograd.Function):
    """A recurrence whose backward pass is the same recurrence from the end to the start."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, levels: tuple[Block, ...], plain: Plain, *tensors: Tensor) -> Tensor:
        """Values."""
        kept: list[tuple[Tensor, Tensor | None]] = []
        values = _forward(levels, offsets, kept)
        ctx.levels, ctx.plain = levels, plain
        states = [held for _, held in kept if held is not None]
        ctx.save_for_backward(offsets, *tensors, *(flat for flat, _ in kept), *states)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of the offsets and of the matrices."""
        (gradient,) = gradients
        if not plain_gradient(gradient):
            return _differentiable(ctx, gradient)
        count = len(ctx.levels)
        flats, states = ctx.saved_tensors[2 * count :][:count], ctx.saved_tensors[3 * count :]
        kept = list(zip(flats, (*states, None), strict=True))
        wanted = ctx.needs_input_grad
        offsets, matrices = _backward(ctx.levels, gradient, kept, wanted[3:])
        return offsets if wanted[0] else None, None, None, *matrices


def _differentiable(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients with derivatives of their own, or for many rows at once."""
    count = len(ctx.levels)
    with torch.enable_grad():  # apart from one another, for some were made from others whose part is counted outside
        offsets, *tensors = [tensor.view_as(tensor) for tensor in ctx.saved_tensors[: 2 * count]]
    held = iter(tensors)
    levels = [
        replace(level, matrix=next(held), carried=None if level.carried is None else next(held)) for level in ctx.levels
    ]
    wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]
    inputs = [offsets, None, None, *tensors]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        values = ctx.plain(levels, offsets)
    found = torch.autograd.grad(values, [inputs[place] for place in wanted], gradient, create_graph=again)
    result: list[Tensor | None] = [None] * len(inputs)
    for place, value in zip(wanted, found, strict=True):
        result[place] = value
    return tuple(result)
