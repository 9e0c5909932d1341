"""`TransformedDistribution`: through elementwise bijections of any kind, and through bijections of vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.transforms import BatchNorm, OrderedTransform
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    CorrCholeskyTransform,
    StackTransform,
    StickBreakingTransform,
    Transform,
)

from emfc.special.precision import wide
from emfc.transforms.affine import NormalAffine
from emfc.transforms.base import BroadcastNormal, IndependentNormal, NormalTransform, sum_rightmost
from emfc.transforms.chains import Chain, flattened, is_elementwise, parts_of
from emfc.transforms.correlation import CorrCholeskyMap
from emfc.transforms.ends import ends_of
from emfc.transforms.family import CDFTransform, ScalarFamily
from emfc.transforms.moved import TransformedFamily, affine_family
from emfc.transforms.ordered import OrderedMap
from emfc.transforms.parts import ExpPart, SigmoidPart
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, nearest_families, scalar_family
from emfc.transforms.simplex import SimplexMap
from emfc.transforms.supports import Position, SupportMap, support_map
from emfc.transforms.wrappers import TransformedNormal, scalar_map_of

__all__ = ["ElementwiseNormal"]

# The constraint maps that stand in for torch's: they have the same coordinates and keep their place near the ends.
_MAPS: dict[type, Callable[[], Transform]] = {
    StickBreakingTransform: SimplexMap,
    CorrCholeskyTransform: CorrCholeskyMap,
    OrderedTransform: OrderedMap,
}


class ElementwiseNormal(NormalTransform):
    """A transform followed by a chain of elementwise bijections, fed mirrored noise if that decreases.

    With the mirror the map from noise to draws increases, as the transform by distribution functions does.
    """

    def __init__(self, base: NormalTransform, chain: Chain, *, through: SupportMap | None = None) -> None:
        super().__init__()
        self.base, self.chain, self.through = base, chain, through
        self.event_dims = base.domain.event_dim
        self.support_map = support_map(chain.support())
        self.inner_map = scalar_map_of(base.codomain)
        self.domain = base.domain
        support = constraints.real if through else self.support_map.codomain
        self.codomain = constraints.independent(support, self.event_dims) if self.event_dims else support
        self.mirror: int | Tensor = chain.sign
        if isinstance(chain.sign, int) and chain.sign == 0:
            self.mirror = 1
        self.unit = 0.0 if through is None or chain.ends[-1] == (None, None) else 1.0

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw, strictly inside the support, and log-Jacobian of noise."""
        value, ladj = self.base.call_and_ladj(wide(x) * self.mirror)
        at, stretch = self.chain.forward(Position(value) if self.inner_map is None else self.inner_map.place(value))
        value = self.support_map.nearest(at.value, smallest=True)
        if self.through is not None:
            value, step = self.through.coordinate(at._replace(value=value))
            stretch = stretch - step
        return value, ladj + sum_rightmost(stretch, self.event_dims)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        y = wide(y)
        inside: Tensor | None = None
        if self.through is None:
            inside = self.support_map.contains(y)
            at, step = self.support_map.place(self.support_map.nearest(y)), None
        else:
            at, step = self.through.position(y)
        at, stretch = self.chain.backward(at)
        noise, ladj = self.base.inverse_and_ladj(at.value)
        ladj = ladj + sum_rightmost(-stretch if step is None else step - stretch, self.event_dims)
        if inside is not None:
            inside = inside.flatten(-self.event_dims).all(-1) if self.event_dims else inside
            ladj = torch.where(inside, ladj, -torch.inf)
        return noise * self.mirror, ladj

    def unconstrained(self) -> NormalTransform:
        """The chain without a last step that is the constraint map itself; otherwise through that map."""
        if self.through is not None or self.chain.ends[-1] == (None, None):
            return self
        last, ends = self.chain.parts[-1], self.chain.ends[-2]
        if ends == (None, None) and isinstance(last, (ExpPart, SigmoidPart)):
            rest = self.chain.parts[:-1]
            return ElementwiseNormal(self.base, Chain(rest, self.chain.ends[0])) if rest else self.base
        return ElementwiseNormal(self.base, self.chain, through=self.support_map)

    def __repr__(self) -> str:
        return f"ElementwiseNormal({self.base!r}, {[type(part).__name__ for part in self.chain.parts]})"


def _checked(dist: td.TransformedDistribution) -> list[Transform]:
    """The chain, flattened, of a distribution whose density is that of its chain."""
    name = type(dist).__name__
    if type(dist).log_prob is not td.TransformedDistribution.log_prob:
        raise UnsupportedFamilyError(
            f"{name} has a density of its own, which its chain of transforms doesn't tell; the nearest supported "
            f"families are {', '.join(nearest_families(type(dist)))}."
        )
    chain = [_MAPS[type(part)]() if type(part) in _MAPS else part for part in flattened(dist.transforms)]
    for part in chain:
        if isinstance(part, BatchNorm) and part.training:
            raise UnsupportedFamilyError(
                f"{name} through BatchNorm that is training has no transform, for what it does to one example depends "
                "on the others; the nearest supported is BatchNorm after `eval()`."
            )
        if isinstance(part, StackTransform):
            raise UnsupportedFamilyError(
                f"{name} through StackTransform has no transform, for torch's log-Jacobian of that has a dimension too "
                "many; the nearest supported is CatTransform."
            )
        if not part.bijective:
            raise UnsupportedFamilyError(
                f"{name} through {type(part).__name__} has no transform, for that is no bijection; the nearest "
                "supported are ExpTransform, SigmoidTransform and AffineTransform."
            )
    return chain


def _moved(base: NormalTransform, chain: Sequence[Transform], batch_shape: Size) -> NormalTransform:
    """A transform followed by elementwise bijections."""
    if isinstance(base, CDFTransform):
        affine = affine_family(base.family, chain, batch_shape)
        if affine is not None:
            return CDFTransform(affine)
        steps = Chain(parts_of(chain), ends_of(base.family.support_map))
        if not isinstance(steps.sign, int) or steps.sign != 0:
            return CDFTransform(TransformedFamily(base.family, steps, batch_shape))
    rest = list(chain)
    while isinstance(base, NormalAffine) and rest and type(rest[0]) is AffineTransform:
        step: Any = rest.pop(0)
        scale = torch.as_tensor(step.scale, dtype=base.scale.dtype, device=base.scale.device)
        base = NormalAffine(step.loc + scale * base.loc, scale.abs() * base.scale)
    if not rest:
        return base
    inner = scalar_map_of(base.codomain)
    return ElementwiseNormal(base, Chain(parts_of(rest), (None, None) if inner is None else ends_of(inner)))


@from_normal.register(td.TransformedDistribution)
def _transformed(dist: td.TransformedDistribution) -> NormalTransform:
    chain, base = _checked(dist), from_normal(dist.base_dist)
    if base.discrete:
        raise UnsupportedFamilyError(
            f"{type(dist).__name__} of a discrete distribution has no transform, for its density is not that of the "
            "dequantised one; the nearest supported is the discrete distribution itself."
        )
    if not all(is_elementwise(part) for part in chain):
        return TransformedNormal(base, chain, dist.support)
    dims, spread = len(dist.event_shape), False
    inner = base
    while isinstance(inner, (IndependentNormal, BroadcastNormal)):
        spread = spread or isinstance(inner, BroadcastNormal)
        inner = inner.base
    if inner.domain.event_dim > 0 or inner.codomain.event_dim > 0:
        inner = base
    result = _moved(inner, chain, dist.batch_shape)
    if inner is base:
        rest = dims - result.domain.event_dim
        return IndependentNormal(result, rest) if rest > 0 else result
    if spread:
        result = BroadcastNormal(result, dist.batch_shape + dist.event_shape, Size())
    return IndependentNormal(result, dims) if dims else result


@scalar_family.register(td.TransformedDistribution)
def _transformed_family(dist: td.TransformedDistribution) -> ScalarFamily:
    chain = _checked(dist)
    if len(dist.event_shape) > 0 or not all(is_elementwise(part) for part in chain):
        raise UnsupportedFamilyError(f"{type(dist).__name__} of vectors is not a univariate family.")
    base = scalar_family(dist.base_dist)
    affine = affine_family(base, chain, dist.batch_shape)
    if affine is not None:
        return affine
    if base.discrete:
        raise UnsupportedFamilyError(f"{type(dist).__name__} of a discrete distribution is no univariate family.")
    return TransformedFamily(base, Chain(parts_of(chain), ends_of(base.support_map)), dist.batch_shape)
