r"""The log density of all normal sites of a program as one function with one backward.

.. math:: \sum_i -\tfrac12 (d_i / \sigma_i)^2 - \log \sigma_i - \log \sqrt{2 \pi}, \qquad d = x - \mu

Where one scale serves many sites, their squares are summed before they are divided by it. The derivative of such a sum
is the difference itself times a number, so that the difference is all that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emfc.layers.columns import plain_gradients

__all__ = ["Term", "normal_sum"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Term:
    """What is known of a class of normal sites.

    Attributes:
        size: Elements of all its sites.
        logarithm: Whether its scale is given as a logarithm.
        number: The scale, or its logarithm, where it is one number known beforehand; there is then no tensor.
        shift: A number to be added to the class's log density.
    """

    size: int
    logarithm: bool
    number: float | None = None
    shift: float = 0.0


@dataclass(frozen=True)
class _Part:
    """How one class was found in a call.

    Attributes:
        spread: How many of the elements share a scale.
        scale: One number for all, or None.
        single: The dimensions over which squares are summed before the division.
    """

    spread: int
    scale: float | None
    single: tuple[int, ...] = ()


def _over(value: Tensor, spread: int) -> Tensor:
    """Sum per example ``[B or 1]`` of numbers that stand for `spread` elements each."""
    total = value.flatten(1).sum(-1) if value.numel() > len(value) else value.reshape(-1)
    return total * spread if spread > 1 else total


def _constant(terms: Sequence[Term]) -> float:
    return sum(term.shift - _HALF_LOG_TWO_PI * term.size for term in terms)


def _tensor(term: Term, difference: Tensor, scale: Tensor | None) -> Tensor:
    """The scale as a tensor."""
    if scale is not None:
        return scale
    if term.number is None:
        raise ValueError("a class has a scale")
    return difference.new_full((1,) * difference.ndim, term.number)


def _spread(difference: Tensor, scale: Tensor) -> int:
    return math.prod(difference.shape[1:]) // max(math.prod(scale.shape[1:]), 1)


def _column(value: Tensor, rank: int) -> Tensor:
    """Numbers of examples ``[B]`` beside arrays of some rank."""
    return value.reshape(-1, *[1] * (rank - 1))


_LIMITS = {dtype: torch.finfo(dtype).tiny ** 0.35 for dtype in (torch.float32, torch.float64)}
"""Scales between this and its reciprocal have squares far from overflow and underflow."""


def _one_number(term: Term, scale: Tensor | None, dtype: torch.dtype) -> float | None:
    """The scale of a class where it is one number whose square is safe."""
    number = term.number
    if number is None and scale is not None and scale.numel() == 1:
        number = scale.item()
    if number is None:
        return None
    limit = _LIMITS[dtype]
    if term.logarithm:
        number = math.exp(number) if abs(number) < -math.log(limit) else 0.0
    return number if limit < number < 1 / limit else None


def _forward(
    term: Term, difference: Tensor, scale: Tensor | None
) -> tuple[Tensor, float, float, _Part, tuple[Tensor, ...]]:
    """A class's part of the sum, without gradients.

    Returns:
        What ``[B]`` counts how often, a number to be added, how it was found, and what the backward needs beside the
        inputs: the sum of squares, or the noise and the reciprocal scale.
    """
    dims = tuple(range(1, difference.ndim))
    number = _one_number(term, scale, difference.dtype)
    if number is not None:
        squares = (difference * difference).sum(dims)
        part = _Part(term.size, number)
        return squares, -0.5 / (number * number), -term.size * math.log(number), part, (squares,)
    scale = _tensor(term, difference, scale)
    spread = _spread(difference, scale)
    limit = _LIMITS[scale.dtype]
    if spread > 1 and not term.logarithm and scale.numel():
        least, most = scale.aminmax()
        if least.item() > limit and most.item() < 1 / limit:
            single = tuple(dim for dim in dims if scale.shape[dim] == 1)
            squares = (difference * difference).sum(single, keepdim=True) / (scale * scale)
            total = squares.flatten(1).sum(-1).mul_(-0.5).sub_(_over(scale.log(), spread))
            return total, 1.0, 0.0, _Part(spread, None, single), (squares,)
    inverse = torch.exp(-scale) if term.logarithm else scale.reciprocal()
    noise = difference * inverse
    log_scale = scale if term.logarithm else scale.log()
    total = (noise * noise).sum(dims).mul_(-0.5).sub_(_over(log_scale, spread))
    return total, 1.0, 0.0, _Part(spread, None), (noise, inverse)


def _backward(
    term: Term,
    part: _Part,
    kept: Sequence[Tensor],
    gradient: Tensor,
    common: float | None,
    tensors: tuple[Tensor, Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a class's difference and scale; `common` is the gradient where all examples have the same."""
    difference, scale = tensors
    of_difference: Tensor | None = None
    of_scale: Tensor | None = None
    if part.scale is not None:
        (squares,) = kept
        precision = 1 / (part.scale * part.scale)
        if wanted[0]:
            weight = common if common is not None else _column(gradient, difference.ndim)
            of_difference = difference * (weight * -precision)
        if wanted[1] and scale is not None:
            if common is not None:
                slope = common * (squares.sum().item() * precision - len(squares) * part.spread)
            else:
                slope = torch.dot(gradient, squares).item() * precision - gradient.sum().item() * part.spread
            of_scale = scale.new_full(scale.shape, slope if term.logarithm else slope / part.scale)
        return of_difference, of_scale
    column = _column(gradient, difference.ndim)
    scale = _tensor(term, difference, scale)
    if part.single:
        (squares,) = kept
        if wanted[0]:
            of_difference = difference * (column / (scale * scale)).neg_()
    else:
        noise, inverse = kept
        squares = noise * noise if wanted[1] else noise
        if wanted[0]:
            of_difference = (noise * inverse).mul_(-column)
    if wanted[1]:
        relative = (squares * column).sum_to_size(scale.shape) - (column * part.spread).expand(
            -1, *scale.shape[1:]
        ).sum_to_size(scale.shape)
        of_scale = relative if term.logarithm else relative / scale
    return of_difference, of_scale


class _NormalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Sequence[Term], *tensors: Tensor | None) -> Tensor:
        constant = _constant(terms)
        total: Tensor | None = None
        parts: list[_Part] = []
        saved = list(tensors)
        for term, difference, scale in zip(terms, tensors[::2], tensors[1::2], strict=True):
            value, factor, number, part, kept = _forward(term, difference, scale)  # type: ignore[arg-type]
            total = value * factor if total is None else total.add_(value, alpha=factor)
            constant += number
            parts.append(part)
            saved += kept
        ctx.terms, ctx.parts = terms, parts
        ctx.save_for_backward(*saved)
        return total.add_(constant)  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        count = 2 * len(ctx.terms)
        saved = ctx.saved_tensors
        tensors = saved[:count]
        wanted = ctx.needs_input_grad[1:]
        if not plain_gradients((gradient,)):
            return None, *_differentiable_gradients(ctx.terms, tensors, gradient, wanted)
        common = gradient[0].item() if len(gradient) > 1 and gradient.stride(0) == 0 else None
        results: list[Tensor | None] = []
        for place, (term, part) in enumerate(zip(ctx.terms, ctx.parts, strict=True)):
            stop = count + (2 if part.scale is None and not part.single else 1)
            pair = slice(2 * place, 2 * place + 2)
            results += _backward(term, part, saved[count:stop], gradient, common, tensors[pair], wanted[pair])
            count = stop
        return None, *results


def _differentiable_gradients(
    terms: Sequence[Term], tensors: Sequence[Tensor | None], gradient: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that have derivatives themselves."""
    with torch.enable_grad():  # each on its own: a difference may depend on a scale
        held = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        total = _plain(terms, held)
    inputs = [tensor for tensor, is_wanted in zip(held, wanted, strict=True) if is_wanted and tensor is not None]
    found = iter(torch.autograd.grad(total, inputs, gradient, create_graph=torch.is_grad_enabled()))
    return [
        next(found) if is_wanted and tensor is not None else None
        for tensor, is_wanted in zip(tensors, wanted, strict=True)
    ]


def _plain(terms: Sequence[Term], tensors: Sequence[Tensor | None]) -> Tensor:
    """The sum by ordinary operations."""
    total: Tensor | None = None
    for term, difference, scale in zip(terms, tensors[::2], tensors[1::2], strict=True):
        if difference is None:
            raise RuntimeError("a class has a difference")
        scale = _tensor(term, difference, scale)
        spread = _spread(difference, scale)
        value = _squares(term, difference, scale, spread) * -0.5
        value = value - _over(scale if term.logarithm else scale.log(), spread)
        total = value if total is None else total + value
    if total is None:
        raise RuntimeError("there is at least one class")
    return total + _constant(terms)


def _squares(term: Term, difference: Tensor, scale: Tensor, spread: int) -> Tensor:
    """Sum of the squared noises per example ``[B]``.

    Where a scale is shared, differences are first divided by its value as a constant: their squares are then safe to be
    summed, and what is left of the scale, which is about 1, takes its derivatives.
    """
    if spread == 1:
        noise = difference * torch.exp(-scale) if term.logarithm else difference / scale
        return (noise * noise).flatten(1).sum(-1)
    single = tuple(dim for dim in range(1, difference.ndim) if scale.shape[dim] == 1)
    known = scale.detach()
    noise = difference * (torch.exp(-known) if term.logarithm else known.reciprocal())
    left = torch.exp(scale - known) if term.logarithm else scale / known
    squares: Tensor = (noise * noise).sum(single, keepdim=True) / (left * left)
    return squares.flatten(1).sum(-1)


def normal_sum(terms: Sequence[Term], tensors: Sequence[Tensor | None], *, direct: bool) -> Tensor:
    """The log densities of normal classes, summed per example.

    Args:
        terms: One per class.
        tensors: For each class the difference between values and location ``[B, n, *shape]`` and the scale, or its
            logarithm, of the same rank; None where the term has it as a number.
        direct: Whether a function with a backward of its own may be used, which looks at scales.

    Returns:
        ``[B]``.
    """
    if direct:
        return _NormalSum.apply(terms, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return _plain(terms, tensors)
