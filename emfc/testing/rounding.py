"""The round trip of noise, and how much of its error the rounding of the values explains."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from emfc.transforms import NormalTransform
from emfc.transforms.base import IndependentNormal

__all__ = ["BOUNDS", "free_elements", "jacobian", "round_trip_errors", "rounding_of", "ulp"]

BOUNDS = {torch.float32: 2e-4, torch.float64: 1e-9}


def ulp(value: Tensor) -> Tensor:
    """Distance of each number from the next one away from zero."""
    size = value.detach().abs()
    return torch.nextafter(size, torch.full_like(size, math.inf)) - size


def round_trip_errors(transform: NormalTransform, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Values, errors of noise -> value -> noise, and what is permitted, per element of the noise.

    Permitted is :math:`2 \cdot 10^{-4}` (float32) or :math:`10^{-9}` (float64) times :math:`\max(1, |e|)`, or what the
    rounding of the value explains.

    Args:
        transform: Any.
        noise: Independent examples, of the full batch shape.
    """
    with torch.no_grad():
        value, _ = transform.call_and_ladj(noise)
        back, _ = transform.inverse_and_ladj(value)
        error = (back - noise).abs().double()
        allowed = BOUNDS[noise.dtype] * noise.abs().clamp(min=1).double()
    if bool((error <= allowed).all()):
        return value, error, allowed
    return value, error, torch.maximum(allowed, rounding_of(transform, noise, value))


def rounding_of(transform: NormalTransform, noise: Tensor, value: Tensor) -> Tensor:
    """What four units in the last place of the values are in noise; for vectors by the Jacobians of both directions.

    It is infinite for a number next to an end of the support, which stands for every value that would round onto it.
    """
    coarse = torch.where(_beside_an_end(transform, value), math.inf, 4 * ulp(value).double())
    single: NormalTransform = transform
    while isinstance(single, IndependentNormal):
        single = single.base
    if single.domain.event_dim == 0:
        with torch.no_grad():
            return coarse / single.call_and_ladj(noise)[1].double().exp()
    return _vector_rounding(transform, noise, value, coarse)


def _beside_an_end(transform: NormalTransform, value: Tensor) -> Tensor:
    """True for elements whose neighbour is an end of the support, or that are as small as such elements get."""
    codomain = transform.codomain
    inner = getattr(codomain, "base_constraint", codomain)
    found = torch.zeros_like(value, dtype=torch.bool)
    for name in ("lower_bound", "upper_bound"):
        end = getattr(inner, name, None)
        if end is not None:
            bound = torch.as_tensor(end, dtype=value.dtype, device=value.device)
            found = found | (torch.nextafter(value.detach(), bound) == bound)
    tiny = torch.finfo(value.dtype).tiny
    if isinstance(codomain, type(constraints.simplex)):
        found = value <= tiny
    if isinstance(codomain, (type(constraints.corr_cholesky), type(constraints.lower_cholesky))):
        found = torch.diag_embed(value.diagonal(dim1=-2, dim2=-1) <= tiny)
    return found


def free_elements(transform: NormalTransform, event: Size, count: int) -> Tensor | None:
    """Which elements of a flat value are its coordinates in a density; None where that is not known."""
    every = torch.arange(event.numel())
    codomain = transform.codomain
    if event.numel() == count:
        return every
    if isinstance(codomain, type(constraints.simplex)):
        return every[:-1]
    triangles = {
        type(constraints.corr_cholesky): -1,
        type(constraints.lower_cholesky): 0,
        type(constraints.positive_definite): 0,
    }
    if type(codomain) in triangles and len(event) == 2:
        return every.reshape(event)[tuple(torch.tril_indices(*event, triangles[type(codomain)]))]
    return None


def jacobian(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, dims: int, value_dims: int, places: Tensor | None
) -> Tensor:
    """Jacobians of independent examples, [..., value element, input element], of the chosen elements of the value."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        flat = function(leaf)[0].flatten(-value_dims)
        wanted = range(flat.shape[-1]) if places is None else places.tolist()
        rows = [torch.autograd.grad(flat[..., place].sum(), leaf, retain_graph=True)[0] for place in wanted]
    return torch.stack([row.flatten(-dims) for row in rows], -2)


def _vector_rounding(transform: NormalTransform, noise: Tensor, value: Tensor, coarse: Tensor) -> Tensor:
    dims, value_dims = transform.domain.event_dim, transform.codomain.event_dim
    flat = coarse.flatten(-value_dims).unsqueeze(-1).clamp(max=1e300)  # 0 times infinity is 0 here
    back = jacobian(transform.inverse_and_ladj, value, value_dims, dims, None).double()
    rounding = (back.abs() @ flat).squeeze(-1)
    count = noise.shape[noise.dim() - dims :].numel()
    places = free_elements(transform, value.shape[value.dim() - value_dims :], count)
    if places is not None:  # where the map bends within the rounding, the slopes at the noise differ
        ahead = jacobian(transform.call_and_ladj, noise, dims, value_dims, places).double()
        inverse = torch.linalg.inv_ex(ahead)[0].abs() @ flat[..., places.to(flat.device), :]
        rounding = torch.maximum(rounding, inverse.squeeze(-1).nan_to_num(nan=math.inf))
    return rounding.reshape(noise.shape)
