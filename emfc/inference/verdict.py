"""What k-hat means, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from emfc.inference.tails import Wide

__all__ = ["AGREE", "EVEN", "FLAT", "GOOD", "USABLE", "khat_threshold", "missed_verdict", "settled", "verdict_on"]

GOOD, USABLE = 0.5, 0.7

FLAT = 1.5
"""Where no weight is more than so many times the mean, the shape of their tail hardly matters."""

EVEN = 0.05
"""Weights of at most this variance, in units of their squared mean, are nearly equal: no mean moves by more than a
quarter of a standard deviation if they are left out, so that k-hat speaks of tails alone."""

AGREE = 0.1
"""So far, in standard deviations, results of wider draws may be from those of a fit that agrees with them."""

_EARLY = {
    "interrupted": " (the fit was stopped before it had converged)",
    "failed": " (the fit failed: at most of its steps, or at some of its draws, the density was not finite)",
}


def khat_threshold(draws: int) -> float:
    """Largest k-hat at which averages over so many draws can be relied on: min(1 - 1 / log10(S), 0.7).

    Source: Vehtari et al., "Pareto smoothed importance sampling", JMLR 25 (2024), section 3.2.4.
    """
    return min(1 - 1 / math.log10(draws), USABLE) if draws > 10 else 0.0


def verdict_on(
    khat: float,
    draws: int,
    *,
    largest: float = math.inf,
    variance: float = math.inf,
    wide: Wide | None = None,
    stopped: str = "converged",
) -> str:
    """Says whether to believe a posterior, and what to do.

    Args:
        khat: Pareto k-hat of the importance weights.
        draws: Their number.
        largest: The largest weight, in units of their mean.
        variance: Variance of the weights, in units of their squared mean.
        wide: What wider draws say, where they were asked.
        stopped: Why the fit ended.
    """
    limit = khat_threshold(draws)
    told = f"k-hat {khat:.2f}"
    early = _EARLY.get(stopped, "")
    if khat < min(GOOD, limit):
        return f"good: {told} is below 0.5, so that the reweighted results can be relied on{early}"
    if khat < limit:
        return (
            f"usable: {told} is below {limit:.2g}, so that the reweighted results can be relied on, "
            f"but the fit itself is not exact; a longer fit makes it better{early}"
        )
    if settled(khat, draws, largest=largest, variance=variance, wide=wide) and wide is not None and wide.khat < limit:
        return (
            f"usable: {told} is above {limit:.2g}, but the weights are nearly equal, and draws that spread wider than "
            f"the fit (k-hat {wide.khat:.2f}) give the same means and standard deviations{early}"
        )
    if settled(khat, draws, largest=largest, variance=variance, wide=wide):
        return (
            f"usable: {told} is above {limit:.2g}, but no weight is more than {largest:.2f} times the mean, so that "
            f"the results can be relied on but for tails that the fit does not reach{early}"
        )
    if wide is not None and wide.apart >= AGREE and variance < EVEN:
        return (
            f"not to be trusted: {told} is above {limit:.2g}, and draws that spread wider than the fit give other "
            "means or standard deviations, so that it misses tails that matter; take a richer backbone (iaf, nsf), or "
            f"run NUTS through the guide{early}"
        )
    if khat < USABLE:
        return (
            f"not to be trusted with {draws} draws: {told} is above {limit:.2f}, the limit for so few; "
            f"take 4000 draws or more{early}"
        )
    return (
        f"not to be trusted: {told} is above 0.7, so that the fit misses a part of the posterior that matters, and no "
        "reweighting mends it; do not use these means and intervals. Fit longer, take a richer backbone (iaf, nsf), "
        "run NUTS through the guide, or look for a prior that contradicts the data or a funnel in the "
        f"model{early}"
    )


def settled(khat: float, draws: int, *, largest: float, variance: float, wide: Wide | None) -> bool:
    """Whether averages with the weights can be relied on.

    k-hat is about the limit of ever larger weights. Where the weights are nearly equal, the limit may lie so far out
    that it carries no mass, or just beyond the draws: the fit's own draws cannot tell, wider ones can.

    Args:
        khat: Pareto k-hat of the importance weights.
        draws: Their number.
        largest: The largest weight, in units of their mean.
        variance: Variance of the weights, in units of their squared mean.
        wide: What wider draws say, where they were asked.
    """
    limit = khat_threshold(draws)
    if khat < limit:
        return True
    if wide is None:
        return largest < FLAT
    return wide.apart < AGREE and (largest < FLAT or (variance < EVEN and wide.khat < limit))


def missed_verdict(point: Mapping[str, Tensor], *, stopped: str = "converged") -> str:
    """Says that a fit has missed a mode.

    Args:
        point: Where the mode is, by site.
        stopped: Why the fit ended.
    """
    held = [f"{name} = {float(value):.3g}" for name, value in point.items() if value.numel() == 1]
    near = f" near {', '.join(held[:3])}" if held else ""
    return (
        f"not to be trusted: there is another mode{near}, to which the fit gives no weight, and which k-hat cannot "
        "see; write the model so that it has one mode (order what can be exchanged, fix a sign), or run NUTS from "
        f"several starts{_EARLY.get(stopped, '')}"
    )
