r"""An autoregressive series of order K with unknown coefficients and scale.

    y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma) for t > K,    alpha, beta_k ~ N(0, 10),    sigma ~ half-Cauchy(2.5)

(standard deviations); the first K values are given.

Source: posteriordb's "arK", of the Stan developers' statistical computation benchmarks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

BETA, SIGMA = (0.7, 0.4, 0.1, 0.0, -0.3), 0.15


def model(y, order=5):
    """Draws coefficients and a scale; the series ``y`` [steps] is observed from its value number `order` on."""
    y = torch.as_tensor(y)
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    before = y.unfold(0, order, 1)[:-1].flip(-1)
    with pyro.plate("steps", len(before)):
        pyro.sample("y", dist.Normal(alpha + before @ beta, sigma), obs=y[order:])


def data(path=None, steps=200, seed=0):
    """A series to condition on, ``{"y": [steps]}``.

    It is simulated, unless ``path`` is a JSON file with ``y``, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {"y": torch.tensor([float(value) for value in held["y"]])}
    noise = SIGMA * torch.randn(steps, generator=torch.Generator().manual_seed(seed))
    series = list(noise[: len(BETA)])
    for step in noise[len(BETA) :]:
        series.append(step + sum(weight * series[-1 - k] for k, weight in enumerate(BETA)))
    return {"y": torch.stack(series)}
