"""Hyper-networks of autoregressive layers, with masks that keep every dependency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from emfc.flows._zuko import MaskedLinear
from emfc.flows.staircase import Staircase

__all__ = ["ACTIVATIONS", "MaskedNetwork", "hidden_activation", "zero_last_layer"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def hidden_activation(name: str) -> nn.Module:
    """Returns an activation of ``ACTIVATIONS`` with dropout behind it, which is off until training sets it."""
    return nn.Sequential(ACTIVATIONS[name](), nn.Dropout(0.0))


def zero_last_layer(network: nn.Module) -> None:
    """Sets weight and bias of the last linear layer to zero, so that every output starts at zero."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear) or hasattr(module, "in_features")]
    for name, parameter in last[-1].named_parameters(recurse=False):
        if name in ("weight", "bias"):
            nn.init.zeros_(parameter)


class MaskedNetwork(nn.Module):
    r"""A masked multi-layer perceptron: ``outputs`` numbers for each element, from the elements before it.

    Element i of rank :math:`r_i` sees the elements of lower rank and the whole context. Hidden units have degrees
    spread evenly over the ranks (a unit of degree g sees ranks up to g), also where there are fewer units than
    elements. What the hidden units are then too coarse to pass on, the nearest few elements before, enters by direct
    linear connections, so that every one of the :math:`D (D - 1) / 2` dependencies exists for every width.

    The last layer starts at zero, so that all outputs are zero before training.

    Args:
        ranks: Rank of each element in the autoregressive order, a permutation of 0..D-1.
        context_features: Width of the context, seen by all.
        hidden_features: Widths of the hidden layers.
        outputs: Numbers for each element.
        activation: A key of ``ACTIVATIONS``.

    Source: Germain et al. (2015), "MADE: masked autoencoder for distribution estimation".
    """

    neighbours: Tensor
    neighbours_valid: Tensor
    order: Tensor

    def __init__(
        self,
        ranks: Tensor,
        *,
        context_features: int,
        hidden_features: Sequence[int],
        outputs: int,
        activation: str,
    ) -> None:
        super().__init__()
        self.features = features = ranks.numel()
        self.context_features = context_features
        self.outputs = outputs
        self.register_buffer("order", ranks.argsort(), persistent=False)
        self.neighbour_weight: nn.Parameter | None = None
        self.bias_only: nn.Parameter | None = None
        if features == 1 and context_features == 0:
            self.bias_only = nn.Parameter(torch.zeros(1, outputs))
            return
        lowest = -1 if context_features else 0
        inputs = torch.cat((ranks, torch.full((context_features,), -1)))
        degrees = [inputs, *(_spread(width, lowest, max(features - 2, lowest)) for width in hidden_features)]
        masks = [later[:, None] >= earlier for earlier, later in pairwise(degrees)]
        masks.append(ranks[:, None] > degrees[-1])
        missing = _missing(masks, (ranks[:, None] > inputs)[:, :features])
        modules: list[nn.Module] = []
        for mask in masks[:-1]:
            modules += [MaskedLinear(adjacency=mask), hidden_activation(activation)]
        modules.append(MaskedLinear(adjacency=masks[-1].repeat_interleave(outputs, dim=0)))
        self.layers = nn.Sequential(*modules)
        for module in self.layers:
            if isinstance(module, MaskedLinear):
                _fan_in_start(module.weight, module.mask)
                module.register_buffer("mask", module.mask, persistent=False)
        zero_last_layer(self.layers)
        self._levels = _levels(degrees[1:], features, outputs)
        self._reach = list(range(features))
        self._connect(missing)

    def _connect(self, missing: Tensor) -> None:
        """Adds direct connections for the dependencies ``[D, D]`` that no path of hidden units carries."""
        width = int(missing.sum(dim=1).max())
        if width == 0:
            return
        valid, index = torch.sort(missing.to(torch.uint8), dim=1, descending=True, stable=True)
        self.register_buffer("neighbours", index[:, :width].clone(), persistent=False)
        self.register_buffer("neighbours_valid", valid[:, :width, None].bool().clone(), persistent=False)
        self.neighbour_weight = nn.Parameter(torch.zeros(self.features, width, self.outputs))
        ranks = self._neighbour_ranks().amin(1)
        self._reach = torch.minimum(ranks, torch.arange(self.features)).tolist()

    def _neighbour_ranks(self) -> Tensor:
        """Ranks of the neighbours of the elements in their order ``[D, width]``, D where there is none."""
        ranks = self.order.argsort()[self.neighbours]
        return torch.where(self.neighbours_valid.squeeze(-1), ranks, self.features)[self.order]

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns the outputs ``[*, D, outputs]`` for elements ``[*, D]`` and context ``[*, C]``."""
        if self.bias_only is not None:
            return self.bias_only.expand(*value.shape, self.outputs)
        inputs = value
        if context is not None:
            inputs = torch.cat((value, context.expand(*value.shape[:-1], context.shape[-1])), dim=-1)
        result: Tensor = self.layers(inputs).unflatten(-1, (self.features, self.outputs))
        if self.neighbour_weight is not None:
            weight = self.neighbour_weight * self.neighbours_valid
            result = result + (value[..., self.neighbours].unsqueeze(-1) * weight).sum(dim=-2)
        return result

    def staircase(self, context: Tensor | None = None) -> Staircase:
        """Returns the network in the order of ranks, for contexts ``[B, C]`` or one ``[1, C]``; dropout is left out.

        Raises:
            ValueError: The network has constants only.
        """
        if self.bias_only is not None:
            raise ValueError("a network of constants has no layers to be put in order")
        order, features, outputs = self.order, self.features, self.outputs
        layers = [module for module in self.layers if isinstance(module, MaskedLinear)]
        weights = [module.mask * module.weight for module in layers]
        biases = [module.bias[:, None] for module in layers]
        if context is not None:
            biases[0] = torch.addmm(biases[0], weights[0][:, features:], context.t())
        weights[0] = weights[0][:, :features][:, order]
        weights[-1] = weights[-1].unflatten(0, (features, outputs))[order].flatten(0, 1)
        biases[-1] = biases[-1].unflatten(0, (features, outputs))[order].flatten(0, 1)
        direct = None
        if self.neighbour_weight is not None:
            direct = partial(_direct, self.neighbour_weight[order], self._neighbour_ranks())
        return Staircase(
            weights=weights,
            biases=biases,
            known=self._levels,
            activations=[partial(_activated, part[0]) for part in self.layers if isinstance(part, nn.Sequential)],
            direct=direct,
            reach=self._reach,
        )


def _activated(activation: nn.Module, rows: slice, values: Tensor) -> Tensor:
    result: Tensor = activation(values)
    return result


def _direct(weight: Tensor, ranks: Tensor, first: int, last: int, lowest: int, highest: int) -> Tensor:
    """The matrix ``[outputs of ranks first..last, ranks lowest..highest]`` of direct connections."""
    width = highest - lowest
    index = ranks[first:last] - lowest
    index = torch.where((index < 0) | (index >= width), width, index)[..., None].expand_as(weight[first:last])
    matrix = weight.new_zeros(last - first, width + 1, weight.shape[-1]).scatter_(1, index, weight[first:last])
    return matrix[:, :width].transpose(1, 2).flatten(0, 1)


def _levels(degrees: Sequence[Tensor], features: int, outputs: int) -> list[list[int]]:
    """For inputs, hidden units of sorted degrees, and outputs: how many there are with the first r ranks, r = 0..D."""
    ranks = torch.arange(features + 1)
    hidden = [torch.searchsorted(level, ranks - 1, right=True).tolist() for level in degrees]
    return [ranks.tolist(), *hidden, (outputs * ranks).tolist()]


def _spread(width: int, lowest: int, highest: int) -> Tensor:
    """Degrees of ``width`` hidden units, sorted, spread evenly over ``lowest..highest`` with both ends taken."""
    levels = highest - lowest + 1
    if width >= levels:
        return lowest + torch.arange(width) * levels // width
    if width == 1:
        return torch.tensor([highest])
    return lowest + torch.arange(width) * (levels - 1) // (width - 1)


def _missing(masks: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """Dependencies ``[D, D]`` that are wanted but carried by no path through the masked layers."""
    paths = masks[-1].to(torch.float32)
    for mask in reversed(masks[:-1]):
        paths = (paths @ mask.to(torch.float32)).clamp(max=1)
    return wanted & (paths[:, : wanted.shape[1]] == 0)


@torch.no_grad()
def _fan_in_start(weight: Tensor, mask: Tensor) -> None:
    """Scales each unit's start to the number of inputs that its mask leaves, not to the number of all inputs."""
    fan_in = mask.sum(dim=1, keepdim=True).clamp(min=1)
    weight.mul_((weight.shape[1] / fan_in).sqrt())
