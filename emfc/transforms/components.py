"""The components of a mixture side by side: which of them, for which elements, and where each one lies."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from emfc.transforms.chains import Chain
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.parts import Part
from emfc.transforms.supports import Bound, Interval, LowerBounded, Position, RealLine, SupportMap, UpperBounded

__all__ = [
    "evaluate_components",
    "locate_in_union",
    "map_parameters",
    "parameters_of",
    "tensors_of",
    "union_of_supports",
]

_PLAIN = (bool, int, float, str, type(None), Size, torch.dtype, torch.device)
_HOLDERS = (ScalarFamily, Chain, Part, Transform, constraints.Constraint)


def _walk(value: Any, function: Callable[[Tensor], Tensor], batch_shape: Size | None) -> Any:
    """A copy of a value in which every tensor is replaced, batch shapes of families too."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, torch.nn.Module) or not isinstance(value, (*_PLAIN, *_HOLDERS, tuple, list, dict)):
        raise TypeError(f"The parameters in {type(value).__name__} are not known.")
    if isinstance(value, (Size, *_PLAIN)):
        return value
    if isinstance(value, dict):
        return {key: _walk(part, function, batch_shape) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_walk(part, function, batch_shape) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    new = copy(value)
    for name, part in vars(value).items():
        if name == "_support_map":
            new.__dict__.pop(name)
        elif name in ("_inv", "__constants__"):
            continue
        elif name == "batch_shape" and isinstance(value, ScalarFamily):
            new.__dict__[name] = part if batch_shape is None else batch_shape
        else:
            new.__dict__[name] = _walk(part, function, batch_shape)
    return new


def tensors_of(family: ScalarFamily) -> tuple[list[Tensor], bool]:
    """The tensors that a family is made of, and whether these are all."""
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        found.append(value)
        return value

    try:
        _walk(family, note, None)
    except TypeError:
        return found, False
    return found, True


def parameters_of(family: ScalarFamily) -> list[Tensor] | None:
    """The tensors that a family is made of; None where they are not simply one number per batch element each.

    A family whose tensors all broadcast against its batch shape can be taken apart along it; that holds of the
    families made from a distribution's parameters, but not of tables.
    """
    found, complete = tensors_of(family)
    if not complete:
        return None
    if type(family.support_map) not in (RealLine, LowerBounded, UpperBounded, Interval):
        return None
    shape = family.batch_shape
    for value in found:
        if value.dim() > len(shape) or not value.is_floating_point():
            return None
        if any(size not in (1, whole) for size, whole in zip(reversed(value.shape), reversed(shape), strict=False)):
            return None
    return found


def map_parameters(family: ScalarFamily, function: Callable[[Tensor], Tensor], batch_shape: Size) -> ScalarFamily:
    """The family with every tensor replaced by the function's result; for those that `parameters_of` knows."""
    new: ScalarFamily = _walk(family, function, batch_shape)
    return new


def _end(bound: Bound | None, dim: int, *, lowest: bool) -> Bound:
    """The outermost of the components' ends."""
    if isinstance(bound, Tensor) and bound.dim() > 0:
        return bound.amin(dim) if lowest else bound.amax(dim)
    return 0.0 if bound is None else bound


def _differ(support: SupportMap) -> bool:
    """Whether the components may have different ends."""
    return any(isinstance(bound, Tensor) and bound.dim() > 0 for bound in (support.low, support.high))


def union_of_supports(support: SupportMap, dim: int) -> SupportMap:
    """The map onto the smallest interval that holds the supports of all components, which lie in dimension `dim`.

    Of the first dimension for the families that `parameters_of` knows.
    """
    if dim == -1:
        return support.union()[0]
    if not _differ(support):
        return support
    low, high = _end(support.low, dim, lowest=True), _end(support.high, dim, lowest=False)
    if isinstance(support, LowerBounded):
        return LowerBounded(constraints.greater_than_eq(low), low)
    if isinstance(support, UpperBounded):
        return UpperBounded(constraints.less_than(high), high)
    return Interval(constraints.half_open_interval(low, high), low, high)


def _beside_components(bound: Bound | None, dim: int) -> Bound:
    """An end of the union, lined up with the components."""
    bound = 0.0 if bound is None else bound
    return bound.unsqueeze(dim) if isinstance(bound, Tensor) and bound.dim() > 0 else bound


def _distance(
    known: Tensor | None, end: Bound | None, outer: Bound | None, value: Tensor, dim: int, side: int
) -> Tensor | None:
    """Signed distance from a component's end, given that from the union's: its number where the two coincide."""
    if end is None:
        return None
    if isinstance(end, Tensor) and end.dim() > 0:
        reached = torch.isfinite(end)
        direct = torch.where(reached, side * (value - torch.where(reached, end, 0)), torch.finfo(value.dtype).max)
    else:
        direct = side * (value - end)
    if known is None:
        return direct
    same = torch.as_tensor(end == _beside_components(outer, dim), device=value.device)
    return torch.where(same, known.detach() + (direct - direct.detach()), direct)


def evaluate_components(component: ScalarFamily, at: Position, union: SupportMap, dim: int) -> Evaluation:
    """Log density and log tails of every component at positions in the mixture's support.

    Outside a component's own support its density is 0 and its tails are 0 and 1.

    Args:
        component: The family, its components in the dimension `dim`.
        at: Positions with their distances from the mixture's ends, which broadcast against the components.
        union: Support of the mixture.
        dim: Dimension of the components, 0 or -1.
    """
    own = component.support_map
    if not _differ(own):
        return component.evaluate(at)
    below = _distance(at.below, own.low, union.low, at.value, dim, 1)
    above = _distance(at.above, own.high, union.high, at.value, dim, -1)
    outside = torch.zeros((), dtype=torch.bool, device=at.value.device)
    under = outside if below is None else below < 0
    over = outside if above is None else above <= 0
    outside = under | over
    value = own.nearest(at.value)
    safe = own.place(value)
    if below is not None and safe.below is not None:
        safe = safe._replace(below=torch.where(outside, safe.below, below))
    if above is not None and safe.above is not None:
        safe = safe._replace(above=torch.where(outside, safe.above, above))
    log_prob, log_cdf, log_sf = component.evaluate(safe)
    nothing = torch.full_like(log_prob, -torch.inf)
    return Evaluation(
        torch.where(outside, nothing, log_prob),
        torch.where(outside, torch.where(over, 0, nothing), log_cdf),
        torch.where(outside, torch.where(under, 0, nothing), log_sf),
    )


def locate_in_union(at: Position, own: SupportMap, union: SupportMap, dim: int) -> Position:
    """Positions in the components' supports as positions in the mixture's."""
    if not _differ(own):
        return at
    below, above = at.below, at.above
    if below is not None and own.low is not None:
        below = below + (own.low - _beside_components(union.low, dim))
    if above is not None and own.high is not None:
        above = above + (_beside_components(union.high, dim) - own.high)
    return Position(at.value, below, above)
