"""Parameter groups, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from emfc.errors import UserError

__all__ = ["FixedGates", "WeightAverage", "check_learnable", "make_optimiser", "schedule"]

SCALE_FACTOR, SCALE_STEP = 30.0, 0.15
"""Factor of the log-scales of affine layers, so that one number gets as far in a step as a network with all its
weights; and their largest step."""

_FUSED = {"cpu", "cuda"}
"""Devices on which one kernel makes the whole step."""


def make_optimiser(
    flow: Any, *, learning_rate: float, weight_decay: float, gate_factor: float, program_factor: float
) -> torch.optim.AdamW:
    """Returns AdamW with five groups, each with its factor on the learning rate.

    Matrices of the learned layers decay; their biases and log-scales, the program's parameters and the gates do not.
    """
    apart = {id(p) for p in flow.scale_parameters()}
    learned = [p for p in flow.backbone_parameters() if p.requires_grad]
    scales, backbone = [p for p in learned if id(p) in apart], [p for p in learned if id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in backbone if p.ndim >= 2], "weight_decay": weight_decay, "factor": 1.0},
        {"params": [p for p in backbone if p.ndim < 2], "weight_decay": 0.0, "factor": 1.0},
        {"params": scales, "weight_decay": 0.0, "factor": min(SCALE_FACTOR, SCALE_STEP / learning_rate)},
        {"params": list(flow.program_parameters()), "weight_decay": 0.0, "factor": program_factor},
        {"params": list(flow.gate_parameters()), "weight_decay": 0.0, "factor": gate_factor},
    ]
    groups = [group for group in groups if group["params"]]
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=learning_rate, fused=devices <= _FUSED or None)


def schedule(progress: float, *, warm_up: float) -> float:
    """Factor on the learning rate at a share of the training in [0, 1]: a linear rise, then a cosine to zero.

    Args:
        progress: Share of all steps that are done.
        warm_up: Share of all steps over which the rate rises.
    """
    if progress < warm_up:
        return progress / warm_up
    rest = (progress - warm_up) / (1 - warm_up)
    return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


class FixedGates:
    """The gates that stand at exactly 0 or 1: their logits are infinite, and no step may change them.

    Args:
        flow: The flow.
    """

    def __init__(self, flow: Any) -> None:
        held = [(gates, torch.isinf(gates.detach())) for gates in flow.gate_parameters()]
        self.held = [(gates, mask) for gates, mask in held if bool(mask.any())]

    def all_of(self, parameter: nn.Parameter) -> bool:
        """Returns whether every number of a parameter is such a gate."""
        return any(gates is parameter and bool(mask.all()) for gates, mask in self.held)

    def clear_gradients(self) -> None:
        """Sets their gradients to zero."""
        for gates, mask in self.held:
            if gates.grad is not None:
                gates.grad.masked_fill_(mask, 0.0)


def check_learnable(flow: Any) -> None:
    """Refuses a flow of which no number would be learned.

    Raises:
        UserError: It is such a flow.
    """
    gates = FixedGates(flow)
    if not any(parameter.requires_grad and not gates.all_of(parameter) for parameter in flow.parameters()):
        raise UserError("this flow has nothing to learn: its program has no parameters and it has no backbone")


class WeightAverage:
    r"""Exponential average of the weights over the steps (Polyak averaging).

    After step t, :math:`a \leftarrow d\, a + (1 - d)\, w` with :math:`d = \min(\text{decay}, (1 + t) / (10 + t))`, so
    that the start is soon forgotten. Infinite weights, such as those of a gate that is fixed, stay as they are.

    Args:
        module: The module whose floating-point parameters are averaged.
        decay: The decay; 0 keeps the weights themselves.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        pairs = zip(self.parameters, self.average, strict=True)
        self._infinite = [(p, average) for p, average in pairs if bool(torch.isinf(average).any())]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of this step in."""
        if self.decay == 0:
            return
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        for parameter, average in self._infinite:
            average.copy_(torch.where(torch.isinf(parameter), parameter, average))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the module's weights and their average."""
        if self.decay == 0:
            return
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state(self) -> list[Tensor]:
        """Returns a copy of the average."""
        return [tensor.clone() for tensor in self.average]

    def restore(self, state: list[Tensor]) -> None:
        """Sets the average."""
        for average, saved in zip(self.average, state, strict=True):
            average.copy_(saved)
