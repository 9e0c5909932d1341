"""Delta: the value itself, with no noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Delta
from torch import Size, Tensor, broadcast_shapes
from torch.distributions import constraints

from emfc.special.precision import eager, wide
from emfc.transforms.affine import NormalAffine, SupportedNormal
from emfc.transforms.base import IndependentNormal, LadjTransform, NormalTransform
from emfc.transforms.registry import UnsupportedFamilyError, from_normal
from emfc.transforms.supports import unconstrained_map

__all__ = ["Point", "PointMap"]


class Point(constraints.Constraint):
    """One value, to a few units in the last place.

    Args:
        value: The value, batch and event dimensions together.
        event_dim: Number of event dimensions.
    """

    def __init__(self, value: Tensor, event_dim: int) -> None:
        super().__init__()
        self.value = value
        self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        """True where all elements of an event are equal."""
        info = torch.finfo(value.dtype)
        near = (value - self.value).abs() <= 4 * (info.eps * self.value.abs() + info.tiny * info.eps)
        equal: Tensor = near | (value == self.value)
        return equal.flatten(-self.event_dim).all(-1) if self.event_dim else equal


class PointMap(LadjTransform):
    """The empty real vector to one value: inputs [..., 0], values [..., *event]."""

    domain = constraints.real_vector

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.codomain = point
        self.value = wide(point.value)
        split = self.value.dim() - point.event_dim
        self.batch_shape, self.event_shape = self.value.shape[:split], self.value.shape[split:]

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """The event's shape after the batch dimensions."""
        return Size((*broadcast_shapes(Size(shape[:-1]), self.batch_shape), *self.event_shape))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """A last dimension of size 0 in place of the event's."""
        batch = Size(shape[: len(shape) - len(self.event_shape)])
        return Size((*broadcast_shapes(batch, self.batch_shape), 0))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and 0."""
        shape = self.forward_shape(x.shape)
        batch = shape[: len(shape) - len(self.event_shape)]
        return self.value.expand(shape), self.value.new_zeros(batch)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """No coordinates, and 0 where the value is the point, -inf elsewhere."""
        equal = self.codomain.check(wide(y))
        ladj = torch.where(equal, torch.zeros_like(equal, dtype=self.value.dtype), -torch.inf)
        return self.value.new_zeros((*ladj.shape, 0)), ladj

    def __repr__(self) -> str:
        return f"PointMap(shape={tuple(self.value.shape)})"


@unconstrained_map.register(Point)
def _point(constraint: Point) -> LadjTransform:
    return PointMap(constraint)


@from_normal.register(Delta)
def _delta(dist: Delta) -> NormalTransform:
    if eager() and bool((dist.log_density != 0).any()):
        raise UnsupportedFamilyError(
            "Delta with a log_density other than 0 is not normalised; the nearest supported is Delta without one."
        )
    value = wide(dist.v)
    nothing = IndependentNormal(NormalAffine(value.new_zeros(()), value.new_ones(())), 1)
    return SupportedNormal(nothing, Point(value, len(dist.event_shape)))
