"""Geometric Brownian motion, the series "BR" of the embedded-model flows paper.

The data are x = exp(w) of a random walk with steps of standard deviation 0.1: w_0 ~ N(0, 0.1), w_t ~ N(w_{t-1}, 0.1).
The program is the paper's *continuity* of the walk, said of x itself: log x_0 ~ N(0, 1) and
log x_t ~ N(log x_{t-1}, sigma), with one learned sigma that starts at 1. The best possible expected negative log
likelihood of 30 steps is -26.509 nats.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

STEP = 0.1


def model(steps=30):
    """Draws one series ``x_0, x_1, ...`` of positive numbers; neighbours are alike in their logarithms."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.LogNormal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), sigma))
    return x


def process(steps=30):
    """The process that the data come from."""
    x = pyro.sample("x_0", dist.LogNormal(0.0, STEP))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), STEP))
    return x


def data(n=10_000, steps=30, seed=0):
    """Simulated series, ``{"x_0": [n], "x_1": [n], ...}``."""
    noise = torch.randn(n, steps, generator=torch.Generator().manual_seed(seed))
    series = torch.exp(STEP * noise.cumsum(-1))
    return {f"x_{t}": series[:, t] for t in range(steps)}
