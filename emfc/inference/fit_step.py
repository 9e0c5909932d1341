"""One optimiser step of a variational fit, safe against densities and gradients that are not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from emfc.inference.objectives import estimate

__all__ = ["Stepper"]

CLIP = 3.0
"""A gradient longer than this many typical lengths is shortened to it."""

FUSED = ("cpu", "cuda")
"""Kinds of device on which Adam moves all parameters in one call."""

PATIENCE = 5
"""After so many steps in a row that came to nothing, the rate is halved."""


class Stepper:
    """Adam with gradients clipped to their usual length, and steps left out where the gradient is not finite.

    Args:
        flow: The variational family.
        log_density: The target.
        objective: Name of the estimator.
        alpha: Order of ``"alpha"``.
        learning_rate: Step size, before the factor of each step.
    """

    def __init__(self, flow: Any, log_density: Any, *, objective: str, alpha: float, learning_rate: float) -> None:
        self.flow, self.log_density = flow, log_density
        self.objective, self.alpha = objective, alpha
        self.learning_rate, self.scale = learning_rate, 1.0
        self.parameters = [
            parameter
            for parameter in flow.parameters()
            if parameter.requires_grad and bool(torch.isfinite(parameter.detach()).all())
        ]
        fused = all(parameter.device.type in FUSED for parameter in self.parameters)
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate, betas=(0.9, 0.99), fused=fused)
        self.length: float | None = None
        self.failed = 0
        self.variance = math.inf

    def __call__(self, noise: Tensor, factor: float) -> float | None:
        """Steps with a batch of noise; returns the mean of the finite log weights, or None where nothing was done."""
        made = estimate(self.flow, self.log_density, noise, self.objective, alpha=self.alpha)
        if made.dropped > len(noise) // 2:
            self._fail()
            return None
        self.optimiser.zero_grad(set_to_none=True)
        made.loss.backward()
        limit = math.inf if self.length is None else CLIP * self.length
        length = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(length):
            self._fail()
            return None
        self.length = length if self.length is None else 0.95 * self.length + 0.05 * min(length, limit)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * self.scale * factor
        self.optimiser.step()
        self.failed = 0
        terms = made.terms[torch.isfinite(made.terms)] if made.dropped else made.terms
        self._note(terms)
        return float(terms.mean())

    def _note(self, terms: Tensor) -> None:
        """Follows the variance of the log weights, by quartiles, which one bad draw does not move."""
        low, high = torch.quantile(terms, torch.tensor([0.25, 0.75], dtype=terms.dtype, device=terms.device)).tolist()
        found = ((high - low) / 1.349) ** 2
        self.variance = found if not math.isfinite(self.variance) else 0.9 * self.variance + 0.1 * found

    def _fail(self) -> None:
        self.failed += 1
        if self.failed % PATIENCE == 0:
            self.scale *= 0.5
