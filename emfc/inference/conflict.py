"""Where the prior and the data contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from emfc.layers.structured import StructuredLayer

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["CONFLICT", "conflicts"]

CONFLICT = 4.0
"""Distance, in standard deviations of the prior, from which the prior is said to contradict the data."""

_MOST_DRAWS = 1000


def conflicts(posterior: Posterior) -> dict[str, float]:
    """Sites whose posterior lies far out in their own prior, given the sites that the prior depends on.

    The program's transform takes draws of the posterior to noise that is standard normal under the prior; the distance
    is that of the noise's posterior mean from 0.

    Args:
        posterior: The posterior.

    Returns:
        Largest distance of each site's elements, in prior standard deviations, where it is 4 or more.
    """
    program = posterior.flow.layer.program
    layer = StructuredLayer(program).to(dtype=posterior.draws.dtype, device=posterior.draws.device)
    named = posterior.flow.layer.program.parameters
    layer.set_values(
        {held.name: posterior.parameters[held.name] for held in named if held.name in posterior.parameters}
    )
    with torch.no_grad():
        noise = layer().inv(posterior.draws[:_MOST_DRAWS])
    weights = posterior.weights[:_MOST_DRAWS].to(noise)
    mean = torch.einsum("s,sn->n", weights / weights.sum(), noise).abs()
    found = {}
    for index in layer.plan.example:
        site = layer.program.sites[index]
        start = layer.plan.noise[index]
        held = mean[start : start + site.noise_size]
        if site.name not in posterior.improper and len(held) and float(held.max()) >= CONFLICT:
            found[site.name] = float(held.max())
    return found
