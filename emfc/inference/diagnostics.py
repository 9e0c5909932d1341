r"""Diagnostics of draws: how many they are worth (effective sample size) and whether chains agree (R-hat).

Chains are of shape ``[chains, draws, *]``. The definitions are those of A. Vehtari, A. Gelman, D. Simpson, B. Carpenter
and P.-C. Bürkner, "Rank-normalization, folding, and localization: an improved R-hat", Bayesian Analysis 16 (2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.inference.psis import pareto_khat, psis, weighted_khat

__all__ = [
    "ess_bulk",
    "ess_mean",
    "ess_quantile",
    "ess_tail",
    "importance_ess",
    "mean_ess",
    "pareto_khat",
    "psis",
    "rhat",
    "weighted_khat",
    "weighted_quantiles",
]

_FEWEST = 4


def _columns(chains: Tensor) -> Tensor:
    """Chains as ``[chains, draws, elements]`` in double precision."""
    if chains.ndim < 2 or chains.shape[0] < 1 or chains.shape[1] < _FEWEST:
        raise UserError(
            f"diagnostics need chains of shape [chains, draws, ...] with at least {_FEWEST} draws, "
            f"not {list(chains.shape)}"
        )
    return chains.detach().double().reshape(*chains.shape[:2], -1)


def _split(chains: Tensor) -> Tensor:
    """Halves of chains; the middle draw of an odd number is left out."""
    half = chains.shape[1] // 2
    return torch.cat([chains[:, :half], chains[:, chains.shape[1] - half :]])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the first dimension of ``[n, elements]``; ties get their mean."""
    ordered = values.sort(0).values.T.contiguous()
    columns = values.T.contiguous()
    below = torch.searchsorted(ordered, columns, right=False)
    until = torch.searchsorted(ordered, columns, right=True)
    return ((below + until + 1).to(values.dtype) / 2).T


def _quantile(values: Tensor, probability: float) -> Tensor:
    """Quantiles ``[elements]`` of ``[n, elements]``, linear between draws."""
    ordered = values.sort(0).values
    place = probability * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return ordered[low].lerp(ordered[high], place - low)


def _normal_scores(chains: Tensor) -> Tensor:
    """Rank-normalised chains: normal quantiles of (rank - 3/8) / (number + 1/4)."""
    flat = chains.reshape(-1, chains.shape[-1])
    scores: Tensor = torch.special.ndtri((_ranks(flat) - 0.375) / (len(flat) + 0.25))
    return scores.reshape(chains.shape)


def _autocovariance(chains: Tensor) -> Tensor:
    """Autocovariances ``[chains, lags, elements]``, divided by the number of draws."""
    draws = chains.shape[1]
    centred = chains - chains.mean(1, keepdim=True)
    size = 1 << (2 * draws - 1).bit_length()
    spectrum = torch.fft.rfft(centred, n=size, dim=1)
    products: Tensor = torch.fft.irfft(spectrum.abs().square(), n=size, dim=1)
    return products[:, :draws] / draws


def _ess(chains: Tensor) -> Tensor:
    """Effective sample size of split chains ``[elements]``, by Geyer's initial monotone sequence."""
    count, draws = chains.shape[:2]
    covariance = _autocovariance(chains)
    within = covariance[:, 0].mean(0) * draws / (draws - 1)
    total = within * (draws - 1) / draws
    if count > 1:
        total = total + chains.mean(1).var(0)
    rho = 1 - (within - covariance.mean(0)) / total
    rho[0] = 1.0
    even = rho[: draws // 2 * 2 : 2]
    pairs = even + rho[1 : draws // 2 * 2 : 2]
    pairs[0].clamp_(min=0.0)
    positive = (pairs > 0).long().cumprod(0).bool()
    positive[max((draws - 3) // 2, 0) :] = False  # a sequence that never ends is cut before the last lags
    monotone = pairs.cummin(0).values
    last = positive.sum(0).clamp(max=len(even) - 1)
    rest = even.gather(0, last[None])[0].clamp(min=0.0)
    tau = 2 * torch.where(positive, monotone, 0.0).sum(0) - 1 + rest
    number = count * draws
    size = number / tau.clamp(min=1 / math.log10(number))
    constant = chains.flatten(0, 1).amax(0) - chains.flatten(0, 1).amin(0) < 1e-15
    size = torch.where(constant, float(number), size)
    return torch.where(chains.flatten(0, 1).isfinite().all(0), size, math.nan)


def _shaped(result: Tensor, chains: Tensor) -> Tensor:
    return result.reshape(chains.shape[2:])


def ess_mean(chains: Tensor) -> Tensor:
    """Effective sample size for the mean of chains ``[chains, draws, *]``, of shape ``[*]``."""
    return _shaped(_ess(_split(_columns(chains))), chains)


def ess_bulk(chains: Tensor) -> Tensor:
    """Bulk effective sample size, of rank-normalised split chains ``[chains, draws, *]``: how well the centre is known.

    Returns:
        Shape ``[*]``; NaN where a draw is not finite.
    """
    return _shaped(_ess(_finite_scores(_split(_columns(chains)))), chains)


def _finite_scores(chains: Tensor) -> Tensor:
    bad = ~chains.flatten(0, 1).isfinite().all(0)
    return torch.where(bad, math.nan, _normal_scores(torch.where(bad, 0.0, chains)))


def ess_quantile(chains: Tensor, probability: float) -> Tensor:
    """Effective sample size for a quantile: that of the indicator of being at most it. Shape ``[*]``."""
    columns = _columns(chains)
    edge = _quantile(columns.flatten(0, 1), probability)
    below = (columns <= edge).double()
    bad = ~columns.flatten(0, 1).isfinite().all(0)
    return _shaped(_ess(_split(torch.where(bad, math.nan, below))), chains)


def ess_tail(chains: Tensor) -> Tensor:
    """Tail effective sample size: the smaller of those for the 5 % and the 95 % quantile. Shape ``[*]``."""
    return torch.minimum(ess_quantile(chains, 0.05), ess_quantile(chains, 0.95))


def rhat(chains: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of that of the values and of their distances from the median.

    Args:
        chains: Shape ``[chains, draws, *]``; one chain is compared with its other half.

    Returns:
        Shape ``[*]``: below 1.01 the chains agree; NaN where a draw is not finite or all are the same.
    """
    split = _split(_columns(chains))
    folded = (split - _quantile(split.flatten(0, 1), 0.5)).abs()
    both = [_rhat(_finite_scores(held)) for held in (split, folded)]
    return _shaped(torch.maximum(*both), chains)


def _rhat(chains: Tensor) -> Tensor:
    draws = chains.shape[1]
    between = draws * chains.mean(1).var(0)
    within = chains.var(1).mean(0)
    return ((between / within + draws - 1) / draws).sqrt()


def importance_ess(log_weights: Tensor) -> float:
    r"""Kish's effective sample size of importance weights, :math:`(\sum w)^2 / \sum w^2`.

    Args:
        log_weights: Log weights ``[S]``, normalised or not.
    """
    held = log_weights.detach().double()
    if not bool(held.isfinite().any()):
        return 0.0
    return float((2 * held.logsumexp(0) - (2 * held).logsumexp(0)).exp())


def mean_ess(values: Tensor, log_weights: Tensor) -> Tensor:
    r"""Effective sample size for weighted means: variance over the squared standard error of the mean.

    .. math:: n = \sum_s w_s (x_s - \bar x)^2 \Big/ \sum_s w_s^2 (x_s - \bar x)^2, \quad \sum_s w_s = 1

    Args:
        values: Draws ``[S, *]``.
        log_weights: Log weights ``[S]``.

    Returns:
        Shape ``[*]``.
    """
    weights = log_weights.detach().double().softmax(0)
    held = values.detach().double().flatten(1)
    squares = (held - weights @ held).square()
    below = weights.square() @ squares
    size = torch.where(below > 0, (weights @ squares) / below, float(len(held)))
    return size.reshape(values.shape[1:])


def weighted_quantiles(values: Tensor, weights: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles ``[q, *]`` of weighted draws: the weighted distribution function, at the middle of each step, inverted.

    Args:
        values: Draws ``[S, *]``.
        weights: Weights ``[S]`` with the sum 1.
        probabilities: Levels ``[q]``.
    """
    flat = values.flatten(1)
    ordered, order = flat.sort(0)
    held = weights.to(flat)[order]
    middle = (held.cumsum(0) - held / 2).T.contiguous()
    ordered = ordered.T.contiguous()
    levels = probabilities.to(flat).expand(len(middle), -1).contiguous()
    right = torch.searchsorted(middle, levels).clamp(1, middle.shape[1] - 1)
    low, high = middle.gather(1, right - 1), middle.gather(1, right)
    share = ((levels - low) / (high - low).clamp(min=torch.finfo(flat.dtype).tiny)).clamp(0, 1)
    below, above = ordered.gather(1, right - 1), ordered.gather(1, right)
    return (below + share * (above - below)).T.reshape(len(probabilities), *values.shape[1:])
