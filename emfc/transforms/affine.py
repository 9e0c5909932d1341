"""Transforms that are affine in the noise: Normal, LogNormal (in log space), MultivariateNormal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from emfc.special.precision import together, wide
from emfc.transforms.base import LadjTransform, NormalTransform
from emfc.transforms.registry import from_normal
from emfc.transforms.supports import unconstrained_map

__all__ = ["MultivariateNormalTransform", "NormalAffine", "SupportedNormal"]


class NormalAffine(NormalTransform):
    """x = loc + scale e, with a positive scale: bare arithmetic, nothing validated."""

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.scale = wide(loc), wide(scale)

    @lazy_property
    def log_scale(self) -> Tensor:
        """Log of the scale, the log-Jacobian."""
        return self.scale.log()

    @property
    def constant_ladj(self) -> Tensor:
        """The log scale."""
        return self.log_scale

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * wide(x)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log scale."""
        value = self._call(x)
        return value, self.log_scale.to(value.dtype).expand(value.shape)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and minus the log scale."""
        noise = (wide(y) - self.loc) / self.scale
        return noise, (-self.log_scale).to(noise.dtype).expand(noise.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log scale."""
        return self.log_scale.expand(torch.broadcast_shapes(x.shape, self.loc.shape, self.scale.shape))

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"NormalAffine(shape={tuple(torch.broadcast_shapes(self.loc.shape, self.scale.shape))})"


class SupportedNormal(NormalTransform):
    """A real transform followed by the constraint map of a support, such as LogNormal's exponential."""

    def __init__(self, core: NormalTransform, codomain: constraints.Constraint, *, discrete: bool = False) -> None:
        super().__init__()
        self.core = core
        self.map: LadjTransform = unconstrained_map(codomain)
        self.domain, self.codomain, self.discrete = core.domain, codomain, discrete

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log-Jacobian of both stages."""
        coordinate, ladj = self.core.call_and_ladj(x)
        value, stretch = self.map.call_and_ladj(coordinate)
        return value, ladj + stretch

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of both stages, -inf outside the support."""
        coordinate, stretch = self.map.inverse_and_ladj(y)
        noise, ladj = self.core.inverse_and_ladj(coordinate)
        return noise, ladj + stretch

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the map's values for noise of this shape."""
        return self.map.forward_shape(self.core.forward_shape(shape))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of noise for values of this shape."""
        return self.core.inverse_shape(self.map.inverse_shape(shape))

    def unconstrained(self) -> NormalTransform:
        """The real transform."""
        return self.core

    def __repr__(self) -> str:
        return f"SupportedNormal({self.core!r}, {self.map!r})"


class MultivariateNormalTransform(NormalTransform):
    """x = loc + L e, with L the lower Cholesky factor of the covariance."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc, self.scale_tril = together(wide(loc), wide(scale_tril))

    @lazy_property
    def log_det(self) -> Tensor:
        """Log-determinant of the Cholesky factor."""
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log-determinant."""
        noise, scale_tril = together(wide(x), self.scale_tril)
        if scale_tril.dim() == 2:  # one factor for the whole batch: one product of matrices
            value = self.loc + torch.matmul(noise, scale_tril.mT)
        else:
            value = self.loc + torch.matmul(scale_tril, noise.unsqueeze(-1)).squeeze(-1)
        return value, self.log_det.expand(value.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise by a triangular solve, and minus the log-determinant."""
        centred, scale_tril = together(wide(y) - self.loc, self.scale_tril)
        if scale_tril.dim() == 2:  # one factor for the whole batch: one solve with many right sides
            flat = centred.reshape(-1, centred.shape[-1])
            noise = torch.linalg.solve_triangular(scale_tril, flat.mT, upper=False).mT.reshape(centred.shape)
        else:
            noise = torch.linalg.solve_triangular(scale_tril, centred.unsqueeze(-1), upper=False).squeeze(-1)
        return noise, (-self.log_det).expand(noise.shape[:-1])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant."""
        return self.log_det.expand(torch.broadcast_shapes(y.shape[:-1], self.log_det.shape))

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"MultivariateNormalTransform(size={self.loc.shape[-1]})"


@from_normal.register(td.Normal)
def _normal(dist: td.Normal) -> NormalTransform:
    return NormalAffine(dist.loc, dist.scale)


@from_normal.register(td.LogNormal)
def _log_normal(dist: td.LogNormal) -> NormalTransform:
    return SupportedNormal(NormalAffine(dist.loc, dist.scale), constraints.positive)


@from_normal.register(td.MultivariateNormal)
def _multivariate_normal(dist: td.MultivariateNormal) -> NormalTransform:
    return MultivariateNormalTransform(dist.loc, dist._unbroadcasted_scale_tril)
