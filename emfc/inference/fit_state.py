"""Weights of a fit as they were: to go back to, to compare, to keep the best."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from emfc.inference.fit_noise import NormalNoise

__all__ = ["Evaluation", "State", "evaluate"]

FEWEST, AT_ONCE = 128, 1024
"""Numbers of draws that are evaluated together, at first and at most."""

EXACT = 1e-4
"""Log weights that all lie within so many nats are the same."""


class State:
    """A copy of a module's parameters and buffers.

    Args:
        module: The module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for name, tensor in self.module.state_dict().items():
            tensor.copy_(self.tensors[name])


class Evaluation:
    """An evidence lower bound from fresh draws.

    Args:
        terms: Log weights ``[S]``.
        moving: Whether the target itself has parameters that are fitted.
    """

    def __init__(self, terms: Tensor, *, moving: bool = False) -> None:
        self.terms, self.moving = terms.double().cpu(), moving
        whole = bool(torch.isfinite(self.terms).all()) and len(self.terms) > 0
        self.elbo = float(self.terms.mean()) if whole else -float("inf")
        self.se = float(self.terms.std() / len(self.terms) ** 0.5) if whole and len(self.terms) > 1 else float("nan")

    @property
    def exact(self) -> bool:
        """Whether all log weights are the same, so that the flow is the target, which stays as it is."""
        return not self.moving and len(self.terms) > 1 and float(self.terms.max() - self.terms.min()) < EXACT

    def gain(self, other: Evaluation) -> tuple[float, float]:
        """How much this is above another evaluation with the same noise, and the standard error of that."""
        if not self.elbo > -float("inf") or not other.elbo > -float("inf"):
            return self.elbo - other.elbo if self.elbo != other.elbo else 0.0, 0.0
        count = min(len(self.terms), len(other.terms))
        difference = self.terms[:count] - other.terms[:count]
        return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


@torch.no_grad()
def evaluate(
    flow: Any, log_density: Any, *, draws: int, seed: int, like: Tensor, seconds: float = math.inf
) -> Evaluation:
    """Evaluates a flow with fresh draws; the same seed gives the same noise.

    Args:
        flow: The variational family.
        log_density: The target.
        draws: How many.
        seed: Of the noise.
        like: A tensor with dtype and device of the flow.
        seconds: After these there are no more draws than were taken.
    """
    began = time.perf_counter()
    noise = NormalNoise(flow.noise_dim, seed=seed, like=like)
    terms = []
    taken, count = 0, FEWEST
    while taken < draws:
        count = min(count, draws - taken)
        value, log_q = flow.rsample_and_log_prob((count,), noise=noise(count))
        terms.append(log_density(value) - log_q)
        taken, count = taken + count, min(2 * count, AT_ONCE)
        # The next batch takes about as long for each draw as those before.
        if (time.perf_counter() - began) * (1 + count / taken) > seconds:
            break
    moving = bool(getattr(flow, "moves_target", False))
    return Evaluation(torch.cat(terms) if terms else like.new_zeros(0), moving=moving)
