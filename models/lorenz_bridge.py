r"""A noisy Lorenz system of which one coordinate is measured: smoothing, and the bridge without the middle.

    s_0 ~ N(0, I),    s_t ~ N(s_{t-1} + h v(s_{t-1}), 0.1 sqrt(h) I),    y_t ~ N(first coordinate of s_t, 1)

(standard deviations), where v are the Lorenz equations (sigma 10, rho 28, beta 8/3) and h = 0.02. With ``classes`` a
measurement is 0 or 1, y_t ~ Bernoulli(1 / (1 + exp(-2 x_t))). The question is the posterior of the path; a measurement
that is NaN is missing. The negative log evidence of the inference gym's data is 29.207.

Source: the regression of the inference gym ("convection Lorenz bridge"); classification of G. Silvestri, E. Fertig, D.
Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021; the equations: E. Lorenz, "Deterministic
nonperiodic flow", Journal of the Atmospheric Sciences 20 (1963).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
TIME_STEP, NOISE, SHARPNESS = 0.02, 1.0, 2.0
STEP = 0.1 * TIME_STEP**0.5
BRIDGE = range(10, 20)


def velocity(state):
    """The Lorenz equations at points ``[*, 3]``."""
    x, y, z = state[..., 0], state[..., 1], state[..., 2]
    return torch.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], -1)


def model(y=None, steps=30, noise=NOISE, classes=False):
    """Draws a path ``s_0, s_1, ...`` in space and measurements ``y_0, ...`` of it, which ``y`` [steps] observes."""
    steps = steps if y is None else len(y)
    state, path = None, []
    for t in range(steps):
        if state is None:
            state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        else:
            state = pyro.sample(f"s_{t}", dist.Normal(state + TIME_STEP * velocity(state), STEP).to_event(1))
        path.append(state)
        if y is None or not math.isnan(y[t]):
            x = state[..., 0]
            seen = dist.Bernoulli(logits=SHARPNESS * x) if classes else dist.Normal(x, noise)
            pyro.sample(f"y_{t}", seen, obs=None if y is None else torch.as_tensor(y[t]))
    return torch.stack(path)


def data(path=None, steps=30, missing=BRIDGE, classes=False, seed=0):
    """Measurements to condition on, ``{"y": [steps]}``, with NaN where one is missing.

    They are simulated, with none at the steps ``missing`` (``()`` for smoothing), unless ``path`` is a JSON file in the
    inference gym's format: ``OBSERVED_VALUES`` and ``OBSERVATION_MASK``.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        pairs = zip(held["OBSERVED_VALUES"], held["OBSERVATION_MASK"], strict=True)
        return {"y": torch.tensor([float(value) if seen else math.nan for value, seen in pairs])}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, 3, generator=generator)
    states = [noise[0]]
    for step in noise[1:]:
        states.append(states[-1] + TIME_STEP * velocity(states[-1]) + STEP * step)
    x = torch.stack(states)[:, 0]
    y = x + NOISE * torch.randn(steps, generator=generator)
    if classes:
        y = (torch.rand(steps, generator=generator) < torch.sigmoid(SHARPNESS * x)).to(x.dtype)
    y[list(missing)] = math.nan
    return {"y": y}
