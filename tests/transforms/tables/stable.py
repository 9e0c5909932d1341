"""Stable laws."""

from __future__ import annotations

import mpmath as mp
import pyro.distributions as pd
import torch

from tests.special.stable_oracle import stable_tails
from tests.transforms.case import Case


def _stable(x, stability, skew, scale, loc):
    return stable_tails((mp.mpf(x) - mp.mpf(loc)) / mp.mpf(scale), stability, skew)


CASES: dict[str, Case] = {
    "stable": Case(
        pd.StableWithLogProb,
        {"stability": [1.7, 1.3, 0.8], "skew": [0.3, -0.6, 0.5], "scale": [1.5, 0.3, 1.0], "loc": [-1.0, 0.5, 0.0]},
        _stable,
        gate=False,
    ),
    "totally skewed stable": Case(
        lambda stability, scale, loc: pd.StableWithLogProb(stability, -torch.ones_like(stability), scale, loc),
        {"stability": [1.9, 1.5, 0.7], "scale": [1.5, 0.3, 1.0], "loc": [-1.0, 0.5, 0.0]},
        lambda x, stability, scale, loc: _stable(x, stability, -1.0, scale, loc),
    ),
}
