"""Where parameters are drawn from: ranges with their ends, and the directions in which parameters move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


class Range(ABC):
    """Random values of one parameter."""

    @abstractmethod
    def draw(self, count: int, generator: Generator) -> Tensor:
        """Float64 values of shape [count, ...]."""

    @abstractmethod
    def tangent(self, value: Tensor, generator: Generator) -> Tensor:
        """A direction to move each value in, of its natural size, that stays in the parameter's space."""


def _rand(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Linear(Range):
    """Uniform between two ends; one element in ten lies on the lower end and one in ten on the upper."""

    low: float
    high: float
    shape: tuple[int, ...] = ()

    def _place(self, count: int, generator: Generator) -> Tensor:
        place = _rand((count, *self.shape), generator)
        return (1.25 * place - 0.125).clamp(0, 1)

    def draw(self, count, generator):
        return self.low + (self.high - self.low) * self._place(count, generator)

    def tangent(self, value, generator):
        return torch.ones_like(value) if not self.shape else _one_element(value, generator)

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Log(Linear):
    """The same in the logarithm, for positive parameters; a direction is the value itself."""

    def draw(self, count, generator):
        low, high = torch.tensor([self.low, self.high], dtype=torch.float64).log().tolist()
        return torch.exp(low + (high - low) * self._place(count, generator)).clamp(self.low, self.high)

    def tangent(self, value, generator):
        return value * super().tangent(value, generator)


@dataclass(frozen=True)
class Grid(Linear):
    """The same on multiples of 1/1024, whose sums are exact in float32."""

    def draw(self, count, generator):
        return (super().draw(count, generator) * 1024).round().clamp(min=self.low * 1024) / 1024


def _one_element(value: Tensor, generator: Generator) -> Tensor:
    """One at a random element of each, zero elsewhere."""
    flat = value.reshape(value.shape[0], -1)
    place = torch.randint(flat.shape[1], (flat.shape[0], 1), generator=generator)
    return torch.zeros_like(flat).scatter(1, place, 1).reshape(value.shape)


@dataclass(frozen=True)
class LowerTriangle(Range):
    """Lower triangular factors with a positive diagonal."""

    size: int
    low: float
    high: float

    def draw(self, count, generator):
        shape = (self.size, self.size)
        below = torch.tril(Linear(-1, 1, shape).draw(count, generator), -1)
        diagonal = Log(self.low, self.high, (self.size,)).draw(count, generator)
        return below * diagonal.unsqueeze(-1) + torch.diag_embed(diagonal)

    def tangent(self, value, generator):
        return torch.tril(torch.rand(value.shape, dtype=value.dtype, generator=generator) - 0.5) * value.abs()

    def __str__(self) -> str:
        return f"factor, diagonal {self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class PositiveDefinite(LowerTriangle):
    """Symmetric matrices by their factors."""

    def draw(self, count, generator):
        factor = super().draw(count, generator)
        return factor @ factor.mT

    def tangent(self, value, generator):
        part = torch.rand(value.shape, dtype=value.dtype, generator=generator) - 0.5
        size = value.diagonal(dim1=-2, dim2=-1).sqrt()
        return 0.1 * (part + part.mT) * size.unsqueeze(-1) * size.unsqueeze(-2)

    def __str__(self) -> str:
        return f"matrix, factor's diagonal {self.low:g} … {self.high:g}"
