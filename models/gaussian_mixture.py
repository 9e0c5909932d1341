r"""A mixture of two Normals in one dimension, with ordered means so that components have names.

    y_i ~ theta N(mu_1, sigma_1) + (1 - theta) N(mu_2, sigma_2),    mu_1 < mu_2

with mu_k ~ N(0, 2), sigma_k ~ half-normal(2), theta ~ Beta(5, 5) (standard deviations). The prior of the ordered means
is the product of both densities where they are ordered, which integrates to 1/2. The negative log evidence of the 1000
values of posteriordb is 2115.683.

Source: posteriordb's "low_dim_gauss_mix", of M. Betancourt, "Identifying Bayesian mixture models" (2017).
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def model(y=None, rows=1000):
    """Draws means, scales, a weight and values ``[rows]``; ``y`` observes the values."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.sample("mu_prior", dist.Normal(0.0, 2.0).expand([2]).to_event(1), obs=mu)
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("rows", rows if y is None else len(y)):
        return pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def data(path=None, rows=1000, seed=0):
    """Values to condition on, ``{"y": [rows]}``.

    They are simulated, unless ``path`` is a JSON file with ``y``, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {"y": torch.tensor([float(value) for value in held["y"]])}
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(rows, generator=generator) < 0.62
    noise = torch.randn(rows, generator=generator)
    return {"y": torch.where(first, -2.75 + noise, 2.75 + noise)}
