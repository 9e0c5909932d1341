"""The gamma distribution and its relatives."""

from __future__ import annotations

import math

import torch
from pyro.distributions import InverseGamma as PyroInverseGamma
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.gamma import (
    gamma_noise_and_density,
    log_gamma_density,
    log_gamma_leading,
    log_gamma_tails_and_density,
)
from emfc.special.gamma_quantile import gamma_quantile_and_log
from emfc.special.normal import log1mexp, tails_from_noise
from emfc.special.precision import eager, wide
from emfc.transforms.distances import positive
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.registry import family_of
from emfc.transforms.supports import Position

__all__ = ["Gamma", "InverseGamma"]


def _underflow(z: Tensor) -> Tensor | None:
    """Where a number is too small to be exact to rounding; None where that is known to be nowhere."""
    small = z < 4 * torch.finfo(z.dtype).tiny
    return None if eager() and not bool(small.any()) else small


@family_of(td.Gamma)
class Gamma(ScalarFamily):
    r""":math:`F(x) = P(a, r x)`; Chi2 with k degrees of freedom is that with concentration k / 2 and rate 1 / 2."""

    support = constraints.nonnegative

    def __init__(self, dist: td.Gamma) -> None:
        self.concentration, self.rate = wide(dist.concentration), wide(dist.rate)
        self.batch_shape = dist.batch_shape

    def _standard(self, at: Position) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value times rate, the value, and where the product is too small for an exact number, None for nowhere."""
        value = positive(at.value if at.below is None else at.below)
        z = value * self.rate
        return positive(z), value, _underflow(z)

    def _leading(self, value: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log lower tail, log density and noise with rate 1, where the product of value and rate underflows."""
        least = 4 * torch.finfo(value.dtype).tiny  # below which the derivative of a log may overflow
        log_value = value.clamp(min=least).log()
        log_value = log_value + (value.detach().log() - log_value.detach())
        return log_gamma_leading(self.concentration, torch.where(small, log_value + self.rate.log(), -1))

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        z, value, small = self._standard(at)
        log_p, log_q, log_prob = log_gamma_tails_and_density(self.concentration, z)
        if small is not None:
            log_tail, leading, _ = self._leading(value, small)
            log_p, log_prob = torch.where(small, log_tail, log_p), torch.where(small, leading, log_prob)
            log_q = torch.where(small, log1mexp(torch.where(small, log_tail, -1)), log_q)
        return Evaluation(log_prob + self.rate.log(), log_p, log_q)

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        z, value, small = self._standard(at)
        log_prob = log_gamma_density(self.concentration, z)
        if small is not None:
            log_prob = torch.where(small, self._leading(value, small)[1], log_prob)
        return log_prob + self.rate.log()

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise and log density."""
        z, value, small = self._standard(at)
        noise, log_prob = gamma_noise_and_density(self.concentration, z)
        if small is not None:
            _, leading, far = self._leading(value, small)
            noise, log_prob = torch.where(small, far, noise), torch.where(small, leading, log_prob)
        return noise, log_prob + self.rate.log()

    def _over_rate(self, z: Tensor, log_z: Tensor, small: Tensor | None) -> Tensor:
        """Quantile with rate 1 over the rate, by their logs where the former underflows."""
        value = z / self.rate
        if small is None:
            return value
        return torch.where(small, torch.exp(torch.where(small, log_z - self.rate.log(), 0)), value)

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Draw, and log density by the draw with rate 1, which loses nothing where the other one underflows."""
        z, log_z = gamma_quantile_and_log(self.concentration, *tails_from_noise(noise))
        small = _underflow(z)
        value = self.support_map.nearest(self._over_rate(z, log_z, small), smallest=True)
        log_prob = log_gamma_density(self.concentration, z)
        if small is not None:
            info = torch.finfo(z.dtype)
            least = math.log(info.tiny) + math.log(info.eps) + self.rate.detach().log().clamp(max=0)
            log_z = torch.where(small, torch.maximum(log_z, least.to(log_z.dtype)), -1)
            log_prob = torch.where(small, log_gamma_leading(self.concentration, log_z)[1], log_prob)
        return self.support_map.place(value), log_prob + self.rate.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Quantile with rate 1 over the rate."""
        z, log_z = gamma_quantile_and_log(self.concentration, log_p, log_q)
        return self._over_rate(z, log_z, _underflow(z))


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
        log_z = self.rate.log() - value.log()
        # the derivatives are those of the log, for the square of the reciprocal may underflow
        return value, positive((self.rate / value).detach() * torch.exp(log_z - log_z.detach()))

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
