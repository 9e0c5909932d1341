"""Mixtures of vectors: each element's mixture given the elements before it (the Knothe-Rosenblatt map)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pyro.distributions import GaussianScaleMixture, MixtureOfDiagNormals, MixtureOfDiagNormalsSharedCovariance
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import pad

from emfc.special.precision import wide
from emfc.transforms.affine import SupportedNormal
from emfc.transforms.base import NormalTransform
from emfc.transforms.components import map_parameters, parameters_of
from emfc.transforms.family import ScalarFamily, UnconstrainedCDF
from emfc.transforms.mixture import mixture_family
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, scalar_family
from emfc.transforms.supports import RealLine
from emfc.transforms.triangular import TriangularTransform

__all__ = ["VectorMixture", "vector_mixture"]


class Components(ABC):
    """K distributions of vectors, as the univariate conditionals of their elements.

    Attributes:
        size: Length D of the vectors.
    """

    size: int

    @abstractmethod
    def one(self, place: int, before: Tensor) -> ScalarFamily:
        """Element `place` given the elements [..., place] before it, batch shape [..., K]."""

    @abstractmethod
    def first(self, count: int, value: Tensor) -> ScalarFamily:
        """The first `count` elements, each given those before it in [..., count], batch shape [..., count, K]."""


def _normal(loc: Tensor, scale: Tensor) -> ScalarFamily:
    return scalar_family(td.Normal(loc, scale, validate_args=False))


class IndependentElements(Components):
    """Components whose elements are independent: a family of batch shape [..., K, D]."""

    def __init__(self, family: ScalarFamily) -> None:
        self.family = family
        self.size = family.batch_shape[-1]

    def one(self, place: int, before: Tensor) -> ScalarFamily:
        """Element of every component."""

        def cut(value: Tensor) -> Tensor:
            return value[..., place if value.shape[-1] > 1 else 0] if value.dim() else value

        return map_parameters(self.family, cut, self.family.batch_shape[:-1])

    def first(self, count: int, value: Tensor) -> ScalarFamily:
        """Elements of every component."""

        def turn(value: Tensor) -> Tensor:
            if value.dim() == 0:
                return value
            return value[..., :count].mT if value.dim() > 1 else value[:count].unsqueeze(-1)

        *batch, components, _ = self.family.batch_shape
        return map_parameters(self.family, turn, Size((*batch, count, components)))


class NormalVectors(Components):
    """Multivariate normal components: loc [..., K, D] and Cholesky factors [..., K, D, D]."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        loc, scale_tril = wide(loc), wide(scale_tril)
        self.loc = loc if loc.dim() > 1 else loc.unsqueeze(0)
        self.scale_tril = scale_tril if scale_tril.dim() > 2 else scale_tril.unsqueeze(0)  # one for all components
        self.size = loc.shape[-1]

    def _standard(self, value: Tensor) -> Tensor:
        """Standardised leading elements [..., K, count] of values [..., count]."""
        count = value.shape[-1]
        centred = value.unsqueeze(-2) - self.loc[..., :count]
        factor = self.scale_tril[..., :count, :count]
        standard: Tensor = torch.linalg.solve_triangular(factor, centred.unsqueeze(-1), upper=False).squeeze(-1)
        return standard

    def one(self, place: int, before: Tensor) -> ScalarFamily:
        """Conditional normal of every component."""
        loc = self.loc[..., place]
        if place:
            loc = loc + (self.scale_tril[..., place, :place] * self._standard(before)).sum(-1)
        return _normal(loc, self.scale_tril[..., place, place])

    def first(self, count: int, value: Tensor) -> ScalarFamily:
        """Conditional normals of every component."""
        scale = self.scale_tril.diagonal(dim1=-2, dim2=-1)[..., :count]
        lower = self.scale_tril[..., :count, :count].tril(-1)
        shift = (lower @ self._standard(value).unsqueeze(-1)).squeeze(-1)
        return _normal((self.loc[..., :count] + shift).mT, scale.mT)


class VectorMixture(TriangularTransform):
    r"""A mixture of vectors, element after element, in the unconstrained coordinates of its support.

    An element given those before it is a univariate mixture of the components' conditionals, whose weights are the
    components' posterior probabilities given the elements before:
    :math:`w_k \prod_{j<d} f_{kj}(x_j \mid x_{<j})` up to a factor. From values all weights are running sums, so that
    direction takes all elements at once; draws are made element by element.
    """

    def __init__(self, log_weights: Tensor, components: Components) -> None:
        super().__init__()
        self.log_weights = torch.log_softmax(wide(log_weights), -1)
        self.components = components
        self.size = components.size
        self.map = components.one(0, self.log_weights[..., :0]).support_map

    def _log_density(self, family: ScalarFamily, coordinate: Tensor) -> Tensor:
        """Log densities [..., K] of each component at a coordinate, bounded so that sums of all stay finite."""
        position = self.map.position(coordinate)[0]
        log_prob = family.log_density(position.unsqueeze())
        return log_prob.clamp(min=torch.finfo(log_prob.dtype).min / (4 * self.size))

    def call_elements(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and logs of the Jacobian's diagonal."""
        noise = wide(noise)
        weights = self.log_weights
        values: list[Tensor] = []
        slopes: list[Tensor] = []
        for place in range(self.size):
            before = torch.stack(values, -1) if values else noise[..., :0]
            family = self.components.one(place, before)
            value, slope = UnconstrainedCDF(mixture_family(weights, family)).call_and_ladj(noise[..., place])
            weights = weights + self._log_density(family, value)
            values.append(value)
            slopes.append(slope)
        return torch.stack(values, -1), torch.stack(slopes, -1)

    def inverse_elements(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Noises and logs of the inverse Jacobian's diagonal."""
        value = wide(value)
        limit = torch.finfo(value.dtype).max ** 0.5 / 8
        inside = value.clamp(-limit, limit)
        family = self.components.first(self.size, inside)
        sums = self._log_density(family, inside).cumsum(-2)
        weights = self.log_weights.unsqueeze(-2) + pad(sums, (0, 0, 1, -1))
        noise, slopes = UnconstrainedCDF(mixture_family(weights, family)).inverse_and_ladj(inside)
        return noise, torch.where(torch.isfinite(value), slopes, -torch.inf)

    def conditional(self, place: int, before: Tensor) -> NormalTransform:
        """The mixture of one element, given the coordinates before it."""
        weights = self.log_weights
        if place:
            weights = weights + self._log_density(self.components.first(place, before), before).sum(-2)
        return UnconstrainedCDF(mixture_family(weights, self.components.one(place, before)))


def vector_mixture(log_weights: Tensor, components: Components) -> NormalTransform:
    """The transform of a mixture of vectors, with the support of its components."""
    core = VectorMixture(log_weights, components)
    if isinstance(core.map, RealLine):
        return core
    return SupportedNormal(core, constraints.independent(core.map.codomain, 1))


def _elements(dist: td.Distribution) -> Components | None:
    """Independent elements of a univariate distribution of batch shape [..., K, D]; None where it can't be cut."""
    family = scalar_family(dist)
    ends = (family.support_map.low, family.support_map.high)
    if family.discrete or any(isinstance(end, Tensor) for end in ends) or parameters_of(family) is None:
        return None
    return IndependentElements(family)


def vector_components(dist: td.Distribution) -> Components | None:
    """The components of a mixture of vectors; None for those that have no univariate conditionals here."""
    if isinstance(dist, td.MultivariateNormal):
        return NormalVectors(dist.loc, dist._unbroadcasted_scale_tril)
    if isinstance(dist, td.Independent) and len(dist.event_shape) == dist.reinterpreted_batch_ndims == 1:
        return _elements(dist.base_dist)
    return None


def mixture_of_vectors(dist: td.MixtureSameFamily) -> NormalTransform:
    """The transform of `MixtureSameFamily` with vector components.

    Raises:
        UnsupportedFamilyError: If the components' elements have no univariate conditionals.
    """
    components = vector_components(dist.component_distribution)
    if components is None:
        raise UnsupportedFamilyError(
            f"MixtureSameFamily with components {dist.component_distribution} has no transform; the nearest supported "
            "components are MultivariateNormal, and Independent of a continuous univariate family whose support is "
            "the same for all."
        )
    return vector_mixture(dist.mixture_distribution.logits, components)


def _diagonal_normals(log_weights: Tensor, loc: Tensor, scale: Tensor) -> NormalTransform:
    return vector_mixture(log_weights, IndependentElements(_normal(loc, scale)))


@from_normal.register(MixtureOfDiagNormals)
def _mixture_of_diagonal_normals(dist: MixtureOfDiagNormals) -> NormalTransform:
    return _diagonal_normals(dist.component_logits, dist.locs, dist.coord_scale)


@from_normal.register(MixtureOfDiagNormalsSharedCovariance)
def _shared_covariance(dist: MixtureOfDiagNormalsSharedCovariance) -> NormalTransform:
    return _diagonal_normals(dist.component_logits, dist.locs, dist.coord_scale.unsqueeze(-2).expand(dist.locs.shape))


@from_normal.register(GaussianScaleMixture)
def _scale_mixture(dist: GaussianScaleMixture) -> NormalTransform:
    scale = dist.component_scale.unsqueeze(-1) * dist.coord_scale
    return _diagonal_normals(dist.component_logits, torch.zeros_like(scale), scale)
