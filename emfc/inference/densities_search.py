"""Starts of a flow for a density of which nothing is known: at a mode, and wide enough to cover it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from emfc.inference.fit_state import State
from emfc.inference.fitting import FitRecord, fit_variational
from emfc.inference.variational import VariationalFlow

__all__ = ["MOST_COVERED", "Search"]

LogDensity = Callable[[Tensor], Tensor]

MOST_COVERED = 8
"""Dimensions up to which a start that covers the density is tried."""

_COVERING = 512  # draws of each of its steps


@dataclass
class Search:
    """A fit from one start or from several.

    Attributes:
        flow: The flow.
        log_density: The target.
        spread: Scale of the wide start.
        options: Of every run.
        seconds: Most seconds in all.
        steps: Most steps in all.
    """

    flow: VariationalFlow
    log_density: LogDensity
    spread: float
    options: dict[str, Any]
    seconds: float | None
    steps: int | None
    used: int = 0
    began: float = field(default_factory=time.perf_counter)

    def run(self, objective: str, start: str) -> FitRecord:
        """Fits, and leaves the best weights in the flow."""
        if objective != "auto" or start != "auto" or self.flow.dim > MOST_COVERED:
            if start == "wide":
                self._widen()
            return self._fit(1.0, start={"wide": "given"}.get(start, start), objective=objective)
        first = self._fit(0.2, start="auto")
        tried = {first.start: (first, State(self.flow))}
        if first.stopped != "interrupted":
            self._widen()
            number = self.options.get("particles") or _COVERING
            covered = self._fit(0.6, start="given", objective="forward_kl", anneal=0.7, particles=number)
            if covered.stopped != "interrupted":
                covered = self._fit(0.7, start="given")
            tried["wide"] = covered, State(self.flow)
        name = max(tried, key=lambda name: tried[name][0].elbo)
        record, state = tried[name]
        state.restore()
        if all(held.stopped != "interrupted" for held, _ in tried.values()):
            again = self._fit(1.0, start="given")
            if again.elbo >= record.elbo - 2 * math.hypot(again.elbo_se, record.elbo_se):
                record = again
            else:
                state.restore()
        starts = {**first.starts, **{key: held.elbo for key, (held, _) in tried.items()}}
        elapsed = time.perf_counter() - self.began
        return replace(record, start=name, starts=starts, steps=self.used, seconds=elapsed)

    def _widen(self) -> None:
        width = self.flow.noise_dim
        self.flow.set_affine(torch.zeros(width), self.spread * torch.eye(width))

    def _fit(self, share: float, **options: Any) -> FitRecord:
        """A run up to a share of the budget."""
        seconds, steps = self.seconds, self.steps
        if seconds is not None:
            seconds = max(share * seconds - (time.perf_counter() - self.began), 0.01 * seconds)
        if steps is not None:
            steps = max(round(share * steps) - self.used, 0)
        record = fit_variational(
            self.flow, self.log_density, seconds=seconds, steps=steps, **{**self.options, **options}
        )
        self.used += record.steps
        return record
