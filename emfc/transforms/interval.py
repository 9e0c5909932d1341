"""Log probability of an interval, exact however narrow it is and however far out in a tail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from emfc.special.legendre import legendre_rule
from emfc.special.normal import log1mexp, log_sum_exp
from emfc.special.precision import eager
from emfc.special.von_mises_mass import von_mises_log_mass
from emfc.transforms.circular import VonMises
from emfc.transforms.components import map_parameters, parameters_of
from emfc.transforms.dispatch import class_dispatch
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.further_parts import PowerPart, ReversedPart, SoftplusPart
from emfc.transforms.mixture import ContinuousMixture
from emfc.transforms.moved import AffineFamily, TransformedFamily
from emfc.transforms.parts import AffinePart, ExpPart, LogitPart, LogPart, Part, SigmoidPart
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.scalar import Laplace
from emfc.transforms.skewed import AsymmetricLaplace
from emfc.transforms.supports import Position

__all__ = ["RULE", "check_mass", "log_mass"]

_SMOOTH_PARTS = (AffinePart, ExpPart, LogitPart, LogPart, PowerPart, SigmoidPart, SoftplusPart)

RULE = legendre_rule(8)
_SHORT = 0.125  # growth of the log of a tail below which an interval is integrated
_NEAR = 0.25  # and its width beside the distance from the support's ends


def _smooth(family: ScalarFamily) -> bool:
    """Whether the density has no kink inside the support."""
    if isinstance(family, (Laplace, AsymmetricLaplace, ContinuousMixture)):
        return False
    base = getattr(family, "base", None)
    return _smooth(base) if isinstance(base, ScalarFamily) else True


def _smooth_part(part: Part) -> bool:
    return _smooth_part(part.part) if isinstance(part, ReversedPart) else isinstance(part, _SMOOTH_PARTS)


def check_mass(family: ScalarFamily, name: str) -> None:
    """Refuse families whose density may be singular inside the support.

    Raises:
        UnsupportedFamilyError: If the family comes from a transform that is not known to be smooth.
    """
    if isinstance(family, TransformedFamily):
        for part in family.chain.parts:
            if not _smooth_part(part):
                raise UnsupportedFamilyError(
                    f"{name} of a TransformedDistribution has no transform with {part!r} in its chain; the nearest "
                    "supported are ExpTransform, SigmoidTransform, AffineTransform and SoftplusTransform."
                )
    for inner in vars(family).values():
        if isinstance(inner, ScalarFamily):
            check_mass(inner, name)


@class_dispatch
def log_mass(
    family: ScalarFamily,
    low: Position,
    high: Position,
    width: Tensor,
    known: tuple[Evaluation | None, Evaluation | None] = (None, None),
) -> Tensor:
    """Log probability of the interval between two positions.

    The difference of the smaller tails in logs, and for a short interval, over which that would cancel, the integral
    of the density.

    Args:
        family: A continuous family.
        low: Lower ends, strictly inside the support.
        high: Upper ends.
        width: Of the intervals, positive, as exact as it is known.
        known: What the family evaluates to at both ends, where that is known.

    Source: Gauss-Legendre quadrature, DLMF 3.5.15.
    """
    return _by_tails(family, low, high, width, known)


def _by_tails(
    family: ScalarFamily,
    low: Position,
    high: Position,
    width: Tensor,
    known: tuple[Evaluation | None, Evaluation | None],
    direct: Tensor | None = None,
) -> Tensor:
    """The difference of the smaller tails in logs, or what is given for it; a short interval by its density."""
    first, last = known[0] or family.evaluate(low), known[1] or family.evaluate(high)
    lower = last.log_cdf < first.log_sf
    larger = torch.where(lower, last.log_cdf, first.log_sf)
    growth = larger - torch.where(lower, first.log_cdf, last.log_sf)
    short = _SHORT if _smooth(family) else 4 * torch.finfo(growth.dtype).eps ** 0.5
    near = growth < short
    for distance in (low.below, high.above):
        if distance is not None:
            near = near & (width <= _NEAR * distance)
    tiny = torch.finfo(growth.dtype).tiny
    if direct is None:
        direct = larger + log1mexp(-torch.where(near, 1, growth).clamp(min=tiny))
    if eager():
        if not bool(near.any()):
            return direct
        if near.dim() == 1 and family.batch_shape == Size(()) and parameters_of(family) is not None:
            index = near.nonzero().squeeze(-1)
            take = _taken(index, len(near))
            some = map_parameters(family, take, Size(()))
            part = _integral(some, _some(low, take), _some(high, take), take(width))
            return direct.expand(near.shape).index_put((index,), part)
    return torch.where(near, _integral(family, low, high, torch.where(near, width, tiny)), direct)


def _taken(index: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    """What takes some of so many elements, and leaves what all share."""
    return lambda value: value[index] if value.dim() == 1 and len(value) == size else value


def _some(at: Position, take: Callable[[Tensor], Tensor]) -> Position:
    below, above = (None if part is None else take(part) for part in (at.below, at.above))
    return Position(take(at.value), below, above)


def _integral(family: ScalarFamily, low: Position, high: Position, width: Tensor) -> Tensor:
    """Log of the density's integral, the nodes in a new first dimension."""
    place, weight = torch.tensor(RULE, dtype=width.dtype, device=width.device).T
    rank = len(torch.broadcast_shapes(family.batch_shape, width.shape, low.value.shape))
    place, weight = (part.reshape(-1, *(1,) * rank) for part in (place, weight))
    at = Position(
        low.value + width * place,
        None if low.below is None else low.below + width * place,
        None if high.above is None else high.above + width * (1 - place),
    )
    tiny = torch.finfo(width.dtype).tiny  # at an end itself there is no width
    return width.clamp(min=tiny).log() + torch.logsumexp(weight.log() + family.log_density(at), 0)


@log_mass.register
def _laplace(family: Laplace, low: Position, high: Position, width: Tensor, known: Any = None) -> Tensor:
    """In closed form, on both sides of the kink."""
    below, above = (low.value - family.loc) / family.scale, (high.value - family.loc) / family.scale
    width = width / family.scale
    left = torch.where(above > 0, (-below).clamp(min=0), width)
    right = torch.where(below < 0, above.clamp(min=0), width)
    sides = [(left, above.clamp(max=0)), (right, -below.clamp(min=0))]
    tiny = torch.finfo(width.dtype).tiny
    parts = []
    for length, nearest in sides:
        some = length > 0
        part = nearest + log1mexp(-torch.where(some, length, 1).clamp(min=tiny))
        parts.append(torch.where(some, part, -torch.inf))
    return log_sum_exp(torch.stack(torch.broadcast_tensors(*parts)), 0) - torch.log(torch.full_like(width, 2))


@log_mass.register
def _von_mises(family: VonMises, low: Position, high: Position, width: Tensor, known: Any = None) -> Tensor:
    """By an integral of its own: on a circle cut open neither tail need be small where little lies between."""
    return von_mises_log_mass(family.loc, family.concentration, low.value, high.value, width)


def _pulled(family: TransformedFamily | AffineFamily, low: Position, high: Position) -> tuple[Position, Position]:
    """Lower and upper place in the base's support."""
    ends = []
    for at in (low, high):
        held = family.inner(at)
        ends.append(held if isinstance(held, Position) else held[0])
    parts = [
        (None, None) if first is None or last is None else family.swap(first, last)
        for first, last in zip(*ends, strict=True)
    ]
    first, last = (Position(*pair) for pair in zip(*parts, strict=True))
    return first, last


@log_mass.register
def _transformed(
    family: TransformedFamily,
    low: Position,
    high: Position,
    width: Tensor,
    known: tuple[Evaluation | None, Evaluation | None] = (None, None),
) -> Tensor:
    """That of the base between the two places there; a short interval by the density."""
    first, last = _pulled(family, low, high)
    return _by_tails(family, low, high, width, known, log_mass(family.base, first, last, last.value - first.value))


@log_mass.register
def _affine(
    family: AffineFamily,
    low: Position,
    high: Position,
    width: Tensor,
    known: tuple[Evaluation | None, Evaluation | None] = (None, None),
) -> Tensor:
    """That of the base between the two places there."""
    if type(family) is not AffineFamily:
        return _by_tails(family, low, high, width, known)
    return log_mass(family.base, *_pulled(family, low, high), width / torch.as_tensor(family.scale).abs())


@log_mass.register
def _mixture(family: ContinuousMixture, low: Position, high: Position, width: Tensor, known: Any = None) -> Tensor:
    """That of the components, unless these have different supports."""
    if not family.same_support:
        return log_mass.dispatch(ScalarFamily)(family, low, high, width)
    parts = log_mass(family.component, low.unsqueeze(), high.unsqueeze(), width.unsqueeze(-1))
    return log_sum_exp(family.log_weights + parts, -1)
