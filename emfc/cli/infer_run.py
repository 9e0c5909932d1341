"""The work of ``emfc infer``: data in, a posterior, a run folder out."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emfc.cli.console import print_json, say
from emfc.cli.infer_data import Conditioned, condition_program
from emfc.cli.infer_progress import InferenceProgress
from emfc.cli.infer_result import print_posterior, result_document, write_posterior
from emfc.cli.run_folder import new_run

if TYPE_CHECKING:
    from emfc.cli.loader import UserProgram
    from emfc.inference import Posterior

__all__ = ["Extras", "InferenceRun", "run_inference"]

INTERRUPTED = 130
PREDICTIVE_DRAWS = 1000
NUTS = {"warmup": 500, "samples": 500, "chains": 4}


@dataclass(frozen=True)
class InferenceRun:
    """Everything that the user asked for, read and checked.

    Attributes:
        program: The loaded program.
        target: The run folder.
        data: File with the data, or None for the program's ``data()``.
        fitting: Options of `emfc.infer`.
        dtype: Name of the floating-point type.
        predictive: Whether to draw new data.
        nuts: Whether to run NUTS through the guide.
        calibrate: Number of simulated data sets to check on, if any.
        picture: File for a picture of the marginals, if any.
        as_json: Whether to print JSON.
    """

    program: UserProgram
    target: Path
    data: Path | None
    fitting: dict[str, Any]
    dtype: str
    predictive: bool
    nuts: bool
    calibrate: int | None
    picture: Path | None
    as_json: bool


@dataclass
class Extras:
    """What was asked for beyond the posterior.

    Attributes:
        predictive: New data by site.
        nuts: Chains of NUTS.
        calibration: What simulated data say.
        interrupted: Whether Ctrl-C ended the work.
    """

    predictive: dict[str, Any] | None = None
    nuts: Any = None
    calibration: Any = None
    interrupted: bool = False


def run_inference(run: InferenceRun) -> int:
    """Infer, print the result and write the run folder.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        UserError: The data or the options do not fit the program.
        CompileError: The program is refused.
    """
    with contextlib.redirect_stdout(sys.stderr):
        held = condition_program(run.program, run.data, seed=run.fitting["seed"])
        posterior = _fit(run, held)
        extras = _extras(run, held, posterior)
        result = result_document(run, posterior, extras)
        run.target.parent.mkdir(parents=True, exist_ok=True)
        inside = Path(tempfile.mkdtemp(prefix=f".{run.target.name}.", dir=run.target.parent))
        try:
            with new_run(run.target, inside=inside) as folder:
                write_posterior(folder, run, posterior, extras, result)
        finally:
            shutil.rmtree(inside, ignore_errors=True)
    if run.as_json:
        print_json(result)
    else:
        print_posterior(run, posterior, extras)
    if extras.interrupted:
        what = "the best fit so far is" if posterior.record.stopped == "interrupted" else "what was done so far is"
        say(f"interrupted: {what} kept in {run.target}")
        return INTERRUPTED
    say(f"wrote the run folder {run.target}")
    return 0


def _fit(run: InferenceRun, held: Conditioned) -> Posterior:
    from emfc.inference import infer

    options = run.fitting
    with InferenceProgress("fitting", seconds=options["seconds"], steps=options["steps"]) as progress:
        return infer(functools.partial(held.model, **held.arguments), progress=progress, **options)


def _extras(run: InferenceRun, held: Conditioned, posterior: Posterior) -> Extras:
    """What else was asked for; Ctrl-C costs only what is not done yet."""
    extras = Extras(interrupted=posterior.record.stopped == "interrupted")
    if extras.interrupted:
        return extras
    try:
        if run.predictive:
            extras.predictive = posterior.predictive(PREDICTIVE_DRAWS, seed=run.fitting["seed"])
        if run.nuts:
            say("running NUTS through the fit")
            extras.nuts = posterior.guide.nuts(seed=run.fitting["seed"], **NUTS)
        if run.calibrate is not None:
            extras.calibration = _calibrate(run, held, posterior)
            extras.interrupted = extras.calibration.interrupted
    except KeyboardInterrupt:
        extras.interrupted = True
    return extras


def _calibrate(run: InferenceRun, held: Conditioned, posterior: Posterior) -> Any:
    from emfc.inference.calibration import calibrate

    options = {key: run.fitting[key] for key in ("particles", "seed")}
    simulations = int(run.calibrate or 0)
    with InferenceProgress("calibrating", steps=simulations) as progress:
        return calibrate(
            functools.partial(held.model, **held.arguments),
            simulations=simulations,
            family=posterior.options,
            progress=lambda done: progress.count(done, simulations),
            **options,
        )
