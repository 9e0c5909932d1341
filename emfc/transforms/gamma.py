"""The gamma distribution and its relatives."""

from __future__ import annotations

import math

import torch
from pyro.distributions import InverseGamma as PyroInverseGamma
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.gamma import gamma_noise_and_density, log_gamma_density, log_gamma_tails_and_density
from emfc.special.gamma_quantile import gamma_quantile, gamma_quantile_and_log
from emfc.special.normal import tails_from_noise
from emfc.special.precision import wide
from emfc.transforms.family import CDFTransform, Evaluation, ScalarFamily
from emfc.transforms.registry import family_of, from_normal
from emfc.transforms.supports import Position

__all__ = ["Gamma", "InverseGamma"]


def _positive(value: Tensor) -> Tensor:
    """At least the smallest positive number."""
    info = torch.finfo(value.dtype)
    return value.clamp(min=info.tiny * info.eps)


@family_of(td.Gamma)
class Gamma(ScalarFamily):
    r""":math:`F(x) = P(a, r x)`; Chi2 with k degrees of freedom is that with concentration k / 2 and rate 1 / 2."""

    support = constraints.nonnegative

    def __init__(self, dist: td.Gamma) -> None:
        self.concentration, self.rate = wide(dist.concentration), wide(dist.rate)
        self.batch_shape = dist.batch_shape

    def _standard(self, at: Position) -> Tensor:
        return _positive((at.value if at.below is None else at.below) * self.rate)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        log_p, log_q, log_prob = log_gamma_tails_and_density(self.concentration, self._standard(at))
        return Evaluation(log_prob + self.rate.log(), log_p, log_q)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return log_gamma_density(self.concentration, self._standard(at)) + self.rate.log()

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise and log density."""
        noise, log_prob = gamma_noise_and_density(self.concentration, self._standard(at))
        return noise, log_prob + self.rate.log()

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Draw, and log density by the draw with rate 1, which loses nothing where the other one underflows."""
        z = gamma_quantile(self.concentration, *tails_from_noise(noise))
        value = self.support_map.nearest(z / self.rate, smallest=True)
        return self.support_map.place(value), log_gamma_density(self.concentration, z) + self.rate.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Quantile with rate 1 over the rate."""
        return gamma_quantile(self.concentration, log_p, log_q) / self.rate


@family_of(td.InverseGamma, PyroInverseGamma)
class InverseGamma(ScalarFamily):
    r"""The reciprocal of a gamma variable, :math:`F(x) = Q(a, r / x)`."""

    support = constraints.positive

    def __init__(self, dist: td.InverseGamma) -> None:
        self.concentration, self.rate = wide(dist.concentration), wide(dist.rate)
        self.batch_shape = dist.batch_shape

    def _standard(self, at: Position) -> tuple[Tensor, Tensor]:
        """The value, far enough from 0 that neither its reciprocal nor that one's square overflows, and r / x."""
        value = at.value if at.below is None else at.below
        least = self.rate.detach() * torch.finfo(value.dtype).max ** -0.45
        value = torch.maximum(value, least.to(value.dtype))
        return value, _positive(self.rate / value)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        value, z = self._standard(at)
        log_p, log_q, log_prob = log_gamma_tails_and_density(self.concentration, z)
        return Evaluation(log_prob + self.rate.log() - 2 * value.log(), log_q, log_p)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        value, z = self._standard(at)
        return log_gamma_density(self.concentration, z) + self.rate.log() - 2 * value.log()

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise and log density."""
        value, z = self._standard(at)
        noise, log_prob = gamma_noise_and_density(self.concentration, z)
        return -noise, log_prob + self.rate.log() - 2 * value.log()

    def _reciprocal(self, z: Tensor, log_z: Tensor) -> Tensor:
        """Rate over z, whose derivatives are those of its log, for its square may overflow."""
        limit = torch.finfo(z.dtype).max
        value = (self.rate.detach() / z.detach()).clamp(max=limit)
        log_value = torch.where(value < limit, self.rate.log() - log_z, 0)
        return value * torch.exp(log_value - log_value.detach())

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Draw, and log density by the gamma draw that it is the reciprocal of."""
        log_p, log_q = tails_from_noise(noise)
        z, log_z = gamma_quantile_and_log(self.concentration, log_q, log_p)
        value = self.support_map.nearest(self._reciprocal(z, log_z), smallest=True)
        info = torch.finfo(z.dtype)
        log_z = log_z.clamp(min=math.log(info.tiny) + math.log(info.eps))
        log_prob = log_gamma_density(self.concentration, z) + 2 * log_z - self.rate.log()
        return self.support_map.place(value), log_prob

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Rate over the gamma quantile."""
        return self._reciprocal(*gamma_quantile_and_log(self.concentration, log_q, log_p))


def _transform(dist: td.Distribution) -> CDFTransform:
    return CDFTransform(InverseGamma(dist))  # type: ignore[arg-type]


# Both are transformed distributions, whose general way is not theirs.
from_normal.register(td.InverseGamma, _transform)
from_normal.register(PyroInverseGamma, _transform)
