"""The negative binomial distribution, alone and as a Poisson with a gamma rate, dequantised."""

from __future__ import annotations

import torch
from pyro.distributions import GammaPoisson as PyroGammaPoisson
from torch import Size, Tensor
from torch import distributions as td

from emfc.special.beta_density import log_beta_density
from emfc.special.counts import negative_binomial_level, negative_binomial_tail_and_mass
from emfc.special.precision import wide
from emfc.transforms.counts import CountFamily, log_chances
from emfc.transforms.registry import family_of

__all__ = ["GammaPoisson", "NegativeBinomial"]


def _known(k: Tensor) -> Tensor:
    """Levels no larger than what the incomplete beta function takes, far beyond those that the dtype tells apart."""
    return k.clamp(max=torch.finfo(k.dtype).eps ** -2)


class _NegativeBinomial(CountFamily):
    """By total count, chance of success, and chance of failure."""

    def __init__(self, total_count: Tensor, success: Tensor, failure: Tensor, batch_shape: Size) -> None:
        tiny = torch.finfo(success.dtype).tiny
        self.total_count = wide(total_count).clamp(min=tiny)
        self.success, self.failure = success.clamp(min=tiny), failure.clamp(min=tiny)
        self.batch_shape = batch_shape
        with torch.no_grad():  # Wilson and Hilferty's median of the gamma distributed rate
            share = (1 - 1 / (9 * self.total_count)).clamp(min=0)
            self.middle = self.total_count * share**3 * self.success / self.failure

    def is_low(self, k: Tensor) -> Tensor:
        """Whether it is below the median, about."""
        return k + 1 < self.middle

    def level(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """By a search."""
        return negative_binomial_level(self.total_count, self.success, self.failure, log_p, log_q)

    def log_mass(self, k: Tensor) -> Tensor:
        """Log mass."""
        k = _known(k)
        density = log_beta_density(self.total_count, k + 1, self.failure, self.success)
        return density + self.failure.log() - torch.log(self.total_count + k)

    def tail_and_mass(self, k: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """By incomplete beta functions."""
        return negative_binomial_tail_and_mass(_known(k), lower, self.total_count, self.success, self.failure)


@family_of(td.NegativeBinomial)
class NegativeBinomial(_NegativeBinomial):
    r""":math:`P(K \le k) = I_{1 - s}(r, k + 1)` with r failures to come and s the chance of a success before each."""

    def __init__(self, dist: td.NegativeBinomial) -> None:
        log_success, log_failure = log_chances(dist)
        super().__init__(dist.total_count, log_success.exp(), log_failure.exp(), dist.batch_shape)


@family_of(PyroGammaPoisson)
class GammaPoisson(_NegativeBinomial):
    r"""A negative binomial with r the concentration and chance of success 1 / (1 + rate)."""

    def __init__(self, dist: PyroGammaPoisson) -> None:
        rate = wide(dist.rate)
        whole = 1 + rate
        super().__init__(dist.concentration, 1 / whole, rate / whole, dist.batch_shape)
