"""The transform of a structured layer, from noise to examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.errors import UserError
from emfc.layers.drawing import Drawing
from emfc.layers.latents import Gates
from emfc.transforms import LadjTransform

if TYPE_CHECKING:
    from emfc.layers.structured import StructuredLayer

__all__ = ["StructuredTransform"]


class StructuredTransform(LadjTransform):
    r"""The compiled program as a transform: standard-normal noise ``[*, N]`` to examples ``[*, D]``.

    .. math:: x_j = F_j^{-1}(\Phi(e_j); \theta_j(x_{pa(j)})), \qquad
        \log |\det \partial x / \partial e| = \sum_j \log \phi(e_j) - \log f_j(x_j)

    It reads the layer's parameters when it is called, so gradients reach them.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, layer: StructuredLayer) -> None:
        super().__init__()
        self.layer = layer

    def gates(self) -> Gates:
        """The gates of a call."""
        return self.layer._gates()

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Examples and log-Jacobian of noise."""
        return self._run(self.layer.sampling, self._flat_noise(x), x.shape[:-1])

    def _call(self, x: Tensor) -> Tensor:
        layer, flat = self.layer, self._flat_noise(x)
        if not isinstance(layer.sampling, Drawing):
            return self.call_and_ladj(x)[0]
        values = layer.sampling.values(flat, layer.flat_parameters(flat), self.gates())
        return values.reshape(*x.shape[:-1], layer.dim)

    def _flat_noise(self, noise: Tensor) -> Tensor:
        if noise.shape[-1] != self.layer.noise_dim:
            raise UserError(f"this program takes {self.layer.noise_dim} noise numbers, not {noise.shape[-1]}")
        return noise.reshape(noise.shape[:-1].numel(), self.layer.noise_dim)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of examples; -inf where an example lies outside the support."""
        return self._run(self.layer.density, self.layer.flattened(y), y.shape[:-1])

    def log_prob(self, y: Tensor) -> Tensor:
        r"""Log density ``[*]`` of examples under standard-normal noise: that of the program itself where gates are
        open.

        .. math:: \sum_j \log \phi(e_j) + \log |\det \partial e / \partial x|
        """
        layer = self.layer
        fused = layer.density.fused  # only layers without gates have it
        if fused is not None and y.ndim == 2 and y.shape[1] == layer.plan.dim:
            found = fused.again(y, layer._raw())
            if found is not None:
                return found
        flat = layer.flattened(y)
        total = layer.density.log_prob(flat, layer.parameters_like(flat), self.gates())
        return total if y.ndim == 2 else total.reshape(y.shape[:-1])

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Shape of the examples of noise."""
        return torch.Size((*shape[:-1], self.layer.dim))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Shape of the noise of examples."""
        return torch.Size((*shape[:-1], self.layer.noise_dim))

    def _run(self, direction: Any, flat: Tensor, batch: torch.Size) -> tuple[Tensor, Tensor]:
        layer = self.layer
        parameters = layer.flat_parameters(flat)
        result, ladj = direction(flat, parameters, self.gates())
        return result.reshape(*batch, result.shape[-1]), ladj.reshape(batch)
