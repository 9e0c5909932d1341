"""The log density of one site at its value: a term of a sum over sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from emfc.layers.kernel import Kernel
from emfc.program.ir import Specification
from emfc.program.specification import build, event_dim
from emfc.special.precision import wide
from emfc.transforms import CDFTransform, NormalTransform, UnsupportedFamilyError, from_normal
from emfc.transforms.affine import SupportedNormal
from emfc.transforms.base import BroadcastNormal, IndependentNormal, sum_rightmost

__all__ = ["log_density", "mixed_terms", "site_log_density"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_density(transform: NormalTransform, value: Tensor) -> Tensor:
    """Log density of a transform's draws at some values, -inf outside the support; event dimensions are summed."""
    if isinstance(transform, IndependentNormal):
        return sum_rightmost(log_density(transform.base, value), transform.dims)
    if isinstance(transform, BroadcastNormal):
        shape = transform.batch_shape + transform.event_shape
        return log_density(transform.base, value.expand(torch.broadcast_shapes(value.shape, shape)))
    if type(transform) is CDFTransform:
        family, value = transform.family, wide(value)
        if family.support_map.surely_contains(value):
            return family.log_density(family.support_map.place(value))
        return family.log_prob(value)
    if type(transform) is SupportedNormal:
        coordinate, stretch = transform.map.inverse_and_ladj(value)
        return log_density(transform.core, coordinate) + stretch
    noise, ladj = transform.inverse_and_ladj(value)
    events = transform.domain.event_dim
    if not events:
        return torch.addcmul(ladj - _HALF_LOG_TWO_PI, noise, noise, value=-0.5)
    count = math.prod(noise.shape[noise.ndim - events :])
    return torch.add(ladj - count * _HALF_LOG_TWO_PI, sum_rightmost(noise * noise, events), alpha=-0.5)


def site_log_density(
    held: Specification, parameters: Mapping[str, Tensor], value: Tensor, prefix: str = "", *, given: bool = False
) -> Tensor:
    """Log density of values under the distribution of a site, event dimensions summed.

    Args:
        held: The distribution, or what `emfc.program.adjusted` made of it.
        parameters: Its parameters by dotted path.
        value: Values ``[B, n, *shape]``.
        prefix: Path of the distribution.
        given: Whether the values are data: they may lie on the edge of the support, and are whole numbers where the
            distribution is discrete; those of latent sites are dequantised.

    Raises:
        KeyError: The distribution cannot be made again from its parameters.
    """
    if held.family == "Factor":
        return parameters[prefix + "log_factor"]
    if held.family == "Adjusted":
        return _adjusted(held, parameters, value, prefix, given=given)
    distribution = build(held, parameters, prefix)
    return _of_data(distribution, value) if given else log_density(from_normal(distribution), value)


def _of_data(distribution: Distribution, value: Tensor) -> Tensor:
    """Log density of data: torch's own where the values are discrete, parts of a whole, or not surely inside."""
    if not _plain(distribution):
        return _own_log_prob(distribution, value)
    try:
        transform = from_normal(distribution)
    except UnsupportedFamilyError:
        return _own_log_prob(distribution, value)
    if type(transform) is CDFTransform and not transform.family.support_map.surely_contains(wide(value)):
        return _own_log_prob(distribution, value)
    return log_density(transform, value)


def _own_log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    found: Tensor = distribution.log_prob(value)
    return found


def _plain(distribution: Distribution) -> bool:
    """Whether values are numbers or vectors of independent range, none of them discrete."""
    try:
        support: Any = distribution.support
        return not support.is_discrete and (support.event_dim == 0 or support == constraints.real_vector)
    except (NotImplementedError, AttributeError):
        return False


def _adjusted(
    held: Specification, parameters: Mapping[str, Tensor], value: Tensor, prefix: str, *, given: bool
) -> Tensor:
    base, mask = held.children["base"], parameters.get(f"{prefix}mask")
    given = given or "value" in held.parameters
    value = parameters.get(f"{prefix}value", value)
    if mask is not None and base.family != "Factor":  # what does not count must not make NaN of gradients
        spread = mask.reshape(mask.shape + (1,) * event_dim(base))
        value = torch.where(spread, value, _inside(base, parameters, value, f"{prefix}base."))
    term = site_log_density(base, parameters, value, f"{prefix}base.", given=given)
    if mask is not None:
        term = torch.where(mask, term, 0)
    scale = parameters.get(f"{prefix}scale")
    return term if scale is None else term * scale


def _inside(held: Specification, parameters: Mapping[str, Tensor], value: Tensor, prefix: str) -> Tensor:
    """Some value inside the support."""
    distribution = build(held, {name: tensor.detach() for name, tensor in parameters.items()}, prefix)
    support: Any = distribution.support
    if support.is_discrete:
        return torch.zeros_like(value)
    transform = biject_to(support)
    shape = transform.inverse_shape(value.shape)
    inside: Tensor = transform(value.new_zeros(shape))
    return inside


def mixed_terms(kernel: Kernel, parameters: Mapping[str, Tensor], value: Tensor, count: int, *, given: bool) -> Tensor:
    """Log densities of a mixed class at all joint values of what is summed out, ``[B or 1, n, *shape, K]``.

    That of a vector or matrix stands at its first element, and 0 at the others.

    Args:
        kernel: The class.
        parameters: Its parameters, with a dimension for the joint values behind the batch.
        value: Values ``[B, n, *shape]``.
        count: K.
        given: Whether the values are data.
    """
    held = kernel.held
    events = event_dim(held.specification)
    batch = 2 + len(held.shape) - events
    term = site_log_density(held.specification, parameters, value.unsqueeze(batch), given=given)
    term = term.expand(len(value), len(held.sites), *held.shape[: batch - 2], count)
    if not events:
        return term
    size = math.prod(held.shape[batch - 2 :])
    padded = torch.nn.functional.pad(term.unsqueeze(-2), (0, 0, 0, size - 1))
    return padded.reshape(len(value), len(held.sites), *held.shape, count)
