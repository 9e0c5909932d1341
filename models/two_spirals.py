r"""Two spirals, points in the plane for pictures.

The data are the "2spirals" of the normalizing-flow literature: at angle n = 3 pi sqrt(U), where U is uniform, a point
is (-n cos n + V / 2, n sin n + W / 2) / 3 with uniform V and W, or that point's mirror image through zero, plus noise
of standard deviation 0.1. The program is the paper's for toys: every coordinate has a mixture of Gaussians of its own,
with learned weights, centres and spreads that start on a grid; it knows nothing of the arms. The best possible expected
negative log likelihood is 2.645 nats.

Source of the data: W. Grathwohl et al., "FFJORD", ICLR 2019, arXiv 1810.01367; of the program: G. Silvestri, E. Fertig,
D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

TURN, BLUR, NOISE = 3 * math.pi, 0.5, 0.1


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


def log_density(x, nodes=500):
    """Log density ``[*]`` of the distribution that the data come from, at points ``[*, 2]``.

    The integral over the angle is a sum over ``nodes`` equal parts of U, each at its middle.
    """
    share = (torch.arange(nodes, dtype=x.dtype, device=x.device) + 0.5) / nodes
    arm = _arm(TURN * share.sqrt())
    given = [_blurred(side * x[..., None, :] - arm / 3) for side in (1.0, -1.0)]
    return torch.stack(given, -1).logsumexp((-2, -1)) - math.log(2 * nodes)


def _arm(angle):
    """One spiral at angles ``[*]``, three times as large: ``[*, 2]``."""
    return torch.stack([-angle.cos() * angle, angle.sin() * angle], -1)


def _blurred(distance):
    """Log density ``[*]`` of uniform blur plus noise at distances ``[*, 2]``."""
    far = distance.abs() > 3 * BLUR
    upper, lower = distance / NOISE, (distance - BLUR / 3) / NOISE
    mass = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    return torch.where(far, -math.inf, (mass * 3 / BLUR).log()).sum(-1)


def data(n=10_000, seed=0):
    """Points of the spirals, ``{"x": [n, 2]}``."""
    generator = torch.Generator().manual_seed(seed)
    arm = _arm(TURN * torch.rand(n, generator=generator).sqrt()) + BLUR * torch.rand(n, 2, generator=generator)
    side = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    return {"x": side * arm / 3 + NOISE * torch.randn(n, 2, generator=generator)}
