"""One line of the table of families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath as mp
import torch
from torch import Tensor
from torch import distributions as td


@dataclass(frozen=True)
class Case:
    """A distribution built from named parameters, and its mpmath tails for the parameters of one element."""

    build: Callable[..., td.Distribution]
    parameters: dict[str, Any]
    tails: Callable[..., tuple[mp.mpf, mp.mpf]] | None = None
    event_dim: int = 0
    discrete: bool = False
    gate: bool = True
    fixed: dict[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Tensor]:
        return [torch.tensor(value, dtype=dtype, device=device) for value in self.parameters.values()]

    def dist(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> td.Distribution:
        return self.build(*self.tensors(dtype, device))

    def element(self, index: int) -> list[Any]:
        """Parameters of one batch element, as numbers or lists."""
        return [value[index] for value in self.parameters.values()]

    def noise_shape(self) -> tuple[int, ...]:
        dist = self.dist(torch.float64)
        return (*dist.batch_shape, *dist.event_shape)
