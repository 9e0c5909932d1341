"""The beta distribution and its relatives."""

from __future__ import annotations

import math

import torch
from pyro.distributions import AffineBeta as PyroAffineBeta
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from emfc.special.beta import log_beta_tails_and_density
from emfc.special.beta_density import beta_normaliser, log_beta_density
from emfc.special.beta_quantile import beta_quantile, beta_quantile_and_logit
from emfc.special.precision import wide
from emfc.transforms.base import NormalTransform
from emfc.transforms.distances import positive
from emfc.transforms.family import CDFTransform, Evaluation, ScalarFamily
from emfc.transforms.moved import AffineFamily
from emfc.transforms.registry import family_of, from_normal, scalar_family
from emfc.transforms.supports import Position

__all__ = ["Beta", "FisherSnedecor"]


@family_of(td.Beta)
class Beta(ScalarFamily):
    r""":math:`F(x) = I_x(a, b)`, with the distances to both ends of the unit interval."""

    support = constraints.unit_interval

    def __init__(self, dist: td.Beta) -> None:
        self.concentration1, self.concentration0 = wide(dist.concentration1), wide(dist.concentration0)
        self.batch_shape = dist.batch_shape
        self._normaliser = beta_normaliser(self.concentration1, self.concentration0)

    def _distances(self, at: Position) -> tuple[Tensor, Tensor]:
        below = at.value if at.below is None else at.below
        above = 1 - at.value if at.above is None else at.above
        return positive(below), positive(above)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        log_p, log_q, log_prob = log_beta_tails_and_density(
            self.concentration1, self.concentration0, *self._distances(at), normaliser=self._normaliser
        )
        return Evaluation(log_prob, log_p, log_q)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return log_beta_density(
            self.concentration1, self.concentration0, *self._distances(at), normaliser=self._normaliser
        )

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Quantile."""
        return self.locate(log_p, log_q).value

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Quantile with distances that are exact at both ends."""
        below, above = beta_quantile(
            self.concentration1, self.concentration0, log_p, log_q, normaliser=self._normaliser
        )
        return Position(self.support_map.nearest(below, smallest=True), below, above)


@family_of(td.FisherSnedecor)
class FisherSnedecor(ScalarFamily):
    r"""Odds of a beta variable of :math:`d_1 / 2` and :math:`d_2 / 2`, times :math:`d_2 / d_1`."""

    support = constraints.positive

    def __init__(self, dist: td.FisherSnedecor) -> None:
        df1, df2 = wide(dist.df1), wide(dist.df2)
        self.half1, self.half2 = 0.5 * df1, 0.5 * df2
        self.factor = df1 / df2
        self.batch_shape = dist.batch_shape
        self._normaliser = beta_normaliser(self.half1, self.half2)

    def _odds(self, at: Position) -> tuple[Tensor, Tensor]:
        """Share of the odds in 1, and its complement."""
        value = at.value if at.below is None else at.below
        odds = (value * self.factor).clamp(max=torch.finfo(value.dtype).max / 4)
        rest = 1 / (1 + odds)
        # the derivative of a small complement is that of its log, for its square may underflow
        log_rest = logsigmoid(-torch.log(torch.where(odds > 1, odds, 1)))
        far = rest.detach() * torch.exp(log_rest - log_rest.detach())
        return positive(odds * rest), torch.where(odds > 1, far, rest)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        share, rest = self._odds(at)
        log_p, log_q, log_prob = log_beta_tails_and_density(
            self.half1, self.half2, share, rest, normaliser=self._normaliser
        )
        return Evaluation(log_prob + 2 * rest.log() + self.factor.log(), log_p, log_q)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        share, rest = self._odds(at)
        log_prob = log_beta_density(self.half1, self.half2, share, rest, normaliser=self._normaliser)
        return log_prob + 2 * rest.log() + self.factor.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Odds of the beta quantile, with the derivatives of their log, for the square of a value may overflow."""
        share, rest, logit = beta_quantile_and_logit(self.half1, self.half2, log_p, log_q, normaliser=self._normaliser)
        info = torch.finfo(share.dtype)
        log_value = logit - self.factor.log()
        with torch.no_grad():
            far = torch.exp(log_value.clamp(max=math.log(info.max) * (1 - 4 * info.eps)))
            value = torch.where(torch.minimum(share, rest) > info.tiny, share / rest / self.factor, far)
            value = value.clamp(max=info.max).detach()  # no derivative in forward mode either
        log_value = torch.where(value < info.max / 64, log_value, 0)
        return value * torch.exp(log_value - log_value.detach())


@scalar_family.register(PyroAffineBeta)
def _affine_beta(dist: PyroAffineBeta) -> ScalarFamily:
    return AffineFamily(
        scalar_family(dist.base_dist), dist.loc, dist.scale, increasing=True, batch_shape=dist.batch_shape
    )


@from_normal.register(PyroAffineBeta)
def _affine_beta_transform(dist: PyroAffineBeta) -> NormalTransform:
    return CDFTransform(scalar_family(dist))
