"""The table of families that every law of the transforms is tested on: a new family is one line in `tables/`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import torch
from torch import Tensor

from tests.transforms import tables
from tests.transforms.case import Case

LIMIT = {torch.float32: 8.0, torch.float64: 25.0}
BOUND = {torch.float32: 2e-4, torch.float64: 1e-9}
DTYPES = [torch.float32, torch.float64]

CASES: dict[str, Case] = {}
for found in sorted(module.name for module in pkgutil.iter_modules(tables.__path__)):
    CASES.update(importlib.import_module(f"{tables.__name__}.{found}").CASES)

SCALAR = [name for name, case in CASES.items() if case.tails is not None]
GATED = [name for name, case in CASES.items() if case.gate]


def noise_grid(case: Case, dtype: torch.dtype, limit: float, count: int = 41) -> Tensor:
    """Noise over the whole range, [count, *noise shape], each element of an example at its own place."""
    shape = case.noise_shape()
    size = 1
    for length in shape:
        size *= length
    grid = torch.linspace(-limit, limit, count, dtype=dtype).unsqueeze(-1)
    shift = torch.linspace(0.0, 0.37, size, dtype=dtype)
    return (grid + shift).clamp(-limit, limit).reshape(count, *shape)


def round_trip_error(transform: Any, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and error of noise -> value -> noise beside its permitted bound, all per element."""
    value, _ = transform.call_and_ladj(noise)
    back, _ = transform.inv.call_and_ladj(value)
    base = transform
    while hasattr(base, "base") and hasattr(base, "dims"):
        base = base.base
    ladj = base.call_and_ladj(noise)[1]
    dtype = noise.dtype
    rounding = torch.zeros_like(noise)
    if ladj.shape == noise.shape:
        ulp = torch.nextafter(value.abs(), torch.full_like(value, torch.inf)) - value.abs()
        rounding = 4 * ulp.double() / ladj.double().exp()
    allowed = torch.maximum(BOUND[dtype] * noise.abs().clamp(min=1).double(), rounding.double())
    return value, (back - noise).abs().double(), allowed
