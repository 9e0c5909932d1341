"""What a flow asks of the layer and of the preprocessing that it is built around."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Layer"]


class Layer(Protocol):
    """A module that maps noise ``[*, N]`` to examples ``[*, D]``: a structured layer, or what stands in for it."""

    @property
    def dim(self) -> int: ...

    @property
    def noise_dim(self) -> int: ...

    def __call__(self, context: Tensor | None = None) -> Any: ...

    def constraint_map(self) -> Any: ...

    def pack(self, mapping: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Tensor: ...

    def unpack(self, value: Tensor) -> dict[str, Tensor]: ...

    def outside(self, value: Tensor) -> Tensor: ...
