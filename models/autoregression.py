"""An autoregressive series of order two, which swings without a fixed period.

x_0, x_1 ~ N(0, 1) and x_t ~ N(first x_{t-1} + second x_{t-2}, scale), with learned coefficients and scale. The data are
simulated at 1.3, -0.65 and 0.5.

Source: G. U. Yule, "On a method of investigating periodicities in disturbed series, with special reference to Wolfer's
sunspot numbers", Philosophical Transactions of the Royal Society A 226 (1927).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

FIRST, SECOND, SCALE = 1.3, -0.65, 0.5


def model(steps=30):
    """Draws one series ``x_0, x_1, ...`` in which each value is linear in the two before."""
    first = pyro.param("first", lambda: torch.ones(()))
    second = pyro.param("second", lambda: torch.zeros(()))
    scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
    before = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    x = pyro.sample("x_1", dist.Normal(0.0, 1.0))
    for t in range(2, steps):
        before, x = x, pyro.sample(f"x_{t}", dist.Normal(first * x + second * before, scale))
    return x


def data(n=10_000, steps=30, seed=0):
    """Simulated series, ``{"x_0": [n], "x_1": [n], ...}``."""
    noise = torch.randn(steps, n, generator=torch.Generator().manual_seed(seed))
    series = [noise[0], noise[1]]
    for step in noise[2:]:
        series.append(FIRST * series[-1] + SECOND * series[-2] + SCALE * step)
    return {f"x_{t}": x for t, x in enumerate(series)}
