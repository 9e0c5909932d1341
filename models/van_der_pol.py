"""A noisy Van der Pol oscillator, the series "VDP" of the embedded-model flows paper.

The data are Euler-Maruyama steps of 0.05 through the Van der Pol equations (mu 1) from N(0, I), with noise of standard
deviation 0.1 sqrt(0.05) at every step; 120 steps of 2 coordinates, position and velocity, make an example. The program
is the paper's *continuity*, s_0 ~ N(0, I) and s_t ~ N(s_{t-1}, sigma), with one learned sigma for each coordinate that
starts at 1; it knows nothing of the equations. The best possible expected negative log likelihood is -563.962 nats.

`smoothness` is the paper's other program; `equations` is the right one, with mu and the noise to be learned, starting
as an oscillator without damping. `wrong_dynamics`, `wrong_order` (of the steps) and `wrong_scale` are wrong on purpose.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021; the
equations: B. van der Pol, "On relaxation-oscillations", Philosophical Magazine 2 (1926).
"""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

MU = 1.0
TIME_STEP = 0.05
STEP = 0.1 * TIME_STEP**0.5
TRUTH = {"mu": MU, "noise": STEP}


def model(steps=120):
    """Draws one path ``s_0, s_1, ...`` of points in the plane whose neighbours are alike."""
    sigma = pyro.param("sigma", lambda: torch.ones(2), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state, sigma).to_event(1))
    return state


continuity = model


def smoothness(steps=120):
    """The paper's other program: neighbours lie on a line."""
    sigma = pyro.param("sigma", lambda: torch.ones(2), constraint=constraints.positive)
    before = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    state = pyro.sample("s_1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(2, steps):
        before, state = state, pyro.sample(f"s_{t}", dist.Normal(2 * state - before, sigma).to_event(1))
    return state


def equations(steps=120):
    """The right program: mu and the noise are unknown; `TRUTH` has the data's."""
    mu = pyro.param("mu", lambda: torch.zeros(()))
    noise = pyro.param("noise", lambda: torch.ones(()), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(state, mu), noise).to_event(1))
    return state


def process(steps=120):
    """The equations that the data come from."""
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(state), STEP).to_event(1))
    return state


def wrong_dynamics(steps=120):
    """Wrong dynamics: the path runs away from zero and doesn't turn, with one learned noise for each coordinate."""
    noise = pyro.param("noise", lambda: torch.ones(2), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(1, steps):
        x, y = near(state).unbind(-1)
        away = torch.stack([-y, -x * (1 + y**2)], -1)
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * away, noise).to_event(1))
    return state


def wrong_order(steps=120, backwards=False):
    """Wrong order: the equations, with learned noise, through shuffled steps, or from the last to the first."""
    first, *others = range(steps)[::-1] if backwards else random.Random(0).sample(range(steps), steps)
    noise = pyro.param("noise", lambda: torch.ones(2), constraint=constraints.positive)
    state = pyro.sample(f"s_{first}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in others:
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(near(state)), noise).to_event(1))
    return state


def wrong_scale(steps=120, factor=0.01):
    """A mis-scaled prior: `process` with all standard deviations fixed at a multiple of the data's."""
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), factor).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(near(state)), factor * STEP).to_event(1))
    return state


def near(state):
    """Points held to where data are, lest the steps of a wrong program run to infinity."""
    return state.clamp(-8.0, 8.0)


def velocity(state, mu=MU):
    """The Van der Pol equations at points ``[*, 2]``."""
    x, y = state.unbind(-1)
    return torch.stack([y, mu * (1 - x**2) * y - x], -1)


def data(n=10_000, steps=120, seed=0):
    """Simulated paths, ``{"s_0": [n, 2], "s_1": [n, 2], ...}``."""
    noise = torch.randn(steps, n, 2, generator=torch.Generator().manual_seed(seed))
    path = [noise[0]]
    for step in noise[1:]:
        path.append(path[-1] + TIME_STEP * velocity(path[-1]) + STEP * step)
    return {f"s_{t}": state for t, state in enumerate(path)}
