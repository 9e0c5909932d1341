"""Stochastic volatility: returns whose log variance is itself a series.

h_0 ~ N(mean, 0.5), h_t ~ N(mean + persistence (h_{t-1} - mean), scale), and the return r_t ~ N(0, exp(h_t / 2))
(standard deviations), with learned mean, persistence and scale. The data are simulated at -1, 0.95 and 0.2; an example
holds log variances and returns, h_0, r_0, h_1, r_1, ...

Source: S. Kim, N. Shephard, S. Chib, "Stochastic volatility: likelihood inference and comparison with ARCH models",
Review of Economic Studies 65 (1998).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

MEAN, PERSISTENCE, SCALE, START = -1.0, 0.95, 0.2, 0.5


def model(steps=30):
    """Draws log variances ``h_0, h_1, ...`` and returns ``r_0, r_1, ...``."""
    mean = pyro.param("mean", lambda: torch.zeros(()))
    persistence = pyro.param("persistence", lambda: torch.tensor(0.5), constraint=constraints.interval(-1.0, 1.0))
    scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
    h = pyro.sample("h_0", dist.Normal(mean, START))
    r = [pyro.sample("r_0", dist.Normal(0.0, torch.exp(h / 2)))]
    for t in range(1, steps):
        h = pyro.sample(f"h_{t}", dist.Normal(mean + persistence * (h - mean), scale))
        r.append(pyro.sample(f"r_{t}", dist.Normal(0.0, torch.exp(h / 2))))
    return r


def data(n=10_000, steps=30, seed=0):
    """Simulated log variances and returns, ``{"h_0": [n], "r_0": [n], "h_1": [n], ...}``."""
    noise = torch.randn(steps, 2, n, generator=torch.Generator().manual_seed(seed))
    h = MEAN + START * noise[0, 0]
    series = {}
    for t in range(steps):
        if t:
            h = MEAN + PERSISTENCE * (h - MEAN) + SCALE * noise[t, 0]
        series[f"h_{t}"], series[f"r_{t}"] = h, torch.exp(h / 2) * noise[t, 1]
    return series
