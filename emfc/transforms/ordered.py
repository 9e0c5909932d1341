"""Ordered vectors: their constraint map."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints

from emfc.special.precision import wide
from emfc.transforms.base import LadjTransform
from emfc.transforms.supports import unconstrained_map

__all__ = ["OrderedMap"]

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def _strictly_increasing(value: Tensor) -> Tensor:
    """The vector with each element that doesn't exceed the one before raised to the next number that does."""
    bits = value.detach().contiguous().view(_BITS[value.dtype])
    low = torch.iinfo(bits.dtype).min
    rank = torch.where(bits < 0, low - bits, bits)  # consecutive numbers have consecutive ranks
    place = torch.arange(value.shape[-1], device=value.device, dtype=bits.dtype)
    rank = (rank - place).cummax(-1).values + place
    raised = torch.where(rank < 0, low - rank, rank).view(value.dtype)
    return torch.where(raised == value, value, value + (raised - value.detach()))


class OrderedMap(LadjTransform):
    r"""Real vectors to vectors of rising elements, :math:`x_1 = y_1, x_k = x_{k-1} + e^{y_k}`.

    Source: Stan Reference Manual, "Ordered vector".
    """

    domain = constraints.real_vector
    codomain = pyro_constraints.ordered_vector

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ordered vector, strictly rising, and log-Jacobian."""
        coordinate = wide(x)
        info = torch.finfo(coordinate.dtype)
        steps = torch.exp(coordinate[..., 1:].clamp(math.log(info.tiny), 0.9 * math.log(info.max)))
        value = torch.cat((coordinate[..., :1], steps), -1).cumsum(-1)
        return _strictly_increasing(value), coordinate[..., 1:].sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and log-Jacobian, -inf for a vector that isn't ordered."""
        y = wide(y)
        info = torch.finfo(y.dtype)
        value = y.clamp(info.min / 4, info.max / 4)
        gaps = value.diff(dim=-1)
        logs = gaps.clamp(min=info.tiny).log()
        inside = (gaps > 0).all(-1) & torch.isfinite(y).all(-1)
        return torch.cat((value[..., :1], logs), -1), torch.where(inside, -logs.sum(-1), -torch.inf)

    def __repr__(self) -> str:
        return "OrderedMap()"


@unconstrained_map.register(type(pyro_constraints.ordered_vector))
def _ordered(constraint: constraints.Constraint) -> LadjTransform:
    return OrderedMap()
