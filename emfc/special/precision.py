"""Which precision a computation takes, and whether values may steer it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["eager", "wide"]


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
