"""Vector transforms whose elements follow one another: each value depends on the noises up to its own place."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.special.precision import wide
from emfc.transforms.base import NormalTransform

__all__ = ["TriangularTransform"]


class TriangularTransform(NormalTransform):
    r"""A bijection of real vectors with :math:`x_d = g_d(e_d; x_{<d})`, each :math:`g_d` increasing in :math:`e_d`.

    A subclass sets `size` and gives `conditional`. That suffices: both directions then go through the elements one
    after another, and `gated` mixes such a map with the identity. A family with closed forms for whole vectors
    overrides `call_elements` and `inverse_elements`.

    Attributes:
        size: Length of the vectors.
    """

    domain = constraints.real_vector
    codomain: constraints.Constraint = constraints.real_vector
    size: int

    @abstractmethod
    def conditional(self, place: int, before: Tensor) -> NormalTransform:
        """The transform of one element given the values before it.

        Args:
            place: Which element, from 0.
            before: The values before it, shape [..., place], of a batch shape that broadcasts against that of the
                parameters; differentiable.

        Returns:
            An elementwise, increasing transform of the real line onto itself, without the event dimension.
        """

    def call_elements(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and the logs of the Jacobian's diagonal, both of shape [..., size]."""
        noise = wide(noise)
        values: list[Tensor] = []
        slopes: list[Tensor] = []
        for place in range(self.size):
            part = noise[..., place]
            value, ladj = self.conditional(place, _stack(values, part)).call_and_ladj(part)
            values.append(value)
            slopes.append(ladj)
        return _stack(values, noise[..., 0]), _stack(slopes, noise[..., 0])

    def inverse_elements(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Noises, and the logs of the inverse Jacobian's diagonal, both of shape [..., size]."""
        value = wide(value)
        noises: list[Tensor] = []
        slopes: list[Tensor] = []
        for place in range(self.size):
            transform = self.conditional(place, value[..., :place])
            noise, ladj = transform.inverse_and_ladj(value[..., place])
            noises.append(noise)
            slopes.append(ladj)
        return _stack(noises, value[..., 0]), _stack(slopes, value[..., 0])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log-Jacobian of noise vectors."""
        value, slopes = self.call_elements(x)
        return value, slopes.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of value vectors."""
        noise, slopes = self.inverse_elements(y)
        return noise, slopes.sum(-1)

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


def _stack(parts: list[Tensor], like: Tensor) -> Tensor:
    """Elements side by side in a new last dimension; with none, an empty one beside a tensor's shape."""
    if not parts:
        return like.new_empty((*like.shape, 0))
    return torch.stack(torch.broadcast_tensors(*parts), -1)
