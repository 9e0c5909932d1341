"""Tests of whether ranks are uniform."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chi_square", "ecdf_band", "outside_band"]

_TRIALS = 4000
_AT_ONCE = 1000


def chi_square(counts: Tensor) -> float:
    """p-value of Pearson's test that all bins are equally likely.

    Args:
        counts: Numbers of ranks in each bin ``[bins]``.
    """
    held = counts.double()
    expected = held.sum() / len(held)
    statistic = ((held - expected).square() / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(held) - 1) / 2, dtype=torch.float64), statistic / 2))


def ecdf_band(count: int, draws: int, *, level: float = 0.05) -> tuple[Tensor, Tensor]:
    r"""Band that the distribution function of uniform ranks leaves anywhere with a given probability.

    At each of the points :math:`z_j = j / (L + 1)` the number of ranks below j is binomial; the band has the binomial
    quantiles at :math:`\gamma / 2` and :math:`1 - \gamma / 2`, with :math:`\gamma` such that simulated uniform ranks
    leave it anywhere in a share ``level`` of cases. The source is T. Säilynoja, P.-C. Bürkner and A. Vehtari,
    "Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample
    comparison", Statistics and Computing 32 (2022).

    Args:
        count: Number N of ranks.
        draws: Largest rank L.
        level: Probability of leaving the band.

    Returns:
        Lowest and highest numbers of ranks below j = 1, ..., L that stay inside, each ``[L]``.
    """
    points = torch.arange(1, draws + 1, dtype=torch.float64) / (draws + 1)
    below = _binomial_cdf(count, points)  # [L, N + 1]
    tails = torch.minimum(2 * below, 2 * (1 - torch.cat([below.new_zeros(len(points), 1), below[:, :-1]], 1))).clamp(
        max=1
    )
    trials = max(_TRIALS, min(int(40 / level), 40_000))
    generator = torch.Generator().manual_seed(0)
    smallest = []
    for first in range(0, trials, _AT_ONCE):
        size = min(_AT_ONCE, trials - first)
        ranks = torch.randint(draws + 1, (size, count), generator=generator)
        counts = torch.zeros(size, draws + 1, dtype=torch.int64).scatter_add_(1, ranks, torch.ones_like(ranks))
        under = counts.cumsum(1)[:, :-1]
        smallest.append(tails.T[under, torch.arange(draws)].amin(1))
    gamma = torch.cat(smallest).quantile(level)
    low = (below < gamma / 2).sum(1)
    high = (below < 1 - gamma / 2).sum(1)
    return low, high


def outside_band(ranks: Tensor, draws: int, band: tuple[Tensor, Tensor]) -> bool:
    """Whether ranks ``[N]`` leave the band of `ecdf_band` anywhere."""
    under = torch.bincount(ranks, minlength=draws + 1).cumsum(0)[:-1]
    low, high = band
    return bool(((under < low) | (under > high)).any())


def _binomial_cdf(count: int, probabilities: Tensor) -> Tensor:
    """Distribution functions ``[K, N + 1]`` of binomial numbers."""
    numbers = torch.arange(count + 1, dtype=torch.float64)
    whole = torch.tensor(count + 1.0, dtype=torch.float64)
    choices = torch.lgamma(whole) - torch.lgamma(numbers + 1) - torch.lgamma(whole - numbers)
    logs = choices + numbers * probabilities[:, None].log() + (count - numbers) * torch.log1p(-probabilities[:, None])
    return logs.exp().cumsum(1).clamp(max=1.0)
