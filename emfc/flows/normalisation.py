"""Fixed elementwise affine maps that are set from data: standardisation around learned layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from emfc.transforms import LadjTransform

__all__ = ["FixedAffine", "GatedAffine", "GatedNormalisation", "Normalisation"]

LEAST_DEVIATION = 1e-6


class FixedAffine(LadjTransform):
    """The map ``value * scale + location`` of vectors ``[*, N]``, with positive scales ``[N]``."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, location: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.location = location
        self.scale = scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the sum of the log scales."""
        return x * self.scale + self.location, self.scale.log().sum(dim=-1).expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The standardised value and minus the sum of the log scales."""
        return (y - self.location) / self.scale, -self.scale.log().sum(dim=-1).expand(y.shape[:-1])


class GatedAffine(LadjTransform):
    """The map of a `GatedNormalisation`, which reads a layer's gates when it is called, so gradients reach them."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, normalisation: GatedNormalisation, layer: Any) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.layer = layer

    def _map(self) -> FixedAffine:
        return self.normalisation.at(self.layer.element_gates())

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the sum of the log scales."""
        return self._map().call_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The standardised value and minus the sum of the log scales."""
        return self._map().inverse_and_ladj(y)


class Normalisation(nn.Module):
    r"""The map :math:`y = m + s \odot z` of vectors, whose inverse standardises the data that it was set from.

    Location m and scale s are stored with the weights but not learned. Before they are set it is the identity.

    Args:
        features: Number of elements.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self) -> FixedAffine:
        """Returns the map from standardised vectors ``[*, N]`` to those of the data."""
        return FixedAffine(self.location, self.scale)

    @torch.no_grad()
    def set_from(self, values: Tensor) -> None:
        """Sets mean and deviation from rows ``[rows, N]``, of which those with a number that is not finite don't count.

        An element that hardly varies keeps the scale of one; with no finite row nothing changes.
        """
        finite = values[torch.isfinite(values).all(dim=-1)]
        finite = finite if finite.dtype == torch.float64 else finite.float()
        if not len(finite):
            return
        mean = finite.mean(dim=0)
        deviation = finite.std(dim=0) if len(finite) > 1 else torch.ones_like(mean)
        deviation = torch.where(deviation > LEAST_DEVIATION, deviation, torch.ones_like(deviation))
        self.location.copy_(mean)
        self.scale.copy_(deviation)


class GatedNormalisation(nn.Module):
    r"""Normalisation of the noise of a gated program, which goes over into that of the data as the gates close.

    With gates :math:`\lambda`, their values :math:`\lambda_0` when it was set, and the share
    :math:`u = \min(\lambda / \lambda_0, 1)`, location and scale are :math:`m = u\, m_1 + (1 - u)\, m_0` and
    :math:`s = s_1^u\, s_0^{1 - u}`: those of the noise at the start, and those of the unconstrained data where the
    gates are closed and the program is the identity.

    Args:
        features: Number of elements.
    """

    start: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.opened = Normalisation(features)
        self.closed = Normalisation(features)
        self.register_buffer("start", torch.ones(features))

    def forward(self, layer: Any) -> GatedAffine:
        """Returns the map from standardised vectors ``[*, N]`` to the noise of a layer, at its gates."""
        return GatedAffine(self, layer)

    def at(self, gates: Tensor) -> FixedAffine:
        """Returns the map at gates ``[N]``."""
        share = (gates / self.start).clamp(max=1)
        location = torch.lerp(self.closed.location, self.opened.location, share)
        scale = torch.lerp(self.closed.scale.log(), self.opened.scale.log(), share).exp()
        return FixedAffine(location, scale)

    @torch.no_grad()
    def set_from(self, opened: Tensor, closed: Tensor, gates: Tensor) -> None:
        """Sets both ends from the noise ``[rows, N]`` that the program finds with its gates as they are, and closed."""
        self.opened.set_from(opened)
        self.closed.set_from(closed)
        self.start.copy_(gates.clamp(min=torch.finfo(gates.dtype).tiny))
