"""Simulation-based calibration: does inference find again what the prior has drawn?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.inference.fitting import fit_variational
from emfc.inference.infer import Options, check_options, choose_options, compile_posterior, seeded, weighted_draws
from emfc.inference.predictive import JointProgram
from emfc.inference.psis import psis
from emfc.inference.ranks import Calibration
from emfc.inference.variational import VariationalFlow
from emfc.inference.verdict import khat_threshold
from emfc.layers.log_joint import LogJoint
from emfc.options import keywords_of, read_flag, read_function, read_keywords, read_seed, read_whole
from emfc.program.errors import CompileError

__all__ = ["calibrate", "simulator"]

RANKS = 99
_POOL = 1000
_STEPS = 300

UNCOMPUTED = (ArithmeticError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What a fit raises where simulated data leave no numbers to compute with."""


def calibrate(
    model: Callable[..., Any],
    *args: Any,
    simulations: int = 100,
    draws: int = RANKS,
    backbone: str = "auto",
    informed: bool | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    particles: int | None = None,
    reweight: bool = True,
    family: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **kwargs: Any,
) -> Calibration:
    """Checks inference on data sets that are simulated from the model itself.

    Latent values are drawn from the prior and data given these; where the posteriors of these data are right, the rank
    of each latent value among draws of its posterior is uniform. Where the model computes with data, as in the lags of
    an autoregression, it must take the values that `pyro.sample` returns, so that they follow the simulation:
    ``y = pyro.sample("y", d, obs=given)`` and then ``y``, not ``given``.

    The source is S. Talts, M. Betancourt, D. Simpson, A. Vehtari and A. Gelman, "Validating Bayesian inference
    algorithms with simulation-based calibration", arXiv 1804.06788.

    The model's own parameters (`pyro.param`) stay at their initial values throughout.

    Args:
        model: Any callable that calls Pyro's primitives.
        *args: The model's own arguments.
        simulations: Number N of data sets, at least 20.
        draws: Number L of posterior draws among which the truth is ranked.
        backbone: As for `emfc.infer`.
        informed: As for `emfc.infer`.
        seconds: Longest time for each fit.
        steps: Most steps for each fit; 300 if neither is given. A short fit will do where its weights correct it.
        particles: Draws per step.
        reweight: Whether draws are resampled by importance where k-hat allows it, as `emfc.infer` reports them.
        family: Options of the family, in place of those by default.
        seed: Seed of everything random.
        progress: Called with the number of simulations done.
        **kwargs: The model's own keyword arguments.

    Raises:
        CompileError: The model cannot be compiled.
        UserError: Nothing can be simulated from the model: no data, data that its arguments give besides, an
            improper prior, a factor, a scale.
    """
    seconds, steps, particles, _ = check_options(seconds=seconds, steps=steps, particles=particles, draws=4000)
    simulations, draws = read_whole("simulations", simulations, 20), read_whole("draws", draws, 9)
    seed, reweight = read_seed(seed), read_flag("reweight", reweight)
    read_function("progress", progress)
    read_keywords("calibrate", keywords_of(calibrate), model, kwargs)
    if family is not None and not isinstance(family, Mapping):
        raise UserError(f"family must be a mapping of options of VariationalFlow, or None, not {family!r}")
    if seconds is None and steps is None:
        steps = _STEPS
    with seeded(seed):
        log_joint = compile_posterior(model, *args, **kwargs)
        log_joint.requires_grad_(False)
        options = choose_options(log_joint, backbone=backbone, informed=informed)
        if family is not None:
            options = Options(dict(family), options.fit)
        given = options.fit if particles is None else {**options.fit, "particles": particles}
        joint = simulator(log_joint)
        generator = torch.Generator().manual_seed(seed)
        like = log_joint.data
        truths, data = joint.simulate(simulations, like=like, generator=generator)
        flow = VariationalFlow(log_joint.target.prior(), **options.flow)
        fresh = {name: value.clone() for name, value in flow.state_dict().items()}
        ranks, khats, failed, interrupted = [], [], 0, False
        for number in range(simulations):
            held = _Given(log_joint, data[number])
            flow.load_state_dict(fresh)
            try:
                record = fit_variational(
                    flow, held, seconds=seconds, steps=steps, seed=seed + number, start="mode", **given
                )
                if record.stopped == "interrupted":  # which is no fit to be judged
                    raise KeyboardInterrupt
                found, khat = _posterior_draws(flow, held, draws, seed=seed + number, reweight=reweight)
            except KeyboardInterrupt:
                interrupted = True
                break
            except UNCOMPUTED:
                found, khat = like.new_full((draws, log_joint.dim), math.nan), math.inf
            if bool(found.isfinite().all()):
                ranks.append((found < truths[number]).sum(0).cpu())
                khats.append(khat)
            else:
                failed += 1
            if progress is not None:
                progress(number + 1)
        if not ranks:
            if interrupted:
                raise KeyboardInterrupt("interrupted before the first simulated data set was fitted")
            raise UserError(
                f"none of {failed} simulated data sets could be fitted; the prior may draw values without end"
            )
        names = tuple(flow.layer.element_names())
        return Calibration(names, torch.stack(ranks), draws, torch.tensor(khats), failed, interrupted)


class _Given(torch.nn.Module):
    """The log joint density at other data."""

    def __init__(self, log_joint: LogJoint, data: Tensor) -> None:
        super().__init__()
        self.log_joint, self.data = log_joint, data

    def forward(self, examples: Tensor) -> Tensor:
        return self.log_joint(examples, data=self.data)  # type: ignore[no-any-return]


def simulator(log_joint: LogJoint) -> JointProgram:
    """The program that draws latent values and data.

    Raises:
        UserError: Nothing can be simulated from the model.
    """
    target = log_joint.target
    program = target.program
    if not target.data:
        raise UserError("calibration simulates data, and the model has none; observe a site")
    improper = target.improper()
    if improper:
        raise UserError(
            f"calibration draws from the prior, and site {program.sites[improper[0]].name!r} has an improper one; "
            "give it a proper prior"
        )
    for site in program.sites:
        held = site.specification
        if site.observed:
            what = "is a pyro.factor" if _is_factor(held) else "is observed at a value that the model computes"
            raise UserError(
                f"calibration draws from the model, and {site.name!r} {what}, which nothing can be drawn from"
            )
        if held.family == "Adjusted" and "scale" in held.parameters:
            raise UserError(
                f"calibration draws from the model, and site {site.name!r} stands under poutine.scale, "
                "so that its posterior is not that of the data drawn"
            )
    if target.reread:
        raise UserError(
            f"calibration needs other data, and the model reads the data of {target.reread[0]!r} in its arguments as "
            "well as by obs=; let it read what pyro.sample returns"
        )
    try:
        return JointProgram(target)
    except CompileError as error:
        raise UserError(
            f"calibration draws from the compiled program, and this one cannot be drawn from: {error}"
        ) from error


def _is_factor(held: Any) -> bool:
    return bool(held.family == "Factor" or (held.family == "Adjusted" and held.children["base"].family == "Factor"))


def _posterior_draws(
    flow: Any, density: Callable[[Tensor], Tensor], count: int, *, seed: int, reweight: bool
) -> tuple[Tensor, float]:
    """Draws ``[L, D]`` and k-hat."""
    pool = max(_POOL, 4 * count)
    values, log_q, log_p = weighted_draws(flow, density, pool, seed=seed)
    smoothed, khat = psis((log_p - log_q).double())
    generator = torch.Generator().manual_seed(seed)
    if reweight and khat < khat_threshold(pool):
        rows = torch.multinomial(smoothed.exp().cpu(), count, replacement=True, generator=generator)
    else:
        rows = torch.randperm(pool, generator=generator)[:count]
    return values[rows.to(values.device)], khat
