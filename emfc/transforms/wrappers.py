"""Transforms of distributions that wrap another: independent, expanded, masked, transformed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.transforms import (
    ExpTransform,
    SigmoidTransform,
    Transform,
)

from emfc.special.precision import eager, wide
from emfc.transforms.base import BroadcastNormal, IndependentNormal, NormalTransform, sum_rightmost
from emfc.transforms.correlation import CorrCholeskyMap
from emfc.transforms.family import ScalarFamily
from emfc.transforms.ordered import OrderedMap
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, scalar_family
from emfc.transforms.simplex import SimplexMap
from emfc.transforms.supports import (
    Interval,
    LowerBounded,
    RealLine,
    SupportMap,
    support_map,
    unconstrained_map,
)

__all__ = ["ThroughMap", "TransformedNormal", "scalar_map_of"]


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
        first, change = base.codomain.event_dim, 0
        for part in self.chain:
            first = max(first, part.domain.event_dim - change)
            change += part.codomain.event_dim - part.domain.event_dim
        self.extra = first - base.codomain.event_dim  # dimensions that are one event only because of the chain
        self.dims = [first]
        for part in self.chain:
            self.dims.append(self.dims[-1] + part.codomain.event_dim - part.domain.event_dim)
        self.event_dims = self.dims[-1]
        self.codomain = support
        noise_dims = base.domain.event_dim + self.extra
        self.domain = constraints.independent(constraints.real, noise_dims) if noise_dims else base.domain
        self.discrete = False
        elementwise = all(part.domain.event_dim == part.codomain.event_dim == 0 for part in self.chain)
        self.mirror: int | Tensor = 1
        try:
            for part in self.chain if elementwise else ():
                self.mirror = self.mirror * part.sign
        except NotImplementedError:  # a transform that doesn't tell whether it increases
            self.mirror = 1
        self.scalar_map = scalar_map_of(support) if elementwise else None

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw, strictly inside the support, and log-Jacobian of noise."""
        value, ladj = self.base.call_and_ladj(wide(x) * self.mirror)
        ladj = sum_rightmost(ladj, self.extra)
        value = value.view_as(value)
        for part, dims in zip(self.chain, self.dims, strict=False):
            after = part(value)
            ladj = ladj + sum_rightmost(part.log_abs_det_jacobian(value, after), dims - part.domain.event_dim)
            value = after
        return self._inside(value, smallest=True), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        y = wide(y)
        finite = torch.isfinite(y)
        inside = self.codomain.check(y) & (finite.flatten(-self.event_dims).all(-1) if self.event_dims else finite)
        value = self._inside(y, smallest=False)
        if self.scalar_map is None:
            value = self._replaced(value, inside)
        value = value.view_as(value)  # transforms that keep their last pair would take an old input for the same tensor
        total: Tensor | None = None
        for part, dims in zip(reversed(self.chain), reversed(self.dims[:-1]), strict=True):
            try:
                before = part.inv(value)
            except (KeyError, NotImplementedError) as error:
                raise UnsupportedFamilyError(
                    f"{type(part).__name__} has no inverse, so that values have no noise here; the nearest that has "
                    "one is AffineAutoregressive, AffineCoupling or SplineCoupling."
                ) from error
            ladj = sum_rightmost(part.log_abs_det_jacobian(before, value), dims - part.domain.event_dim)
            total = ladj if total is None else total + ladj
            value = before
        noise, ladj = self.base.inverse_and_ladj(value)
        ladj = sum_rightmost(ladj, self.extra)
        if total is not None:
            ladj = ladj - total
        return noise * self.mirror, torch.where(inside, ladj, -torch.inf)

    def _replaced(self, value: Tensor, inside: Tensor) -> Tensor:
        """Values, with the draw of zero noise instead of those outside the support, which may have no inverse."""
        if eager() and bool(inside.all()):
            return value
        for _ in range(value.dim() - inside.dim()):
            inside = inside.unsqueeze(-1)
        with torch.no_grad():
            middle, _ = self.call_and_ladj(value.new_zeros(self.inverse_shape(value.shape)))
        return torch.where(inside, value, middle)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape that the chain gives noise of this shape."""
        for part in (self.base, *self.chain):
            shape = part.forward_shape(shape)
        return Size(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of noise for values of this shape."""
        for part in (*reversed(self.chain), self.base):
            shape = part.inverse_shape(shape)
        return Size(shape)

    def unconstrained(self) -> NormalTransform:
        """The chain without a last step that is the constraint map itself; otherwise the general way."""
        last = self.chain[-1] if self.chain else None
        exp = isinstance(last, ExpTransform) and isinstance(self.scalar_map, LowerBounded)
        sigmoid = isinstance(last, SigmoidTransform) and isinstance(self.scalar_map, Interval)
        if exp or sigmoid or isinstance(last, (SimplexMap, OrderedMap, CorrCholeskyMap)):
            rest, dims = self.chain[:-1], self.dims[-2]
            if not rest:
                return self.base
            real = constraints.independent(constraints.real, dims) if dims else constraints.real
            return TransformedNormal(self.base, rest, real)
        return super().unconstrained()

    def _inside(self, value: Tensor, *, smallest: bool) -> Tensor:
        return value if self.scalar_map is None else self.scalar_map.nearest(value, smallest=smallest)

    def __repr__(self) -> str:
        return f"TransformedNormal({self.base!r}, {list(self.chain)})"


def scalar_map_of(support: constraints.Constraint) -> SupportMap | None:
    """The map of one element's support; None where it has none."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    try:
        return support_map(support)
    except UnsupportedFamilyError:
        return None


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
