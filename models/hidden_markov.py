"""A hidden Markov chain: a state that is never seen jumps from step to step, and each state has a Normal of its own.

z_0 is uniform over the states, z_t follows a learned transition matrix, and x_t ~ N(loc, scale) of the state z_t. The
states are summed out, so that an example is x_0, x_1, ... The data are simulated from three states at -2, 0 and 2 with
standard deviation 0.7, which stay with probability 0.8.

Source: L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition",
Proceedings of the IEEE 77 (1989).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

LOCS, SCALE, STAY = (-2.0, 0.0, 2.0), 0.7, 0.8


def model(steps=30, states=3):
    """Draws one series ``x_0, x_1, ...`` and the states behind it."""
    transition = pyro.param(
        "transition",
        lambda: torch.full((states, states), 0.5 / states) + 0.5 * torch.eye(states),
        constraint=constraints.simplex,
    )
    locs = pyro.param("locs", lambda: torch.linspace(-1.0, 1.0, states))
    scales = pyro.param("scales", lambda: torch.ones(states), constraint=constraints.positive)
    state, series = None, []
    for t in pyro.markov(range(steps)):
        weights = torch.full((states,), 1 / states) if state is None else transition[state]
        state = pyro.sample(f"z_{t}", dist.Categorical(weights), infer={"enumerate": "parallel"})
        series.append(pyro.sample(f"x_{t}", dist.Normal(locs[state], scales[state])))
    return series


def data(n=10_000, steps=30, seed=0):
    """Simulated series, ``{"x_0": [n], "x_1": [n], ...}``."""
    generator = torch.Generator().manual_seed(seed)
    locs, state = torch.tensor(LOCS), torch.randint(3, (n,), generator=generator)
    series = {}
    for t in range(steps):
        if t:
            moved = (state + torch.randint(1, 3, (n,), generator=generator)) % 3
            state = torch.where(torch.rand(n, generator=generator) < STAY, state, moved)
        series[f"x_{t}"] = locs[state] + SCALE * torch.randn(n, generator=generator)
    return series
