"""Transforms of distributions that wrap another: independent, expanded, masked, transformed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TransformedDistribution as PyroTransformed
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.transforms import ComposeTransform, ExpTransform, SigmoidTransform, Transform

from emfc.special.precision import wide
from emfc.transforms.base import BroadcastNormal, IndependentNormal, NormalTransform, sum_rightmost
from emfc.transforms.family import CDFTransform, ScalarFamily
from emfc.transforms.moved import TransformedFamily, affine_family
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, nearest_families, scalar_family
from emfc.transforms.supports import (
    Interval,
    LowerBounded,
    RealLine,
    SupportMap,
    support_map,
    unconstrained_map,
)

__all__ = ["ThroughMap", "TransformedNormal"]


class ThroughMap(NormalTransform):
    r"""A transform followed by the inverse of its support's constraint map: real to real."""

    def __init__(self, base: NormalTransform) -> None:
        super().__init__()
        self.base = base
        self.map = unconstrained_map(base.codomain)
        self.domain = self.codomain = base.domain
        self.unit = 0.0 if isinstance(self.map, RealLine) else 1.0

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unconstrained draw and log-Jacobian of noise."""
        value, ladj = self.base.call_and_ladj(x)
        coordinate, stretch = self.map.inverse_and_ladj(value)
        return coordinate, ladj + stretch

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of an unconstrained value."""
        value, stretch = self.map.call_and_ladj(y)
        noise, ladj = self.base.inverse_and_ladj(value)
        return noise, ladj + stretch

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self


class TransformedNormal(NormalTransform):
    """A transform followed by other bijections; a decreasing elementwise chain is fed mirrored noise.

    With the mirror the map from noise to draws increases, as the transform by distribution functions does.
    """

    def __init__(self, base: NormalTransform, chain: Sequence[Transform], support: constraints.Constraint) -> None:
        super().__init__()
        self.base, self.chain = base, tuple(chain)
        composed = ComposeTransform(list(chain))
        self.event_dims = max(base.domain.event_dim, composed.domain.event_dim)
        self.codomain = support
        self.domain = constraints.independent(constraints.real, self.event_dims) if self.event_dims else base.domain
        self.discrete = False
        elementwise = all(part.domain.event_dim == part.codomain.event_dim == 0 for part in self.chain)
        self.mirror: int | Tensor = 1
        if elementwise:
            for part in self.chain:
                self.mirror = self.mirror * part.sign
        self.scalar_map = _scalar_map(support) if elementwise else None

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw, strictly inside the support, and log-Jacobian of noise."""
        value, ladj = self.base.call_and_ladj(wide(x) * self.mirror)
        ladj = sum_rightmost(ladj, self.event_dims - self.base.domain.event_dim)
        for part in self.chain:
            after = part(value)
            ladj = ladj + sum_rightmost(
                part.log_abs_det_jacobian(value, after), self.event_dims - part.domain.event_dim
            )
            value = after
        return self._inside(value, smallest=True), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        y = wide(y)
        finite = torch.isfinite(y)
        inside = self.codomain.check(y) & (finite.flatten(-self.event_dims).all(-1) if self.event_dims else finite)
        value = self._inside(y, smallest=False)
        total: Tensor | None = None
        for part in reversed(self.chain):
            before = part.inv(value)
            ladj = sum_rightmost(part.log_abs_det_jacobian(before, value), self.event_dims - part.domain.event_dim)
            total = ladj if total is None else total + ladj
            value = before
        noise, ladj = self.base.inverse_and_ladj(value)
        ladj = sum_rightmost(ladj, self.event_dims - self.base.domain.event_dim)
        if total is not None:
            ladj = ladj - total
        return noise * self.mirror, torch.where(inside, ladj, -torch.inf)

    def unconstrained(self) -> NormalTransform:
        """The chain without a last step that is the constraint map itself; otherwise the general way."""
        last = self.chain[-1] if self.chain else None
        exp = isinstance(last, ExpTransform) and isinstance(self.scalar_map, LowerBounded)
        sigmoid = isinstance(last, SigmoidTransform) and isinstance(self.scalar_map, Interval)
        if exp or sigmoid:
            rest = self.chain[:-1]
            if not rest:
                return self.base
            real = constraints.independent(constraints.real, self.event_dims) if self.event_dims else constraints.real
            return TransformedNormal(self.base, rest, real)
        return super().unconstrained()

    def _inside(self, value: Tensor, *, smallest: bool) -> Tensor:
        return value if self.scalar_map is None else self.scalar_map.nearest(value, smallest=smallest)

    def __repr__(self) -> str:
        return f"TransformedNormal({self.base!r}, {list(self.chain)})"


def _scalar_map(support: constraints.Constraint) -> SupportMap | None:
    """The map of one element's support; None where it has none."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    try:
        return support_map(support)
    except UnsupportedFamilyError:
        return None


def _check_chain(dist: td.TransformedDistribution) -> list[Transform]:
    name = type(dist).__name__
    if type(dist) not in (td.TransformedDistribution, PyroTransformed):
        raise UnsupportedFamilyError(
            f"{name} has no exact transform from normal noise; the nearest supported families are "
            f"{', '.join(nearest_families(type(dist)))}."
        )
    chain = list(dist.transforms)
    for part in chain:
        if not part.bijective or part.domain.event_dim != part.codomain.event_dim:
            raise UnsupportedFamilyError(
                f"{name} through {type(part).__name__} has no transform, for that is no bijection between spaces of "
                "one dimension; the nearest supported are ExpTransform, SigmoidTransform and AffineTransform."
            )
    return chain


@from_normal.register(td.Independent)
def _independent(dist: td.Independent[td.Distribution]) -> NormalTransform:
    return IndependentNormal(from_normal(dist.base_dist), dist.reinterpreted_batch_ndims)


@from_normal.register(ExpandedDistribution)
def _expanded(dist: ExpandedDistribution) -> NormalTransform:
    return BroadcastNormal(from_normal(dist.base_dist), dist.batch_shape, dist.event_shape)


@scalar_family.register(ExpandedDistribution)
def _expanded_family(dist: ExpandedDistribution) -> ScalarFamily:
    return scalar_family(dist.base_dist).expand(dist.batch_shape)


def _unmasked(dist: MaskedDistribution) -> td.Distribution:
    mask = dist._mask
    if mask is True or (isinstance(mask, Tensor) and bool(mask.all())):
        base: td.Distribution = dist.base_dist
        return base
    raise UnsupportedFamilyError(
        "MaskedDistribution with masked elements has no normalised density to transform to; "
        "the nearest supported is its base distribution, unmasked."
    )


@from_normal.register(MaskedDistribution)
def _masked(dist: MaskedDistribution) -> NormalTransform:
    return from_normal(_unmasked(dist))


@scalar_family.register(MaskedDistribution)
def _masked_family(dist: MaskedDistribution) -> ScalarFamily:
    return scalar_family(_unmasked(dist))


@from_normal.register(td.TransformedDistribution)
def _transformed(dist: td.TransformedDistribution) -> NormalTransform:
    chain, base = _check_chain(dist), from_normal(dist.base_dist)
    if isinstance(base, CDFTransform):
        affine = affine_family(base.family, chain, dist.batch_shape)
        if affine is not None:
            return CDFTransform(affine)
    return TransformedNormal(base, chain, dist.support)


@scalar_family.register(td.TransformedDistribution)
def _transformed_family(dist: td.TransformedDistribution) -> ScalarFamily:
    chain = _check_chain(dist)
    if len(dist.event_shape) > 0:
        raise UnsupportedFamilyError(f"{type(dist).__name__} of vectors is not a univariate family.")
    base = scalar_family(dist.base_dist)
    return affine_family(base, chain, dist.batch_shape) or TransformedFamily(base, chain, dist.batch_shape)
