"""Which precision a computation takes, and whether values may steer it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["eager", "together", "wide"]


def eager() -> bool:
    """True where a value may steer Python: neither being compiled nor inside a function transform."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


def wide(value: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy when its dtype is narrower or not a float."""
    if value.dtype in (torch.float32, torch.float64):
        return value
    if value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value.to(torch.get_default_dtype())


def together(*values: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one dtype, the widest of those with dimensions, as torch's arithmetic takes it."""
    if all(value.dtype == values[0].dtype for value in values):
        return values
    sized = [value.dtype for value in values if value.dim() > 0] or [value.dtype for value in values]
    dtype = functools.reduce(torch.promote_types, sized)
    return tuple(value.to(dtype) for value in values)
