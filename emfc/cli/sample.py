"""``emfc sample``: draw examples from a trained flow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.options import (
    DeviceOption,
    ImageOption,
    JsonOption,
    RunArgument,
    SeedOption,
    dtype_name,
    numeric_defaults,
    read_device,
    refuse_inputs,
)
from emfc.errors import UserError

__all__ = ["register", "sample"]

AT_ONCE = 4096


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("sample", epilog="Example: emfc sample runs/digits -n 100 -o digits.npz")(sample)


def sample(
    run: RunArgument,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many examples to draw.")] = 100,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write: .npz, .npy, .csv, .parquet, or .png for images only."),
    ] = None,
    context: Annotated[
        Path | None, typer.Option("--context", help="Contexts of a conditional flow: one row, or one each.")
    ] = None,
    image: ImageOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Draw examples; without a file they are printed as comma-separated lines. Images also become a PNG."""
    import torch

    from emfc.cli.console import print_json, say
    from emfc.cli.examples import split_draws
    from emfc.cli.run_folder import known_image, load_run
    from emfc.data import check_table_target, write_table
    from emfc.report import check_picture_target, image_shape

    picture_only = output is not None and output.suffix.lower() == ".png"
    if output is not None:
        (check_picture_target if picture_only else check_table_target)(output)
        refuse_inputs(output, context)
    flow = load_run(run, device=read_device(device))
    size = image_shape(flow.layer.example_sites, image or known_image(run))
    if picture_only and size is None:
        raise UserError(f"{run} does not draw images; give --image HEIGHTxWIDTH, or a file for numbers")
    given = _contexts(flow, context, number)
    with numeric_defaults(dtype_name(flow), seed), torch.no_grad():
        draws = torch.cat(
            [_draw(flow, given, first, min(AT_ONCE, number - first)) for first in range(0, number, AT_ONCE)]
        )
    values = {site: drawn.cpu() for site, drawn in split_draws(flow, draws).items()}
    document: dict[str, Any] = {"run": run, "rows": number}
    if output is None:
        if as_json:
            document["samples"] = {site: drawn.tolist() for site, drawn in values.items()}
        else:
            _print_lines(values)
    else:
        document["file"] = str(output)
        if not picture_only:
            write_table(output, values)
            say(f"wrote {output}")
        if size is not None:
            from emfc.cli.pictures import draw_values, flat_draws

            picture = output.with_suffix(".png")
            draw_values(picture, flat_draws(flow, draws), image=size)
            document["picture"] = str(picture)
            say(f"wrote {picture}")
    if as_json:
        print_json(document)


def _draw(flow: Any, context: Any, first: int, count: int) -> Any:
    if context is None:
        return flow().sample((count,))
    return flow(context[first : first + count]).sample()


def _contexts(flow: Any, path: Path | None, number: int) -> Any:
    from emfc.cli.examples import require_width
    from emfc.data import read_matrix

    width = flow.configuration.context_features
    if path is None:
        if width:
            raise UserError(f"this flow is conditional: give --context FILE with {width} columns")
        return None
    matrix = read_matrix(path)
    require_width(flow, path, matrix.shape[1])
    if len(matrix) not in (1, number):
        raise UserError(f"{path} has {len(matrix)} rows; {number} examples need one row for all, or one each")
    return matrix.to(flow.noise_reference).expand(number, -1)


def _print_lines(values: dict[str, Any]) -> None:
    import csv

    from emfc.data import column_names

    names = column_names({site: tuple(drawn.shape[1:]) for site, drawn in values.items()})
    columns = [drawn.reshape(len(drawn), -1) for drawn in values.values()]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in range(len(columns[0])):
        writer.writerow([value for column in columns for value in column[row].tolist()])
