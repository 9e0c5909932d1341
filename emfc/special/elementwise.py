"""Elementwise functions that iterate: one opaque operation each, mapped by broadcasting, differentiated by a formula.

The body of such a function sees plain tensors in blocks that fit a cache, may look at values and stop when all are
done, and is one node for a compiler and one level for `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from emfc.special.precision import eager, together

__all__ = ["Kernel", "Partials", "blend", "by_region", "differentiable", "elementwise", "halves", "once_only"]

Kernel = Callable[..., tuple[Tensor, ...]]
Partials = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[bool]], Sequence[Sequence[Tensor | None]]]

_BLOCK = 2**14


def blend(no: Tensor, yes: Tensor, choice: Tensor) -> Tensor:
    """The second where the choice is 1, the first where it is 0; exact, and faster than a choice by sign."""
    return torch.lerp(no, yes, choice)


def halves(choice: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers 0 and 1 for `blend`."""
    return choice.to(like.dtype)


def _blocks(kernel: Kernel, outputs: int, inputs: Sequence[Tensor], block: int = _BLOCK) -> tuple[Tensor, ...]:
    first = torch.broadcast_tensors(*inputs)
    shape = first[0].shape
    flat = [value.reshape(-1) for value in first]
    size = flat[0].numel()
    block = block * torch.get_num_threads() if flat[0].device.type == "cpu" else max(size, 1)
    if size <= block:
        results = kernel(*flat) if size else tuple(flat[0].clone() for _ in range(outputs))
    else:
        results = tuple(torch.empty_like(flat[0]) for _ in range(outputs))
        for start in range(0, size, block):
            parts = kernel(*(value[start : start + block] for value in flat))
            for result, part in zip(results, parts, strict=True):
                result[start : start + block] = part
    return tuple(result.reshape(shape) for result in results)


def elementwise(name: str, *, inputs: int, outputs: int = 1, block: int = _BLOCK) -> Callable[[Kernel], Kernel]:
    """Decorator: make a function of flat tensors one opaque operation on tensors of any shapes that broadcast.

    The function gets one-dimensional tensors of one length, dtype (float32 or float64) and device, without gradients,
    and returns a tuple of as many like them. It may branch on values.

    Args:
        name: Of the operation, unique.
        inputs: How many tensors it takes.
        outputs: How many it returns.
        block: How many elements the function gets at most, per thread; more than usual pays for one that only sorts
            its elements into regions.
    """

    def make(kernel: Kernel) -> Kernel:
        taken = ", ".join(f"Tensor x{number}" for number in range(inputs))
        given = ", ".join(["Tensor"] * outputs)

        def run(*values: Tensor) -> Any:
            with torch.no_grad():
                results = _blocks(kernel, outputs, values, block)
            results = tuple(r.clone() if any(r is v for v in values) else r for r in results)
            return results if outputs > 1 else results[0]

        operation = torch.library.custom_op(
            f"emfc::{name}",
            run,
            mutates_args=(),
            schema=f"({taken}) -> ({given})" if outputs > 1 else f"({taken}) -> Tensor",
        )

        def fake(*values: Tensor) -> Any:
            shape = torch.broadcast_shapes(*(value.shape for value in values))
            results = tuple(values[0].new_empty(shape) for _ in range(outputs))
            return results if outputs > 1 else results[0]

        operation.register_fake(fake)

        def mapped(info: Any, dims: Sequence[int | None], *values: Tensor) -> tuple[Any, Any]:
            sizes = [value.dim() - (dim is not None) for value, dim in zip(values, dims, strict=True)]
            rank = max(sizes)
            lined = []
            for value, dim, size in zip(values, dims, sizes, strict=True):
                moved = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
                lined.append(moved.reshape(moved.shape[:1] + (1,) * (rank - size) + moved.shape[1:]))
            result = getattr(torch.ops.emfc, name)(*lined)
            return (result, (0,) * outputs) if outputs > 1 else (result, 0)

        operation.register_vmap(mapped)

        registered = getattr(torch.ops.emfc, name).default  # what the compiler knows, unlike the object above

        def call(*values: Tensor) -> tuple[Tensor, ...]:
            values = together(*values)
            watched = torch.is_grad_enabled() and any(value.requires_grad for value in values)
            if eager() and not watched and not torch._C._len_torch_dispatch_stack():
                result = run(*values)  # without the dispatcher, whose cost counts for small tensors
            else:
                result = registered(*values)
            return result if outputs > 1 else (result,)

        call.__doc__ = kernel.__doc__
        return call

    return make


def differentiable(function: Kernel, partials: Partials) -> Kernel:
    """The function with derivatives by a formula, forwards and backwards; of second order if the formula's own are.

    Args:
        function: Of several tensors, elementwise; returns a tuple.
        partials: Given inputs, outputs and which inputs want one, the partial derivatives: for each output a row
            with one tensor, or None for zero, per input.
    """

    class Backward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            return function(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
            ctx.count = len(inputs)
            ctx.save_for_backward(*inputs, *output)
            ctx.save_for_forward(*inputs, *output)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            wanted = ctx.needs_input_grad
            rows = partials(saved[: ctx.count], saved[ctx.count :], wanted)
            result: list[Tensor | None] = [None] * ctx.count
            for gradient, row in zip(gradients, rows, strict=True):
                for place, partial in enumerate(row):
                    if partial is not None and wanted[place]:
                        part = gradient * partial
                        held = result[place]
                        result[place] = part if held is None else held + part
            return tuple(result)

    class Both(Backward):
        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
            saved = ctx.saved_tensors
            inputs, outputs = saved[: ctx.count], saved[ctx.count :]
            rows = partials(inputs, outputs, [tangent is not None for tangent in tangents])
            result = []
            for output, row in zip(outputs, rows, strict=True):
                total = torch.zeros_like(output)
                for tangent, partial in zip(tangents, row, strict=True):
                    if tangent is not None and partial is not None:
                        total = total + tangent * partial
                result.append(total)
            return tuple(result)

    both: Kernel = Both.apply
    backward: Kernel = Backward.apply

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = together(*inputs)
        if not torch.compiler.is_compiling():
            return both(*torch.broadcast_tensors(*inputs))
        # The compiler takes no function with a `jvp`, nor one of several inputs of which none wants a gradient.
        if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
            return backward(*torch.broadcast_tensors(*inputs))
        return function(*inputs)

    call.__doc__ = function.__doc__
    return call


def once_only(name: str) -> Partials:
    """Partials that refuse: for a function that is itself a derivative, of a family that has first ones only."""

    def refuse(
        inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Sequence[Tensor | None]]:
        raise NotImplementedError(f"{name} have derivatives of first order only; for second ones take differences.")

    return refuse


def by_region(
    regions: Sequence[tuple[Tensor, Callable[..., tuple[Tensor, ...]]]], inputs: Sequence[Tensor], outputs: int = 1
) -> tuple[Tensor, ...]:
    """Evaluate each element by the function of its region only, in blocks; for the bodies of `elementwise` functions.

    Args:
        regions: Disjoint masks of the flat inputs that together hold every element, NaN too, each with its function:
            the last mask is best the complement of the others.
        inputs: Flat tensors.
        outputs: How many tensors each function returns.
    """
    results = tuple(torch.empty_like(inputs[0]) for _ in range(outputs))
    size = inputs[0].numel()
    for mask, function in regions:
        chosen = mask.nonzero().squeeze(-1)
        if chosen.numel() == size:
            return _blocks(function, outputs, inputs)
        if chosen.numel():
            parts = _blocks(function, outputs, [value[chosen] for value in inputs])
            for result, part in zip(results, parts, strict=True):
                result[chosen] = part
    return results
