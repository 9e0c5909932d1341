"""The beta-binomial family, dequantised: counts of successes whose probability is itself a Beta draw."""

from __future__ import annotations

import math

import torch
from pyro.distributions import BetaBinomial as PyroBetaBinomial
from torch.nn.functional import pad

from emfc.special.precision import wide
from emfc.transforms.discrete import TableFamily
from emfc.transforms.registry import family_of

__all__ = ["BetaBinomial"]


@family_of(PyroBetaBinomial)
class BetaBinomial(TableFamily):
    r"""Counts of successes in n trials; `total_count` may differ between elements.

    The masses are made from one to the next, so that no large logarithm cancels:

    .. math:: p_{k+1} / p_k = \frac{(n - k) (a + k)}{(k + 1) (b + n - k - 1)}
    """

    def __init__(self, dist: PyroBetaBinomial) -> None:
        one, zero = wide(dist.concentration1), wide(dist.concentration0)
        a, b, count = torch.broadcast_tensors(one, zero, torch.as_tensor(dist.total_count).to(one))
        highest = int(count.max()) if count.numel() > 0 else 0
        k = torch.arange(highest, device=a.device, dtype=a.dtype)
        a, b, n = a.unsqueeze(-1), b.unsqueeze(-1), count.unsqueeze(-1)
        inside = k < n
        rest = torch.where(inside, n - k, 1)
        steps = (rest * (a + k)).log() - ((k + 1) * (b + rest - 1)).log()
        log_masses = pad(torch.where(inside, steps, 0).cumsum(-1), (1, 0))
        log_masses = torch.where(pad(inside, (1, 0), value=True), log_masses, -math.inf)
        same = bool((count == highest).all())
        super().__init__(log_masses, None if same else (count + 1).long())
