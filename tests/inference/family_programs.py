"""Models that the tests of the variational family use, each with a small set of data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
GROUPS = (0, 0, 1, 2, 2, 2, 3)


def schools():
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(effect, torch.tensor(ERRORS)), obs=torch.tensor(EFFECTS))


def brownian(steps=6):
    innovation = pyro.sample("innovation", dist.LogNormal(0.0, 2.0))
    error = pyro.sample("error", dist.LogNormal(0.0, 2.0))
    state = pyro.sample("x_0", dist.Normal(0.0, innovation))
    for t in range(1, steps):
        state = pyro.sample(f"x_{t}", dist.Normal(state, innovation))
        pyro.sample(f"y_{t}", dist.Normal(state, error), obs=torch.tensor(0.3 * t))


def lorenz(steps=4):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        x, y, z = state.unbind(-1)
        drift = torch.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], -1)
        state = pyro.sample(f"s_{t}", dist.Normal(state + 0.02 * drift, scale).to_event(1))
        pyro.sample(f"y_{t}", dist.Normal(state[0], 1.0), obs=torch.tensor(0.5))


def radon():
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    effects = [pyro.sample(f"effect_{j}", dist.Normal(mean, spread)) for j in range(4)]
    for i, group in enumerate(GROUPS):
        pyro.sample(f"y_{i}", dist.Normal(effects[group] + slope * (i % 2), noise), obs=torch.tensor(0.1 * i))


def spreading():
    state = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, 5):
        state = pyro.sample(f"x_{t}", dist.Normal(torch.sin(state), torch.exp(0.3 * state)))
    pyro.sample("y", dist.Normal(state, 1.0), obs=torch.tensor(0.4))


def families():
    a = pyro.sample("a", dist.StudentT(3.0, 1.0, 2.0))
    b = pyro.sample("b", dist.LogNormal(0.3 * a, 0.7))
    c = pyro.sample("c", dist.Gamma(2.0, b))
    pyro.sample("d", dist.Laplace(torch.zeros(2), c).to_event(1))
    pyro.sample("e", dist.Beta(1.0 + c, 2.0))
    pyro.sample("f", dist.Uniform(-1.0, 2.0))
    pyro.sample("g", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) * (c + 0.1)))
    pyro.sample("y", dist.Normal(c, 1.0), obs=torch.tensor(0.4))


def simplex():
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("parts", 3):
        pyro.sample("mean", dist.Normal(weights, 0.5))


def learned():
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    x = pyro.sample("x", dist.Normal(0.0, scale))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))


PROGRAMS = {
    "schools": schools,
    "brownian": brownian,
    "lorenz": lorenz,
    "radon": radon,
    "spreading": spreading,
    "families": families,
    "simplex": simplex,
    "learned": learned,
}


def disturb(module, scale=0.2):
    """Moves every parameter away from its start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
