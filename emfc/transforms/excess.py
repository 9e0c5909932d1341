"""What lies beyond an end far out in a tail, by the distance from that end, so that nothing large cancels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from emfc.special.normal import log1mexp
from emfc.special.precision import eager
from emfc.transforms.dispatch import class_dispatch
from emfc.transforms.family import ScalarFamily
from emfc.transforms.interval import RULE
from emfc.transforms.moved import AffineFamily
from emfc.transforms.scalar import Exponential, HalfNormal, Laplace, Logistic, Normal
from emfc.transforms.supports import Position

__all__ = ["Excess", "excess", "knows_excess", "log_within"]

_SHORT = 0.125  # fall of the log of a tail below which the density is integrated
_FAR = {torch.float32: 8.0, torch.float64: 30.0}  # where the asymptotic series takes over


class Excess(NamedTuple):
    """Log density and log tail at a distance beyond an end, both less those at the end, and the log hazard there."""

    log_density: Tensor
    log_tail: Tensor
    log_hazard: Tensor


@class_dispatch
def excess(family: ScalarFamily, end: Position, distance: Tensor, upward: bool) -> Excess:
    """How density and tail fall from an end outwards.

    Args:
        family: One of those that `knows_excess` names.
        end: Positions in the tail; elsewhere the result is finite and means nothing.
        distance: From the end, outwards, not negative.
        upward: Whether the tail is the upper one.

    Raises:
        TypeError: If the family has no such form.
    """
    raise TypeError(f"{type(family).__name__} has no tail by the distance from an end.")


def knows_excess(family: ScalarFamily, *, upward: bool) -> bool:
    """Whether `excess` is known: of families with light tails that have closed forms."""
    if type(family) is AffineFamily:
        return family.increasing is not None and knows_excess(family.base, upward=upward is family.increasing)
    return type(family) in (Normal, Laplace, Logistic) or (upward and type(family) in (Exponential, HalfNormal))


def log_within(family: ScalarFamily, end: Position, distance: Tensor, upward: bool) -> Tensor:
    """Log of the share of the tail beyond an end that lies within a distance of it.

    By the tail at that distance; over a short one, where that is nearly 1, by the integral of the density.

    Source: Gauss-Legendre quadrature, DLMF 3.5.15.
    """
    tiny = torch.finfo(distance.dtype).tiny
    known = excess(family, end, distance, upward)
    short = -known.log_tail < _SHORT
    direct = log1mexp(torch.where(short, -1, known.log_tail).clamp(max=-tiny))
    if eager() and not bool(short.any()):
        return direct
    width = torch.where(short, distance.clamp(min=tiny), tiny)
    place, weight = torch.tensor(RULE, dtype=width.dtype, device=width.device).T
    rank = max(known.log_tail.dim(), width.dim())
    place, weight = (part.reshape(-1, *(1,) * rank) for part in (place, weight))
    terms = weight.log() + excess(family, end, width * place, upward).log_density
    return torch.where(short, width.log() + known.log_hazard + torch.logsumexp(terms, 0), direct)


def _log_mills(z: Tensor) -> Tensor:
    r""":math:`\log(\Phi(-z) / \phi(z))` for z of at least 1, with accurate derivatives. Source: DLMF 7.12.1."""
    limit = _FAR[z.dtype]
    near = torch.log(math.sqrt(0.5 * math.pi) * torch.special.erfcx(math.sqrt(0.5) * z.clamp(max=limit)))
    far = z.clamp(min=limit)
    r = 1 / (far * far)
    series = 1 - r * (1 - r * (3 - r * (15 - r * (105 - r * (945 - r * 10395)))))
    return torch.where(z > limit, series.log() - far.log(), near)


def _normal(z: Tensor, d: Tensor) -> Excess:
    """The standard normal beyond z of at least 1."""
    largest = torch.finfo(z.dtype).max ** 0.5 / 4
    z, d = z.clamp(1, largest), d.clamp(max=largest)
    fall, ratio = -d * (z + 0.5 * d), _log_mills(z)
    return Excess(fall, fall + (_log_mills(z + d) - ratio), -ratio)


def _exponential(z: Tensor, d: Tensor) -> Excess:
    """The standard exponential, which forgets where it is."""
    fall = -d.clamp(max=torch.finfo(d.dtype).max / 16)
    fall = fall + torch.zeros_like(z)
    return Excess(fall, fall, torch.zeros_like(z))


def _logistic(z: Tensor, d: Tensor) -> Excess:
    """The standard logistic beyond z of at least 0."""
    z, d = z.clamp(min=0), d.clamp(max=torch.finfo(d.dtype).max / 16)
    own = torch.log1p(torch.exp(-z))
    rise = own - torch.log1p(torch.exp(-z - d))
    return Excess(2 * rise - d, rise - d, -own)


def _scaled(result: Excess, scale: Tensor) -> Excess:
    return result._replace(log_hazard=result.log_hazard - scale.log())


@excess.register
def _normal_excess(family: Normal, end: Position, distance: Tensor, upward: bool) -> Excess:
    z = (end.value - family.loc if upward else family.loc - end.value) / family.scale
    return _scaled(_normal(z, distance / family.scale), family.scale)


@excess.register
def _half_normal_excess(family: HalfNormal, end: Position, distance: Tensor, upward: bool) -> Excess:
    return _scaled(_normal(end.value / family.scale, distance / family.scale), family.scale)


@excess.register
def _laplace_excess(family: Laplace, end: Position, distance: Tensor, upward: bool) -> Excess:
    z = (end.value - family.loc if upward else family.loc - end.value) / family.scale
    return _scaled(_exponential(z, distance / family.scale), family.scale)


@excess.register
def _logistic_excess(family: Logistic, end: Position, distance: Tensor, upward: bool) -> Excess:
    z = (end.value - family.loc if upward else family.loc - end.value) / family.scale
    return _scaled(_logistic(z, distance / family.scale), family.scale)


@excess.register
def _exponential_excess(family: Exponential, end: Position, distance: Tensor, upward: bool) -> Excess:
    result = _exponential(family.rate * end.value, family.rate * distance)
    return result._replace(log_hazard=result.log_hazard + family.rate.log())


@excess.register
def _affine_excess(family: AffineFamily, end: Position, distance: Tensor, upward: bool) -> Excess:
    scale = torch.as_tensor(family.scale, dtype=distance.dtype, device=distance.device).abs()
    inner = family.inner(end)
    return _scaled(excess(family.base, inner, distance / scale, upward is family.increasing), scale)
