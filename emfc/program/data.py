"""Data of a variational target against the supports of their distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from emfc.program.constraint import element_constraint
from emfc.program.specification import support_text, unwrapped

__all__ = ["outside_support"]

_WITH_GAPS = (dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal)


def outside_support(
    distribution: Distribution, value: Tensor, random: Callable[[Tensor], bool], masks: Sequence[Any]
) -> tuple[float, str] | None:
    """The first of some data that lies outside the support of its distribution, and that support in words.

    None where there is none, where the support depends on random values, or where it is one of vectors or matrices as a
    whole, whose last digits matter. What is masked does not count.

    Args:
        distribution: Of the data.
        value: The data, in the distribution's full shape.
        random: Whether a tensor depends on random values.
        masks: Masks from outside of the distribution.
    """
    inner: Any = unwrapped(distribution)
    if isinstance(inner, _WITH_GAPS):
        return None
    try:
        support = inner.support
        scalar = element_constraint(support)
        if scalar.event_dim or any(random(bound) for bound in _bounds(scalar)):
            return None
        inside = support.check(value)
        if value.is_floating_point() and not scalar.is_discrete:
            inside = inside & value.isfinite()
    except (NotImplementedError, AttributeError, RuntimeError, ValueError, TypeError):
        return None
    counts = torch.ones_like(inside)
    held: Any = distribution
    outer = [(mask, len(held.event_shape)) for mask in masks]
    while held is not inner and hasattr(held, "base_dist"):
        if isinstance(held, MaskedDistribution):
            outer.append((held._mask, len(held.event_shape)))
        held = held.base_dist
    for mask, events in outer:
        own = torch.as_tensor(mask)
        counts = counts & own.reshape(tuple(own.shape) + (1,) * (events - len(inner.event_shape)))
    bad = ~inside & counts
    if not bool(bad.any()):
        return None
    first = value[bad].reshape(-1)[0]
    return float(first), support_text(support)


def _bounds(support: constraints.Constraint) -> list[Tensor]:
    held = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return [bound for bound in held if isinstance(bound, Tensor)]
