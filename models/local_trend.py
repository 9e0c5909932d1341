"""A local linear trend: a level that drifts with a slope, a slope that drifts itself, noisy measurements of the level.

slope_t ~ N(slope_{t-1}, s), level_t ~ N(level_{t-1} + slope_{t-1}, l) and y_t ~ N(level_t, m) (standard deviations),
from slope_0 ~ N(0, 0.1) and level_0 ~ N(0, 1), with learned s, l and m. The data are simulated at 0.01, 0.1 and 0.3; an
example holds slopes, levels and measurements.

Source: A. C. Harvey, "Forecasting, Structural Time Series Models and the Kalman Filter", Cambridge 1989, chapter 2.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

SLOPE, LEVEL, MEASUREMENT = 0.01, 0.1, 0.3


def model(steps=30):
    """Draws slopes ``slope_0, ...``, levels ``level_0, ...`` and measurements ``y_0, ...``."""
    of_slope, of_level, of_measurement = (
        pyro.param(f"{name}_scale", lambda: torch.ones(()), constraint=constraints.positive)
        for name in ("slope", "level", "measurement")
    )
    slope = pyro.sample("slope_0", dist.Normal(0.0, 0.1))
    level = pyro.sample("level_0", dist.Normal(0.0, 1.0))
    y = [pyro.sample("y_0", dist.Normal(level, of_measurement))]
    for t in range(1, steps):
        expected = level + slope
        slope = pyro.sample(f"slope_{t}", dist.Normal(slope, of_slope))
        level = pyro.sample(f"level_{t}", dist.Normal(expected, of_level))
        y.append(pyro.sample(f"y_{t}", dist.Normal(level, of_measurement)))
    return y


def data(n=10_000, steps=30, seed=0):
    """Simulated slopes, levels and measurements, ``{"slope_0": [n], "level_0": [n], "y_0": [n], ...}``."""
    noise = torch.randn(steps, 3, n, generator=torch.Generator().manual_seed(seed))
    slope, level = 0.1 * noise[0, 0], noise[0, 1]
    series = {}
    for t in range(steps):
        if t:
            slope, level = slope + SLOPE * noise[t, 0], level + slope + LEVEL * noise[t, 1]
        series |= {f"slope_{t}": slope, f"level_{t}": level, f"y_{t}": level + MEASUREMENT * noise[t, 2]}
    return series
