"""The learned layers: thin adapters over zuko, turned so that noise -> data is forward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from emfc.flows._zuko import GeneralCouplingTransform
from emfc.flows.composition import Chain
from emfc.flows.configuration import FlowConfiguration
from emfc.flows.gaussian import GaussianLayer
from emfc.flows.inversion import BlockwiseTransform
from emfc.flows.networks import MaskedNetwork, hidden_activation, zero_last_layer
from emfc.flows.univariate import AffineTransform, ScaleTransform, spline

__all__ = ["AutoregressiveLayer", "Backbone", "CouplingLayer"]

INPUT_LIMIT = 1e4
"""Hyper-networks see their inputs clipped to this, so that an extreme value cannot grow from element to element."""


class AutoregressiveLayer(nn.Module):
    r"""A masked autoregressive layer: density in one pass, sampling element after element.

    In the direction data -> noise, :math:`e_i = f(x_i; h_i(x_{<i}, c))` with a monotonic f and one masked network h.
    The outputs of the network start at zero, where f is the identity. Sampling takes the arithmetic of about one pass
    and D small steps at most (`BlockwiseTransform`).

    The affine f has the form :math:`(x - m) \exp(-s - c)` of the paper, whose m is in the units of the data. The
    constant c of an element is learned by itself, and s stays above ``-log_scale_bound``: a network that is free to
    shrink scales does so far from its training examples too, where noise then grows without sense.

    Against :math:`x \exp(-s) - m` the form made no difference on a nonlinear 30-dimensional chain (five layers of
    64 x 64, 2000 steps, three seeds: both 18.87 nats), where the activation and the start of the masked weights did
    (tanh 16.9 against ReLU 19.2 nats; ReLU with weights started as if nothing were masked, 20.2).

    Args:
        features: Number of elements D.
        configuration: Kind, widths and activation.
        reverse: Whether the order is from the last element to the first. Elements keep their places, so that
            noise d stays aligned with element d.
    """

    def __init__(self, features: int, configuration: FlowConfiguration, *, reverse: bool) -> None:
        super().__init__()
        self.features = features
        self.sizes, self.univariate = _univariate(configuration)
        self.log_scale: nn.Parameter | None = None
        if configuration.backbone == "maf" and configuration.log_scale_bound is not None:
            self.log_scale = nn.Parameter(torch.zeros(features))
        ranks = torch.arange(features)
        self.network = MaskedNetwork(
            ranks.flip(0) if reverse else ranks,
            context_features=configuration.context_features,
            hidden_features=configuration.hidden_features,
            outputs=sum(self.sizes),
            activation=configuration.activation,
        )

    def _parametrised(self, outputs: Tensor) -> Transform:
        """The map of single elements that outputs ``[*, sum(sizes)]`` of the network give."""
        split = outputs.split(self.sizes, dim=-1)
        if self.sizes == [1, 1]:
            split = tuple(part.squeeze(-1) for part in split)
        transform: Transform = self.univariate(*split)
        return transform

    def autoregressive(self, context: Tensor | None = None) -> BlockwiseTransform:
        """Returns the map that is one pass of the network, which depends on elements of its input."""
        return BlockwiseTransform(self.network, self._parametrised, context, limit=INPUT_LIMIT, passes=self.features)

    def forward(self, context: Tensor | None = None) -> Transform:
        """Returns the map from noise ``[*, D]`` to data ``[*, D]`` given a context ``[*, C]``."""
        inverse: Transform = self.autoregressive(context).inv
        if self.log_scale is None:
            return inverse
        return Chain(ScaleTransform(self), inverse)


class CouplingLayer(nn.Module):
    """A coupling layer: every other element is transformed given the rest; one pass in both directions.

    Args:
        features: Number of elements D, at least 2.
        configuration: Kind, widths and activation.
        parity: 0 or 1: which elements stay as they are.
    """

    def __init__(self, features: int, configuration: FlowConfiguration, *, parity: int) -> None:
        super().__init__()
        sizes, univariate = _univariate(configuration)
        self.layer = GeneralCouplingTransform(
            features,
            configuration.context_features,
            mask=torch.arange(features) % 2 == parity,
            univariate=univariate,
            shapes=[() if sizes == [1, 1] else (size,) for size in sizes],
            hidden_features=configuration.hidden_features,
            activation=partial(hidden_activation, configuration.activation),
        )
        self.layer.register_buffer("mask", self.layer.mask, persistent=False)
        zero_last_layer(self.layer.hyper)

    def forward(self, context: Tensor | None = None) -> Transform:
        """Returns the map from noise ``[*, D]`` to data ``[*, D]`` given a context ``[*, C]``."""
        inverse: Transform = self.layer(context)
        return inverse.inv


class Backbone(nn.Module):
    """Learned layers from noise to data, the identity before training.

    Args:
        features: Number of elements D.
        configuration: Kind, widths, activation and context width.
        transforms: Number of layers.
        offset: Number of layers elsewhere that come before these, so that the orders go on alternating.
    """

    def __init__(self, features: int, configuration: FlowConfiguration, *, transforms: int, offset: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(offset, offset + transforms):
            if configuration.backbone == "mvn":
                layers.append(GaussianLayer(features, context_features=configuration.context_features))
            elif configuration.backbone == "coupling" and features > 1:
                layers.append(CouplingLayer(features, configuration, parity=index % 2))
            else:
                layers.append(AutoregressiveLayer(features, configuration, reverse=index % 2 == 1))
        self.layers = nn.ModuleList(layers)

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the log-scales of elements of affine layers."""
        for layer in self.layers:
            if isinstance(layer, AutoregressiveLayer) and layer.log_scale is not None:
                yield layer.log_scale

    def forward(self, context: Tensor | None = None) -> Chain:
        """Returns the map from noise ``[*, D]`` to data ``[*, D]`` given a context ``[*, C]``."""
        return Chain(*(layer(context) for layer in self.layers))


def _univariate(configuration: FlowConfiguration) -> tuple[list[int], Any]:
    """Sizes of the parameters of one element, and the constructor that takes them."""
    if configuration.backbone in ("nsf", "coupling"):
        bins = configuration.bins
        return [bins, bins, bins - 1], spline(bins, configuration.bound, configuration.core)
    bound = configuration.log_scale_bound
    return [1, 1], AffineTransform if bound is None else partial(AffineTransform, below=bound)
