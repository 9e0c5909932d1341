"""Unbounded discrete families, dequantised: x = k + u with u uniform on [0, 1)."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from pyro.distributions import ZeroInflatedDistribution
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from emfc.special.counts import poisson_level, poisson_tail_and_mass
from emfc.special.gamma import log_gamma_density
from emfc.special.normal import log1mexp
from emfc.special.precision import wide
from emfc.transforms.discrete import TableFamily
from emfc.transforms.family import CDFTransform, Evaluation, ScalarFamily
from emfc.transforms.registry import UnsupportedFamilyError, family_of, from_normal, scalar_family
from emfc.transforms.supports import Position

__all__ = ["CountFamily", "Geometric", "Poisson", "ZeroInflatedCounts"]

_LOG_HALF = -math.log(2)


def log_chances(dist: td.Distribution, probability: str = "probs", odds: str = "logits") -> tuple[Tensor, Tensor]:
    """Logs of a probability p and of 1 - p, from whichever of p and its log odds the distribution was made of."""
    # Whichever of the two was derived was stored later.
    given = next((name for name in vars(dist) if name in (probability, odds)), odds)
    if given == probability:
        p = wide(getattr(dist, probability))
        one, zero = p >= 1, p <= 0
        log_p = torch.where(zero, -math.inf, torch.log(torch.where(zero, 1, p)))
        return log_p, torch.where(one, -math.inf, torch.log1p(-torch.where(one, 0, p)))
    logits = wide(getattr(dist, odds))
    return logsigmoid(logits), logsigmoid(-logits)


class CountFamily(ScalarFamily):
    """A discrete family on 0, 1, 2, ..., whose tails at a level are known in logs, dequantised.

    Its distribution function is linear within each level: with the level known both directions are closed forms.
    """

    discrete = True
    support = constraints.nonnegative

    @abstractmethod
    def is_low(self, k: Tensor) -> Tensor:
        """Whether a positive level is so low that its upper tail follows from the lower one without cancellation."""

    @abstractmethod
    def level(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The k with P(K < k) <= p < P(K <= k), without gradients."""

    @abstractmethod
    def log_mass(self, k: Tensor) -> Tensor:
        """Log mass of a level."""

    @abstractmethod
    def tail_and_mass(self, k: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Log of P(K < k) where `lower` (the level is positive there), else of P(K > k); log mass of k."""

    def evaluate(self, at: Position) -> Evaluation:
        """Log mass of the floor and log tails."""
        tiny = torch.finfo(at.value.dtype).tiny
        with torch.no_grad():
            k = at.value.floor().clamp(min=0)
            first = k < 1
            lower = ~first & self.is_low(k)
        log_tail, log_mass = self.tail_and_mass(k, lower)
        part, rest = (at.value - k).clamp(0, 1), (k + 1 - at.value).clamp(tiny, 1)
        ratio = torch.exp((log_mass - log_tail).clamp(max=80))
        below = log_tail + torch.log1p(part * ratio)
        above = torch.logaddexp(log_tail, rest.log() + log_mass)
        start = torch.log(torch.where(first, part, 1).clamp(min=tiny)) + log_mass
        log_cdf = torch.where(first, start, torch.where(lower, below, log1mexp(torch.where(lower, _LOG_HALF, above))))
        log_sf = torch.where(lower, log1mexp(torch.where(lower, below, _LOG_HALF)), above)
        return Evaluation(log_mass.expand(log_cdf.shape), log_cdf, log_sf.clamp(max=-tiny))

    def log_density(self, at: Position) -> Tensor:
        """Log mass of the floor."""
        return self.log_mass(at.value.detach().floor().clamp(min=0))

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Level found by a search, place in it by linear interpolation."""
        log_p, log_q = torch.broadcast_tensors(log_p, log_q)
        lower = log_p < log_q
        with torch.no_grad():
            k = self.level(log_p, log_q)
            inner = lower & (k >= 1)
        log_tail, log_mass = self.tail_and_mass(k, inner)
        limit = 0.9 * math.log(torch.finfo(k.dtype).max)
        passed = torch.exp((log_tail - log_mass).clamp(max=limit))
        share = torch.exp((torch.where(lower, log_p, log_q) - log_mass).clamp(max=limit))
        share = share - torch.where(inner | ~lower, passed, 0)
        value = torch.where(lower, k + share, k + (1 - share))
        with torch.no_grad():
            zero = torch.zeros_like(value)
            least = torch.maximum(k, torch.nextafter(zero, zero + 1))
            most = torch.nextafter(k + 1, zero)
            shift = value.maximum(least).minimum(most) - value
        return value + shift


@family_of(td.Poisson)
class Poisson(CountFamily):
    r""":math:`P(K \le k) = Q(k + 1, r)`."""

    def __init__(self, dist: td.Poisson) -> None:
        rate = wide(dist.rate)
        self.rate = rate.clamp(min=torch.finfo(rate.dtype).tiny)
        self.batch_shape = dist.batch_shape

    def is_low(self, k: Tensor) -> Tensor:
        """Whether it is below the mean."""
        return k < self.rate

    def level(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """By a search."""
        return poisson_level(self.rate, log_p, log_q)

    def log_mass(self, k: Tensor) -> Tensor:
        """Log mass."""
        return log_gamma_density(k + 1, self.rate)

    def tail_and_mass(self, k: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """By incomplete gamma functions."""
        return poisson_tail_and_mass(k, lower, self.rate)


@family_of(td.Geometric)
class Geometric(CountFamily):
    r""":math:`P(K \ge k) = (1 - p)^k`."""

    def __init__(self, dist: td.Geometric) -> None:
        log_success, log_failure = log_chances(dist)
        info = torch.finfo(log_success.dtype)
        self.log_success = log_success.clamp(min=math.log(info.tiny))
        self.log_failure = log_failure.clamp(min=-(info.max**0.4), max=-info.tiny)
        self.batch_shape = dist.batch_shape

    def is_low(self, k: Tensor) -> Tensor:
        """Whether the next level is below the median."""
        return (k + 1) * self.log_failure > _LOG_HALF

    def level(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log of the upper tail over that of the chance of failure."""
        upper = torch.where(log_p < log_q, log1mexp(log_p), log_q)
        return torch.floor(upper / self.log_failure.detach()).clamp(0, torch.finfo(upper.dtype).max ** 0.5)

    def log_mass(self, k: Tensor) -> Tensor:
        """Log mass."""
        return k * self.log_failure + self.log_success

    def tail_and_mass(self, k: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Powers of the chance of failure."""
        below = log1mexp(torch.where(lower, k, 1) * self.log_failure)
        return torch.where(lower, below, (k + 1) * self.log_failure), self.log_mass(k)


class ZeroInflatedCounts(CountFamily):
    """A count that is 0 with a further probability, the gate.

    Args:
        log_gate: Log of the gate.
        log_rest: Log of 1 less the gate.
        base: The count.
        batch_shape: Shape of gate and base together.
    """

    def __init__(self, log_gate: Tensor, log_rest: Tensor, base: CountFamily, batch_shape: Size) -> None:
        least = torch.finfo(log_gate.dtype).min / 16
        self.log_gate, self.log_rest = log_gate.clamp(min=least), log_rest.clamp(min=least)
        self.base = base
        self.batch_shape = batch_shape

    def is_low(self, k: Tensor) -> Tensor:
        """Whether base and gate are."""
        return self.base.is_low(k) & (self.log_gate < _LOG_HALF)

    def level(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The base's level for what is left of the probability above the mass of 0."""
        tiny = torch.finfo(log_p.dtype).tiny
        lower = log_p < log_q
        more, first = self.tail_and_mass(torch.zeros_like(log_p), torch.zeros_like(lower))
        zero = torch.where(lower, log_p < first, log_q > more)
        above = (torch.where(lower, log1mexp(log_p), log_q) - self.log_rest).clamp(max=-tiny)
        direct = log_p + log1mexp((self.log_gate - log_p).clamp(max=-tiny)) - self.log_rest
        below = torch.where(lower, direct.clamp(max=-tiny), log1mexp(above))
        k = self.base.level(torch.where(zero, _LOG_HALF, below), torch.where(zero, _LOG_HALF, above))
        return torch.where(zero, 0, k)

    def log_mass(self, k: Tensor) -> Tensor:
        """Log mass."""
        rest = self.log_rest + self.base.log_mass(k)
        return torch.where(k < 1, torch.logaddexp(self.log_gate, rest), rest)

    def tail_and_mass(self, k: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the base, less likely, and the gate below."""
        log_tail, log_mass = self.base.tail_and_mass(k, lower)
        log_tail, rest = log_tail + self.log_rest, self.log_rest + log_mass
        log_mass = torch.where(k < 1, torch.logaddexp(self.log_gate, rest), rest)
        return torch.where(lower, torch.logaddexp(self.log_gate, log_tail), log_tail), log_mass


@scalar_family.register(ZeroInflatedDistribution)
def _zero_inflated(dist: ZeroInflatedDistribution) -> ScalarFamily:
    base = scalar_family(dist.base_dist)
    log_gate, log_rest = log_chances(dist, "gate", "gate_logits")
    if isinstance(base, TableFamily):
        masses = log_rest.unsqueeze(-1) + base.log_masses
        zero = torch.logaddexp(log_gate.unsqueeze(-1), masses[..., :1])
        return TableFamily(
            torch.cat((zero, masses[..., 1:]), -1), base.levels if isinstance(base.levels, Tensor) else None
        )
    if isinstance(base, CountFamily):
        return ZeroInflatedCounts(log_gate, log_rest, base, Size(dist.batch_shape))
    raise UnsupportedFamilyError(
        f"ZeroInflatedDistribution of {type(dist.base_dist).__name__} has no transform; the nearest supported are "
        "ZeroInflatedPoisson and ZeroInflatedDistribution of a Binomial, Geometric or Poisson."
    )


@from_normal.register(ZeroInflatedDistribution)
def _zero_inflated_transform(dist: ZeroInflatedDistribution) -> CDFTransform:
    return CDFTransform(scalar_family(dist))
