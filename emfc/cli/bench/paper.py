"""``emfc bench paper``: the experiments of the embedded-model flows paper, with paired seeds and matched sizes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from emfc.cli.options import DtypeName, DtypeOption, JsonOption, SeedOption, read_widths, require_named
from emfc.errors import UserError

__all__ = ["bench_paper", "register"]

NEAR = 0.7
"""From this likeness on, a name that is known is suggested in place of one that isn't."""


def register(app: typer.Typer) -> None:
    """Add the command to the group ``emfc bench``."""
    app.command("paper", epilog="Example: emfc bench paper --task ornstein-uhlenbeck --rows maf,gemf-t --seeds 1")(
        bench_paper
    )


def bench_paper(
    tasks: Annotated[
        str | None, typer.Option("--task", metavar="A,B", help="Tasks to measure; by default all of the study.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="A,B",
            help="Flows to measure, such as maf, maf-l, nsf, emf-t, gemf-m, nsf-gemf-t-element, b-maf or bare; "
            "gemf-t:s for the program s of the task.  [default: those of the study]",
        ),
    ] = None,
    study: Annotated[
        str, typer.Option("--study", metavar="A,B", help="Of main, wrong (programs) and few (examples).")
    ] = "main",
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps of training.  [default: 5000; few: 2000]", min=1)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Instead: as many steps as fit into minutes of processor time, for each cell."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Number of paired seeds.", min=1)] = 5,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", metavar="N,M", help="Training examples of few.  [default: 50,200,1000,5000,50000]"),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option("--protocol", metavar="A,B", help="Of paper and held-out, where training and test may differ."),
    ] = "paper",
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FILE", help="Images of the task pixels.", show_default=False)
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", metavar="FOLDER", help="Programs.  [default: emfc's own models/]")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", help="Cells at a time, each on one thread.", min=1)
    ] = 1,
    batch: Annotated[int, typer.Option("--batch", help="Examples of a step.", min=1)] = 100,
    hidden: Annotated[
        str | None, typer.Option("--hidden", metavar="N,M", help="Hidden widths of MAF.  [default: 512,512]")
    ] = None,
    transforms: Annotated[int | None, typer.Option("--transforms", help="Layers of MAF.  [default: 2]", min=2)] = None,
    activation: Annotated[str | None, typer.Option("--activation", help="Activation of all flows.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Highest learning rate of all flows.")
    ] = None,
    test_rows: Annotated[
        int | None, typer.Option("--test-rows", help="Test examples.  [default: 10,000, in the plane 50,000]", min=2)
    ] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Also time a step of training, gated and without program.")] = (
        False
    ),
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FILE", help="Add each result to this file, and skip those that it has."),
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", help="File to write, .md or .json. Repeatable.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="FOLDER", help="Folder for pictures; made if need be.")
    ] = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = DtypeName.float32,
) -> None:
    """Measure flows with and without programs on the tasks of the paper."""
    from emfc.cli.bench.inference_references import find_models
    from emfc.cli.bench.keeping import check_keep, told_interruption
    from emfc.cli.bench.paper_keep import PROTOCOLS, kept_cells
    from emfc.cli.bench.paper_output import check_outputs, show_results, write_results
    from emfc.cli.bench.paper_plan import SIZES, STUDIES, Options, plan
    from emfc.cli.bench.paper_run import run_plan
    from emfc.cli.bench.paper_tasks import TASKS
    from emfc.flows.networks import ACTIVATIONS

    if steps is not None and minutes is not None:
        raise UserError("--steps and --minutes both say how long to train; give one of them")
    for option, value in (("--minutes", minutes), ("--learning-rate", learning_rate)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{option} needs a positive number; it was given {value:g}")
    if activation is not None:
        require_named([activation], list(ACTIVATIONS), what="the activation")
    if images is not None and not images.is_file():
        raise UserError(f"{images} is not there or not a file; --images takes a file of images")
    options = Options(
        studies=_names(study, STUDIES, what="the study"),
        tasks=None if tasks is None else _names(tasks, list(TASKS), what="the task"),
        rows=None if rows is None else _words(rows, what="the row"),
        seeds=seeds,
        first_seed=_small(seed, seeds),
        steps=steps,
        minutes=minutes,
        sizes=SIZES if sizes is None else _sizes(sizes),
        protocols=_names(protocol, PROTOCOLS, what="the protocol"),
        batch=batch,
        hidden=None if hidden is None else read_widths(hidden),
        transforms=transforms,
        activation=activation,
        learning_rate=learning_rate,
        test_rows=test_rows,
        dtype=dtype.value,
        models=find_models(models),
        file=images,
    )
    asked = [TASKS[key] for key in options.tasks or TASKS]
    if sizes is not None and "few" not in options.studies:
        raise UserError("--sizes counts for the study few alone; give --study few, or leave it out")
    if images is not None and not any(task.needs_file for task in asked):
        raise UserError("--images counts for the task pixels alone; give --task pixels, or leave it out")
    if protocol != "paper" and not any(task.protocols for task in asked):
        raise UserError("--protocol counts for the tasks iris and digits alone; leave it out")
    check_outputs(output or [], pictures, [] if keep is None else [keep])
    check_keep(keep)
    try:
        planned, missing = plan(options)
        results = run_plan(
            planned,
            missing,
            kept_cells(keep),
            keep=keep,
            processes=processes,
            samples=pictures is not None,
            cost=cost,
            show=partial(show_results, as_json=as_json),
        )
        show_results(results, as_json=as_json)
        write_results(results, output or [], pictures)
    except KeyboardInterrupt as error:
        told = f"interrupted before all was written; {told_interruption(keep)}"
        raise error if error.args else KeyboardInterrupt(told) from None


def _words(text: str, *, what: str) -> tuple[str, ...]:
    given = [word.strip() for word in text.split(",")]
    if not all(given):
        raise UserError(f"{what} is empty in {text!r}; write names with a comma between")
    return tuple(dict.fromkeys(given))


def _names(text: str, known: Sequence[str], *, what: str) -> tuple[str, ...]:
    given = _words(text, what=what)
    for name in given:
        if name not in known and not difflib.get_close_matches(name, known, n=1, cutoff=NEAR):
            raise UserError(f"{what} {name!r} is unknown; it takes {', '.join(known)}")
    require_named(given, list(known), what=what)
    return given


def _small(seed: int, seeds: int) -> int:
    if seed + seeds > 10**6:
        raise UserError(f"--seed must be below {10**6 - seeds:,} here, since other seeds are made of it; it was {seed}")
    return seed


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--sizes needs whole numbers with commas between, such as 50,1000; not {text!r}") from error
    if min(sizes) < 20:
        raise UserError(f"--sizes needs at least 20 examples; it was given {text!r}")
    return tuple(dict.fromkeys(sizes))
