"""Radon in houses, partly pooled by county, written as loops over counties and houses.

Counties' effects are alike, effect_j ~ N(mean, spread); the log radon level of house i in county j is
y_i ~ N(effect_j + slope floor_i, noise), where floor_i is 0 in a basement and 1 above it. mean and slope are N(0, 1),
spread and noise half-normal (standard deviations). Levels are part of the example, unless they are given. Which house
is in which county, and on which floor it was measured, is made up.

Source: A. Gelman, J. Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", Cambridge 2007,
chapter 12.
"""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import torch


def houses(counties, count):
    """County and floor of each house."""
    generator = random.Random(0)
    return [(generator.randrange(counties), float(generator.random() < 1 / 6)) for _ in range(count)]


def model(counties=85, count=120, levels=None):
    """Draws the effects of counties and the levels of houses; ``levels`` observes the latter."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    effects = [pyro.sample(f"effect_{j}", dist.Normal(mean, spread)) for j in range(counties)]
    for i, (county, floor) in enumerate(houses(counties, count)):
        seen = None if levels is None else torch.as_tensor(levels[i])
        pyro.sample(f"y_{i}", dist.Normal(effects[county] + slope * floor, noise), obs=seen)


def data(n=10_000, counties=85, count=120, seed=0):
    """Draws of the program, ``{"mean": [n], ..., "effect_0": [n], ..., "y_0": [n], ...}``."""
    noise = torch.randn(4 + counties + count, n, generator=torch.Generator().manual_seed(seed))
    mean, slope, spread, scale = noise[0], noise[1], noise[2].abs(), noise[3].abs()
    effects = mean + spread * noise[4 : 4 + counties]
    drawn = {"mean": mean, "slope": slope, "spread": spread, "noise": scale}
    drawn |= {f"effect_{j}": effect for j, effect in enumerate(effects)}
    for i, (county, floor) in enumerate(houses(counties, count)):
        drawn[f"y_{i}"] = effects[county] + slope * floor + scale * noise[4 + counties + i]
    return drawn
