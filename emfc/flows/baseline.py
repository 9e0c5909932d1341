"""The program's place in a flow without the program: only its supports are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emfc.flows.composition import Chain
from emfc.flows.normalisation import FixedAffine, Normalisation

__all__ = ["SupportLayer"]


class SupportLayer(nn.Module):
    r"""The map :math:`x = c(m + s \odot e)` with c the constraint map of a program's supports.

    Location m and scale s standardise the data in the unconstrained space, which has as many dimensions as the
    program's noise: the learned layers of a flow without the program see K - 1 numbers of a simplex of K. They are set
    from the data once (``start_from_data``) and are not learned.

    Args:
        layer: The structured layer whose supports, names and packing are used. Its parameters are frozen; pass a copy.
    """

    location: Tensor
    scale: Tensor
    gate_logits = None

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.program_layer = layer.requires_grad_(False)
        self._constraint_map = layer.constraint_map()
        reference = next(layer.parameters(), torch.zeros(()))
        self.register_buffer("location", reference.new_zeros(layer.noise_dim))
        self.register_buffer("scale", reference.new_ones(layer.noise_dim))

    @property
    def dim(self) -> int:
        return int(self.program_layer.dim)

    @property
    def noise_dim(self) -> int:
        return int(self.program_layer.noise_dim)

    @property
    def program(self) -> Any:
        return self.program_layer.program

    @property
    def graph(self) -> Any:
        return self.program_layer.graph

    @property
    def example_sites(self) -> Any:
        return self.program_layer.example_sites

    @property
    def levels(self) -> list[int] | None:
        levels: list[int] | None = self.program_layer.levels
        return levels

    def forward(self, context: Tensor | None = None) -> Chain:
        """Returns the map from noise ``[*, N]`` to examples ``[*, D]``."""
        return Chain(FixedAffine(self.location, self.scale), self._constraint_map)

    def constraint_map(self) -> Any:
        """Returns the map from :math:`R^N` to the product of the supports."""
        return self._constraint_map

    def pack(self, mapping: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        packed: Tensor = self.program_layer.pack(mapping, generator=generator)
        return packed

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        unpacked: dict[str, Tensor] = self.program_layer.unpack(value)
        return unpacked

    def outside(self, value: Tensor) -> Tensor:
        outside: Tensor = self.program_layer.outside(value)
        return outside

    def element_names(self) -> list[str]:
        names: list[str] = self.program_layer.element_names()
        return names

    def values(self) -> dict[str, Tensor]:
        return {}

    def gate_values(self) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def start_from_data(self, examples: Tensor) -> None:
        """Sets location and scale so that examples ``[rows, D]`` are standardised in the unconstrained space.

        An element that hardly varies keeps the scale of one.
        """
        found = Normalisation(self.noise_dim).to(self.scale)
        found.set_from(self._constraint_map.inv(examples))
        self.location.copy_(found.location)
        self.scale.copy_(found.scale)
