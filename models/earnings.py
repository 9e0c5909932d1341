r"""Earnings against height, a line with flat priors in its natural units.

    earn_i ~ N(beta_1 + beta_2 height_i, sigma),    beta, sigma flat

Coefficients of 10^4 and a correlation of 0.998 make it a test of preconditioning.

Source: A. Gelman, J. Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", Cambridge 2007,
chapter 4; posteriordb's "earn_height".
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def model(height, earn=None):
    """Draws a line, a scale and earnings ``[people]``; ``earn`` observes the earnings."""
    height = torch.as_tensor(height)
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("people", len(height)):
        return pyro.sample("earn", dist.Normal(beta[0] + beta[1] * height, sigma), obs=earn)


def data(path=None, people=1192, seed=0):
    """People to condition on, ``{"earn": [people], "height": [people]}``.

    They are simulated, unless ``path`` is a JSON file of columns with those names, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {name: torch.tensor([float(value) for value in held[name]]) for name in ("earn", "height")}
    noise = torch.randn(2, people, generator=torch.Generator().manual_seed(seed))
    height = 67 + 4 * noise[0]
    return {"earn": -61_000 + 1260 * height + 19_000 * noise[1], "height": height}
