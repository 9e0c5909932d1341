"""Counts with a Beta chance of success."""

from __future__ import annotations

import mpmath as mp
import pyro.distributions as pd
import torch

from tests.transforms.case import Case


def _beta_binomial(total):
    def tails(x, a, b):
        a, b = mp.mpf(a), mp.mpf(b)
        masses = [mp.binomial(total, k) * mp.beta(k + a, total - k + b) / mp.beta(a, b) for k in range(total + 1)]
        k = min(int(mp.floor(x)), total)
        part = x - k
        return mp.fsum(masses[:k]) + part * masses[k], mp.fsum(masses[k + 1 :]) + (1 - part) * masses[k]

    return tails


_ENDS = {"concentration1": [0.3, 2.0, 40.0], "concentration0": [1.5, 0.4, 7.0]}
CASES: dict[str, Case] = {
    "betabinomial": Case(lambda a, b: pd.BetaBinomial(a, b, 7), _ENDS, _beta_binomial(7), discrete=True),
    "betabinomial of many trials": Case(
        lambda a, b: pd.BetaBinomial(a, b, 300), _ENDS, _beta_binomial(300), discrete=True
    ),
    "betabinomial of three counts": Case(
        lambda a, b: pd.BetaBinomial(a, b, torch.tensor([2.0, 9.0, 4.0], dtype=a.dtype, device=a.device)),
        _ENDS,
        discrete=True,
    ),
}
