r"""Brownian motion of which noisy measurements are given, smoothed: the bridge has no measurement in the middle.

    x_0 ~ N(0, step),    x_t ~ N(x_{t-1}, step),    y_t ~ N(x_t, noise)

with step 0.1 and noise 0.15 (standard deviations). With ``classes`` a measurement is the sign of a noisy x_t instead,
y_t ~ Bernoulli(1 / (1 + exp(-5 x_t))). The question is the posterior of x; a measurement that is NaN is missing. For
Normal measurements it is Gaussian, and known. The negative log evidence of the inference gym's data is -5.613.

Source: the regression of the inference gym ("Brownian motion, missing middle observations"); classification of
G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

STEP, NOISE, SHARPNESS = 0.1, 0.15, 5.0
BRIDGE = range(10, 20)


def model(y=None, steps=30, step=STEP, noise=NOISE, classes=False):
    """Draws a path ``x_0, x_1, ...`` and measurements ``y_0, y_1, ...`` of it, which ``y`` [steps] observes."""
    steps = steps if y is None else len(y)
    x, path = 0.0, []
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, step))
        path.append(x)
        if y is None or not math.isnan(y[t]):
            seen = dist.Bernoulli(logits=SHARPNESS * x) if classes else dist.Normal(x, noise)
            pyro.sample(f"y_{t}", seen, obs=None if y is None else torch.as_tensor(y[t]))
    return torch.stack(path)


def data(path=None, steps=30, missing=BRIDGE, classes=False, seed=0):
    """Measurements to condition on, ``{"y": [steps]}``, with NaN where one is missing.

    They are simulated, with none at the steps ``missing`` (``()`` for smoothing), unless ``path`` is a JSON file in the
    inference gym's format: ``OBSERVED_LOC`` with null where missing.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())["OBSERVED_LOC"]
        return {"y": torch.tensor([math.nan if value is None else float(value) for value in held])}
    generator = torch.Generator().manual_seed(seed)
    x = STEP * torch.randn(steps, generator=generator).cumsum(0)
    y = x + NOISE * torch.randn(steps, generator=generator)
    if classes:
        y = (torch.rand(steps, generator=generator) < torch.sigmoid(SHARPNESS * x)).to(x.dtype)
    y[list(missing)] = math.nan
    return {"y": y}
