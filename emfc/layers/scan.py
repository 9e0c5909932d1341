r"""Linear recurrences over long sequences, block by block.

.. math:: x_t = \sum_{k=1}^{p} A_{t,k} x_{t-k} + u_t, \qquad x_t = 0 \text{ for } t < 0

Every block of K steps is solved by itself, as a matrix product where its matrix is small beside the data, else step by
step for all blocks at once; the states at the ends of blocks obey a recurrence of the same kind that is K times
shorter. Nothing is divided, so any coefficients do, however long the sequence. Work is linear in its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from emfc.layers.blocks import Block, solve_by_matrices
from emfc.layers.columns import direct

__all__ = ["Block", "factor", "solve", "solve_plainly"]

_WIDTH = 16  # steps of a block solved as a matrix product, over the size of a step
_STEPS = 8  # steps of a block solved one by one


def factor(coefficients: Tensor, length: int, series: int) -> tuple[Block, ...]:
    """Prepare a recurrence.

    Args:
        coefficients: ``[B or 1, P or 1, S or 1, T or 1, p, d, d]`` with two dimensions for parallel series.
        length: T.
        series: How many sequences are solved with it.
    """
    rows, order, size = coefficients.shape[-4], coefficients.shape[-3], coefficients.shape[-1]
    lead = coefficients.shape[:-4]
    steps = min(max(order, _WIDTH // size, 2), length)
    blocks = -(-length // steps)
    cells = math.prod(lead) * (1 if rows == 1 else blocks) * (steps * size) ** 2
    whole = cells <= 4 * series * length * size
    if not whole:
        steps = min(max(order, _STEPS), length)
        blocks = -(-length // steps)
    held = _blocked(coefficients, steps, blocks)
    if not whole and blocks == 1:
        return (Block(steps, order * size, None, held, None),)
    matrix: Tensor | None = None
    if order == size == rows == 1:
        matrix, carried = _powers(coefficients[..., 0, :, :], steps)
    elif whole:
        full = _inverse(held)
        matrix, carried = full[..., : steps * size], full[..., steps * size :]
    else:
        nothing = held.new_zeros(steps, size, 0)
        carried = _responses(held, nothing).flatten(-3, -2)
    kept = matrix if whole else None
    if blocks == 1:
        return (Block(steps, order * size, kept, held, None),)
    ends = carried[..., -order * size :, :].unsqueeze(-3)
    rest = factor(ends if rows == 1 else ends[..., :-1, :, :, :], blocks - 1, series)
    return (Block(steps, order * size, kept, held, carried), *rest)


def solve(levels: Sequence[Block], offsets: Tensor) -> Tensor:
    """Values ``[B, P, S, T, d]`` of a recurrence from its offsets of that shape."""
    if direct() and all(level.matrix is not None for level in levels):
        return solve_by_matrices(levels, offsets, solve_plainly)
    return solve_plainly(levels, offsets)


def solve_plainly(levels: Sequence[Block], offsets: Tensor) -> Tensor:
    """The same by operations that have derivatives of every kind."""
    level = levels[0]
    lead, (length, size) = offsets.shape[:-2], offsets.shape[-2:]
    blocks = -(-length // level.steps)
    missing = blocks * level.steps - length
    padded = pad(offsets, (0, 0, 0, missing)) if missing else offsets
    if level.matrix is not None:
        flat = padded.reshape(*lead, blocks, level.steps * size)
        values = torch.einsum("bpstj,bpstij->bpsti", flat, level.matrix)
    else:
        right = padded.reshape(*lead, blocks, level.steps, size, 1)
        values = _responses(level.coefficients, right, state=False).flatten(-3)
    if level.carried is not None:
        states = pad(solve_plainly(levels[1:], values[..., :-1, -level.state :]), (0, 0, 1, 0))
        values = values + torch.einsum("bpstj,bpstij->bpsti", states, level.carried)
    flat = values.reshape(*lead, blocks * level.steps, size)
    return flat[..., :length, :] if missing else flat


def _blocked(coefficients: Tensor, steps: int, blocks: int) -> Tensor:
    """``[*, T or 1, p, d, d]`` as ``[*, blocks or 1, K, p, d, d]``."""
    lead, (rows, *shape) = coefficients.shape[:-4], coefficients.shape[-4:]
    if rows == 1:
        return coefficients.unsqueeze(-4).expand(*lead, 1, steps, *shape)
    missing = blocks * steps - rows
    padded = pad(coefficients, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else coefficients
    return padded.reshape(*lead, blocks, steps, *shape)


def _powers(coefficient: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Block matrix and response to the state of one number for all steps ``[*, 1, 1, 1]``."""
    step = torch.arange(steps, dtype=coefficient.dtype, device=coefficient.device)
    lag = step[:, None] - step
    series = coefficient.expand(*coefficient.shape[:-1], steps)
    powers = torch.cat([torch.ones_like(coefficient), series.cumprod(-1)], -1)  # whose derivatives at 0 are numbers
    chosen = torch.where(lag >= 0, lag, 0).long()
    matrix = torch.where(lag >= 0, powers.squeeze(-2)[..., chosen], 0)
    return matrix, powers.mT[..., 1:, :]


def _inverse(coefficients: Tensor) -> Tensor:
    """Block matrices beside their responses to the state ``[*, blocks, K d, K d + p d]``, by triangular solves.

    The triangle has ones on its diagonal, so that its solution is the recurrence itself.
    """
    steps, order, size = coefficients.shape[-4], coefficients.shape[-3], coefficients.shape[-1]
    count, width = steps * size, (order + steps) * size
    device = coefficients.device
    step, lag = torch.arange(steps, device=device)[:, None, None, None], torch.arange(order, device=device)
    unit = torch.arange(size, device=device)
    row = step * size + unit[:, None]
    column = (order + step - 1 - lag[:, None, None]) * size + unit
    places = (row * width + column).reshape(-1)
    lead = coefficients.shape[:-4]
    flat = coefficients.new_zeros(*lead, count * width).index_add(-1, places, coefficients.flatten(-4))
    before, inside = flat.reshape(*lead, count, width).split((order * size, count), -1)
    eye = torch.eye(count, dtype=coefficients.dtype, device=device)
    right = torch.cat([eye.expand(*lead, -1, -1), before], -1)
    solved: Tensor = torch.linalg.solve_triangular(eye - inside, right, upper=False, unitriangular=True)
    return solved


def _responses(coefficients: Tensor, right: Tensor, *, state: bool = True) -> Tensor:
    """Solve blocks step by step for several right sides.

    Args:
        coefficients: ``[*, blocks or 1, K, p, d, d]``.
        right: ``[*, blocks or 1, K, d, columns]``, or without the dimensions before K.
        state: Whether a column for each element of the state before the block is added.

    Returns:
        ``[*, blocks or 1, K, d, columns (+ p d)]``.
    """
    steps, order, size = coefficients.shape[-4], coefficients.shape[-3], coefficients.shape[-1]
    columns, extra = right.shape[-1], order * size if state else 0
    units = torch.eye(order * size, extra, dtype=right.dtype, device=right.device)
    before = [pad(units[place * size : (place + 1) * size], (columns, 0)) for place in range(order)] if state else []
    rows: list[Tensor] = []
    for step in range(steps):
        row = right[..., step, :, :]
        row = pad(row, (0, extra)) if extra else row
        for lag in range(1, order + 1):
            place = step - lag
            if place < 0 and not state:
                continue
            held = rows[place] if place >= 0 else before[place]
            matrix = coefficients[..., step, lag - 1, :, :]
            row = row + (matrix * held if size == 1 else matrix @ held)
        rows.append(row)
    if len({row.shape for row in rows}) > 1:
        rows = list(torch.broadcast_tensors(*rows))
    return torch.stack(rows, -3)
