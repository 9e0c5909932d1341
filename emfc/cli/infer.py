"""``emfc infer``: the posterior of a program's latent sites given data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from emfc.cli.options import (
    DtypeName,
    DtypeOption,
    JsonOption,
    ProgramArgument,
    SeedOption,
    SetOption,
    numeric_defaults,
    read_settings,
)

__all__ = ["infer", "register"]


class Backbone(Enum):
    """Learned layers under the program."""

    auto = "auto"
    meanfield = "meanfield"
    mvn = "mvn"
    lowrank = "lowrank"
    iaf = "iaf"
    maf = "maf"
    nsf = "nsf"
    coupling = "coupling"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("infer", epilog="Example: emfc infer models/eight_schools.py --seconds 15")(infer)


def infer(
    program: ProgramArgument,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Data to condition on: .npz, .csv, .json or .parquet; by default data()."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder to write; by default a new one in runs/.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")] = False,
    settings: SetOption = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Longest time to train.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Most steps to train.")] = None,
    particles: Annotated[int | None, typer.Option("--particles", min=1, help="Draws per step.")] = None,
    backbone: Annotated[
        Backbone, typer.Option("--backbone", help="Learned layers under the program; auto: by the target.")
    ] = Backbone.auto,
    informed: Annotated[
        bool | None,
        typer.Option("--informed/--not-informed", help="Let the learned layers see the program's own parameters."),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Draws to keep, from which k-hat comes.")] = 4000,
    predictive: Annotated[bool, typer.Option("--predictive", help="Also draw new data from the posterior.")] = False,
    nuts: Annotated[
        bool, typer.Option("--nuts", help="Also run NUTS through the fit: four chains, R-hat and effective draws.")
    ] = False,
    calibrate: Annotated[
        int | None,
        typer.Option("--calibrate", metavar="N", min=20, help="Also check on N data sets drawn from the prior."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw the marginals to this file: .png, .svg or .pdf.")
    ] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = DtypeName.float64,
    as_json: JsonOption = False,
) -> None:
    """Fit the posterior of the latent sites; print a table, the evidence, and whether to trust it."""
    from emfc.cli.infer_run import InferenceRun, run_inference
    from emfc.cli.loader import load_program
    from emfc.cli.run_folder import choose_run
    from emfc.errors import UserError
    from emfc.inference.storage import POSTERIOR
    from emfc.report import check_picture_target

    values = read_settings(settings)
    if seconds is not None and not seconds > 0:
        raise UserError("--seconds must be more than 0")
    if picture is not None:
        check_picture_target(picture)
    with numeric_defaults(dtype, seed):
        loaded = load_program(program, values)
        name = loaded.path.stem if loaded.name == "model" else f"{loaded.path.stem}-{loaded.name}"
        target = choose_run(out, f"{name}-posterior", overwrite=overwrite, manifest=POSTERIOR)
        status = run_inference(
            InferenceRun(
                program=loaded,
                target=target,
                data=data,
                fitting={
                    "backbone": backbone.value,
                    "informed": informed,
                    "seconds": seconds,
                    "steps": steps,
                    "particles": particles,
                    "draws": draws,
                    "seed": seed,
                },
                dtype=dtype.value,
                predictive=predictive,
                nuts=nuts,
                calibrate=calibrate,
                picture=picture,
                as_json=as_json,
            )
        )
    if status:
        raise typer.Exit(status)
