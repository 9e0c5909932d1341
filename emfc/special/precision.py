"""Which precision a computation takes, and whether values may steer it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

__all__ = ["eager", "outside_graphs", "together", "wide"]

_Function = TypeVar("_Function", bound=Callable[..., object])


def eager() -> bool:
    """True where a value may steer Python: neither being compiled nor inside a function transform."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


def outside_graphs(function: _Function) -> _Function:
    """Decorator of what loops until all elements are done: a compiled program breaks its graph there."""
    disabled = torch.compiler.disable(function, reason="its loop ends when all elements are done")
    return cast(_Function, disabled)


def wide(value: Tensor) -> Tensor:
    """The tensor itself; its float32 copy when that is wider, its copy in the default dtype when it holds no floats."""
    if value.dtype in (torch.float32, torch.float64):
        return value
    if value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value.to(torch.get_default_dtype())


def together(*values: Tensor) -> tuple[Tensor, ...]:
    """The tensors, at least float32, in the widest dtype of those with dimensions, as in arithmetic, and on one device.

    Numbers follow the tensors with dimensions to their device.
    """
    values = tuple(wide(value) for value in values)
    first = next((value for value in values if value.dim() > 0), values[0])
    if all(value.dtype == first.dtype and value.device == first.device for value in values):
        return values
    sized = [value.dtype for value in values if value.dim() > 0] or [value.dtype for value in values]
    dtype = functools.reduce(torch.promote_types, sized)
    return tuple(value.to(first.device if value.dim() == 0 else value.device, dtype) for value in values)
