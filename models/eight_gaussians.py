"""Eight Gaussians on a ring, a mixture in the plane for pictures.

The data are the "8gaussians" of the normalizing-flow literature: centres at radius 4 every 45 degrees, standard
deviation 0.5, all divided by 1.414. The program draws one of eight populations and then a point of it; weights,
centres and spreads are learned, and start on a ring that is too small. The population is a latent discrete site that
is summed out. The best possible expected negative log likelihood is 2.833 nats.

Source of the data: W. Grathwohl et al., "FFJORD", ICLR 2019, arXiv 1810.01367; of the program by dimension:
G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

RADIUS, SPREAD = 4.0 / 1.414, 0.5 / 1.414


def ring(count, radius):
    """Points on a circle, ``[count, 2]``."""
    angles = torch.arange(count, dtype=torch.get_default_dtype()) * (2 * math.pi / count)
    return radius * torch.stack([angles.cos(), angles.sin()], -1)


def model(populations=8):
    """Draws one point of the plane from one of some round populations."""
    weights = pyro.param("weights", lambda: torch.full((populations,), 1 / populations), constraint=constraints.simplex)
    centres = pyro.param("centres", lambda: ring(populations, 2.0))
    spreads = pyro.param("spreads", lambda: torch.ones(populations), constraint=constraints.positive)
    population = pyro.sample("population", dist.Categorical(weights))
    return pyro.sample("x", dist.Normal(centres[population], spreads[population]).to_event(1))


def by_dimension(components=100):
    """The paper's program for toys: every dimension by itself a mixture of many Gaussians on a grid."""
    logits = pyro.param("logits", lambda: torch.zeros(2, components))
    locs = pyro.param("locs", lambda: torch.linspace(-4.0, 4.0, components).repeat(2, 1))
    scales = pyro.param("scales", lambda: torch.ones(2, components), constraint=constraints.positive)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, scales))
    return pyro.sample("x", mixture.to_event(1))


def data(n=10_000, seed=0):
    """Points of the eight Gaussians, ``{"x": [n, 2]}``."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(8, (n,), generator=generator)
    return {"x": ring(8, RADIUS)[centre] + SPREAD * torch.randn(n, 2, generator=generator)}
