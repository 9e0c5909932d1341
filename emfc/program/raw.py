"""An instruction as it is recorded, before addresses are final."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emfc.program.ir import Addresses, Ref, dtype_kind

__all__ = ["RawInstruction", "template"]


@dataclass(frozen=True, slots=True)
class RawInstruction:
    """An instruction as recorded: operand addresses are provisional."""

    operation: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    operands: tuple[tuple[Addresses, str], ...]
    outputs: tuple[tuple[int, tuple[int, ...], str], ...]


def template(value: Any, counter: Iterator[int]) -> Any:
    """Arguments with tensors replaced by references in order, and dtypes by their kinds."""
    if isinstance(value, Tensor):
        return Ref(next(counter))
    if isinstance(value, (list, tuple)):
        return tuple(template(item, counter) for item in value)
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_kind(value)}
    return value
