"""Neal's funnel: the logarithm of a variance, and coordinates of that variance.

v ~ N(0, 3) (standard deviation), x_i ~ N(0, exp(v / 2)) for nine coordinates. Its neck is narrower than most samplers
and flows can follow; as a program it is two lines.

Source: R. Neal, "Slice sampling", Annals of Statistics 31 (2003), section 8.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

WIDTH = 3.0


def model(coordinates=9):
    """Draws ``v`` and the coordinates ``x``."""
    v = pyro.sample("v", dist.Normal(0.0, WIDTH))
    with pyro.plate("coordinates", coordinates):
        return pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))


def data(n=10_000, coordinates=9, seed=0):
    """Draws of the funnel, ``{"v": [n], "x": [n, coordinates]}``."""
    noise = torch.randn(n, 1 + coordinates, generator=torch.Generator().manual_seed(seed))
    v = WIDTH * noise[:, 0]
    return {"v": v, "x": torch.exp(v / 2)[:, None] * noise[:, 1:]}
