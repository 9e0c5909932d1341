"""``emfc evaluate``: the mean loss of a trained flow on a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.options import (
    DeviceOption,
    JsonOption,
    RunArgument,
    SeedOption,
    dtype_name,
    numeric_defaults,
    read_device,
)

__all__ = ["evaluate", "log_prob_of_file", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("evaluate", epilog="Example: emfc evaluate runs/digits digits.npz")(evaluate)


def evaluate(
    run: RunArgument,
    data: Annotated[
        Path, typer.Argument(metavar="FILE", help="Examples: .npz, .npy, .csv or .parquet.", show_default=False)
    ],
    context: Annotated[
        Path | None, typer.Option("--context", help="Contexts of a conditional flow, one row each.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Print the mean negative log likelihood of the examples in a file, and its standard error, in nats."""
    from emfc.cli.console import plus_minus, print_json
    from emfc.cli.contenders import mean_and_error, unit_metrics
    from emfc.cli.run_folder import load_run

    flow = load_run(run, device=read_device(device))
    table, log_prob = log_prob_of_file(flow, data, context, seed=seed)
    nll, error = mean_and_error(-log_prob)
    unit = unit_metrics(nll, error, flow.layer.levels if flow.preprocess is None else None)
    if as_json:
        names = {key.replace("test_", ""): value for key, value in unit.items()}
        print_json({"run": run, "file": str(data), "nll": nll, "nll_se": error, "rows": table.rows, **names})
        return
    print(
        f"{plus_minus(nll, error, digits=4)} nats per example ({table.rows:,} {'row' if table.rows == 1 else 'rows'})"
    )
    if unit:
        print(f"{unit['test_nll_unit']:.4f} nats in [0,1]^D, {unit['bits_per_dim']:.4f} bits per dimension")


def log_prob_of_file(flow: Any, path: Path, context: Path | None, *, seed: int) -> tuple[Any, Any]:
    """Read examples and give their log densities.

    Args:
        flow: The flow.
        path: File with examples; a column ``log_prob``, as `emfc score` writes it, is left out.
        context: File with their contexts.
        seed: Seed of the dequantisation.

    Returns:
        The table of raw examples, and log densities in nats, shape ``[rows]``, on the CPU.

    Raises:
        UserError: The files do not fit the flow.
    """
    from emfc.cli.console import say
    from emfc.cli.examples import check_support, from_file, model_input, read_context, require_width
    from emfc.data import first_few
    from emfc.errors import UserError
    from emfc.training import log_prob

    table = from_file(path, flow.layer.example_sites, ignore=("log_prob",))
    contexts = read_context(context, table.rows)
    width = flow.configuration.context_features
    if contexts is not None and context is not None:
        require_width(flow, context, contexts.shape[1])
    elif width:
        raise UserError(f"this flow is conditional: give --context FILE with {width} columns, one row for each example")
    with numeric_defaults(dtype_name(flow), seed) as kind:
        check_support(table, flow)
        found = log_prob(flow, model_input(table, kind), context=contexts, seed=seed).cpu()
    without = (~found.isfinite()).nonzero().flatten().tolist()
    if without:
        place = f"{'row' if len(without) == 1 else 'rows'} {first_few(without)} (counted from 0)"
        say(f"{table.where}: {place}: the density is zero, or too small or too large to compute in {dtype_name(flow)}")
    return table, found
