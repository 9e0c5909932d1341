r"""The log density of all normal sites of a program as one function with one backward.

.. math:: \sum_i -\tfrac12 (d_i / \sigma_i)^2 - \log \sigma_i - \log \sqrt{2 \pi}, \qquad d = x - \mu

Where one scale serves many sites, their squares are summed before they are divided by it. The derivative of such a sum
is the difference itself times a number, so that the difference is all that is kept. Classes that read the same scale
are one group, whose squares are summed together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from emfc.layers.columns import plain_gradients
from emfc.layers.normal_groups import (
    LIMITS,
    Part,
    Term,
    group_density,
    group_gradients,
    per_example,
    scale_of,
    spread_of,
)

__all__ = ["normal_sum"]

_UNITS = {
    dtype: (torch.zeros((), dtype=dtype, device="cpu"), torch.ones((), dtype=dtype, device="cpu"))
    for dtype in (torch.float32, torch.float64)
}
"""Nothing and one: to add a multiple of a tensor takes half the time of multiplying by a number or adding one."""


class _NormalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Sequence[Term], *tensors: Tensor | None) -> Tensor:
        constant, total = 0.0, None
        nothing, one = _UNITS[next(tensor.dtype for tensor in tensors if tensor is not None)]
        parts: list[tuple[Part, int]] = []
        saved = list(tensors)
        start = 0
        for group in groups:
            end = start + group.count
            value, factor, number, part, kept = group_density(group, tensors[start:end], tensors[end])  # type: ignore[arg-type]
            total = (nothing.add if total is None else total.add_)(value, alpha=factor)
            constant += group.constant + number
            parts.append((part, len(kept)))
            saved += kept
            start = end + 1
        ctx.groups, ctx.parts = groups, parts
        ctx.save_for_backward(*saved)
        return total.add_(one, alpha=constant)  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        groups, saved, wanted = ctx.groups, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if not plain_gradients((gradient,)):
            return None, *_differentiable_gradients(groups, saved[: len(wanted)], gradient, wanted)
        common = gradient[0].item() if len(gradient) > 1 and gradient.stride(0) == 0 else None
        results: list[Tensor | None] = []
        start, place = 0, len(wanted)
        for group, (part, size) in zip(groups, ctx.parts, strict=True):
            own = slice(start, start + group.count + 1)
            kept = saved[place : place + size]
            results += group_gradients(group, part, kept, gradient, common, saved[own], wanted[own])
            start, place = own.stop, place + size
        return None, *results


def _differentiable_gradients(
    groups: Sequence[Term], tensors: Sequence[Tensor | None], gradient: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that have derivatives themselves."""
    with torch.enable_grad():  # each on its own: a difference may depend on a scale
        held = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        total = _plain(groups, held)
    inputs = [tensor for tensor, is_wanted in zip(held, wanted, strict=True) if is_wanted and tensor is not None]
    found = iter(torch.autograd.grad(total, inputs, gradient, create_graph=torch.is_grad_enabled()))
    return [
        next(found) if is_wanted and tensor is not None else None
        for tensor, is_wanted in zip(tensors, wanted, strict=True)
    ]


def _plain(groups: Sequence[Term], tensors: Sequence[Tensor | None], *, guarded: bool = False) -> Tensor:
    """The sum by ordinary operations."""
    total: Tensor | None = None
    start = 0
    for term in groups:
        end = start + term.count
        differences = [difference for difference in tensors[start:end] if difference is not None]
        scale = scale_of(term, differences[0], tensors[end])
        start = end + 1
        spread = spread_of(differences, scale)
        find = _guarded_squares if guarded and scale.numel() == 1 else _squares
        squares = [find(term, difference, scale, spread) for difference in differences]
        value = reduce(add, squares) * -0.5 - per_example(scale if term.logarithm else scale.log(), spread)
        total = value if total is None else total + value
    if total is None:
        raise RuntimeError("there is at least one class")
    return total + sum(term.constant for term in groups)


def _squares(term: Term, difference: Tensor, scale: Tensor, spread: int) -> Tensor:
    """Sum of the squared noises per example ``[B]``.

    Where a scale is shared, differences are first divided by about its value, a constant: their squares are then safe
    to be summed, and what is left of the scale, which is about 1, takes its derivatives. The constant is made by an
    exponential, which a compiler computes once, not for every element.
    """
    if spread == 1:
        noise = difference * torch.exp(-scale) if term.logarithm else difference / scale
        return (noise * noise).flatten(1).sum(-1)
    single = tuple(dim for dim in range(1, difference.ndim) if scale.shape[dim] == 1)
    known = scale.detach()
    weight = torch.exp(-known if term.logarithm else -known.log())
    noise = difference * weight
    left = torch.exp(scale - known) if term.logarithm else scale * weight
    squares: Tensor = (noise * noise).sum(single, keepdim=True) / (left * left)
    return squares.flatten(1).sum(-1)


def _guarded_squares(term: Term, difference: Tensor, scale: Tensor, spread: int) -> Tensor:
    """The same for one scale, without a multiplication at every element; NaN where its fourth power, which is in the
    derivative, is not safe.
    """
    scale = scale.reshape(())
    limit = math.sqrt(LIMITS[scale.dtype])
    safe = scale.abs() < -math.log(limit) if term.logarithm else (scale > limit) & (scale < 1 / limit)
    precision = torch.exp(-2 * scale) if term.logarithm else (scale * scale).reciprocal()
    squares: Tensor = (difference * difference).flatten(1).sum(-1)
    return squares * torch.where(safe, precision, torch.nan)


def normal_sum(
    terms: Sequence[Term], tensors: Sequence[Tensor | None], *, direct: bool, guarded: bool = False
) -> Tensor:
    """The log densities of normal classes, summed per example.

    Args:
        terms: One per class.
        tensors: For each class the difference between values and location ``[B, n, *shape]`` and the scale, or its
            logarithm, of the same rank; None where the term has it as a number.
        direct: Whether a function with a backward of its own may be used, which looks at scales.
        guarded: Whether the result may be NaN where the square of a scale is not safe.

    Returns:
        ``[B]``.
    """
    if direct:
        groups, tensors = _grouped(terms, tensors)
        return _NormalSum.apply(groups, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return _plain(terms, tensors, guarded=guarded)


def _grouped(terms: Sequence[Term], tensors: Sequence[Tensor | None]) -> tuple[Sequence[Term], Sequence[Tensor | None]]:
    """Classes whose scale is one tensor, of one number per example, together; the tensors in that order."""
    scales = [id(scale) for scale in tensors[1::2] if scale is not None]
    if len(set(scales)) == len(scales):
        return terms, tensors
    groups: dict[tuple[Any, ...], tuple[list[Term], list[Tensor | None]]] = {}
    for place, (term, difference, scale) in enumerate(zip(terms, tensors[::2], tensors[1::2], strict=True)):
        key: tuple[Any, ...] = (place,)
        if scale is not None and difference is not None and scale.numel() == scale.shape[0]:
            key = (id(scale), term.logarithm, difference.ndim)
        group = groups.get(key)
        if group is None:
            groups[key] = ([term], [difference, scale])
        else:
            group[0].append(term)
            group[1].insert(-1, difference)
    return [_joined(alike) for alike, _ in groups.values()], [tensor for _, held in groups.values() for tensor in held]


def _joined(terms: Sequence[Term]) -> Term:
    size, shift = sum(term.size for term in terms), sum(term.shift for term in terms)
    return replace(terms[0], size=size, shift=shift, count=len(terms)) if len(terms) > 1 else terms[0]
