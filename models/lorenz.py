"""A noisy Lorenz system, the series "LZ" of the embedded-model flows paper.

The data are Euler-Maruyama steps of 0.02 through the Lorenz equations (sigma 10, rho 28, beta 8/3) from N(0, I), with
noise of standard deviation 0.1 sqrt(0.02) at every step; 30 steps of 3 coordinates make an example. The program is the
paper's *continuity*, s_0 ~ N(0, I) and s_t ~ N(s_{t-1}, sigma), with one learned sigma for each coordinate that
starts at 1; it knows nothing of the equations. The best possible expected negative log likelihood is -242.793 nats.

`smoothness` is the paper's other program; `equations` is the right one, with the three coefficients and the noise to be
learned. `wrong_dynamics`, `wrong_order` (of the steps) and `wrong_scale` are wrong on purpose.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021; the
equations: E. Lorenz, "Deterministic nonperiodic flow", Journal of the Atmospheric Sciences 20 (1963); the wrong ones:
O. Rössler, "An equation for continuous chaos", Physics Letters A 57 (1976).
"""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
TIME_STEP = 0.02
STEP = 0.1 * TIME_STEP**0.5
TRUTH = {"sigma": SIGMA, "rho": RHO, "beta": BETA, "noise": STEP}


def model(steps=30):
    """Draws one path ``s_0, s_1, ...`` of points in space whose neighbours are alike."""
    sigma = pyro.param("sigma", lambda: torch.ones(3), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state, sigma).to_event(1))
    return state


continuity = model


def smoothness(steps=30):
    """The paper's other program: neighbours lie on a line."""
    sigma = pyro.param("sigma", lambda: torch.ones(3), constraint=constraints.positive)
    before = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    state = pyro.sample("s_1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(2, steps):
        before, state = state, pyro.sample(f"s_{t}", dist.Normal(2 * state - before, sigma).to_event(1))
    return state


def equations(steps=30):
    """The right program: the coefficients and the noise are unknown; `TRUTH` has the data's."""
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    rho = pyro.param("rho", lambda: torch.ones(()), constraint=constraints.positive)
    beta = pyro.param("beta", lambda: torch.ones(()), constraint=constraints.positive)
    noise = pyro.param("noise", lambda: torch.ones(()), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        moved = state + TIME_STEP * velocity(state, sigma, rho, beta)
        state = pyro.sample(f"s_{t}", dist.Normal(moved, noise).to_event(1))
    return state


def process(steps=30):
    """The equations that the data come from."""
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(state), STEP).to_event(1))
    return state


def wrong_dynamics(steps=30):
    """Wrong dynamics: Rössler's equations, with one learned noise for each coordinate."""
    noise = pyro.param("noise", lambda: torch.ones(3), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        x, y, z = near(state).unbind(-1)
        turning = torch.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], -1)
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * turning, noise).to_event(1))
    return state


def wrong_order(steps=30, backwards=False):
    """Wrong order: the equations, with learned noise, through shuffled steps, or from the last to the first."""
    first, *others = range(steps)[::-1] if backwards else random.Random(0).sample(range(steps), steps)
    noise = pyro.param("noise", lambda: torch.ones(3), constraint=constraints.positive)
    state = pyro.sample(f"s_{first}", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in others:
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(near(state)), noise).to_event(1))
    return state


def wrong_scale(steps=30, factor=0.01):
    """A mis-scaled prior: `process` with all standard deviations fixed at a multiple of the data's."""
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), factor).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(near(state)), factor * STEP).to_event(1))
    return state


def near(state):
    """Points held to where data are, lest the steps of a wrong program run to infinity."""
    return state.clamp(-100.0, 100.0)


def velocity(state, sigma=SIGMA, rho=RHO, beta=BETA):
    """The Lorenz equations at points ``[*, 3]``."""
    x, y, z = state.unbind(-1)
    return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -1)


def data(n=10_000, steps=30, seed=0):
    """Simulated paths, ``{"s_0": [n, 3], "s_1": [n, 3], ...}``."""
    noise = torch.randn(steps, n, 3, generator=torch.Generator().manual_seed(seed))
    path = [noise[0]]
    for step in noise[1:]:
        path.append(path[-1] + TIME_STEP * velocity(path[-1]) + STEP * step)
    return {f"s_{t}": state for t, state in enumerate(path)}
