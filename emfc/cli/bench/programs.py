"""Programs that costs are measured on, as a user writes them: plain loops over scalar or short vector sites."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

__all__ = [
    "COUNTIES",
    "START",
    "TIME_STEP",
    "autoregression",
    "brownian",
    "county_of",
    "floor_of",
    "gated_recurrent",
    "hidden_markov",
    "local_trend",
    "lorenz",
    "lorenz_scalars",
    "ornstein_uhlenbeck",
    "radon",
    "stochastic_volatility",
    "tree",
]

START = 0.1
TIME_STEP = 0.02
SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
COUNTIES = 85
STATES = 3
HIDDEN = 8


def _positive(name: str, start: float) -> Any:
    return pyro.param(name, lambda: torch.tensor(start), constraint=constraints.positive)


def brownian(steps: int) -> None:
    """A random walk with a learned step size."""
    scale = _positive("scale", 0.1)
    x = pyro.sample("x_0", dist.Normal(0.0, START))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, scale))


def ornstein_uhlenbeck(steps: int) -> None:
    """A series that falls back to zero, with learned decay and step size."""
    decay = pyro.param("decay", lambda: torch.tensor(0.8))
    scale = _positive("scale", 0.5)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(decay * x, scale))


def autoregression(steps: int) -> None:
    """A series that depends on the two values before, AR(2)."""
    first = pyro.param("first", lambda: torch.tensor(1.2))
    second = pyro.param("second", lambda: torch.tensor(-0.5))
    scale = _positive("scale", 0.5)
    before = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    x = pyro.sample("x_1", dist.Normal(0.0, 1.0))
    for t in range(2, steps):
        before, x = x, pyro.sample(f"x_{t}", dist.Normal(first * x + second * before, scale))


def local_trend(steps: int) -> None:
    """A level that drifts with a slope that drifts itself, and noisy measurements of the level."""
    scales = [_positive(f"{name}_scale", start) for name, start in (("slope", 0.01), ("level", 0.1), ("noise", 0.3))]
    slope = pyro.sample("slope_0", dist.Normal(0.0, START))
    level = pyro.sample("level_0", dist.Normal(0.0, 1.0))
    pyro.sample("y_0", dist.Normal(level, scales[2]))
    for t in range(1, steps):
        level_before, slope_before = level, slope
        slope = pyro.sample(f"slope_{t}", dist.Normal(slope_before, scales[0]))
        level = pyro.sample(f"level_{t}", dist.Normal(level_before + slope_before, scales[1]))
        pyro.sample(f"y_{t}", dist.Normal(level, scales[2]))


def lorenz(steps: int) -> None:
    """Noisy Euler steps through the Lorenz equations, one site of three coordinates for each."""
    scale = _positive("scale", 0.1 * TIME_STEP**0.5)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        x, y, z = state.unbind(-1)
        velocity = torch.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], -1)
        state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity, scale).to_event(1))


def lorenz_scalars(steps: int) -> None:
    """The same with one site for each coordinate."""
    scale = _positive("scale", 0.1 * TIME_STEP**0.5)
    x, y, z = (pyro.sample(f"{name}_0", dist.Normal(0.0, 1.0)) for name in "xyz")
    for t in range(1, steps):
        dx, dy, dz = SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z
        x, y, z = (
            pyro.sample(f"{name}_{t}", dist.Normal(value + TIME_STEP * velocity, scale))
            for name, value, velocity in (("x", x, dx), ("y", y, dy), ("z", z, dz))
        )


def stochastic_volatility(steps: int) -> None:
    """Returns whose log variance is an autoregressive series."""
    mean = pyro.param("mean", lambda: torch.tensor(-1.0))
    persistence = pyro.param("persistence", lambda: torch.tensor(0.95))
    scale = _positive("scale", 0.2)
    h = pyro.sample("h_0", dist.Normal(mean, 0.5))
    pyro.sample("r_0", dist.Normal(0.0, torch.exp(h / 2)))
    for t in range(1, steps):
        h = pyro.sample(f"h_{t}", dist.Normal(mean + persistence * (h - mean), scale))
        pyro.sample(f"r_{t}", dist.Normal(0.0, torch.exp(h / 2)))


def county_of(steps: int) -> list[int]:
    """County of each household, in no order."""
    return random.Random(7).choices(range(COUNTIES), k=steps)


def floor_of(steps: int) -> list[float]:
    """Floor on which each household was measured: 0, the basement, or 1."""
    return [float(place) for place in random.Random(8).choices((0, 1), (5, 1), k=steps)]


def radon(steps: int) -> None:
    """Radon in houses of 85 counties, partly pooled, written as loops over counties and houses."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    county = [pyro.sample(f"county_{j}", dist.Normal(level, spread)) for j in range(COUNTIES)]
    for i, (j, floor) in enumerate(zip(county_of(steps), floor_of(steps), strict=True)):
        pyro.sample(f"y_{i}", dist.Normal(county[j] + slope * floor, noise))


def gated_recurrent() -> Callable[[int], None]:
    """A series whose distribution is read from the state of a gated recurrent unit that has seen all before.

    The unit is made before the program runs, since a program that is compiled draws noise for its sites alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell, head = torch.nn.GRUCell(1, HIDDEN), torch.nn.Linear(HIDDEN, 2)

    def model(steps: int) -> None:
        pyro.module("cell", cell)
        pyro.module("head", head)
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        hidden = torch.zeros(*x.shape, HIDDEN)
        for t in range(1, steps):
            hidden = cell(x.reshape(-1, 1), hidden.reshape(-1, HIDDEN)).reshape(hidden.shape)
            loc, log_scale = head(hidden).unbind(-1)
            x = pyro.sample(f"x_{t}", dist.Normal(loc, log_scale.exp()))

    return model


def hidden_markov(steps: int) -> None:
    """A hidden Markov chain of three states, each with a Normal of its own."""
    start = torch.full((STATES,), 1 / STATES)
    logits = pyro.param("logits", lambda: 2.0 * torch.eye(STATES))
    locs = pyro.param("locs", lambda: torch.linspace(-2.0, 2.0, STATES))
    scales = pyro.param("scales", lambda: torch.full((STATES,), 0.7), constraint=constraints.positive)
    transition = logits.softmax(-1)
    state = None
    for t in pyro.markov(range(steps)):
        weights = start if state is None else transition[state]
        state = pyro.sample(f"z_{t}", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(locs[state], scales[state]))


def tree(nodes: int) -> None:
    """A binary tree in which each node is near its parent."""
    scale = _positive("scale", 0.5)
    values = [pyro.sample("x_0", dist.Normal(0.0, 1.0))]
    for node in range(1, nodes):
        values.append(pyro.sample(f"x_{node}", dist.Normal(values[(node - 1) // 2], scale)))
