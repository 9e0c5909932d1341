"""Positive definite matrices and Cholesky factors: constraint maps, and Wishart by Bartlett's decomposition."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.precision import together, wide
from emfc.transforms.affine import NormalAffine, SupportedNormal
from emfc.transforms.base import LadjTransform, NormalTransform
from emfc.transforms.correlation import is_symmetric, safe_cholesky
from emfc.transforms.family import UnconstrainedCDF
from emfc.transforms.packed_triangle import TriangleMap, packed, triangle
from emfc.transforms.registry import from_normal, scalar_family
from emfc.transforms.rescaled import RescaledNormal
from emfc.transforms.supports import unconstrained_map
from emfc.transforms.triangular import TriangularTransform

__all__ = ["LowerCholeskyMap", "PositiveDefiniteMap", "WishartFactor"]


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _exp(value: Tensor) -> Tensor:
    """Exponential whose square neither over- nor underflows."""
    info = torch.finfo(value.dtype)
    return torch.exp(value.clamp(0.4 * math.log(info.tiny), 0.45 * math.log(info.max)))


class LowerCholeskyMap(TriangleMap):
    """Real vectors [..., d (d + 1) / 2] to lower triangular matrices [..., d, d] with a positive diagonal.

    The vector holds the lower triangle in the order of rows, with the logs of the diagonal. The log-Jacobian is with
    respect to the lower triangle.
    """

    diagonal = True
    codomain = constraints.lower_cholesky

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and log-Jacobian."""
        raw = triangle(wide(x), diagonal=True)
        logs = _diagonal(raw)
        return raw.tril(-1) + torch.diag_embed(_exp(logs)), logs.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and log-Jacobian, -inf for what is no such factor."""
        y = wide(y)
        info = torch.finfo(y.dtype)
        logs = _diagonal(y).clamp(info.tiny, info.max).log()
        lower = y.tril(-1).clamp(info.min, info.max)
        inside = (y.triu(1) == 0).flatten(-2).all(-1) & (_diagonal(y) > 0).all(-1)
        inside = inside & torch.isfinite(y).flatten(-2).all(-1)
        coordinate = packed(lower + torch.diag_embed(logs), diagonal=True)
        return coordinate, torch.where(inside, -logs.sum(-1), -torch.inf)


class PositiveDefiniteMap(TriangleMap):
    """Real vectors [..., d (d + 1) / 2] to positive definite matrices [..., d, d], through their Cholesky factors.

    The vector is that of `LowerCholeskyMap`; the log-Jacobian is with respect to the lower triangle. A matrix that
    rounding makes singular gets as much on its diagonal as makes it positive definite again.
    """

    diagonal = True
    codomain = constraints.positive_definite

    def __init__(self) -> None:
        super().__init__()
        self.factor = LowerCholeskyMap()

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix and log-Jacobian."""
        coordinate = wide(x)
        factor, ladj = self.factor.call_and_ladj(coordinate)
        product = factor @ factor.mT
        lower, diagonal = product.tril(-1), torch.diag_embed(_diagonal(product))
        good = safe_cholesky((lower + lower.mT + diagonal).detach())[1]
        growth = 4 * factor.shape[-1] * torch.finfo(factor.dtype).eps
        diagonal = torch.where(good[..., None, None], diagonal, diagonal * (1 + growth))
        return lower + lower.mT + diagonal, ladj + _product_stretch(coordinate, factor.shape[-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and log-Jacobian, -inf for what is not positive definite."""
        y = wide(y)
        factor, good = safe_cholesky(y)
        symmetric = is_symmetric(y)
        coordinate, ladj = self.factor.inverse_and_ladj(factor)
        return coordinate, torch.where(good & symmetric, ladj - _product_stretch(coordinate, y.shape[-1]), -torch.inf)


def _product_stretch(coordinate: Tensor, side: int) -> Tensor:
    """Log-Jacobian of the lower triangle of L L' with respect to that of L."""
    count = torch.arange(side, 0, -1, dtype=coordinate.dtype, device=coordinate.device)
    logs = coordinate[..., (count.flip(0).cumsum(0) - 1).long()]
    return side * math.log(2) + (count * logs).sum(-1)


@unconstrained_map.register(type(constraints.lower_cholesky))
def _lower_cholesky(constraint: constraints.Constraint) -> LadjTransform:
    return LowerCholeskyMap()


@unconstrained_map.register(type(constraints.positive_definite))
def _positive_definite(constraint: constraints.Constraint) -> LadjTransform:
    return PositiveDefiniteMap()


class WishartFactor(TriangularTransform):
    r"""The Cholesky factor M = L A of a Wishart matrix, in the coordinates of `LowerCholeskyMap`.

    A is lower triangular with independent elements: standard normal ones below the diagonal, and
    :math:`A_{ii}^2 \sim \chi^2(\nu - i)` on it, i from 0. Hence

    .. math:: \log M_{ii} = \log L_{ii} + \log A_{ii}, \qquad M_{ij} = L_{ii} A_{ij} + \sum_{k<i} L_{ik} A_{kj}.

    Source: Bartlett, On the theory of statistical regression, 1933.
    """

    def __init__(self, degrees: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.scale_tril = wide(scale_tril)
        side = scale_tril.shape[-1]
        self.side, self.size = side, side * (side + 1) // 2
        rows = torch.arange(side, dtype=self.scale_tril.dtype, device=scale_tril.device)
        self.degrees = wide(degrees).unsqueeze(-1) - rows

    def _log_chi(self, degrees: Tensor) -> NormalTransform:
        """Half the log of a chi-square draw."""
        family = scalar_family(td.Chi2(degrees, validate_args=False))
        return RescaledNormal(UnconstrainedCDF(family), 0.0, 0.5)

    @property
    def _log_scale(self) -> Tensor:
        return _diagonal(self.scale_tril).log()

    def call_elements(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and logs of the Jacobian's diagonal."""
        standard = triangle(wide(noise), diagonal=True)
        logs, stretch = self._log_chi(self.degrees).call_and_ladj(_diagonal(standard))
        factor = standard.tril(-1) + torch.diag_embed(_exp(logs))
        scale_tril, factor = together(self.scale_tril, factor)
        below = (scale_tril @ factor).tril(-1)
        coordinate = below + torch.diag_embed(logs + self._log_scale)
        return packed(coordinate, diagonal=True), self._slopes(stretch)

    def inverse_elements(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Noises and logs of the inverse Jacobian's diagonal."""
        coordinate = triangle(wide(value), diagonal=True)
        logs = _diagonal(coordinate) - self._log_scale
        moved = coordinate.tril(-1) + torch.diag_embed(_exp(_diagonal(coordinate)))
        standard = torch.linalg.solve_triangular(self.scale_tril, moved, upper=False).tril(-1)
        noise, stretch = self._log_chi(self.degrees).inverse_and_ladj(logs)
        standard = standard + torch.diag_embed(noise)
        return packed(standard, diagonal=True), -self._slopes(-stretch)

    def _slopes(self, stretch: Tensor) -> Tensor:
        """Logs of the Jacobian's diagonal, in the order of coordinates."""
        rows = self._log_scale.unsqueeze(-1).expand(*self.scale_tril.shape).tril(-1)
        return packed(rows + torch.diag_embed(stretch), diagonal=True)

    def conditional(self, place: int, before: Tensor) -> NormalTransform:
        """The transform of one coordinate given those before it."""
        row = _row_of_place(place)
        column = place - row * (row + 1) // 2
        scale = self._log_scale[..., row]
        if row == column:
            return RescaledNormal(self._log_chi(self.degrees[..., row]), scale)
        known = triangle(before[..., : row * (row + 1) // 2], diagonal=True)
        known = known.tril(-1) + torch.diag_embed(_exp(_diagonal(known)))
        block = self.scale_tril[..., :row, :row]
        standard = torch.linalg.solve_triangular(block, known[..., column : column + 1], upper=False).squeeze(-1)
        return NormalAffine((self.scale_tril[..., row, :row] * standard).sum(-1), scale.exp())


def _row_of_place(place: int) -> int:
    """Row of an element of a lower triangle counted row by row."""
    return int(((8 * place + 1) ** 0.5 - 1) / 2)


@from_normal.register(td.Wishart)
def _wishart(dist: td.Wishart) -> NormalTransform:
    return SupportedNormal(WishartFactor(dist.df, dist._unbroadcasted_scale_tril), constraints.positive_definite)
