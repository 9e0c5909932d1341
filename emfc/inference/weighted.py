"""Draws with importance weights, and what they give."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from emfc.inference.diagnostics import importance_ess
from emfc.inference.psis import psis
from emfc.inference.tails import Wide
from emfc.inference.verdict import settled
from emfc.options import read_seed, read_whole

__all__ = ["WeightedDraws", "require_count"]


class WeightedDraws:
    r"""S draws x of a density q with log weights :math:`\log w = \log p(x) - \log q(x)` for an unnormalised density p.

    Args:
        draws: The draws, flat, ``[S, D]``.
        log_weights: Their log weights ``[S]``.

    Attributes:
        smoothed: Logarithms of the Pareto-smoothed weights, which have the sum 1.
        khat: Pareto k-hat of the weights.
    """

    def __init__(self, draws: Tensor, log_weights: Tensor) -> None:
        self.draws = draws
        self.log_weights = log_weights.double()
        self.smoothed, self.khat = psis(self.log_weights)

    @property
    def elbo(self) -> float:
        """Evidence lower bound in nats: the mean of the log weights."""
        return float(self.log_weights.mean())

    @property
    def elbo_se(self) -> float:
        """Standard error of the ELBO."""
        return float(self.log_weights.std()) / math.sqrt(len(self.log_weights))

    @property
    def log_evidence(self) -> float:
        r"""Importance-weighted log evidence :math:`\log \frac{1}{S} \sum_s w_s` in nats, with the smoothed weights.

        For an improper prior or a `pyro.factor` it is the log of the normalising constant of the joint density.
        It is infinite where a weight is, and no number where one is none.
        """
        held = self.log_weights
        if bool((held == math.inf).any()) and not bool(held.isnan().any()):
            return math.inf
        finite = held.isfinite()
        if not bool(finite.all() if bool(held.isnan().any()) else finite.any()):
            return math.nan
        untouched = int(torch.where(finite, held, math.inf).argmin())  # the smoothed are the largest
        return float(held[untouched] - self.smoothed[untouched]) - math.log(len(held))

    @property
    def log_evidence_se(self) -> float:
        """Standard error of the log evidence, to first order; it means little where k-hat is above 0.7."""
        weights = self.smoothed.exp()
        return float(((weights.square().sum() - 1 / len(weights)).clamp(min=0.0)).sqrt())

    @property
    def ess(self) -> float:
        """Kish's effective sample size of the smoothed weights."""
        return importance_ess(self.smoothed)

    @property
    def trusted(self) -> bool:
        """Whether averages with the weights can be relied on: by k-hat, or since the weights are nearly the same."""
        return settled(self.khat, len(self.draws), largest=self.largest, variance=self.variance, wide=self.wide)

    @property
    def variance(self) -> float:
        """Variance of the smoothed weights, in units of their squared mean; infinite where k-hat is."""
        return len(self.draws) / self.ess - 1 if self.khat < math.inf else math.inf

    @property
    def wide(self) -> Wide | None:
        """What wider draws say; None where none can be had."""
        return None

    @property
    def largest(self) -> float:
        """The largest smoothed weight, in units of their mean; infinite where k-hat is."""
        return len(self.draws) * float(self.smoothed.max().exp()) if self.khat < math.inf else math.inf

    @cached_property
    def weights(self) -> Tensor:
        """Weights of the draws with the sum 1: smoothed where they can be trusted, else all the same."""
        if self.trusted:
            return self.smoothed.exp()
        return torch.full_like(self.smoothed, 1 / len(self.smoothed))

    def average(self, values: Tensor) -> Tensor:
        """Weighted average of values ``[S, *]`` at the draws."""
        return torch.einsum("s,s...->...", self.weights.to(values), values)

    def chosen(self, n: int, seed: int) -> Tensor:
        """Rows of ``n`` of the draws by systematic resampling: each as often as its weight says, give or take one."""
        require_count(n)
        generator = torch.Generator().manual_seed(read_seed(seed))
        steps = self.smoothed.exp().cumsum(0).cpu()
        offset = torch.rand((), generator=generator, dtype=steps.dtype)
        places = (torch.arange(n, dtype=steps.dtype) + offset) / n * steps[-1]
        rows = torch.searchsorted(steps, places).clamp(max=len(steps) - 1)
        return rows[torch.randperm(n, generator=generator)].to(self.draws.device)


def require_count(n: int) -> None:
    """Refuses what is no number of draws."""
    read_whole("the number of draws", n, 1)
