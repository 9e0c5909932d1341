"""``emfc score``: the log probability of each row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.options import DeviceOption, ImageOption, JsonOption, RunArgument, SeedOption, read_device, refuse_inputs
from emfc.errors import UserError

__all__ = ["register", "score"]

SHOWN = 64


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("score", epilog="Example: emfc score runs/digits digits.npz -o scored.csv --top 16 --bottom 16")(score)


def score(
    run: RunArgument,
    data: Annotated[
        Path, typer.Argument(metavar="FILE", help="Examples: .npz, .npy, .csv or .parquet.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write, .npz, .csv or .parquet: the examples and `log_prob`."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="List this many of the most probable rows.")] = 0,
    bottom: Annotated[int, typer.Option("--bottom", min=0, help="List this many of the least probable rows.")] = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of the listed rows, where they are images.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option("--context", help="Contexts of a conditional flow, one row each.")
    ] = None,
    image: ImageOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Print or write the log probability (nats) of each row, and rank rows on request."""
    from emfc.cli.console import print_json, say
    from emfc.cli.evaluate import log_prob_of_file
    from emfc.cli.pictures import draw_ranks, ranking
    from emfc.cli.run_folder import known_image, load_run
    from emfc.data import check_table_target, write_table
    from emfc.report import check_picture_target, image_shape

    if output is not None:
        check_table_target(output)
        if output.suffix.lower() == ".npy":
            raise UserError(
                f"{output}: .npy has no column names, so log_prob would be lost; use .npz, .csv or .parquet"
            )
        refuse_inputs(output, data, context)
    if picture is not None:
        check_picture_target(picture)
        refuse_inputs(picture, data, context)
    flow = load_run(run, device=read_device(device))
    sites = flow.layer.example_sites
    if output is not None and "log_prob" in sites:
        raise UserError("the program has a site 'log_prob', so that no column of that name can be added")
    size = image_shape(sites, image or known_image(run))
    if picture is not None and (size is None or not top + bottom):
        raise UserError("--picture needs images, and --top or --bottom to say how many")
    table, log_prob = log_prob_of_file(flow, data, context, seed=seed)
    ranks = {
        "top": ranking(log_prob, top, highest=True),
        "bottom": ranking(log_prob, bottom, highest=False),
    }
    document: dict[str, Any] = {"run": run, "rows": table.rows, "log_prob": log_prob.tolist()}
    for name, rows in ranks.items():
        if rows:
            document[name] = [{"row": row, "log_prob": float(log_prob[row])} for row in rows]
    if output is not None:
        write_table(output, {**_written(flow, table), "log_prob": log_prob.double()})
        document["file"] = str(output)
        say(f"wrote {output}")
    if size is not None and top + bottom:
        target = picture or _picture_beside(run, data, output)
        draw_ranks(target, table.flat, log_prob, top=min(top, SHOWN), bottom=min(bottom, SHOWN), image=size)
        document["picture"] = str(target)
        say(f"wrote {target}")
    if as_json:
        print_json(document)
    elif top + bottom:
        _print_ranks(document)
    elif output is None:
        _print_all(log_prob.tolist())


def _written(flow: Any, table: Any) -> dict[str, Any]:
    """The examples as they were read, whole numbers as such."""
    whole = {site for site in table.values if flow.graph.sites[site].discrete}
    return {site: values.long() if site in whole else values for site, values in table.values.items()}


def _picture_beside(run: str, data: Path, output: Path | None) -> Path:
    if output is not None:
        return output.with_name(f"{output.stem}-ranked.png")
    return Path(run) / f"ranked-{data.stem}.png"


def _print_all(scores: list[float]) -> None:
    print("row,log_prob")
    for row, value in enumerate(scores):
        print(f"{row},{value!r}")


def _print_ranks(document: dict[str, Any]) -> None:
    for name, title in (("top", "most probable"), ("bottom", "least probable")):
        if name in document:
            print(f"{title} rows (counted from 0) and their log probability in nats")
            for entry in document[name]:
                print(f"{entry['row']:>8}  {entry['log_prob']:.4f}")
