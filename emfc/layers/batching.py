"""Run one instruction for many sites and examples at once.

Every tensor carries the same number of leading batch dimensions (each of full size or one) before its own logical
shape. Pointwise instructions need only their ranks aligned; reductions, matrix products and batched linear algebra
have direct rules; anything else goes through `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from emfc.passes.slices import Step
from emfc.program.ir import Ref
from emfc.program.operations import resolve

__all__ = ["KINDS", "Prepared", "apply_step", "cast", "prepare_step"]

Prepared = Callable[..., tuple[Tensor, ...]]

KINDS = {"int": torch.int64, "bool": torch.bool}
_DIM_SECOND = frozenset(
    "sum.dim_IntList mean.dim amax.default amin.default logsumexp.default prod.dim_int var.correction std.correction "
    "_softmax.default _log_softmax.default "
    "cumsum.default cumprod.default logcumsumexp.default all.dim any.dim sum.default "
    "mean.default prod.default".split()
)
_BATCHED = frozenset(
    "linalg_cholesky_ex.default linalg_solve_triangular.default linalg_inv_ex.default _linalg_det.default".split()
)


def cast(value: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Give a tensor the dtype of a kind; real values are computed in `dtype`."""
    wanted = KINDS.get(kind, dtype)
    return value if value.dtype == wanted else value.to(wanted)


def apply_step(step: Step, inputs: Sequence[Tensor], lead: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Evaluate a step on inputs that carry `lead` leading batch dimensions.

    Args:
        step: The instruction.
        inputs: Its operands.
        lead: Number of leading batch dimensions.
        dtype: The dtype of real values.
    """
    return prepare_step(step, [value.ndim - lead for value in inputs], lead, dtype)(*inputs)


def prepare_step(step: Step, ranks: Sequence[int], lead: int, dtype: torch.dtype) -> Prepared:
    """A function that evaluates a step on operands of known ranks; everything but the operands is settled now.

    Args:
        step: The instruction.
        ranks: Number of logical dimensions of each operand.
        lead: Number of leading batch dimensions.
        dtype: The dtype of real values.
    """
    name = step.operation
    if step.pointwise:
        return _pointwise(step, ranks, lead, dtype)
    if name in _DIM_SECOND and len(ranks) == 1:
        return _along(step, ranks[0], lead, dtype)
    if name in _BATCHED and len(set(ranks)) == 1:
        return lambda *inputs: _called(step, inputs, dtype)
    product = _PRODUCTS.get(name)
    if product is not None and not step.keywords and len(step.arguments) == len(ranks):
        return lambda *inputs: (product(lead, *inputs),)
    return lambda *inputs: _mapped(step, inputs, lead, dtype)


def _pointwise(step: Step, ranks: Sequence[int], lead: int, dtype: torch.dtype) -> Prepared:
    rank = max(ranks, default=0)
    operator = resolve(step.operation)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        aligned = [_pad(value, lead + rank, lead) for value in inputs]
        return (operator(*_fill(step.arguments, aligned, dtype), **_keywords(step, aligned, dtype)),)

    return run


def _pad(value: Tensor, rank: int, lead: int) -> Tensor:
    missing = rank - value.ndim
    return value if not missing else value.reshape(value.shape[:lead] + (1,) * missing + value.shape[lead:])


def _fill(arguments: Any, inputs: Sequence[Tensor], dtype: torch.dtype) -> Any:
    if isinstance(arguments, Ref):
        return inputs[arguments.index]
    if isinstance(arguments, tuple):
        return [_fill(item, inputs, dtype) for item in arguments]
    if isinstance(arguments, dict):
        return KINDS.get(arguments["dtype"], dtype)
    return arguments


def _keywords(step: Step, inputs: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    return {key: _fill(value, inputs, dtype) for key, value in step.keywords}


def _along(step: Step, rank: int, lead: int, dtype: torch.dtype) -> Prepared:
    """A reduction or scan over logical dimensions, counted from the end so that leading ones do not matter."""
    keywords = _keywords(step, [], dtype)
    name, _, overload = step.operation.partition(".")
    if name in ("sum", "mean", "prod") and overload == "default":
        whole = getattr(torch, name)
        return lambda value: (whole(value.flatten(lead) if rank else value.unsqueeze(-1), dim=-1, **keywords),)
    operator = resolve(step.operation)
    after = [_fill(argument, [], dtype) for argument in step.arguments[1:]]
    dims = after[0] if after else None
    if rank == 0:  # torch lets a number be reduced over its dimension 0 or -1
        last = -1 if isinstance(dims, int) else [-1]
        return lambda value: (operator(value.unsqueeze(-1), last, *after[1:], **keywords).reshape(value.shape),)
    if isinstance(dims, int):
        after[0] = dims - rank if dims >= 0 else dims
    else:
        chosen = list(dims) if dims else list(range(rank))
        after[:1] = [[dim - rank if dim >= 0 else dim for dim in chosen]]
    return lambda value: (operator(value, *after, **keywords),)


def _matmul(lead: int, left: Tensor, right: Tensor) -> Tensor:
    return left @ right


def _vector(lead: int, left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.unsqueeze(-1)).squeeze(-1)


def _plus(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def added(lead: int, bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
        result = product(lead, left, right)
        return _pad(bias, result.ndim, lead) + result

    return added


_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "mm.default": _matmul,
    "bmm.default": _matmul,
    "mv.default": _vector,
    "dot.default": lambda lead, left, right: (left * right).sum(-1),
    "addmm.default": _plus(_matmul),
    "baddbmm.default": _plus(_matmul),
    "addmv.default": _plus(_vector),
}


def _called(step: Step, inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    operator = resolve(step.operation)
    return _results(operator(*_fill(step.arguments, inputs, dtype), **_keywords(step, inputs, dtype)))


def _results(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _mapped(step: Step, inputs: Sequence[Tensor], lead: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The general case: one `vmap` over the flattened leading dimensions."""
    sizes = torch.broadcast_shapes(*(value.shape[:lead] for value in inputs))
    shared = [all(size == 1 for size in value.shape[:lead]) for value in inputs]

    def single(*values: Tensor) -> tuple[Tensor, ...]:
        return _called(step, values, dtype)

    if all(shared):
        results = single(*(value.reshape(value.shape[lead:]) for value in inputs))
        return tuple(result.reshape((1,) * lead + tuple(result.shape)) for result in results)
    if 0 in sizes:  # no example at all: run one and keep none
        shapes = [(1,) * lead + tuple(value.shape[lead:]) for value in inputs]
        one = [
            value.new_ones(shape)
            if value.is_floating_point()
            else value.new_zeros(shape)  # an index of 0 always exists
            for value, shape in zip(inputs, shapes, strict=True)
        ]
        kept = _mapped(step, one, lead, dtype)
        return tuple(result.expand(*sizes, *result.shape[lead:]) for result in kept)
    flat = [
        value.reshape(value.shape[lead:])
        if alone
        else value.expand(*sizes, *value.shape[lead:]).reshape(-1, *value.shape[lead:])
        for value, alone in zip(inputs, shared, strict=True)
    ]
    mapped = torch.func.vmap(single, in_dims=tuple(None if alone else 0 for alone in shared))(*flat)
    return tuple(result.reshape(*sizes, *result.shape[1:]) for result in mapped)
