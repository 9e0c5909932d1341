"""Geometric Brownian motion, the series "BR" of the embedded-model flows paper.

The data are x = exp(w) of a random walk with steps of standard deviation 0.1: w_0 ~ N(0, 0.1), w_t ~ N(w_{t-1}, 0.1).
The program is the paper's *continuity* of the walk, said of the logarithm: log x_0 ~ N(0, 1) and
log x_t ~ N(log x_{t-1}, sigma), with one learned sigma that starts at 1. The best possible expected negative log
likelihood of 30 steps is -26.509 nats.

`continuity` and `smoothness` are the paper's own, which speak of x itself as if it could be negative; `walk` is the
right program, with a start and a step to be learned. `wrong_dynamics`, `wrong_order` (of the steps) and `wrong_scale`
are wrong on purpose.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

STEP = 0.1
TRUTH = {"start": STEP, "step": STEP}


def model(steps=30):
    """Draws one series ``x_0, x_1, ...`` of positive numbers; neighbours are alike in their logarithms."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.LogNormal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), sigma))
    return x


def continuity(steps=30):
    """The paper's program: neighbours are alike, and any number is possible."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, sigma))
    return x


def smoothness(steps=30):
    """The paper's other program: neighbours lie on a line."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    before = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    x = pyro.sample("x_1", dist.Normal(0.0, 1.0))
    for t in range(2, steps):
        before, x = x, pyro.sample(f"x_{t}", dist.Normal(2 * x - before, sigma))
    return x


def walk(steps=30):
    """The right program: a random walk of the logarithm with unknown start and step; `TRUTH` has the data's."""
    start = pyro.param("start", lambda: torch.ones(()), constraint=constraints.positive)
    step = pyro.param("step", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.LogNormal(0.0, start))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), step))
    return x


def process(steps=30):
    """The process that the data come from."""
    x = pyro.sample("x_0", dist.LogNormal(0.0, STEP))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), STEP))
    return x


def wrong_dynamics(steps=30):
    """Wrong dynamics: every value is thought to lie across 1 from the one before."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.LogNormal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(-torch.log(x), sigma))
    return x


def wrong_order(steps=30, backwards=False):
    """Wrong order: `model` through shuffled steps, or from the last to the first."""
    first, *others = range(steps)[::-1] if backwards else random.Random(0).sample(range(steps), steps)
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample(f"x_{first}", dist.LogNormal(0.0, 1.0))
    for t in others:
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), sigma))
    return x


def wrong_scale(steps=30, factor=0.01):
    """A mis-scaled prior: `process` with all standard deviations fixed at a multiple of the data's."""
    x = pyro.sample("x_0", dist.LogNormal(0.0, factor * STEP))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), factor * STEP))
    return x


def data(n=10_000, steps=30, seed=0):
    """Simulated series, ``{"x_0": [n], "x_1": [n], ...}``."""
    noise = torch.randn(n, steps, generator=torch.Generator().manual_seed(seed))
    series = torch.exp(STEP * noise.cumsum(-1))
    return {f"x_{t}": series[:, t] for t in range(steps)}
