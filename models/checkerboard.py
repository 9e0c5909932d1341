"""A checkerboard, points in the plane for pictures.

The data are the "checkerboard" of the normalizing-flow literature: uniform on every other square of four by four, each
of side 2, around zero. The program is the paper's for toys: every coordinate has a mixture of Gaussians of its own,
with learned weights, centres and spreads that start on a grid; it knows nothing of the squares. The best possible
expected negative log likelihood is the logarithm of the area, 3.466 nats; that of the program by itself 4.159.

Source of the data: W. Grathwohl et al., "FFJORD", ICLR 2019, arXiv 1810.01367; of the program: G. Silvestri, E. Fertig,
D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

AREA = 32.0


def model(components=100, width=4.0, scale=1.0):
    """Draws one point of the plane; every dimension is by itself a mixture of many Gaussians on a grid.

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


by_dimension = model


def start(data, components=100, *, steps=5, rows=10_000):
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
    column, row = (x / 2).floor().unbind(-1)
    inside = ((x >= -4) & (x < 4)).all(-1) & ((column + row) % 2 == 0)
    return torch.where(inside, torch.zeros_like(column) - math.log(AREA), -math.inf)


def data(n=10_000, seed=0):
    """Points of the checkerboard, ``{"x": [n, 2]}``."""
    generator = torch.Generator().manual_seed(seed)
    column = 4 * torch.rand(n, generator=generator) - 2
    row = torch.rand(n, generator=generator) - 2 * torch.randint(2, (n,), generator=generator) + column.floor() % 2
    return {"x": 2 * torch.stack([column, row], -1)}
