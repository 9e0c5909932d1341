r"""Credit risk of 1000 applicants, a logistic regression on 24 numeric features and a constant.

    w_k ~ N(0, 1),    y_i ~ Bernoulli(1 / (1 + exp(-x_i w)))

with features of mean 0 and standard deviation 1, and the constant last; y is 1 for a bad risk. The negative log
evidence of the real data is 529.177.

Source: the Statlog (German credit) data, numeric version, of the UCI machine learning repository; the model of
M. Hoffman, A. Gelman, "The No-U-Turn Sampler", JMLR 15 (2014), with the priors of the inference gym.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch


def model(x, y=None):
    """Draws weights, and classes ``[rows]`` from features and a constant ``x`` [rows, columns]; ``y`` observes them."""
    x = torch.as_tensor(x)
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("applicants", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def data(path=None, rows=1000, features=24, seed=0):
    """Applicants to condition on, ``{"x": [rows, features + 1], "y": [rows]}``, features standardised.

    They are simulated, unless ``path`` is a CSV file with a heading, features, and last the class: 1 good, 2 bad.
    """
    if path is not None:
        held = np.loadtxt(path, delimiter=",", skiprows=1)
        known, y = torch.as_tensor(held[:, :-1]), torch.as_tensor(held[:, -1] - 1)
        dtype = torch.get_default_dtype()
        return {"x": _standardised(known).to(dtype), "y": y.to(dtype)}
    generator = torch.Generator().manual_seed(seed)
    x = _standardised(torch.randn(rows, features, generator=generator))
    weights = 0.4 * torch.randn(features + 1, generator=generator)
    y = (torch.rand(rows, generator=generator) < torch.sigmoid(x @ weights)).to(x.dtype)
    return {"x": x, "y": y}


def _standardised(known):
    """Columns of mean 0 and standard deviation 1, and a constant after them."""
    scaled = (known - known.mean(0)) / known.std(0, correction=0)
    return torch.cat([scaled, torch.ones(len(known), 1, dtype=known.dtype)], -1)
