r"""Summer temperatures at Kilpisjärvi in Finland against the year, a line whose origin is far away.

    y_i ~ N(alpha + beta x_i, sigma),    alpha ~ N(9.313, 100),    beta ~ N(0, 1/30),    sigma flat

(standard deviations), where x counts years from long ago, so that alpha and beta are correlated to 0.99999: easy in the
right coordinates and hard in all others. The negative log evidence of the real data is 103.226.

Source: A. Vehtari's demonstrations of Bayesian data analysis; posteriordb's "kilpisjarvi".
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

LOC, SPREAD, SLOPE_SPREAD = 9.31290322580645, 100.0, 0.0333333333333333


def model(x, y=None, pmualpha=LOC, psalpha=SPREAD, pmubeta=0.0, psbeta=SLOPE_SPREAD):
    """Draws a line, a scale and temperatures ``[years]`` at ``x``; ``y`` observes the temperatures."""
    x = torch.as_tensor(x)
    alpha = pyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = pyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("years", len(x)):
        return pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def data(path=None, years=62, seed=0):
    """Years and temperatures to condition on, ``{"x": [years], "y": [years]}``.

    They are simulated, unless ``path`` is a JSON file with those, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {name: torch.tensor([float(value) for value in held[name]]) for name in ("x", "y")}
    generator = torch.Generator().manual_seed(seed)
    x = torch.arange(years, dtype=torch.get_default_dtype()) + 3952
    return {"x": x, "y": -60.7 + 0.0176 * x + 1.1 * torch.randn(years, generator=generator)}
