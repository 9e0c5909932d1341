"""``emfc graph``: draw a program."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.options import (
    DtypeName,
    DtypeOption,
    ProgramArgument,
    SeedOption,
    SetOption,
    numeric_defaults,
    read_settings,
    refuse_inputs,
)
from emfc.errors import UserError

__all__ = ["GraphFormat", "graph", "graph_nodes", "graph_text", "register"]


class GraphFormat(Enum):
    """What a program is drawn as."""

    text = "text"
    json = "json"
    dot = "dot"
    mermaid = "mermaid"
    svg = "svg"
    png = "png"


ENDINGS = {
    ".txt": "text",
    ".json": "json",
    ".dot": "dot",
    ".gv": "dot",
    ".mmd": "mermaid",
    ".svg": "svg",
    ".png": "png",
}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("graph", epilog="Example: emfc graph models/eight_schools.py -o eight_schools.svg")(graph)


def graph(
    program: ProgramArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; text goes to standard output.")
    ] = None,
    kind: Annotated[
        GraphFormat | None, typer.Option("--format", help="By default the ending of the file, or text.")
    ] = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = DtypeName.float32,
) -> None:
    """Draw a program: its sites and which depends on which."""
    from emfc.cli.console import say
    from emfc.cli.loader import load_program
    from emfc.data.atomic import check_target, write_text

    values = read_settings(settings)
    chosen = kind.value if kind else _by_ending(output)
    if chosen in ("svg", "png") and output is None:
        raise UserError(f"a picture needs a file: emfc graph {program} -o FILE.{chosen}")
    if output is not None:
        check_target(output)
        refuse_inputs(output, Path(program), Path(program.rpartition(":")[0] or program))
        if chosen in ("svg", "png") and output.suffix.lower() != f".{chosen}":
            raise UserError(f"{output} does not end in .{chosen}, the format that was asked for")
    with numeric_defaults(dtype, seed):
        loaded = load_program(program, values)
        parsed = loaded.parse(seed=seed)
    if chosen in ("svg", "png") and output is not None:
        from emfc.report import draw_graph

        draw_graph(output, graph_nodes(parsed), title=loaded.title)
    else:
        text = _written(parsed, chosen, loaded.title)
        if output is None:
            print(text)
            return
        write_text(output, text + "\n")
    say(f"wrote {output}")


def graph_nodes(parsed: Any) -> list[Any]:
    """Tell the drawing of a program's graph what it needs to know of each site."""
    from emfc.report import GraphNode

    nodes = []
    for site in parsed.sites.values():
        shape = f" {list(site.shape)}" if site.shape else ""
        plates = tuple(f"in {_plate(plate)}" for plate in site.plates)
        nodes.append(
            GraphNode(
                site.name,
                tuple(site.parents),
                (f"{site.family}{shape}", *plates),
                observed=site.observed,
                summed_out=bool(getattr(site, "latent_discrete", False)),
            )
        )
    return nodes


def graph_text(parsed: Any) -> str:
    """Write a program's graph as lines, one for each site: ``theta ~ Normal [8] given mu, tau``."""
    lines = []
    for site in parsed.sites.values():
        shape = f" {list(site.shape)}" if site.shape else ""
        given = f" given {', '.join(site.parents)}" if site.parents else ""
        notes = [f"in {_plate(plate)}" for plate in site.plates]
        notes += ["observed"] if site.observed else []
        notes += ["summed out"] if getattr(site, "latent_discrete", False) else []
        told = f"  ({'; '.join(notes)})" if notes else ""
        lines.append(f"{site.name} ~ {site.family}{shape}{given}{told}")
    for name, parameter in parsed.parameters.items():
        shape = f" {list(parameter.shape)}" if parameter.shape else ""
        lines.append(f"parameter {name}{shape}: {parameter.constraint}")
    return "\n".join(lines)


def _written(parsed: Any, chosen: str, title: str) -> str:
    if chosen == "dot":
        return str(parsed.to_dot())
    if chosen == "mermaid":
        return str(parsed.to_mermaid())
    if chosen == "json":
        document = parsed.to_json()
        return document if isinstance(document, str) else json.dumps(document, indent=2)
    return f"{title}: {parsed.dim:,} elements\n{graph_text(parsed)}"


def _by_ending(output: Path | None) -> str:
    if output is None:
        return "text"
    ending = output.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"the ending of {output} tells no format; give --format text, json, dot or mermaid")
    return ENDINGS[ending]


def _plate(plate: Any) -> str:
    name = getattr(plate, "name", str(plate))
    size = getattr(plate, "size", None)
    return f"plate {name}" + (f" ({size})" if size is not None else "")
