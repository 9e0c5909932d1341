"""Levels of unbounded counts: which one holds a given tail probability."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from emfc.special.beta import log_beta_tails
from emfc.special.beta_density import beta_normaliser, log_beta_density
from emfc.special.elementwise import elementwise
from emfc.special.gamma import log_gamma_tails_and_density
from emfc.special.gamma_regions import tails_and_density
from emfc.special.normal import ndtri_exp
from emfc.special.precision import together

__all__ = [
    "integer_quantile",
    "negative_binomial_level",
    "negative_binomial_tail_and_mass",
    "poisson_level",
    "poisson_tail_and_mass",
]

TailAndMass = Callable[..., tuple[Tensor, Tensor]]

_ITERATIONS = 100


def integer_quantile(
    tail_and_mass: TailAndMass, start: Tensor, target: Tensor, lower: Tensor, parameters: tuple[Tensor, ...]
) -> Tensor:
    """The level k of a count whose cumulative probability crosses a given one; for flat tensors.

    Steps are as long as the difference to the next level tells, at least 1. Where the log of the tail is concave in k,
    they never pass the root on the side where the tail is at most its target, and from the other side one lands there;
    where it is convex, the other way round. Either way no bracket is needed.

    Args:
        tail_and_mass: Of levels, `lower` and parameters: the log of P(K < k) where `lower`, else of P(K > k), and the
            log mass of k.
        start: First guess, any finite numbers.
        target: Log of the tail to reach: largest k with log P(K < k) at most that where `lower`, else smallest k with
            log P(K > k) at most that.
        lower: Which tail.
        parameters: Further arguments of `tail_and_mass`, one number per element.
    """
    result = start.round().clamp(min=0)
    direction = torch.where(lower, 1, -1).to(start.dtype)
    index = torch.arange(start.numel(), device=start.device)
    k = result
    for _ in range(_ITERATIONS):
        log_tail, log_mass = tail_and_mass(k, lower, *parameters)
        known = ~(lower & (k < 1))  # below 0 there is nothing
        ratio = torch.log1p(torch.exp((log_mass - log_tail).clamp(max=80)))
        ratio = torch.where(log_mass - log_tail > 80, log_mass - log_tail, ratio)
        change = torch.where(known, (target - log_tail) / ratio.clamp(min=torch.finfo(k.dtype).tiny), 0)
        change = change.clamp(-1e12, 1e12)
        # The first level above 0 has the mass of 0 below it.
        change = torch.where(known, change, torch.where(target >= log_mass, 1, 0))
        moved = (k + direction * torch.floor(change)).clamp(min=0)
        done = moved == k
        result[index] = moved
        active = (~done).nonzero().squeeze(-1)
        if active.numel() == 0:
            break
        index, k, target = index[active], moved[active], target[active]
        lower, direction = lower[active], direction[active]
        parameters = tuple(value[active] for value in parameters)
    return result


def _argument(k: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """The concentration whose gamma tail is the count's, and where that is k itself."""
    below = lower & (k >= 1)
    return torch.where(below, k, k + 1), below


def poisson_tail_and_mass(k: Tensor, lower: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log of a tail of the Poisson distribution beyond a level, and log mass of the level.

    The tail is :math:`P(K < k) = Q(k, r)` where `lower` and k is positive, else :math:`P(K > k) = P(k + 1, r)`.
    Differentiable with respect to the rate. Source: DLMF 8.4.10.
    """
    a, below = _argument(k, lower)
    log_p, log_q, density = log_gamma_tails_and_density(a, rate)
    mass = density + torch.where(below, torch.log(rate / torch.where(below, k, rate.detach())), 0)
    return torch.where(below, log_q, log_p), mass


def _plain_poisson(k: Tensor, lower: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    a, below = _argument(k, lower)
    log_p, log_q, density = tails_and_density(a, rate)
    return torch.where(below, log_q, log_p), torch.where(below, density + torch.log(rate / a), density)


def _noise(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the lower tail is the smaller one, the smaller one, and the noise that has it."""
    lower = log_p < log_q
    target = torch.minimum(log_p, log_q)
    noise = ndtri_exp(target.clamp(max=-math.log(2)))
    return lower, target, torch.where(lower, noise, -noise)


@elementwise("poisson_level", inputs=3, block=2**18)
def _poisson_level(rate: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    lower, target, noise = _noise(log_p, log_q)
    start = rate + noise * torch.sqrt(rate) + (noise * noise - 1) / 6 - 0.5  # Cornish-Fisher
    return (integer_quantile(_plain_poisson, start, target, lower, (rate,)),)


def poisson_level(rate: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""The k with :math:`P(K < k) \le p < P(K \le k)` for K of a Poisson distribution, given log p and log (1 - p).

    Args:
        rate: Positive numbers, from 1e-6 to 1e6 tested.
        log_p: Log of the probability below.
        log_q: Log of the probability above; only the smaller of the two is used.

    Returns:
        Whole numbers in the dtype of the arguments, without gradients.

    Source: DLMF 8.4.10 for the tails; secant steps between neighbouring levels, whose logs of the tails are concave.
    """
    return _poisson_level(*together(rate.detach(), log_p.detach(), log_q.detach()))[0]


def negative_binomial_tail_and_mass(
    k: Tensor, lower: Tensor, total_count: Tensor, success: Tensor, failure: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Log of a tail of the negative binomial distribution beyond a level, and log mass of the level.

    The tail is :math:`P(K < k) = I_f(r, k)` where `lower` and k is positive, else :math:`P(K > k) = I_s(k + 1, r)`.
    Differentiable with respect to all parameters. Source: DLMF 8.17.24.

    Args:
        k: Levels.
        lower: Which tail.
        total_count: Positive numbers r.
        success: Chance s of a further success, between 0 and 1.
        failure: 1 less that.
    """
    b, below = _argument(k, lower)
    normaliser = beta_normaliser(total_count, b)
    log_p, log_q = log_beta_tails(total_count, b, failure, success, normaliser=normaliser)
    density = log_beta_density(total_count, b, failure, success, normaliser=normaliser)
    share = torch.where(below, success.log() - b.log(), -torch.log(total_count + k))
    return torch.where(below, log_p, log_q), density + failure.log() + share


@elementwise("negative_binomial_level", inputs=5, block=2**18)
def _negative_binomial_level(
    total_count: Tensor, success: Tensor, failure: Tensor, log_p: Tensor, log_q: Tensor
) -> tuple[Tensor, ...]:
    lower, target, noise = _noise(log_p, log_q)
    mean = total_count * success / failure
    start = mean + noise * torch.sqrt(mean / failure) + (noise * noise - 1) * (1 + success) / (6 * failure) - 0.5
    start = start.clamp(max=torch.finfo(start.dtype).max ** 0.25)
    parameters = (total_count, success, failure)
    return (integer_quantile(negative_binomial_tail_and_mass, start, target, lower, parameters),)


def negative_binomial_level(
    total_count: Tensor, success: Tensor, failure: Tensor, log_p: Tensor, log_q: Tensor
) -> Tensor:
    r"""The k with :math:`P(K < k) \le p < P(K \le k)` for K of a negative binomial distribution.

    Args:
        total_count: Positive numbers.
        success: Chance of a further success, between 0 and 1.
        failure: 1 less that.
        log_p: Log of the probability p below.
        log_q: Log of the probability above; only the smaller of the two is used.

    Returns:
        Whole numbers in the dtype of the arguments, without gradients.

    Source: DLMF 8.17.24 for the tails; secant steps between neighbouring levels.
    """
    values = (total_count, success, failure, log_p, log_q)
    return _negative_binomial_level(*together(*(value.detach() for value in values)))[0]
