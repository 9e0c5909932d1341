"""An Ornstein-Uhlenbeck process, the series "OU" of the embedded-model flows paper.

The data start wide and fall back to zero: x_0 ~ N(0, 5), x_t ~ N(0.8 x_{t-1}, 0.5) (standard deviations). The program
is the paper's *continuity*, x_0 ~ N(0, 1) and x_t ~ N(x_{t-1}, sigma), with one learned sigma that starts at 1; it
doesn't know that the process falls back. The best possible expected negative log likelihood of 30 steps is
24.076 nats.

`smoothness` is the paper's other program; `equation` is the right one, with start, decay and step to be learned.
`wrong_dynamics`, `wrong_order` (of the steps) and `wrong_scale` are wrong on purpose.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

START, DECAY, STEP = 5.0, 0.8, 0.5
TRUTH = {"start": START, "decay": DECAY, "step": STEP}


def model(steps=30):
    """Draws one series ``x_0, x_1, ...`` whose neighbours are alike."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, sigma))
    return x


continuity = model


def smoothness(steps=30):
    """The paper's other program: neighbours lie on a line."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    before = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    x = pyro.sample("x_1", dist.Normal(0.0, 1.0))
    for t in range(2, steps):
        before, x = x, pyro.sample(f"x_{t}", dist.Normal(2 * x - before, sigma))
    return x


def equation(steps=30):
    """The right program: its start, decay and step are unknown; `TRUTH` has the data's."""
    start = pyro.param("start", lambda: torch.ones(()), constraint=constraints.positive)
    decay = pyro.param("decay", lambda: torch.zeros(()))
    step = pyro.param("step", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, start))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(decay * x, step))
    return x


def process(steps=30):
    """The process that the data come from."""
    x = pyro.sample("x_0", dist.Normal(0.0, START))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(DECAY * x, STEP))
    return x


def wrong_dynamics(steps=30):
    """Wrong dynamics: every value is thought to lie across zero from the one before."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(-DECAY * x, sigma))
    return x


def wrong_order(steps=30, backwards=False):
    """Wrong order: the process with a learned noise, through shuffled steps, or from the last to the first."""
    first, *others = range(steps)[::-1] if backwards else random.Random(0).sample(range(steps), steps)
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    x = pyro.sample(f"x_{first}", dist.Normal(0.0, START))
    for t in others:
        x = pyro.sample(f"x_{t}", dist.Normal(DECAY * x, sigma))
    return x


def wrong_scale(steps=30, factor=0.01):
    """A mis-scaled prior: `process` with all standard deviations fixed at a multiple of the data's."""
    x = pyro.sample("x_0", dist.Normal(0.0, factor * START))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(DECAY * x, factor * STEP))
    return x


def data(n=10_000, steps=30, seed=0):
    """Simulated series, ``{"x_0": [n], "x_1": [n], ...}``."""
    noise = torch.randn(steps, n, generator=torch.Generator().manual_seed(seed))
    series = [START * noise[0]]
    for step in noise[1:]:
        series.append(DECAY * series[-1] + STEP * step)
    return {f"x_{t}": x for t, x in enumerate(series)}
