"""Training of a flow that is conditioned on the data, for all data that the model can draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.inference.amortised import Amortiser, simulator
from emfc.inference.fit_state import Evaluation, State
from emfc.inference.fit_step import Stepper
from emfc.inference.fitting import FitRecord
from emfc.inference.schedule import Budget
from emfc.inference.variational import VariationalFlow
from emfc.layers.log_joint import LogJoint
from emfc.options import read_function, read_seconds, read_seed, read_whole
from emfc.program.target import Target

__all__ = ["fit_amortised"]

_RATE = 3e-3

_SIMULATED, _COMPARED = 4096, 1024
"""Data sets for the scales and for the bound at the end, and those on which weights are compared."""

_LOOK, _WINDOW = 0.1, 50
"""Share of the budget between two comparisons, and steps between two entries of the history."""

_MOSTLY = 0.98
"""Share of finite terms below which weights are not worth keeping."""


class _Conditional(nn.Module):
    """A conditional flow and its target as `Stepper` takes them: a row of noise stands beside its data.

    Args:
        flow: The flow, with a context.
        amortiser: From data to context.
        log_joint: The model's log joint density.
        forward: Whether rows are simulated latent values, whose density under the flow is wanted, instead of noise.
    """

    def __init__(self, flow: VariationalFlow, amortiser: Amortiser, log_joint: LogJoint, *, forward: bool) -> None:
        super().__init__()
        self.flow, self.amortiser, self.simulated = flow, amortiser, forward
        self.width = flow.dim if forward else flow.noise_dim
        self._log_joint = (log_joint,)

    def rsample_and_log_prob(
        self, shape: Sequence[int], context: Tensor | None = None, *, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latent values beside their data, and minus what the terms of the objective add to `log_density`."""
        held, data = noise[..., : self.width], noise[..., self.width :]
        features = self.amortiser(data)
        if self.simulated:
            return noise, -self.flow.log_prob(held, features)
        value, log_q = self.flow.rsample_and_log_prob((), features, noise=held)
        return torch.cat([value, data], -1), log_q

    def log_density(self, rows: Tensor) -> Tensor:
        """Log joint density of values beside their data; 0 where the values are simulated."""
        if self.simulated:
            return rows.new_zeros(rows.shape[:-1])
        value, data = rows[..., : self.flow.dim], rows[..., self.flow.dim :]
        return self._log_joint[0](value, data)  # type: ignore[no-any-return]

    @torch.no_grad()
    def terms(self, rows: Tensor) -> Tensor:
        """Terms ``[S]`` of the objective."""
        value, log_q = self.rsample_and_log_prob((), noise=rows)
        return self.log_density(value) - log_q


class _Rows:
    """Draws what an objective takes: simulated or given data sets, beside noise or simulated latent values.

    Args:
        target: The model.
        datasets: Flat data sets ``[S, O]``; None for simulations.
        generator: Of all random numbers.
        like: A tensor with dtype and device of the flow.
    """

    def __init__(self, target: Target, datasets: Tensor | None, generator: torch.Generator, like: Tensor) -> None:
        self.simulator = simulator(target) if datasets is None else None
        self.datasets = None if datasets is None else datasets.to(like)
        self.generator, self.like = generator, like

    def data(self, count: int) -> tuple[Tensor | None, Tensor]:
        """Latent values, where they are simulated, and data ``[count, O]``."""
        if self.simulator is not None:
            return self.simulator.simulate(count, like=self.like, generator=self.generator)
        held = self.like.new_zeros(0, 0) if self.datasets is None else self.datasets
        rows = torch.randint(len(held), (count,), generator=self.generator, device=held.device)
        return None, held[rows]

    def __call__(self, count: int, family: _Conditional) -> Tensor:
        """Rows ``[count, *]`` for a family."""
        values, data = self.data(count)
        if values is None or not family.simulated:
            values = self.like.new_empty(count, family.width).normal_(generator=self.generator)
        return torch.cat([values, data], -1)


class _Training:
    """Trains a conditional flow; ``run`` leaves the best weights in it."""

    def __init__(
        self,
        family: _Conditional,
        rows: _Rows,
        budget: Budget,
        particles: int,
        progress: Callable[[int, float], None] | None,
    ) -> None:
        self.family, self.rows, self.budget, self.particles, self.progress = family, rows, budget, particles, progress
        self.stepper = Stepper(family, family.log_density, objective="elbo", alpha=0.5, learning_rate=_RATE)
        self.compared = rows(_COMPARED, family)
        self.best: tuple[float, State] = (-math.inf, State(family))
        self.history: list[tuple[int, float]] = []
        self.stopped = "budget"
        self.moved = False

    def run(self) -> None:
        """Steps until the budget is spent or Ctrl-C.

        Raises:
            UserError: The objective has no finite value or slope at any step.
        """
        try:
            self._compare()
            self._steps()
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        self._compare()
        self.best[1].restore()
        if self.budget.done and not self.moved and self.stopped == "budget":
            raise UserError(
                f"the amortised guide cannot be trained: in {self.budget.done} steps the objective and its slope were "
                "never finite"
            )

    def _steps(self) -> None:
        look = _LOOK
        while not self.budget.spent:
            factor = max(0.5 * (1 + math.cos(math.pi * min(self.budget.share, 1.0))), 1e-2)
            self.budget.done += 1
            value = self.stepper(self.rows(self.particles, self.family), factor)
            self.moved = self.moved or self.stepper.failed == 0
            if self.budget.done % _WINDOW == 0 and value is not None:
                self.history.append((self.budget.done, value))
                if self.progress is not None:
                    self.progress(self.budget.done, value)
            if self.budget.share >= look:
                self._compare()
                look = self.budget.share + _LOOK

    def _compare(self) -> None:
        """Keeps the weights if they are the best so far on rows that stay the same."""
        terms = self.family.terms(self.compared)
        good = terms[terms.isfinite()]
        value = float(good.mean()) if len(good) >= _MOSTLY * len(terms) else -math.inf
        if value >= self.best[0]:
            self.best = value, State(self.family)


def fit_amortised(
    flow: VariationalFlow,
    amortiser: Amortiser,
    log_joint: LogJoint,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    particles: int = 256,
    objective: str = "auto",
    seed: int = 0,
    datasets: Tensor | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FitRecord:
    r"""Train a conditional flow q(x | y) for all data.

    ``"forward"`` minimises :math:`E_{p(x, y)}[-\log q(x \mid y)]` over simulations of the model, ``"elbo"`` maximises
    :math:`E_y E_{q(x \mid y)}[\log p(x, y) - \log q(x \mid y)]` over simulated or given data sets; ``"auto"`` is the
    first, or the second where data sets are given. The best weights are left in the flow, also after Ctrl-C.

    Args:
        flow: The flow, with a context.
        amortiser: From data to context.
        log_joint: The model's log joint density.
        seconds: Wall time at most.
        steps: Number of optimiser steps at most; 3,000 where neither is given.
        particles: Simulations per step.
        objective: ``"auto"``, ``"forward"`` or ``"elbo"``.
        seed: Of the random numbers.
        datasets: Flat data sets ``[S, O]``, for the ELBO.
        progress: Called with the step and minus the loss there.

    Raises:
        UserError: An option has no meaning, a model cannot be simulated without data sets, or no step is finite.
    """
    objective = _checked(objective, datasets, len(amortiser.data))
    seconds, seed, particles = read_seconds(seconds), read_seed(seed), read_whole("particles", particles, 1)
    steps = None if steps is None else read_whole("steps", steps, 0)
    read_function("progress", progress)
    like = next(flow.parameters()).detach()
    rows = _Rows(log_joint.target, datasets, torch.Generator(device=like.device).manual_seed(seed), like)
    budget = Budget(seconds, 3000 if steps is None and seconds is None else steps)
    amortiser.standardise(rows.data(_SIMULATED)[1])
    family = _Conditional(flow, amortiser, log_joint, forward=objective == "forward")
    training = _Training(family, rows, budget, particles, progress)
    training.run()
    bound = _Conditional(flow, amortiser, log_joint, forward=False)
    found = Evaluation(bound.terms(rows(_SIMULATED, bound)))
    return FitRecord(
        elbo=found.elbo,
        elbo_se=found.se,
        steps=budget.done,
        seconds=budget.elapsed,
        start="prior",
        stopped=training.stopped,
        history=training.history,
        learning_rate=_RATE,
        particles=particles,
        objective=objective,
    )


def _checked(objective: str, datasets: Tensor | None, width: int) -> str:
    """The objective that is meant; refuses what does not go together."""
    if objective not in ("auto", "forward", "elbo"):
        raise UserError(f"the objective of an amortised guide is 'auto', 'forward' or 'elbo', not {objective!r}")
    if datasets is None:
        return "forward" if objective == "auto" else objective
    if objective == "forward":
        raise UserError("the forward objective simulates its data; give datasets with objective='elbo'")
    if not isinstance(datasets, Tensor):
        raise UserError(f"datasets must be a tensor of flat data sets, not {type(datasets).__name__}")
    if datasets.ndim != 2 or len(datasets) == 0 or datasets.shape[1] != width:
        raise UserError(f"datasets are flat data sets of shape [S, {width}], not {list(datasets.shape)}")
    if not bool(datasets.isfinite().all()):
        raise UserError("datasets hold numbers that are not finite")
    return "elbo"
