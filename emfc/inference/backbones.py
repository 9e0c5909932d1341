"""The learned layers of a variational family, turned so that noise -> latent values is the direction that is cheap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from emfc.errors import UserError
from emfc.flows.backbones import AutoregressiveLayer, CouplingLayer
from emfc.flows.composition import Chain
from emfc.flows.configuration import FlowConfiguration
from emfc.flows.networks import ACTIVATIONS, zero_last_layer
from emfc.inference.family_affine import LowRank
from emfc.inference.masks import turned_mask
from emfc.options import read_whole

__all__ = ["BACKBONES", "InverseAutoregressiveLayer", "VariationalBackbone", "default_hidden_features"]

BACKBONES = ("meanfield", "mvn", "lowrank", "iaf", "maf", "nsf", "coupling")
"""Kinds of learned layers; the first two are the affine layer alone."""


class InverseAutoregressiveLayer(AutoregressiveLayer):
    r"""A masked autoregressive layer whose fast direction is noise -> values.

    :math:`z_i = f(e_i; h_i(e_{<i}, c))`, one pass of the masked network; the inverse goes element after element, with a
    mask in as many passes as the longest chain of elements that see one another.

    Source: Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow".
    """

    def forward(self, context: Tensor | None = None) -> Transform:
        """Returns the map from noise ``[*, N]`` to values ``[*, N]`` given a context ``[*, C]``."""
        return self.autoregressive(context)


class LocalNetwork(nn.Module):
    """One small perceptron for each element, of the elements that a mask lets it see, all evaluated at once.

    The last layer starts at zero.

    Args:
        mask: Which elements ``[N, N]`` each element sees.
        context_features: Width of the context, seen by all.
        hidden_features: Widths of the hidden layers.
        outputs: Numbers for each element.
        activation: A key of ``ACTIVATIONS``.
    """

    index: Tensor
    valid: Tensor

    def __init__(
        self, mask: Tensor, *, context_features: int, hidden_features: Sequence[int], outputs: int, activation: str
    ) -> None:
        super().__init__()
        count = len(mask)
        width = int(mask.sum(1).max()) if count else 0
        valid, index = torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
        self.register_buffer("index", index[:, :width].clone(), persistent=False)
        self.register_buffer("valid", valid[:, :width].bool().clone(), persistent=False)
        self.activation = ACTIVATIONS[activation]()
        sizes = [width + context_features, *hidden_features, outputs]
        fan = self.valid.sum(1) + context_features
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for place, (before, after) in enumerate(pairwise(sizes)):
            spread = (fan if place == 0 else torch.full((count,), before)).clamp(min=1).rsqrt()
            last = place == len(sizes) - 2
            for held, shape in ((self.weights, (count, before, after)), (self.biases, (count, 1, after))):
                start = (2 * torch.rand(shape) - 1) * spread[:, None, None]
                held.append(nn.Parameter(torch.zeros(shape) if last else start))

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns the outputs ``[*, N, outputs]`` for elements ``[*, N]`` and context ``[*, C]``."""
        batch, count = value.shape[:-1], value.shape[-1]
        seen = value[..., self.index] * self.valid
        if context is not None:
            wide = context.unsqueeze(-2).expand(*batch, count, context.shape[-1])
            seen = torch.cat((seen, wide), -1)
        held = seen.reshape(batch.numel(), count, seen.shape[-1]).transpose(0, 1)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if place:
                held = self.activation(held)
            held = torch.baddbmm(bias, held, weight)
        return held.transpose(0, 1).reshape(*batch, count, held.shape[-1])

    @torch.no_grad()
    def zero_outputs(self) -> None:
        """Sets all outputs to zero."""
        for held in (self.weights[-1], self.biases[-1]):
            nn.init.zeros_(held)


class VariationalBackbone(nn.Module):
    """Learned layers from noise to values, the identity before training.

    Args:
        features: Number of elements N.
        backbone: One of ``BACKBONES``.
        transforms: Number of layers.
        hidden_features: Widths of the hidden layers of each hyper-network.
        context_features: Width of the context; 0 for none.
        activation: Activation of the hyper-networks.
        bins: Number of bins of a spline.
        univariate: What a coupling layer does to an element: ``"spline"`` or ``"affine"``.
        rank: Of the update of ``"lowrank"``.
        mask: Which earlier elements ``[N, N]`` an autoregressive layer lets an element see, a transitive relation,
            turned round in every other layer where that adds nothing (`turned_mask`); None for all.

    Raises:
        UserError: An option has no meaning.
    """

    def __init__(
        self,
        features: int,
        backbone: str,
        *,
        transforms: int,
        hidden_features: Sequence[int],
        context_features: int = 0,
        activation: str = "silu",
        bins: int = 8,
        univariate: str = "spline",
        rank: int = 1,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(backbone, transforms, hidden_features, activation, univariate)
        context_features, bins = read_whole("context_features", context_features, 0), read_whole("bins", bins, 2, 1024)
        rank = read_whole("rank", rank, 1)
        if mask is not None and backbone not in ("mvn", "iaf", "maf", "nsf"):
            raise UserError(f"masks='graph' is for the backbones mvn, iaf, maf and nsf, not {backbone!r}")
        layers: list[nn.Module] = []
        if backbone == "lowrank":
            layers.append(LowRank(features, rank=min(rank, features)))
        elif backbone not in ("meanfield", "mvn"):
            spline = backbone == "nsf" or (backbone == "coupling" and univariate == "spline")
            configuration = FlowConfiguration(
                backbone=("coupling" if backbone == "coupling" else "nsf") if spline else "maf",
                hidden_features=tuple(hidden_features),
                context_features=context_features,
                activation=activation,
                bins=bins,
                log_scale_bound=None,
            )
            for index in range(transforms):
                if backbone == "coupling" and features > 1:
                    layers.append(CouplingLayer(features, configuration, parity=index % 2))
                else:
                    kind = AutoregressiveLayer if backbone == "maf" else InverseAutoregressiveLayer
                    layers.append(kind(features, configuration, reverse=index % 2 == 1 and mask is None))
                    if mask is not None:
                        _see(layers[-1], turned_mask(mask) if index % 2 else mask, configuration)
        self.layers = nn.ModuleList(layers)

    @torch.no_grad()
    def reset(self) -> None:
        """Goes back to the identity; the hidden layers stay as they are."""
        for layer in self.layers:
            if isinstance(layer, LowRank):
                layer.left.zero_()
                continue
            network: Any = layer.layer.hyper if isinstance(layer, CouplingLayer) else layer.network
            zero_outputs(network)

    def forward(self, context: Tensor | None = None) -> Chain:
        """Returns the map from noise ``[*, N]`` to values ``[*, N]`` given a context ``[*, C]``."""
        return Chain(*(layer(context) for layer in self.layers))


def _see(layer: nn.Module, mask: Tensor, configuration: FlowConfiguration) -> None:
    """Gives an autoregressive layer a network that sees what a mask lets it see."""
    if not isinstance(layer, AutoregressiveLayer):
        raise TypeError("only autoregressive layers take masks")
    layer.network = LocalNetwork(  # type: ignore[assignment]
        mask,
        context_features=configuration.context_features,
        hidden_features=configuration.hidden_features,
        outputs=sum(layer.sizes),
        activation=configuration.activation,
    )
    reach, depth = mask.to(torch.float64), 1
    while bool(reach.any()):  # the longest chain of elements that see one another
        reach, depth = ((reach @ mask.to(torch.float64)) > 0).to(torch.float64), depth + 1
    layer.features = depth  # the passes that the slow direction takes


def zero_outputs(network: nn.Module) -> None:
    """Sets what leads to the outputs of a hyper-network to zero."""
    if isinstance(network, LocalNetwork):
        network.zero_outputs()
        return
    held = getattr(network, "bias_only", None), getattr(network, "neighbour_weight", None)
    for parameter in held:
        if parameter is not None:
            nn.init.zeros_(parameter)
    if held[0] is None:
        zero_last_layer(network)


def default_hidden_features(features: int) -> tuple[int, int]:
    """Widths of the hyper-networks for a number of elements: a power of two above it, at least 64, at most 256."""
    width = min(max(64, 2 ** math.ceil(math.log2(max(features, 1)))), 256)
    return width, width


def _check(backbone: str, transforms: int, hidden_features: Sequence[int], activation: str, univariate: str) -> None:
    if backbone not in BACKBONES:
        raise UserError(f"backbone must be one of {', '.join(BACKBONES)}, not {backbone!r}")
    read_whole("transforms", transforms, 1, 1000)
    several = isinstance(hidden_features, Sequence) and not isinstance(hidden_features, str) and hidden_features
    if not several or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in hidden_features):
        raise UserError(f"hidden_features must be widths of 1 or more, such as (32, 32), not {hidden_features!r}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    if univariate not in ("spline", "affine"):
        raise UserError(f"univariate must be 'spline' or 'affine', not {univariate!r}")
