"""Polynomials by Horner's scheme."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["differentiable_polynomial", "polynomial"]


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Value of a polynomial, constant term first; of plain tensors, not differentiable."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result.mul_(x).add_(coefficient)
    return result


def differentiable_polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The same, differentiable any number of times."""
    result = x.new_full((), coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
