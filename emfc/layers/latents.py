"""What both directions share: gates, the joint values of summed-out sites and their log probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emfc.layers.kernel import Kernel, View
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.program.specification import build
from emfc.transforms import NormalTransform, gated

__all__ = ["Gates", "accumulate", "configured_environment", "latent_log_prob"]


@dataclass(frozen=True, eq=False)
class Gates:
    """Gate values of one call, per element of the noise, or None where the layer has no gates."""

    values: Tensor | None

    def apply(self, transform: NormalTransform, columns: Picker) -> NormalTransform:
        """The transform with its gates, which line up with noise ``[B, *columns.positions.shape]``."""
        if self.values is None:
            return transform
        return gated(transform, columns(self.values)[None])


def accumulate(total: Tensor | None, ladj: Tensor, value: Tensor | None = None) -> Tensor:
    """Add log-Jacobians, summed over all but the first dimension.

    Args:
        total: The sum so far ``[B]``.
        ladj: Log-Jacobians ``[B, ...]``; with `value`, dimensions of size one stand for those of the value, so that one
            number shared by all sites and examples is multiplied instead of summed.
        value: The values ``[B, n, *shape]`` that the log-Jacobian belongs to.
    """
    part = ladj.flatten(1).sum(-1) if ladj.ndim > 1 else ladj
    if value is None:
        return part if total is None else total + part
    sizes = zip(value.shape[1:], ladj.shape[1:], strict=True)
    factor = math.prod(size for size, held in sizes if held == 1)
    if factor != 1:
        part = part * factor
    return part.expand(len(value)) if total is None else total + part


def configured_environment(plan: Plan, plain: Environment) -> Environment:
    """An environment that also holds the joint values of the summed-out sites."""
    table = torch.as_tensor(plan.populations.configurations, dtype=plain.dtype, device=plain.device)
    return Environment(plain.values, plain.parameters, table)


def latent_log_prob(plan: Plan, kernel: Kernel, view: View, configured: Environment) -> Tensor:
    """Log probability of the joint values under summed-out sites, ``[B or 1, n, K]``."""
    if configured.configurations is None:
        raise RuntimeError("summed-out sites need configurations")
    distribution = build(kernel.held.specification, kernel.parameters(configured, view))
    sites = [plan.program.sites[kernel.held.sites[row]] for row in view.rows]
    places = np.searchsorted(plan.layout.latents, [site.start for site in sites])
    chosen = torch.as_tensor(places[:, None] + np.arange(sites[0].size), device=configured.device)
    values = (
        configured.configurations[:, chosen]
        .movedim(0, -1)
        .reshape(len(sites), *kernel.held.shape, len(configured.configurations))
    )
    log_prob: Tensor = distribution.log_prob(values[None])
    count = len(configured.configurations)
    return log_prob.reshape(log_prob.shape[0], len(sites), sites[0].size, count).sum(2)
