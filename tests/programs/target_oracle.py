"""What Pyro itself says of a model's latent sites and its data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

__all__ = ["enumerated_log_joint", "log_joint"]


def _trace(model: Any, args: Any, kwargs: Any, latents: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Any:
    held = poutine.substitute(model, data=dict(parameters))
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        trace = poutine.trace(pyro.condition(held, data=dict(latents))).get_trace(*args, **kwargs)
        trace.compute_log_prob()
    return trace


def log_joint(
    model: Any, args: Any, kwargs: Any, latents: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> Tensor:
    """Pyro's ``log_prob_sum`` at values of all continuous latent sites; discrete ones are summed over, one by one."""
    trace = _trace(model, args, kwargs, latents, parameters)
    free = {
        name: trace.nodes[name]
        for name in trace.stochastic_nodes
        if name not in latents and type(trace.nodes[name]["fn"]).__name__ != "_Subsample"
    }
    if not free:
        return trace.log_prob_sum()
    grids = [itertools.product(range(_levels(site["fn"])), repeat=site["value"].numel()) for site in free.values()]
    found = []
    for choice in itertools.product(*grids):
        values = {
            name: torch.tensor(levels, dtype=site["value"].dtype).reshape(site["value"].shape)
            for (name, site), levels in zip(free.items(), choice, strict=True)
        }
        found.append(_trace(model, args, kwargs, {**latents, **values}, parameters).log_prob_sum())
    return torch.stack(found).logsumexp(0)


def _levels(distribution: Any) -> int:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return len(distribution.enumerate_support(expand=False))


def enumerated_log_joint(model: Any, args: Any, kwargs: Any, latents: Mapping[str, Tensor]) -> Tensor:
    """The same by Pyro's `TraceEnum_ELBO`, for models that it accepts."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        held = config_enumerate(pyro.condition(model, data=dict(latents)))
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        return torch.tensor(-elbo.loss(held, lambda *_, **__: None, *args, **kwargs))
