"""Small layers that keep the contract of a structured layer, for tests that need no compiler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints


class _VectorTransform(Transform):
    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, forward: Any, inverse: Any) -> None:
        super().__init__()
        self._forward, self._backward = forward, inverse

    def __call__(self, value: Tensor) -> Tensor:
        return self._forward(value)[0]

    def call_and_ladj(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return self._forward(value)

    @property
    def inv(self) -> _VectorTransform:
        return _VectorTransform(self._backward, self._forward)


class ChainLayer(nn.Module):
    """x_0 ~ Normal(0, 1), x_t ~ Normal(slope * x_{t-1}, scale): real elements, learnable slope and scale."""

    levels = None

    def __init__(
        self,
        program: Mapping[str, Any] | int = 5,
        *,
        slope: float = 0.8,
        scale: float = 0.5,
        gate: str | None = None,
        optimize: bool = True,
    ) -> None:
        super().__init__()
        dim = program if isinstance(program, int) else program["dim"]
        self.program = {"dim": dim}
        self.gate, self.optimize = gate, optimize
        self.gate_logits = None
        self.dim = self.noise_dim = dim
        self.example_sites = {"x": (dim,)}
        self.slope = nn.Parameter(torch.tensor(slope))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def _scales(self, value: Tensor) -> Tensor:
        scale = self.log_scale.exp().expand(self.dim - 1)
        return torch.cat((torch.ones_like(scale[:1]), scale))

    def _to_data(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        scales, columns = self._scales(noise), []
        for t in range(self.dim):
            before = self.slope * columns[-1] if columns else 0.0
            columns.append(before + scales[t] * noise[..., t])
        return torch.stack(columns, dim=-1), scales.log().sum().expand(noise.shape[:-1])

    def _to_noise(self, value: Tensor) -> tuple[Tensor, Tensor]:
        scales = self._scales(value)
        mean = torch.cat((torch.zeros_like(value[..., :1]), self.slope * value[..., :-1]), dim=-1)
        return (value - mean) / scales, -scales.log().sum().expand(value.shape[:-1])

    def forward(self, context: Tensor | None = None) -> Transform:
        return _VectorTransform(self._to_data, self._to_noise)

    def constraint_map(self) -> Transform:
        def same(value: Tensor) -> tuple[Tensor, Tensor]:
            return value, value.new_zeros(value.shape[:-1])

        return _VectorTransform(same, same)

    def pack(self, mapping: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        return mapping["x"]

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        return {"x": value}

    def outside(self, value: Tensor) -> Tensor:
        return ~torch.isfinite(value)


class LevelLayer(nn.Module):
    """Independent dequantised categorical elements on [0, levels), with learnable logits."""

    def __init__(self, program: Mapping[str, Any] | Tensor, *, gate: str | None = None, optimize: bool = True) -> None:
        super().__init__()
        logits = (program if isinstance(program, Tensor) else program["logits"]).clone()
        self.program = {"logits": logits.clone()}
        self.gate, self.optimize = gate, optimize
        self.gate_logits = None
        self.logits = nn.Parameter(logits)
        self.dim = self.noise_dim = logits.shape[0]
        self.count = logits.shape[1]
        self.levels = [self.count] * self.dim
        self.example_sites = {"pixels": (self.dim,)}

    def _tables(self) -> tuple[Tensor, Tensor]:
        mass = self.logits.softmax(dim=-1)
        cumulative = torch.nn.functional.pad(mass.cumsum(dim=-1), (1, 0))
        return mass, cumulative

    def _to_noise(self, value: Tensor) -> tuple[Tensor, Tensor]:
        mass, cumulative = self._tables()
        inside = (value >= 0) & (value < self.count)
        safe = torch.where(inside, value, torch.full_like(value, 0.5))
        level = safe.floor().long()
        index = (torch.arange(self.dim, device=value.device).expand_as(level), level)
        p, below = mass[index], cumulative[index]
        above = (1 - below - p).clamp(min=0)
        u = below + p * (safe - level)
        v = above + p * (1 - (safe - level))
        tiny = torch.finfo(value.dtype).tiny
        lower = u < 0.5
        tail = torch.where(lower, u, v).clamp(min=tiny)
        magnitude = torch.special.ndtri(tail.clamp(max=0.5))
        noise = torch.where(lower, magnitude, -magnitude)
        log_phi = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi)
        ladj = torch.where(inside, p.clamp(min=tiny).log() - log_phi, torch.full_like(noise, -math.inf))
        return noise, ladj.sum(dim=-1)

    def _to_data(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        mass, cumulative = self._tables()
        u = torch.special.ndtr(noise)
        level = (u[..., None] >= cumulative[..., 1:-1]).sum(dim=-1)
        index = (torch.arange(self.dim, device=noise.device).expand_as(level), level)
        p, below = mass[index], cumulative[index]
        value = level + ((u - below) / p).clamp(1e-6, 1 - 1e-6)
        log_phi = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi)
        return value, (log_phi - p.log()).sum(dim=-1)

    def forward(self, context: Tensor | None = None) -> Transform:
        return _VectorTransform(self._to_data, self._to_noise)

    def constraint_map(self) -> Transform:
        def to_interval(free: Tensor) -> tuple[Tensor, Tensor]:
            ladj = nn.functional.logsigmoid(free) + nn.functional.logsigmoid(-free) + math.log(self.count)
            eps = torch.finfo(free.dtype).eps
            return free.sigmoid().clamp(eps, 1 - eps) * self.count, ladj.sum(dim=-1)

        def to_reals(value: Tensor) -> tuple[Tensor, Tensor]:
            eps = torch.finfo(value.dtype).eps
            share = value / self.count
            inside = (share > 0) & (share < 1)
            free = torch.logit(share, eps=eps)
            ladj = -(nn.functional.logsigmoid(free) + nn.functional.logsigmoid(-free)) - math.log(self.count)
            return free, torch.where(inside, ladj, torch.full_like(ladj, -math.inf)).sum(dim=-1)

        return _VectorTransform(to_interval, to_reals)

    def pack(self, mapping: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        levels = mapping["pixels"]
        dtype = self.logits.dtype
        noise = torch.rand(levels.shape, generator=generator, dtype=dtype)
        return (levels + noise).to(dtype).clamp(1e-6, self.count * (1 - torch.finfo(dtype).eps))

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        return {"pixels": value.floor().long()}

    def outside(self, value: Tensor) -> Tensor:
        return ~((value >= 0) & (value < self.count))
