r"""Gaussian process regression on a line, with a squared exponential kernel.

    y ~ N(0, K + sigma I),    K_ij = alpha^2 exp(-(x_i - x_j)^2 / (2 rho^2)),
    rho ~ Gamma(25, rate 4),  alpha ~ half-normal(2),  sigma ~ half-normal(1)

where sigma is added as a variance. The negative log evidence of posteriordb's data is 27.555.

Source: posteriordb's "gp_regr", of the Stan developers' statistical computation benchmarks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch


def model(x, y=None):
    """Draws length and scales of the kernel, and values ``[points]`` at ``x``; ``y`` observes the values."""
    x = torch.as_tensor(x)
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    squares = (x[:, None] - x) ** 2
    covariance = alpha**2 * torch.exp(-0.5 * squares / rho**2) + sigma * torch.eye(len(x))
    return pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def data(path=None, points=11, seed=0):
    """Points and values to condition on, ``{"x": [points], "y": [points]}``.

    They are simulated, unless ``path`` is a JSON file with those, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {name: torch.tensor([float(value) for value in held[name]]) for name in ("x", "y")}
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(-10.0, 10.0, points)
    noise = torch.randn(2, points, generator=generator)
    covariance = 9 * torch.exp(-0.5 * (x[:, None] - x) ** 2 / 36) + 1e-6 * torch.eye(points)
    return {"x": x, "y": torch.linalg.cholesky(covariance) @ noise[0] + 1.2 * noise[1]}
