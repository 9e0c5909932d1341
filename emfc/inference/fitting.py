"""Fitting a variational family to an unnormalised log density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor

from emfc.errors import UserError
from emfc.inference.fit_run import Fitter
from emfc.inference.fit_settings import FitSettings
from emfc.inference.objectives import check_objective
from emfc.options import read_function, read_number, read_seconds, read_seed, read_whole

__all__ = ["FitRecord", "default_options", "fit_variational"]

LogDensity = Callable[[Tensor], Tensor]


@dataclass
class FitRecord:
    """How a fit went.

    Attributes:
        elbo: Evidence lower bound at the end, in nats, from fresh draws.
        elbo_se: Its standard error.
        steps: Number of optimiser steps, those of the search for a start included.
        seconds: Wall time.
        start: Which start was kept: ``"mode"`` or ``"prior"`` (``"given"`` where none was looked for).
        stopped: Why it stopped: ``"converged"``, ``"budget"``, ``"interrupted"`` or ``"failed"`` (most steps came to
            nothing, or some draws have no density still).
        history: Steps and the ELBO estimated there.
        starts: ELBO of each start after its trial.
        learning_rate: Highest learning rate of the fit.
        particles: Draws of each step.
        objective: Name of the gradient estimator; of all in turn where the step size fell by another, such as
            ``"elbo, alpha"``.
        remarks: What else there is to say, such as why a start was left out.
    """

    elbo: float
    elbo_se: float
    steps: int
    seconds: float
    start: str
    stopped: str
    history: list[tuple[int, float]] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    particles: int = 0
    objective: str = "elbo"
    remarks: list[str] = field(default_factory=list)


def default_options(target: Any) -> dict[str, Any]:
    """Options of ``VariationalFlow`` and of ``fit_variational`` that do well by measurement, for a parsed target.

    Args:
        target: What ``parse_target`` gave.

    Returns:
        ``{"flow": {...}, "fit": {...}}``, keyword arguments of the two.
    """
    width = sum(site.noise_size for site in target.prior().sites if not site.observed)
    few = width <= 32
    return {
        "flow": {
            "backbone": "iaf",
            "gate": "site",
            "transforms": 4 if few else 2,
            "hidden_features": (32,) if few else (64,),
        },
        "fit": {"particles": None, "objective": "auto"},
    }


def fit_variational(
    flow: Any,
    log_density: LogDensity,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    particles: int | None = None,
    objective: str = "auto",
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    start: str = "auto",
    learning_rate: float | None = None,
    alpha: float = 0.5,
    noise: str = "quasi",
    anneal: float = 0.0,
) -> FitRecord:
    r"""Fits a flow to an unnormalised log density of examples by maximising a bound on the log evidence.

    It tries its starts, goes on from the better one with Adam, lets the learning rate fall once the bound has stopped
    rising, and ends when another such cycle brings nothing, or with the budget. The best weights are left in the flow,
    also after Ctrl-C.

    Args:
        flow: A ``VariationalFlow``.
        log_density: From examples ``[S, D]`` to ``[S]``; -inf or NaN where it has no value.
        seconds: Most seconds of wall time, starts and last evaluation included.
        steps: Most steps, starts included.
        particles: Draws of each step; left out, 256, or what a time limit leaves time for.
        objective: ``"auto"`` (``"elbo"``, and ``"alpha"`` at the end), ``"elbo"``, ``"stl"``, ``"path"``, ``"iwae"``,
            ``"alpha"`` or ``"forward_kl"``; see `emfc.inference.objectives.estimate`.
        seed: Of all random numbers.
        progress: Called with the number of steps and an estimate of the ELBO.
        start: ``"auto"`` (``"mode"`` and ``"prior"`` are tried, the better is kept), ``"mode"`` (the normal at a mode,
            gates open), ``"closed"`` (the same with closed gates), ``"prior"`` (the flow as it is: the prior, where it
            is new) or ``"given"`` (that too, without a trial).
        learning_rate: Highest step size; left out, by the number of elements, or less where that does clearly better.
        alpha: Order of ``"alpha"``, 0 or more and not 1.
        noise: ``"quasi"`` (evenly spread) or ``"normal"`` (independent).
        anneal: Share of the plateau over which the target is tempered; 0 for none.

    Raises:
        UserError: An option has no meaning, alone or for a family with parameters of the model.
    """
    if objective != "auto":
        check_objective(objective, alpha=alpha, moving=bool(getattr(flow, "moves_target", False)))
    if start not in ("auto", "mode", "closed", "prior", "given"):
        raise UserError(f"start must be 'auto', 'mode', 'closed', 'prior' or 'given', not {start!r}")
    if noise not in ("quasi", "normal"):
        raise UserError(f"noise must be 'quasi' or 'normal', not {noise!r}")
    seconds, seed = read_seconds(seconds), read_seed(seed)
    steps = None if steps is None else read_whole("steps", steps, 0)
    particles = None if particles is None else read_whole("particles", particles, 1)
    learning_rate = None if learning_rate is None else read_number("learning_rate", learning_rate, above=0.0)
    read_function("progress", progress)
    if not isinstance(anneal, Real) or not 0 <= float(anneal) <= 1:
        raise UserError(f"anneal must be a share from 0 to 1, not {anneal!r}")
    settings = FitSettings.chosen(
        flow,
        seconds=seconds,
        steps=steps,
        particles=particles,
        objective=objective,
        seed=seed,
        start=start,
        learning_rate=learning_rate,
        alpha=alpha,
        noise=noise,
        anneal=anneal,
    )
    fitter = Fitter(flow, log_density, settings, progress=progress)
    found = fitter.run()
    return FitRecord(
        elbo=found.elbo,
        elbo_se=found.se,
        steps=fitter.budget.done,
        seconds=fitter.budget.elapsed,
        start=fitter.start,
        stopped=fitter.stopped,
        history=fitter.history,
        starts=fitter.starts,
        learning_rate=settings.learning_rate,
        particles=settings.particles,
        objective=", ".join(fitter.objectives),
        remarks=fitter.remarks,
    )
