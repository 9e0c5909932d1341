"""The numbers of a fit, and how those are chosen that were not given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FitSettings", "late_alpha"]

SMALL_VARIANCE = 0.15
"""Log weights of at most this variance come from a flow that fits well."""

NEAR_ONE = 1e-6
"""An order as close to 1 as this is 1: the quotient of Renyi's bound would be rounding alone."""


@dataclass
class FitSettings:
    """Numbers of a fit, all chosen.

    Attributes:
        seconds: Budget.
        steps: Budget.
        particles: Draws of each step.
        objective: Name of the gradient estimator.
        seed: Of all random numbers.
        start: Which starts are tried.
        learning_rate: Highest step size.
        alpha: Order of ``"alpha"``.
        noise: Kind of noise.
        anneal: Share of the plateau over which the target is tempered.
        fixed: Whether the number of draws was given.
        fixed_rate: Whether the step size was given.
        late: Estimator while the step size falls, if it is another.
    """

    seconds: float | None
    steps: int | None
    particles: int
    objective: str
    seed: int
    start: str
    learning_rate: float
    alpha: float
    noise: str
    anneal: float
    fixed: bool = True
    fixed_rate: bool = True
    late: str | None = None

    @classmethod
    def chosen(
        cls, flow: Any, *, particles: int | None, objective: str, learning_rate: float | None, **given: Any
    ) -> FitSettings:
        """Fills in what was left to be chosen."""
        width = int(flow.noise_dim)
        return cls(
            particles=particles or (128 if given["seconds"] is not None else 256),
            fixed=particles is not None,
            objective="elbo" if objective == "auto" else objective,
            late="alpha" if objective == "auto" else None,
            learning_rate=learning_rate or (0.01 if width <= 48 else 0.005),
            fixed_rate=learning_rate is not None,
            **given,
        )


def late_alpha(variance: float) -> float:
    """Order of Renyi's bound for the end of a fit, from the variance of its log weights.

    A half covers the tails of what fits well. What a flow cannot fit, it would spread over; the order then goes to 1,
    the evidence lower bound; an order that cannot be told from 1 is 1.
    """
    below = 0.5 * min(1.0, SMALL_VARIANCE / max(variance, SMALL_VARIANCE))
    return 1 - below if below > NEAR_ONE else 1.0
