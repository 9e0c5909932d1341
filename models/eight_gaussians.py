"""Eight Gaussians on a ring, a mixture in the plane for pictures.

The data are the "8gaussians" of the normalizing-flow literature: centres at radius 4 every 45 degrees, standard
deviation 0.5, all divided by 1.414. The program draws one of eight populations and then a point of it; weights,
centres and spreads are learned, and start on a ring that is too small. The population is a latent discrete site that
is summed out. The best possible expected negative log likelihood is 2.832 nats.

`by_dimension` is the paper's program: each coordinate has a mixture of its own, with components on a grid.

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


def by_dimension(components=100, width=4.0, scale=1.0):
    """The paper's program for toys: every dimension by itself a mixture of many Gaussians on a grid.

    Args:
        components: Number of Gaussians in each dimension.
        width: Largest of their centres, which start on a grid around zero.
        scale: Their standard deviation in the beginning.
    """
    logits = pyro.param("logits", lambda: torch.zeros(2, components))
    locs = pyro.param("locs", lambda: torch.linspace(-width, width, components).repeat(2, 1))
    scales = pyro.param("scales", lambda: torch.full((2, components), scale), constraint=constraints.positive)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, scales))
    return pyro.sample("x", mixture.to_event(1))


def start_by_dimension(data, components=100, *, steps=5, rows=10_000):
    """Starting values of the mixtures, from training points.

    Components sit at equally many points each, as wide as their distance, and are moved by expectation maximisation, in
    which each has a point of prior weight so that none is lost.

    Args:
        data: ``{"x": [n, 2]}``.
        components: Number of components, as given to the program.
        steps: Steps of expectation maximisation.
        rows: Points that are used at most.

    Returns:
        Parameter name -> constrained value.
    """
    x = torch.as_tensor(data["x"])[:rows].T
    shares = (torch.arange(components, dtype=x.dtype, device=x.device) + 0.5) / components
    locs = torch.quantile(x, shares, dim=1).T.contiguous()
    widest = x.std(1, keepdim=True)
    width = (locs[:, -1:] - locs[:, :1]) / components
    scales = width.expand_as(locs).clamp(min=1e-6)
    weights = torch.full_like(locs, 1 / components)
    for _ in range(steps):
        joint = dist.Normal(locs[:, None], scales[:, None]).log_prob(x[..., None]) + weights[:, None].log()
        given = joint.softmax(-1)
        mass = given.sum(1)
        moved = (torch.einsum("dnk,dn->dk", given, x) + locs) / (mass + 1)
        spread = (
            torch.einsum("dnk,dnk->dk", given, (x[..., None] - moved[:, None]) ** 2) + width**2 + (moved - locs) ** 2
        )
        weights = (mass + 1) / (x.shape[1] + components)
        locs, scales = moved, (spread / (mass + 1)).sqrt().clamp(max=widest)
    return {"logits": weights.log(), "locs": locs, "scales": scales}


def log_density(x):
    """Log density ``[*]`` of the distribution that the data come from, at points ``[*, 2]``."""
    centres = ring(8, RADIUS).to(x)
    return dist.Normal(centres, SPREAD).log_prob(x[..., None, :]).sum(-1).logsumexp(-1) - math.log(8)


def data(n=10_000, seed=0):
    """Points of the eight Gaussians, ``{"x": [n, 2]}``."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(8, (n,), generator=generator)
    return {"x": ring(8, RADIUS)[centre] + SPREAD * torch.randn(n, 2, generator=generator)}
