"""Batched root finding with a guaranteed bracket, and the gradients of a root."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emfc.special.precision import eager

__all__ = ["attach_root", "increasing_root"]

# Halving a bracket of any two numbers of the dtype down to neighbours, with as many Newton steps again.
_ITERATIONS = {torch.float32: 64, torch.float64: 100}


@torch.compiler.disable(reason="its loop ends when all elements are done")  # type: ignore[untyped-decorator]
def increasing_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    start: Tensor,
    *,
    tolerance: Tensor,
    unit: float = 0.0,
) -> Tensor:
    """Root of an increasing function between two ends: Newton steps, halved where they leave or stall.

    The bracket is kept for every element, so that the result is right however the function bends; the number of
    iterations is bounded, and outside function transforms the loop ends when all are done, also in compiled programs,
    where it breaks the graph.

    Args:
        function: Gives value and derivative at a tensor of points. Not differentiated.
        low: Points where the function is at most 0.
        high: Points where it is at least 0.
        start: First guesses, between the two.
        tolerance: Absolute value of the function that is as good as 0.
        unit: Points are told apart to rounding of themselves, or of this where it is larger.

    Returns:
        The roots, without gradients.
    """
    with torch.no_grad():
        info = torch.finfo(start.dtype)
        first, last = low, high  # ends not yet visited: a step past one of them goes to it
        x, step, before = start, high - low, high - low
        old = older = torch.full_like(start, torch.inf)
        done = torch.zeros_like(start, dtype=torch.bool)
        may_stop = eager()
        for _ in range(_ITERATIONS[start.dtype]):
            value, slope = function(x)
            low, high = torch.where(value < 0, x, low), torch.where(value > 0, x, high)
            move = value / slope.clamp(min=info.tiny)
            newton, size = x - move, move.abs()
            near = size <= 4 * info.eps * x.abs().clamp(min=unit)
            within = ((newton > low) | (low == first)) & ((newton < high) | (high == last))
            progress = (size <= 0.5 * before.abs()) | (value.abs() <= 0.25 * older)
            target = torch.where(near | (within & progress), newton.clamp(low, high), _middle(low, high))
            before, step = step, target - x
            older, old = old, value.abs()
            done = done | (value.abs() <= tolerance)
            x = torch.where(done, x, target)
            done = done | near | (step == 0)
            if may_stop and bool(done.all()):
                break
    return x


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Middle of a bracket; of a wide one the middle of its orders of magnitude."""
    limit = torch.finfo(low.dtype).max ** 0.9
    wide = torch.sinh(0.5 * (torch.asinh(low.clamp(-limit, limit)) + torch.asinh(high.clamp(-limit, limit))))
    return torch.where(high - low > 100, wide.clamp(low, high), 0.5 * low + 0.5 * high)


def attach_root(root: Tensor, residual: Tensor, slope: Tensor) -> Tensor:
    r"""The root with first derivatives by the implicit function theorem, :math:`dx = -dr / r'(x)`.

    Args:
        root: Where the residual vanishes, without gradients.
        residual: The residual at the root, connected to everything that it depends on but the root.
        slope: Derivative of the residual with respect to the root.

    Returns:
        The same numbers, connected. Second derivatives are not represented.
    """
    slope = slope.detach()
    slope = slope.clamp(min=torch.finfo(slope.dtype).tiny * 16)
    return root.detach() - (residual - residual.detach()) / slope
