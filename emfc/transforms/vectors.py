"""Real vectors: MultivariateStudentT, and LowRankMultivariateNormal without its D x D Cholesky factor."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import MultivariateStudentT, NanMaskedMultivariateNormal, NanMaskedNormal
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import pad

from emfc.special.precision import wide
from emfc.transforms.affine import MultivariateNormalTransform
from emfc.transforms.base import NormalTransform
from emfc.transforms.gates import gate_on_reals
from emfc.transforms.packed_triangle import log_sums_of_squares
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, refusing, scalar_family
from emfc.transforms.rescaled import RescaledNormal
from emfc.transforms.triangular import TriangularTransform

__all__ = ["LowRankNormalTransform", "MultivariateStudentTTransform"]


_DENSE = 200  # size up to which a dense factor is as cheap


def _student(degrees: Tensor) -> NormalTransform:
    """The standard Student-t with these degrees of freedom."""
    zero = torch.zeros_like(degrees)
    return from_normal(td.StudentT(degrees, zero, zero + 1, validate_args=False))


class MultivariateStudentTTransform(TriangularTransform):
    r"""x = loc + L z with z spherical Student-t, element after element.

    Given the elements before it, :math:`z_d = s_d w_d` with :math:`w_d` Student-t of :math:`\nu + d` degrees of
    freedom (d from 0) and :math:`s_d^2 = (\nu + \sum_{j<d} z_j^2) / (\nu + d)`; the w are independent, and

    .. math:: \nu + \sum_{j \le d} z_j^2 = \nu \prod_{j \le d} (1 + w_j^2 / (\nu + j)),

    so that both directions are running sums.

    Source: Kotz and Nadarajah, Multivariate t-distributions and their applications, 2004, section 1.11.
    """

    def __init__(self, degrees: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.linear = MultivariateNormalTransform(loc, scale_tril)
        self.size = loc.shape[-1]
        places = torch.arange(self.size, dtype=self.linear.loc.dtype, device=loc.device)
        self.start = wide(degrees)
        self.degrees = self.start.unsqueeze(-1) + places

    @property
    def _log_diagonal(self) -> Tensor:
        return self.linear.scale_tril.diagonal(dim1=-2, dim2=-1).log()

    def call_elements(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Values and logs of the Jacobian's diagonal."""
        ratio, stretch = _student(self.degrees).call_and_ladj(wide(noise))
        growth = 2 * torch.hypot(ratio / self.degrees.sqrt(), torch.ones_like(ratio)).log()
        log_total = self.start.log().unsqueeze(-1) + pad(growth.cumsum(-1), (1, -1))
        log_scale = 0.5 * (log_total - self.degrees.log())
        limit = torch.finfo(ratio.dtype).max ** 0.9
        standard = (ratio * torch.exp(log_scale.clamp(max=math.log(limit)))).clamp(-limit, limit)
        value = self.linear.call_and_ladj(standard)[0]
        return value, stretch + log_scale + self._log_diagonal

    def inverse_elements(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Noises and logs of the inverse Jacobian's diagonal."""
        value = wide(value)
        limit = torch.finfo(value.dtype).max ** 0.95
        standard = self.linear.inverse_and_ladj(value.clamp(-limit, limit))[0]
        log_scale = self._log_scale(standard)
        noise, stretch = _student(self.degrees).inverse_and_ladj(standard * torch.exp(-log_scale))
        return noise, torch.where(torch.isfinite(value), stretch - log_scale - self._log_diagonal, -torch.inf)

    def _log_scale(self, standard: Tensor) -> Tensor:
        """Log of the factor of each element, given the standardised elements."""
        first = self.start.sqrt().unsqueeze(-1).expand(*standard.shape[:-1], 1)
        log_total = log_sums_of_squares(torch.cat((first, standard), -1))[..., : self.size]
        return 0.5 * (log_total - self.degrees.log())

    def conditional(self, place: int, before: Tensor) -> NormalTransform:
        """The transform of one element given those before it."""
        loc, scale_tril = self.linear.loc, self.linear.scale_tril
        known = MultivariateNormalTransform(loc[..., :place], scale_tril[..., :place, :place])
        standard = known.inverse_and_ladj(before)[0] if place else before
        shift = loc[..., place] + (scale_tril[..., place, :place] * standard).sum(-1)
        log_scale = self._log_scale(pad(standard, (0, self.size - place)))[..., place]
        scale = scale_tril[..., place, place] * log_scale.exp()
        return RescaledNormal(_student(self.degrees[..., place]), shift, scale)


@from_normal.register(MultivariateStudentT)
def _multivariate_student_t(dist: MultivariateStudentT) -> NormalTransform:
    return MultivariateStudentTTransform(dist.df, dist.loc, dist._unbroadcasted_scale_tril)


class LowRankNormalTransform(NormalTransform):
    r"""x = loc + L e, with L the Cholesky factor of diag(d) + W W', which is never formed.

    With :math:`C_i = I + \sum_{j<i} w_j w_j' / d_j` for the rows w of W,

    .. math:: L_{ii}^2 = d_i + w_i' C_i^{-1} w_i, \qquad L_{ij} = w_i' b_j, \quad b_j = C_j^{-1} w_j / L_{jj},

    so that a product with L is a running sum of R-vectors; its inverse subtracts from each element what the
    elements before it predict, :math:`w_i' C_i^{-1} \sum_{j<i} w_j x_j / d_j`, and is then refined once, since this
    prediction loses digits where d is small. The first rows, where C is nearly singular, are factored as they are.
    For D elements and rank R this is :math:`O(D R^3)` once and :math:`O(D R)` a vector.

    Source: the matrix inversion lemma (Golub and Van Loan, Matrix Computations, 2.1.4), applied to each leading block.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, loc: Tensor, factor: Tensor, diagonal: Tensor) -> None:
        super().__init__()
        self.loc, self.factor, self.variance = wide(loc), wide(factor), wide(diagonal)
        size, rank = self.factor.shape[-2:]
        lead = min(size, 8 * rank)
        self.block = _dense_factor(self.factor[..., :lead, :], self.variance[..., :lead])
        first = torch.linalg.solve_triangular(self.block, self.factor[..., :lead, :], upper=False)
        whitened = self.factor / self.variance.sqrt().unsqueeze(-1)
        products = (whitened.unsqueeze(-1) * whitened.unsqueeze(-2)).cumsum(-3)
        identity = torch.eye(rank, dtype=self.factor.dtype, device=self.factor.device)
        capacity = torch.linalg.cholesky(products[..., lead - 1 : -1, :, :] + identity)
        rest = self.factor[..., lead:, :]
        self.solved = torch.cholesky_solve(rest.unsqueeze(-1), capacity).squeeze(-1)
        pivot = (self.variance[..., lead:] + (rest * self.solved).sum(-1)).sqrt()
        self.pivot = torch.cat((self.block.diagonal(dim1=-2, dim2=-1), pivot), -1)
        self.steps = torch.cat((first, self.solved / pivot.unsqueeze(-1)), -2)

    @property
    def log_det(self) -> Tensor:
        """Log-determinant of L."""
        return self.pivot.log().sum(-1)

    @property
    def scale_tril(self) -> Tensor:
        """L itself, D x D."""
        return (self.factor @ self.steps.mT).tril(-1) + torch.diag_embed(self.pivot)

    def _multiply(self, noise: Tensor) -> Tensor:
        running = pad((self.steps * noise.unsqueeze(-1)).cumsum(-2), (0, 0, 1, -1))
        return self.pivot * noise + (self.factor * running).sum(-1)

    def _divide(self, centred: Tensor) -> Tensor:
        lead = self.block.shape[-1]
        first = MultivariateNormalTransform(torch.zeros_like(self.loc[..., :lead]), self.block)
        sums = (self.factor * (centred / self.variance).unsqueeze(-1)).cumsum(-2)
        predicted = (self.solved * sums[..., lead - 1 : -1, :]).sum(-1)
        rest = (centred[..., lead:] - predicted) / self.pivot[..., lead:]
        return torch.cat((first.inverse_and_ladj(centred[..., :lead])[0], rest), -1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log-determinant."""
        value = self.loc + self._multiply(wide(x))
        return value, self.log_det.expand(value.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and minus the log-determinant."""
        centred = wide(y) - self.loc
        noise = self._divide(centred)
        noise = noise + self._divide(centred - self._multiply(noise))
        return noise, (-self.log_det).expand(noise.shape[:-1])

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"LowRankNormalTransform(size={self.factor.shape[-2]}, rank={self.factor.shape[-1]})"


def _dense_factor(factor: Tensor, variance: Tensor) -> Tensor:
    """Cholesky factor of diag(d) + W W', by that of a matrix whose eigenvalues are at least 1, as torch does."""
    root = variance.sqrt().unsqueeze(-1)
    whitened = factor / root
    identity = torch.eye(factor.shape[-2], dtype=factor.dtype, device=factor.device)
    lower: Tensor = torch.linalg.cholesky(whitened @ whitened.mT + identity)
    return root * lower


@gate_on_reals.register
def _gated_low_rank(transform: LowRankNormalTransform, gate: Tensor) -> NormalTransform:
    return gate_on_reals(MultivariateNormalTransform(transform.loc, transform.scale_tril), gate)


@from_normal.register(td.LowRankMultivariateNormal)
def _low_rank(dist: td.LowRankMultivariateNormal) -> NormalTransform:
    factor, diagonal = wide(dist._unbroadcasted_cov_factor), wide(dist._unbroadcasted_cov_diag)
    size, rank = factor.shape[-2:]
    if size > max(_DENSE, rank * rank):
        return LowRankNormalTransform(dist.loc, factor, diagonal)
    return MultivariateNormalTransform(dist.loc, _dense_factor(factor, diagonal))


@refusing
def _refuse_missing(dist: td.Distribution) -> Any:
    name = type(dist).__name__
    raise UnsupportedFamilyError(
        f"{name} marks missing data by NaN in its log density and a transform needs every value; the nearest "
        f"supported is {name.removeprefix('NanMasked')}, of complete data."
    )


for _family in (NanMaskedNormal, NanMaskedMultivariateNormal):
    from_normal.register(_family, _refuse_missing)
    scalar_family.register(_family, _refuse_missing)
