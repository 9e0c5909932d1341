r"""A hidden Markov chain of two states with unknown transitions and means; the states are summed out.

    z_0 uniform,    z_t ~ Categorical(theta_{z_{t-1}}),    y_t ~ N(mu_{z_t}, 1),    0 < mu_1 < mu_2

with rows of theta uniform on the simplex, mu_1 ~ N(3, 1), mu_2 ~ N(10, 1) (densities as they are, where the means are
ordered). The means are written as the first and the gap to the second, which are positive.

Source: posteriordb's "hmm_example", of B. Bales' tutorial on hidden Markov models in Stan, which leaves the factor 1/2
of the first state out.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def model(y):
    """Draws transitions, a mean, a gap and states ``z_0, z_1, ...``; the series ``y`` [steps] is observed."""
    y = torch.as_tensor(y)
    theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
    first = pyro.sample("first", dist.ImproperUniform(constraints.positive, (), ()))
    gap = pyro.sample("gap", dist.ImproperUniform(constraints.positive, (), ()))
    mu = pyro.deterministic("mu", torch.stack([first, first + gap]))
    pyro.sample("mu_prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1), obs=mu)
    transitions, state = torch.stack([theta1, theta2]), None
    for t in pyro.markov(range(len(y))):
        weights = torch.full((2,), 0.5) if state is None else transitions[state]
        state = pyro.sample(f"z_{t}", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(mu[state], 1.0), obs=y[t])


def data(path=None, steps=100, seed=0):
    """A series to condition on, ``{"y": [steps]}``.

    It is simulated, unless ``path`` is a JSON file with ``y``, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {"y": torch.tensor([float(value) for value in held["y"]])}
    generator, state, series = torch.Generator().manual_seed(seed), 0, []
    for _ in range(steps):
        leave = (0.33, 0.07)[state]
        state = 1 - state if float(torch.rand((), generator=generator)) < leave else state
        series.append((3.0, 9.0)[state] + torch.randn((), generator=generator))
    return {"y": torch.stack(series)}
