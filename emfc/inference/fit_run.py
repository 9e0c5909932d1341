"""One run of a fit: starts, steps, cycles of the learning rate, the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.inference.fit_noise import make_noise
from emfc.inference.fit_settings import FitSettings, late_alpha
from emfc.inference.fit_state import Evaluation, State, evaluate
from emfc.inference.fit_step import Stepper
from emfc.inference.objectives import Tempered
from emfc.inference.schedule import Budget, Cycle, improves
from emfc.inference.starts import NoStart, mode_start

__all__ = ["Fitter"]

LogDensity = Callable[[Tensor], Tensor]

TRIAL_STEPS = 150
"""Most steps of a trial of a start or of a step size."""

TRIAL_SHARE = 0.06
"""Most that a trial may spend of the budget."""

COMPARED, FINAL = 2048, 4096
"""Draws of the evaluations that are compared with each other, and of the last one."""

EVALUATION_SHARE = 0.04
"""Most that an evaluation may spend of the seconds."""

LEAST_GAIN = 0.002
"""A cycle that brings fewer nats than this is the last."""

MOST_LOST = 0.5
"""A cycle of whose steps a larger share came to nothing is the last."""

WINDOW = 50
"""Steps between two looks at the objective."""

MOST_CYCLES = 8

SMALLER, CLEAR_GAIN = 0.3, 0.05
"""The other step size that is tried, as a share of the first, and how much better it must be, in nats."""

SIZES, WANTED_STEPS = (256, 128, 64), 400
"""Numbers of draws of a step; the first is taken that leaves time for so many steps."""


class Fitter:
    """Fits a flow to a log density; ``run`` leaves the best weights in the flow.

    Args:
        flow: The variational family.
        log_density: The target.
        settings: The numbers.
        progress: Called with steps and ELBO.
    """

    def __init__(
        self,
        flow: Any,
        log_density: LogDensity,
        settings: FitSettings,
        *,
        progress: Callable[[int, float], None] | None = None,
    ) -> None:
        self.flow, self.log_density, self.settings = flow, log_density, settings
        self.target = Tempered(log_density)
        self.progress = progress
        self.budget = Budget(settings.seconds, settings.steps)
        parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
        if not parameters:
            raise UserError("this flow has nothing to learn: all its parameters are fixed")
        self.like = parameters[0].detach()
        self.noise = make_noise(settings.noise, flow.noise_dim, seed=settings.seed, like=self.like)
        self.history: list[tuple[int, float]] = []
        self.starts: dict[str, float] = {}
        self.remarks: list[str] = []
        self.start, self.stopped = "given", "budget"
        self.objectives = [settings.objective]
        self.best: tuple[float, State] = (-math.inf, State(flow))
        self.frozen: list[nn.Parameter] = []

    def run(self) -> Evaluation:
        """Fits until nothing improves, the budget ends or Ctrl-C."""
        try:
            self._choose_start()
            self._freeze()
            self._choose_particles()
            self._cycles()
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            self.remarks.append("interrupted: the best weights so far are kept")
            self._compare(self._evaluate(COMPARED, seed=self.settings.seed + 1))
        finally:
            self._thaw()
        return self._evaluate(FINAL, seed=self.settings.seed + 2)

    # ---- starts --------------------------------------------------------------------------------------------------

    def _choose_start(self) -> None:
        """Tries the starts briefly and leaves the flow at the end of the best trial."""
        wanted = self.settings.start
        if wanted == "given":
            return
        prior = State(self.flow)
        tried: list[tuple[str, Evaluation, State]] = []
        if wanted != "prior":
            name = "mode" if wanted == "auto" else wanted
            failed = self._set_mode(closed=name == "closed")
            if failed:
                self.remarks.append(f"no start at a mode: {failed}")
            else:
                tried.append((name, *self._trial()))
        if wanted in ("auto", "prior") or not tried:
            prior.restore()
            tried.append(("prior", *self._trial()))
        name, found, state = max(tried, key=lambda entry: entry[1].elbo)
        state.restore()
        self.start = name
        self.starts = {entry[0]: entry[1].elbo for entry in tried}
        self.best = found.elbo, state
        if not self.settings.fixed_rate and not found.exact:
            self._choose_rate(found, state)

    def _set_mode(self, *, closed: bool) -> str:
        """Puts the flow at the mode; says why not, if it can't be done."""
        deadline = None if self.budget.seconds is None else 0.15 * self.budget.seconds + self.budget.began
        try:
            loc, scale = mode_start(self.flow, self.log_density, like=self.like, deadline=deadline, closed=closed)
        except NoStart as error:
            return str(error)
        self.flow.set_affine(loc, scale)
        if closed:
            self.flow.layer.set_gates(0.0)
        elif not self.flow.affine.diagonal:
            self.flow.open()
        return ""

    def _freeze(self) -> None:
        """Leaves alone what can't move: gates at an end."""
        self._thaw()
        for parameter in self.flow.parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter.detach()).all()):
                parameter.requires_grad_(False)
                self.frozen.append(parameter)

    def _thaw(self) -> None:
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.frozen = []

    def _trial(self, found: Evaluation | None = None) -> tuple[Evaluation, State]:
        """Trains briefly from where the flow is, ``found`` so far; whichever is better of before and after."""
        first = found or self._evaluate(COMPARED, seed=self.settings.seed + 1), State(self.flow)
        if first[0].exact:
            return first
        self._freeze()
        stepper = self._stepper()
        began = self.budget.share
        for done in range(TRIAL_STEPS):
            part = max(done / TRIAL_STEPS, (self.budget.share - began) / TRIAL_SHARE)
            if part >= 1 or self.budget.spent:
                break
            self._step(stepper, min(1.0, (done + 1) / 20, 2 * (1 - part)))
        last = self._evaluate(COMPARED, seed=self.settings.seed + 1), State(self.flow)
        return max(first, last, key=lambda entry: entry[0].elbo)

    def _choose_rate(self, found: Evaluation, state: State) -> None:
        """Goes on from the start with the step size, and again with a smaller one, which must be clearly better."""
        first, smaller = self.settings.learning_rate, SMALLER * self.settings.learning_rate
        usual = self._trial(found)
        state.restore()
        self.settings.learning_rate = smaller
        careful = self._trial(found)
        gain, error = careful[0].gain(usual[0])
        if gain <= max(2 * error, CLEAR_GAIN):
            self.settings.learning_rate = first
        kept = careful if self.settings.learning_rate == smaller else usual
        kept[1].restore()
        self.best = kept[0].elbo, kept[1]

    def _choose_particles(self) -> None:
        """As many draws of a step as leave time for enough steps, where time is what counts."""
        settings, budget = self.settings, self.budget
        if settings.fixed or budget.seconds is None:
            return
        stepper = self._stepper()
        for size in SIZES:
            settings.particles = size
            self._step(stepper, 0.0)
            began = budget.elapsed
            self._step(stepper, 0.0)
            if (budget.elapsed - began) * WANTED_STEPS <= budget.seconds - budget.elapsed or budget.spent:
                return

    # ---- cycles --------------------------------------------------------------------------------------------------

    def _cycles(self) -> None:
        """Cycles of the learning rate until one brings nothing."""
        before = self._evaluate(COMPARED, seed=self.settings.seed + 1)
        self._compare(before)
        if before.exact:
            self.stopped = "converged"
            return
        scale = 1.0
        for number in range(MOST_CYCLES):
            lost = self._one_cycle(scale, anneal=number == 0)
            after = self._evaluate(COMPARED, seed=self.settings.seed + 1)
            gain, error = after.gain(before)
            self._compare(after)
            before = max(before, after, key=lambda entry: entry.elbo)
            if lost > MOST_LOST:
                self.remarks.append(
                    f"{lost:.0%} of the last steps came to nothing, since the density or its gradient was not finite: "
                    "the best weights so far are kept"
                )
            if self.budget.spent:
                return
            if lost > MOST_LOST or gain < max(2 * error, LEAST_GAIN):
                self.stopped = "converged" if lost <= MOST_LOST and self.best[0] > -math.inf else "failed"
                if self.best[0] == -math.inf:
                    self.remarks.append("some draws of the fit have no density, so that the bound is not finite")
                return
            scale *= 0.5

    def _one_cycle(self, scale: float, *, anneal: bool) -> float:
        """One cycle; the share of its steps that came to nothing."""
        cycle, stepper = Cycle(self.budget), self._stepper()
        values: list[float] = []
        lost = 0
        while not self.budget.spent and not cycle.over:
            if anneal and self.settings.anneal and not cycle.falling:
                self._temper(cycle)
            value = self._step(stepper, scale * cycle.factor())
            cycle.steps += 1
            if value is None:
                lost += 1
            elif self.target.share >= 1:
                values.append(value)
            if cycle.steps == lost >= cycle.least:
                break
            looked = cycle.steps >= cycle.least and cycle.steps % WINDOW == 0
            hopeless = lost > MOST_LOST * cycle.steps
            if not cycle.falling and (cycle.due or (looked and (hopeless or not improves(values)))):
                self.target.share = 1.0
                cycle.begin_fall()
                self._turn(stepper)
            if cycle.steps % WINDOW == 0:
                self._record(values)
                if cycle.falling:
                    self._turn(stepper)
        self.target.share = 1.0
        return lost / max(cycle.steps, 1)

    def _turn(self, stepper: Stepper) -> None:
        """Lets the fall go by its own objective, of an order that follows how well the flow fits."""
        if self.settings.late is not None and math.isfinite(stepper.variance):
            stepper.alpha = late_alpha(stepper.variance)
            stepper.objective = self.settings.late if stepper.alpha < 1 else self.settings.objective
            if stepper.objective not in self.objectives:
                self.objectives.append(stepper.objective)

    def _temper(self, cycle: Cycle) -> None:
        if self.budget.limited:
            part = (self.budget.share - cycle.first) / max(cycle.plateau * (1 - cycle.first), 1e-9)
        else:
            part = cycle.steps / 1000
        self.target.share = min(1.0, 0.05 + 0.95 * part / self.settings.anneal)

    def _record(self, values: list[float]) -> None:
        recent = values[-WINDOW:]
        if not recent:
            return
        mean = math.fsum(recent) / len(recent)
        self.history.append((self.budget.done, mean))
        if self.progress is not None:
            self.progress(self.budget.done, mean)

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _stepper(self) -> Stepper:
        return Stepper(
            self.flow,
            self.target,
            objective=self.settings.objective,
            alpha=self.settings.alpha,
            learning_rate=self.settings.learning_rate,
        )

    def _step(self, stepper: Stepper, factor: float) -> float | None:
        self.budget.done += 1
        return stepper(self.noise(self.settings.particles), factor)

    def _compare(self, found: Evaluation) -> None:
        """Keeps the weights if they are the best so far, and goes back to the best if not."""
        if found.elbo >= self.best[0]:
            self.best = found.elbo, State(self.flow)
        else:
            self.best[1].restore()

    def _evaluate(self, draws: int, *, seed: int) -> Evaluation:
        began = self.budget.elapsed
        allowed = math.inf if self.budget.seconds is None else EVALUATION_SHARE * self.budget.seconds
        found = evaluate(
            self.flow, self.log_density, draws=draws, seed=7919 * seed + 104729, like=self.like, seconds=allowed
        )
        self.budget.reserve = 1.2 * min(allowed, (self.budget.elapsed - began) * FINAL / max(len(found.terms), 1))
        return found
