"""Sites of a variational target as data: with their scale, their mask and, where it is computed, their value."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from emfc.program.messenger import RawSite
from emfc.program.specification import Capture, Description, describe, describe_data, unwrapped

__all__ = ["describe_target"]

T = TypeVar("T")


def describe_target(site: RawSite, capture: Capture[T]) -> Description[T]:
    """What a site adds to the log density of a target.

    Its distribution, or that of a `pyro.factor` with the number ``log_factor``, stands as ``base`` in an ``Adjusted``
    where there is a ``scale`` or a ``mask`` for its elements or a computed ``value``.

    Raises:
        CompileError: The distribution of a latent site cannot be written as data (E-NOCDF).
    """
    held: Any = site.distribution
    if site.adjustment == "pyro.factor":
        rank = len(held.batch_shape)
        base = Description("Factor", {"log_factor": capture(held.log_factor, rank)}, {}, {})
    else:
        missing = max(site.value.ndim - len(held.batch_shape + held.event_shape), 0)
        read = describe_data if site.given or site.observed else describe
        base = read(held, capture, missing)
        rank = site.value.ndim - len(unwrapped(held).event_shape)
    dims = 0 if site.adjustment == "pyro.factor" else _inside(held)
    parameters: dict[str, T] = {}
    if site.observed and site.adjustment != "pyro.factor":
        parameters["value"] = capture(site.value, site.value.ndim)
    if not (isinstance(site.scale, (int, float)) and site.scale == 1):
        parameters["scale"] = capture(_aligned(site.scale, dims), rank)
    masks = [_aligned(mask, dims) for mask in site.masks]
    masks += _own_masks(held)
    if masks:
        joint = masks[0]
        for mask in masks[1:]:
            joint = joint & mask
        parameters["mask"] = capture(joint, rank)
    if not parameters:
        return base
    return Description("Adjusted", parameters, {"base": base}, {})


def _inside(distribution: Distribution) -> int:
    """How many dimensions of an event are independent of each other."""
    return len(distribution.event_shape) - len(unwrapped(distribution).event_shape)


def _own_masks(distribution: Distribution) -> list[Tensor]:
    """Masks of the wrappers of a distribution."""
    masks, inner = [], distribution
    while hasattr(inner, "base_dist") and inner is not unwrapped(distribution):
        if isinstance(inner, MaskedDistribution):
            masks.append(_aligned(inner._mask, _inside(inner)))
        inner = inner.base_dist
    return masks


def _aligned(value: Any, dims: int) -> Tensor:
    """A mask or scale of batches as one of their independent elements."""
    held = torch.as_tensor(value)
    return held.reshape(tuple(held.shape) + (1,) * dims)
