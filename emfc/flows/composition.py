"""Chains of bijections of vectors, evaluated together with their log-Jacobians."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Transform, constraints

__all__ = ["Chain"]


class Chain(Transform):
    r"""The composition :math:`f_n \circ \dots \circ f_1` of bijections of vectors.

    Every part maps :math:`[*, A]` to :math:`[*, B]` and gives a log absolute Jacobian determinant of shape :math:`[*]`.
    Value and log-Jacobian come from one pass in either direction, and nothing is cached.

    Args:
        parts: The bijections in the order in which they are applied.
        codomain: The support of the values, if it is not the whole space.
    """

    bijective = True
    domain: constraints.Constraint = constraints.real_vector
    codomain: constraints.Constraint = constraints.real_vector

    def __init__(
        self,
        *parts: Any,
        domain: constraints.Constraint = constraints.real_vector,
        codomain: constraints.Constraint = constraints.real_vector,
    ) -> None:
        super().__init__(cache_size=0)
        self.parts: tuple[Any, ...] = parts
        self.domain = domain
        self.codomain = codomain

    @property
    def inv(self) -> Chain:
        return Chain(*(part.inv for part in reversed(self.parts)), domain=self.codomain, codomain=self.domain)

    def __call__(self, value: Tensor) -> Tensor:
        for part in self.parts:
            value = part(value)
        return value

    def _inverse(self, value: Tensor) -> Tensor:
        return self.inv(value)

    def call_and_ladj(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image of a vector ``[*, A]`` and the log absolute Jacobian determinant ``[*]`` there."""
        total = value.new_zeros(value.shape[:-1])
        if not total.numel():
            return value.new_zeros(self.forward_shape(value.shape)), total
        for part in self.parts:
            value, ladj = part.call_and_ladj(value)
            total = total + ladj
        return value, total

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def forward_shape(self, shape: Any) -> Any:
        for part in self.parts:
            shape = part.forward_shape(shape) if hasattr(part, "forward_shape") else shape
        return shape

    def inverse_shape(self, shape: Any) -> Any:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape) if hasattr(part, "inverse_shape") else shape
        return shape

    def __repr__(self) -> str:
        return f"Chain({', '.join(type(part).__name__ for part in self.parts)})"
