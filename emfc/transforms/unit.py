"""Families of the unit interval with closed forms: Kumaraswamy, ContinuousBernoulli, RelaxedBernoulli."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import RelaxedBernoulliStraightThrough
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.continuous_bernoulli import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli as TorchLogitRelaxedBernoulli
from torch.nn.functional import logsigmoid

from emfc.special.hazard import conjugate_log_hazard, log_hazard_from_tails, tails_from_log_hazard
from emfc.special.normal import exact_tails, tails_from_noise
from emfc.special.precision import wide
from emfc.special.ratios import (
    bounded_exp,
    expm1_ratio,
    log1p_ratio,
    log_distance,
    log_expm1_ratio,
    logistic_pair,
    side_of,
)
from emfc.transforms.affine import SupportedNormal
from emfc.transforms.base import NormalTransform
from emfc.transforms.family import CDFTransform, Evaluation, ScalarFamily
from emfc.transforms.registry import UnsupportedFamilyError, family_of, from_normal, refusing, scalar_family
from emfc.transforms.scalar import Logistic
from emfc.transforms.supports import Position

__all__ = ["ContinuousBernoulli", "Kumaraswamy", "LogitRelaxedBernoulli", "RelaxedBernoulli"]


class _Unit(ScalarFamily):
    """A family of the unit interval whose `locate` gives distances that are exact at both ends."""

    support = constraints.unit_interval

    @staticmethod
    def _ends(at: Position) -> tuple[Tensor, Tensor]:
        """Distances to 0 and to 1."""
        return at.value if at.below is None else at.below, 1 - at.value if at.above is None else at.above

    def _position(self, below: Tensor, above: Tensor) -> Position:
        value = torch.where(below < above, below, 1 - above)
        return Position(self.support_map.nearest(value, smallest=True), below, above)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The located value."""
        return self.locate(log_p, log_q).value


@family_of(td.Kumaraswamy)
class Kumaraswamy(_Unit):
    r""":math:`1 - F(x) = (1 - x^a)^b`."""

    def __init__(self, dist: td.Kumaraswamy) -> None:
        self.concentration1, self.concentration0 = wide(dist.concentration1), wide(dist.concentration0)
        self.batch_shape = dist.batch_shape

    def evaluate(self, at: Position) -> Evaluation:
        r"""Log density and log tails, by :math:`-\log x` and its logarithm."""
        below, above = self._ends(at)
        log_x = torch.where(below < above, log_distance(below), torch.log1p(-above.clamp(max=0.5)))
        log_a, log_b = self.concentration1.log(), self.concentration0.log()
        y = log_a + log_distance(-log_x)
        log_rest, _ = tails_from_log_hazard(y)
        log_cdf, _ = tails_from_log_hazard(conjugate_log_hazard(y) + log_b)
        return Evaluation(self._density(log_x, log_rest), log_cdf, self.concentration0 * log_rest)

    def _density(self, log_x: Tensor, log_rest: Tensor) -> Tensor:
        r"""Log density by :math:`\log x` and :math:`\log(1 - x^a)`."""
        factor = self.concentration1.log() + self.concentration0.log()
        return factor + (self.concentration1 - 1) * log_x + (self.concentration0 - 1) * log_rest

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Quantile, and the density by its logarithm, which may be too small for a number."""
        log_p, log_q = tails_from_noise(noise)
        descent = self._descent(log_p, log_q)
        return self._at(descent), self._density(-descent, log_q / self.concentration0)

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """By the log of the cumulative hazard."""
        return self._at(self._descent(log_p, log_q))

    def _descent(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        y = conjugate_log_hazard(log_hazard_from_tails(log_p, log_q) - self.concentration0.log())
        return bounded_exp(y - self.concentration1.log())

    def _at(self, descent: Tensor) -> Position:
        return self._position(torch.exp(-descent), -torch.expm1(-descent))


@family_of(TorchContinuousBernoulli)
class ContinuousBernoulli(_Unit):
    r""":math:`F(x) = (e^{\eta x} - 1) / (e^\eta - 1)` with log odds :math:`\eta`: an exponential, cut off at 1.

    Everything is written by the distance to the end of highest density, so that :math:`n = |\eta|` alone appears.
    """

    def __init__(self, dist: TorchContinuousBernoulli) -> None:
        self.logits = wide(dist.logits)
        self.batch_shape = dist.batch_shape

    def _turn(self) -> tuple[Tensor, Tensor]:
        """True where the mode is 0, and the absolute log odds, with a derivative at 0."""
        side = side_of(self.logits)
        return side < 0, side * self.logits

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        below, above = self._ends(at)
        at_zero, size = self._turn()
        near, far = torch.where(at_zero, below, above), torch.where(at_zero, above, below)
        ratio = log_expm1_ratio(-size)
        inner = log_distance(near) + log_expm1_ratio(-size * near) - ratio
        outer = log_distance(far) + log_expm1_ratio(size * far) - log_expm1_ratio(size)
        return Evaluation(-size * near - ratio, torch.where(at_zero, inner, outer), torch.where(at_zero, outer, inner))

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Distances to the end of highest density and to the other, by closed forms for small and for large odds."""
        log_p, log_q = exact_tails(log_p, log_q)
        at_zero, size = self._turn()
        inner, outer = torch.where(at_zero, log_p, log_q), torch.where(at_zero, log_q, log_p)
        flat = size < 1
        n = torch.where(flat, size, 0.5)
        share, rest = torch.exp(inner) * expm1_ratio(-n), torch.exp(outer) * expm1_ratio(n)
        n_large = torch.where(flat, 1.0, size)
        steep = torch.where(
            inner < -1,
            -torch.log1p(torch.exp(inner.clamp(max=-1)) * torch.expm1(-n_large)),
            -torch.logaddexp(outer, inner - n_large),
        )
        near = torch.where(flat, share * log1p_ratio(-n * share), steep / n_large)
        slope = -logsigmoid(-outer - n_large - torch.log(-torch.expm1(-n_large)))
        far = torch.where(flat, rest * log1p_ratio(n * rest), slope / n_large)
        return self._position(torch.where(at_zero, near, far), torch.where(at_zero, far, near))


@family_of(TorchLogitRelaxedBernoulli)
class LogitRelaxedBernoulli(Logistic):
    r"""A logistic family with location :math:`\ell / T` and scale :math:`1 / T`."""

    def __init__(self, dist: Any) -> None:
        logits = wide(dist.logits)
        temperature = torch.as_tensor(dist.temperature, device=logits.device).to(logits.dtype)
        self.loc, self.scale = logits / temperature, 1 / temperature
        self.batch_shape = torch.broadcast_shapes(dist.batch_shape, temperature.shape)


@family_of(td.RelaxedBernoulli)
class RelaxedBernoulli(_Unit):
    r""":math:`1 / (1 + e^{-y})` of the logistic family above."""

    def __init__(self, dist: td.RelaxedBernoulli) -> None:
        self.base = LogitRelaxedBernoulli(dist.base_dist)
        self.batch_shape = self.base.batch_shape

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails, by the log odds of the value."""
        log_below, log_above = (log_distance(end) for end in self._ends(at))
        result = self.base.evaluate(Position(log_below - log_above))
        return result._replace(log_prob=result.log_prob - log_below - log_above)

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Logistic function of the base's quantile."""
        odds = self.base.quantile(log_p, log_q)
        return self._position(*logistic_pair(odds))


def _relaxed(dist: td.RelaxedBernoulli) -> NormalTransform:
    return SupportedNormal(CDFTransform(LogitRelaxedBernoulli(dist.base_dist)), constraints.unit_interval)


@refusing
def _straight_through(dist: RelaxedBernoulliStraightThrough) -> Any:
    raise UnsupportedFamilyError(
        f"{type(dist).__name__} draws 0 or 1 but has the density of RelaxedBernoulli; use that, or Bernoulli."
    )


from_normal.register(td.RelaxedBernoulli, _relaxed)
from_normal.register(RelaxedBernoulliStraightThrough, _straight_through)
scalar_family.register(RelaxedBernoulliStraightThrough, _straight_through)
