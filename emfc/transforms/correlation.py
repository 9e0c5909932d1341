"""Correlation matrices and their Cholesky factors: constraint maps, LKJ and LKJCholesky."""

from __future__ import annotations

import math

import torch
from pyro.distributions import LKJ
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, pad

from emfc.special.precision import wide
from emfc.transforms.affine import SupportedNormal
from emfc.transforms.base import IndependentNormal, LadjTransform, NormalTransform
from emfc.transforms.family import UnconstrainedCDF
from emfc.transforms.packed_triangle import TriangleMap, packed, side_of_triangle, triangle
from emfc.transforms.registry import from_normal, scalar_family
from emfc.transforms.rescaled import RescaledNormal
from emfc.transforms.supports import unconstrained_map

__all__ = ["CorrCholeskyMap", "CorrelationMap", "is_symmetric", "safe_cholesky"]


def _least(value: Tensor) -> float:
    """A length so small that it counts as zero, whose reciprocal is far from overflow."""
    info = torch.finfo(value.dtype)
    return float(info.tiny / info.eps**0.5)


def _lengths_after(value: Tensor) -> Tensor:
    """Lengths of what follows each element but the last; of the smallest numbers too, whose squares vanish."""
    info = torch.finfo(value.dtype)
    large, roof = info.tiny**-0.5, info.eps**-0.5
    plain = value.square().flip(-1).cumsum(-1).flip(-1)[..., 1:]
    scaled = (value * large).clamp(-roof, roof).square().flip(-1).cumsum(-1).flip(-1)[..., 1:]
    length = torch.where(plain * info.eps > info.tiny, plain.clamp(min=info.tiny).sqrt(), scaled.sqrt() / large)
    return length.clamp(min=_least(value))


def _asinh_of_ratio(value: Tensor, length: Tensor) -> Tensor:
    """Inverse hyperbolic sine of value / length, also where the ratio or its square overflows."""
    size = value.abs()
    far = size > length
    inverse = torch.where(far, length, 1) / torch.where(far, size, 1)
    large = torch.log1p((1 + inverse.square()).sqrt()) - inverse.log()
    return torch.where(far, value.detach().sign() * large, torch.asinh(torch.where(far, 0, value) / length))


class CorrCholeskyMap(TriangleMap):
    r"""Real vectors [..., d (d - 1) / 2] to Cholesky factors [..., d, d] of correlation matrices.

    .. math:: t_{ij} = \tanh y_{ij}, \qquad L_{ij} = t_{ij} \prod_{l<j} \sqrt{1 - t_{il}^2}, \quad j < i

    with y in the order of rows; t are partial correlations. The diagonal is what each row lacks to length one. The
    inverse is :math:`\sinh y_{ij} = L_{ij} / \sqrt{\sum_{l>j} L_{il}^2}`, which loses no digits where correlations
    are nearly one. The log-Jacobian is with respect to the strictly lower triangle, as in
    `torch.distributions.CorrCholeskyTransform`.

    Source: Lewandowski, Kurowicka and Joe, Generating random correlation matrices based on vines and extended onion
    method, 2009; Stan Reference Manual, "Cholesky factors of correlation matrices".
    """

    diagonal = False
    codomain = constraints.corr_cholesky

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factor, with a positive diagonal, and log-Jacobian."""
        coordinate = wide(x)
        side = side_of_triangle(coordinate.shape[-1], diagonal=False)
        log_left = triangle(_log_one_minus_square(coordinate), diagonal=False).cumsum(-1)
        log_before = pad(log_left, (1, -1))
        value = triangle(torch.tanh(coordinate), diagonal=False) * torch.exp(0.5 * log_before)
        diagonal = torch.exp(0.5 * log_left[..., -1]).clamp(min=_least(value))
        return value + torch.diag_embed(diagonal), self._stretch(coordinate, side)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and log-Jacobian, -inf for what is no such factor."""
        y = wide(y)
        value = y.clamp(-2, 2)
        diagonal = value.diagonal(dim1=-2, dim2=-1).clamp(min=_least(y))
        value = value.tril(-1) + torch.diag_embed(diagonal)
        coordinate = _asinh_of_ratio(value[..., :-1], _lengths_after(value))
        coordinate = packed(pad(coordinate, (0, 1)), diagonal=False)
        ladj = -self._stretch(coordinate, y.shape[-1])
        return coordinate, torch.where(self._contains(y), ladj, -torch.inf)

    def _contains(self, value: Tensor) -> Tensor:
        tolerance = 10 * value.shape[-1] * torch.finfo(value.dtype).eps
        unit = ((value.square().sum(-1) - 1).abs() <= 2 * tolerance).all(-1)
        lower = (value.triu(1) == 0).flatten(-2).all(-1)
        inside: Tensor = unit & lower & (value.diagonal(dim1=-2, dim2=-1) > 0).all(-1)
        return inside

    def _stretch(self, coordinate: Tensor, side: int) -> Tensor:
        """Sum of the logs of :math:`(1 - t_{ij}^2) \\prod_{l<j} \\sqrt{1 - t_{il}^2}`."""
        rows, columns = torch.tril_indices(side, side, -1, device=coordinate.device)
        count: Tensor = 1 + 0.5 * (rows - 1 - columns).to(coordinate.dtype)
        return (count * _log_one_minus_square(coordinate)).sum(-1)


def _log_one_minus_square(coordinate: Tensor) -> Tensor:
    r""":math:`\log(1 - \tanh^2 y) = -2 \log \cosh y`, exact for large y."""
    return 2 * (math.log(2) + logsigmoid(-2 * coordinate) + coordinate)


def safe_cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of symmetric matrices, and True where these are positive definite to rounding.

    What is not is replaced by the identity. A matrix is taken as the mean of itself and its transpose, which makes
    derivatives with respect to all its elements those of one function.
    """
    matrix = 0.5 * (matrix + matrix.mT)
    good = torch.linalg.cholesky_ex(matrix.detach())[1] == 0
    good = good & torch.isfinite(matrix.detach()).flatten(-2).all(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.cholesky_ex(torch.where(good[..., None, None], matrix, identity))[0], good


def is_symmetric(matrix: Tensor) -> Tensor:
    """True for a symmetric matrix, as torch's constraints check it."""
    other = matrix.mT
    near: Tensor = (matrix - other).abs() <= 1e-6 + 1e-5 * other.abs()
    return near.flatten(-2).all(-1)


class CorrelationMap(TriangleMap):
    r"""Real vectors [..., d (d - 1) / 2] to correlation matrices [..., d, d], through their Cholesky factors.

    The log-Jacobian is with respect to the strictly lower triangle. A matrix that rounding makes singular is moved
    toward the identity by as much as makes it positive definite again: correlations nearer to one than that can't be
    told from one.
    """

    diagonal = False
    codomain = pyro_constraints.corr_matrix

    def __init__(self) -> None:
        super().__init__()
        self.factor = CorrCholeskyMap()

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Correlation matrix and log-Jacobian."""
        coordinate = wide(x)
        factor, _ = self.factor.call_and_ladj(coordinate)
        lower = (factor @ factor.mT).tril(-1)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        good = safe_cholesky((lower + lower.mT + identity).detach())[1]
        shrink = 4 * factor.shape[-1] * torch.finfo(factor.dtype).eps
        lower = torch.where(good[..., None, None], lower, lower * (1 - shrink))
        return lower + lower.mT + identity, self._stretch(coordinate, factor.shape[-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and log-Jacobian, -inf for what is no correlation matrix."""
        y = wide(y)
        factor, good = safe_cholesky(y)
        unit = ((y.diagonal(dim1=-2, dim2=-1) - 1).abs() <= 1e-6).all(-1)
        symmetric = is_symmetric(y)
        length = factor.square().sum(-1, keepdim=True).sqrt()
        coordinate, _ = self.factor.inverse_and_ladj(factor / length)
        ladj = -self._stretch(coordinate, y.shape[-1])
        return coordinate, torch.where(good & unit & symmetric, ladj, -torch.inf)

    def _stretch(self, coordinate: Tensor, side: int) -> Tensor:
        """That of the factor, and :math:`\\prod_i L_{ii}^{d-1-i}` for the product of the factor with itself."""
        columns = torch.tril_indices(side, side, -1, device=coordinate.device)[1]
        count: Tensor = 1 + 0.5 * (side - 2 - columns).to(coordinate.dtype)
        return (count * _log_one_minus_square(coordinate)).sum(-1)


@unconstrained_map.register(type(constraints.corr_cholesky))
def _corr_cholesky(constraint: constraints.Constraint) -> LadjTransform:
    return CorrCholeskyMap()


@unconstrained_map.register(type(pyro_constraints.corr_matrix))
def _corr_matrix(constraint: constraints.Constraint) -> LadjTransform:
    return CorrelationMap()


def _partial_correlations(dim: int, concentration: Tensor) -> NormalTransform:
    r"""Coordinates of the factor: each half the log odds of a symmetric Beta, that of (1 + t) / 2.

    The partial correlation in column l (from 0) of any row has :math:`\alpha = \beta = \eta + (d - 2 - l) / 2`.
    """
    concentration = wide(concentration)
    columns = torch.tril_indices(dim, dim, -1, device=concentration.device)[1].to(concentration.dtype)
    shape = concentration.unsqueeze(-1) + 0.5 * (dim - 2 - columns)
    family = scalar_family(td.Beta(shape, shape, validate_args=False))
    return IndependentNormal(RescaledNormal(UnconstrainedCDF(family), 0.0, 0.5), 1)


@from_normal.register(td.LKJCholesky)
def _lkj_cholesky(dist: td.LKJCholesky) -> NormalTransform:
    return SupportedNormal(_partial_correlations(dist.dim, dist.concentration), constraints.corr_cholesky)


@from_normal.register(LKJ)
def _lkj(dist: LKJ) -> NormalTransform:
    return SupportedNormal(_partial_correlations(dist.dim, dist.concentration), pyro_constraints.corr_matrix)
