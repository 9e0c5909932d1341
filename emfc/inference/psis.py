"""Pareto-smoothed importance sampling: weights with a tail that can be trusted, and the number that says whether."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emfc.errors import UserError

__all__ = ["fit_generalized_pareto", "pareto_khat", "psis", "weighted_khat"]

_FEWEST_IN_TAIL = 5
_PRIOR_STRENGTH, _PRIOR_SHAPE = 10, 0.5  # the weak prior on k of Vehtari et al. (2024), appendix G
_SAME = 1e-3  # log weights that all lie within so many nats are the same: no average moves by more than a thousandth
_ROUNDING = 1e3  # units in the last place of the largest value that count as rounding


def fit_generalized_pareto(excesses: Tensor) -> tuple[float, float]:
    r"""Shape k and scale :math:`\sigma` of a generalised Pareto distribution.

    The empirical Bayes estimate of J. Zhang and M. Stephens, "A new and efficient estimation method for the generalized
    Pareto distribution", Technometrics 51 (2009), with the weak prior of Vehtari et al. (2024), which draws k to 0.5 as
    ten observations would.

    Args:
        excesses: Positive numbers in ascending order ``[n]``.

    Returns:
        k, positive for a heavy tail (moments below 1 / k exist), and the scale.
    """
    values = excesses.double()
    count = len(values)
    grid = 30 + math.isqrt(count)
    places = torch.arange(1, grid + 1, dtype=values.dtype, device=values.device)
    quartile = values[max(int(count / 4 + 0.5) - 1, 0)]
    theta = 1 / values[-1] + (1 - (grid / (places - 0.5)).sqrt()) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * values).mean(1)
    profile = count * (torch.log(-theta / shape) - shape - 1)
    mean = float((theta * torch.softmax(profile, 0)).sum())
    k = float(torch.log1p(-mean * values).mean())
    sigma = -k / mean
    return (k * count + _PRIOR_STRENGTH * _PRIOR_SHAPE) / (count + _PRIOR_STRENGTH), sigma


def _tail_length(count: int) -> int:
    return math.ceil(min(0.2 * count, 3 * math.sqrt(count)))


def psis(log_weights: Tensor) -> tuple[Tensor, float]:
    r"""Smooths the tail of importance weights.

    The M = min(S / 5, 3 sqrt(S)) largest weights become the expected order statistics of the generalised Pareto
    distribution that fits them; none becomes larger than the largest was. A k below 0.5 means that the weights have a
    variance; up to 0.7 averages with the smoothed weights are usable; above, no number of draws in reach makes them so.
    The source is A. Vehtari, D. Simpson, A. Gelman, Y. Yao and J. Gabry, "Pareto smoothed importance sampling", JMLR 25
    (2024).

    Args:
        log_weights: Unnormalised log weights ``[S]``; negative infinity is a weight of 0.

    Returns:
        The smoothed log weights ``[S]``, normalised so that the weights have the sum 1, and k-hat: 0 where all weights
        are the same to a thousandth, or the largest are the same, infinity (and equal weights) where a weight is
        infinite or no number, or none is above 0; infinity, too, where fewer than five draws have all the mass. A
        constant that is added to all log weights changes nothing but their rounding.

    Raises:
        UserError: Not one dimension.
    """
    if log_weights.ndim != 1 or not len(log_weights):
        raise UserError(f"psis needs log weights in one dimension, not of shape {list(log_weights.shape)}")
    held = log_weights.detach().double()
    if bool((held.isnan() | (held == math.inf)).any()) or not bool(held.isfinite().any()):
        return torch.zeros_like(held).log_softmax(0).to(log_weights), math.inf
    top = held.max()
    if float(top - held.min()) <= _SAME:
        return held.log_softmax(0).to(log_weights), 0.0
    shifted = held - top
    length = _tail_length(len(held))
    if length < _FEWEST_IN_TAIL:
        return held.log_softmax(0).to(log_weights), math.inf
    order = shifted.argsort()
    tail = order[-length:]
    cutoff = shifted[order[-length - 1]].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    excesses = shifted[tail].exp() - cutoff.exp()
    positive = excesses[excesses > 0]
    if len(positive) < _FEWEST_IN_TAIL:
        flat = float(cutoff) > -math.log(2)  # no tail: nearly all of it is the same, and near the largest
        return held.log_softmax(0).to(log_weights), 0.0 if flat else math.inf
    k, sigma = fit_generalized_pareto(positive)
    if not math.isfinite(k):
        return held.log_softmax(0).to(log_weights), math.inf
    levels = (torch.arange(length, dtype=held.dtype, device=held.device) + 0.5) / length
    tail_left = -torch.log1p(-levels)
    quantiles = sigma * (torch.expm1(k * tail_left) / k if abs(k) > 1e-12 else tail_left)
    smoothed = shifted.clone()
    smoothed[tail] = (quantiles + cutoff.exp()).log().clamp(max=0.0)
    return smoothed.log_softmax(0).to(log_weights), k


def pareto_khat(values: Tensor) -> float:
    """k-hat of the right tail of a sample of any values ``[S]``; 0 where it has none.

    Args:
        values: Numbers, of which the largest are looked at.
    """
    held = values.detach().double()
    if not bool(held.isfinite().all()):
        return math.inf
    length = _tail_length(len(held))
    if length < _FEWEST_IN_TAIL:
        return math.inf
    ordered = held.sort().values
    excesses = ordered[-length:] - ordered[-length - 1]
    scale = float(held.abs().max())
    excesses = excesses[excesses > _ROUNDING * torch.finfo(held.dtype).eps * scale]
    if len(excesses) < _FEWEST_IN_TAIL:
        return 0.0
    return fit_generalized_pareto(excesses)[0]


def weighted_khat(values: Tensor, log_weights: Tensor) -> float:
    """k-hat of the weighted average of a function: the worse tail of value (from its mean) times weight.

    Args:
        values: The function at each draw ``[S]``.
        log_weights: Log weights ``[S]``.

    Returns:
        What decides whether the average can be relied on, beside the k-hat of the weights alone.
    """
    weights = log_weights.detach().double().softmax(0)
    held = values.detach().double()
    terms = weights * (held - (weights * held).sum()) * len(held)
    return max(pareto_khat(terms), pareto_khat(-terms))
