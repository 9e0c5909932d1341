r"""Returns whose variance follows the returns before, GARCH(1, 1).

    y_t ~ N(mu, sigma_t),    sigma_t^2 = alpha_0 + alpha_1 (y_{t-1} - mu)^2 + beta_1 sigma_{t-1}^2

with sigma_1 given and flat priors where alpha_0 > 0, 0 < alpha_1 < 1 and 0 < beta_1 < 1 - alpha_1: the interval of one
site depends on another. The negative log evidence of posteriordb's 200 returns is 451.000.

Source: T. Bollerslev, "Generalized autoregressive conditional heteroskedasticity", Journal of Econometrics 31 (1986);
posteriordb's "garch11".
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def model(y, sigma1=0.5):
    """Draws the four coefficients; the returns ``y`` [steps] are observed."""
    y = torch.as_tensor(y)
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.ImproperUniform(constraints.unit_interval, (), ()))
    beta1 = pyro.sample("beta1", dist.ImproperUniform(constraints.interval(0.0, 1 - alpha1), (), ()))
    shocks = alpha0 + alpha1 * (y - mu) ** 2
    variances = [torch.as_tensor(sigma1) ** 2]
    for t in range(len(y) - 1):
        variances.append(shocks[t] + beta1 * variances[-1])
    with pyro.plate("steps", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def data(path=None, steps=200, seed=0):
    """Returns to condition on and the first scale, ``{"y": [steps], "sigma1": []}``.

    They are simulated, unless ``path`` is a JSON file with those, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {"y": torch.tensor([float(value) for value in held["y"]]), "sigma1": torch.tensor(float(held["sigma1"]))}
    sigma, series = torch.tensor(0.5), []
    for step in torch.randn(steps, generator=torch.Generator().manual_seed(seed)):
        series.append(5 + sigma * step)
        sigma = (1.5 + 0.55 * (series[-1] - 5) ** 2 + 0.3 * sigma**2).sqrt()
    return {"y": torch.stack(series), "sigma1": torch.tensor(0.5)}
