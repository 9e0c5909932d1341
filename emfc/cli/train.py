"""``emfc train``: train an embedded-model flow on data, and compare it with flows that do not know the program."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.options import (
    DeviceOption,
    DtypeName,
    DtypeOption,
    ImageOption,
    JsonOption,
    ProgramArgument,
    SeedOption,
    SetOption,
    numeric_defaults,
    read_device,
    read_settings,
    read_widths,
)

__all__ = ["register", "train"]


class Backbone(Enum):
    """Learned layers around the program."""

    maf = "maf"
    nsf = "nsf"
    coupling = "coupling"
    mvn = "mvn"
    none = "none"


class Placement(Enum):
    """Where the program stands."""

    top = "top"
    middle = "middle"
    bottom = "bottom"


class Gate(Enum):
    """What has a gate of its own."""

    site = "site"
    element = "element"
    none = "none"


class Rival(Enum):
    """Further flows to compare with."""

    spline = "spline"
    copula = "copula"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train", epilog="Example: emfc train models/digits.py --out runs/digits --baseline")(train)


def train(
    program: ProgramArgument,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Examples: .npz, .npy, .csv or .parquet; by default the file's data()."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder to write; by default a new one in runs/.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the training of this run that was interrupted or killed.")
    ] = False,
    settings: SetOption = None,
    backbone: Annotated[Backbone, typer.Option("--backbone", help="Learned layers around the program.")] = Backbone.maf,
    placement: Annotated[
        Placement, typer.Option("--placement", help="Place of the program; top: next to data.")
    ] = Placement.top,
    gate: Annotated[Gate, typer.Option("--gate", help="What has a gate of its own.")] = Gate.site,
    transforms: Annotated[int, typer.Option("--transforms", min=1, help="Number of learned layers.")] = 2,
    hidden: Annotated[str, typer.Option("--hidden", help="Widths of the hidden layers of each.")] = "128,128",
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Most passes over the training rows; by default by their number."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Number of steps, instead of --epochs.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Draw training examples anew in every epoch, with the file's data(n, seed).")
    ] = False,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Highest learning rate.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", min=0.0, help="Decay of the learned layers' weights.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            "--dropout", min=0.0, max=0.99, help="Share of hidden units dropped in training; by default by the rows."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience", min=1, help="Epochs without improvement before training stops; by default a quarter."
        ),
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train the same flow without the program.")] = False,
    rival: Annotated[
        list[Rival] | None,
        typer.Option(
            "--rival",
            help="Also train a spline flow of equal size without the program, or a Gaussian copula under it.",
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option("--preprocess", help="Bijections before the flow, such as dequantise,scale:0:256,logit:1e-6."),
    ] = None,
    context: Annotated[
        Path | None, typer.Option("--context", help="File with what each example is conditioned on.")
    ] = None,
    image: ImageOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = DtypeName.float32,
    as_json: JsonOption = False,
) -> None:
    """Train on data, print the test loss in nats on a held-out tenth, and write a run folder."""
    from emfc.cli.loader import load_program
    from emfc.cli.run_folder import choose_run
    from emfc.cli.training_run import TrainingRun, run_training
    from emfc.data import parse_recipe
    from emfc.errors import UserError

    values = read_settings(settings)
    widths = read_widths(hidden)
    recipe = None if preprocess is None else parse_recipe(preprocess)
    if backbone is Backbone.none and (baseline or Rival.spline in (rival or ())):
        raise UserError("--backbone none leaves nothing to compare: without the program there is no flow")
    if learning_rate is not None and not learning_rate > 0:
        raise UserError("--learning-rate must be more than 0")
    if epochs is not None and steps is not None:
        raise UserError("--epochs and --steps are two ways to say how long to train; give one of them")
    if fresh and (data is not None or context is not None):
        given = "--data" if data is not None else "--context"
        raise UserError(f"--fresh draws examples with the program file's data(); it does not go with {given}")
    place = read_device(device)
    with numeric_defaults(dtype, seed) as kind:
        loaded = load_program(program, values)
        name = loaded.path.stem if loaded.name == "model" else f"{loaded.path.stem}-{loaded.name}"
        target = choose_run(out, name, overwrite=overwrite, resume=resume)
        architecture: dict[str, Any] = {
            "backbone": None if backbone is Backbone.none else backbone.value,
            "placement": placement.value,
            "transforms": transforms,
            "hidden_features": widths,
        }
        chosen = {
            "epochs": epochs,
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "dropout": dropout,
            "patience": patience,
        }
        fitting: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        fitting |= {"seed": seed, "device": place, "dtype": kind}
        status = run_training(
            TrainingRun(
                program=loaded,
                target=target,
                data=data,
                context=context,
                recipe=recipe,
                image=image,
                gate=None if gate is Gate.none or backbone is Backbone.none else gate.value,
                architecture=architecture,
                fitting=fitting,
                baseline=baseline,
                fresh=fresh,
                rivals=tuple(dict.fromkeys(choice.value for choice in rival or ())),
                overwrite=overwrite,
                resume=resume,
                as_json=as_json,
            )
        )
    if status:
        raise typer.Exit(status)
