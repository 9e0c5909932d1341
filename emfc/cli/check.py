"""``emfc check``: compile a program without training it."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

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

__all__ = ["check", "register"]

MOST_ROWS = 60


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("check", epilog="Example: emfc check models/digits.py --set populations=10")(check)


def check(
    program: ProgramArgument,
    settings: SetOption = None,
    as_json: JsonOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Also tell what each pass of the compiler did.")] = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = DtypeName.float32,
) -> None:
    """Compile a program and show its sites, what each becomes, and their parents."""
    from emfc.cli.console import print_json, print_table
    from emfc.cli.loader import load_program

    values = read_settings(settings)
    with numeric_defaults(dtype, seed):
        loaded = load_program(program, values)
        graph, layer = _compile(loaded, seed)
    rows: list[dict[str, Any]] = [{key: _plain(value) for key, value in row.items()} for row in layer.rows()]
    parameters = {
        name: {"shape": list(parameter.shape), "constraint": str(parameter.constraint)}
        for name, parameter in graph.parameters.items()
    }
    if as_json:
        print_json(
            {
                "program": loaded.title,
                "sites": rows,
                "dim": layer.dim,
                "noise_dim": layer.noise_dim,
                "parameters": parameters,
                **({"explanation": layer.explain()} if explain else {}),
            }
        )
        return
    headings = [(heading, "left") for heading in ("site", "family", "shape", "parents", "becomes")]
    print_table(headings, [_cells(row) for row in rows[:MOST_ROWS]], title=f"{loaded.title} compiles")
    if len(rows) > MOST_ROWS:
        print(f"... and {len(rows) - MOST_ROWS:,} more sites; --json lists them all")
    for name, parameter in parameters.items():
        shape = f" {parameter['shape']}" if parameter["shape"] else ""
        print(f"parameter {name}{shape}: {parameter['constraint']}")
    print(f"An example has {layer.dim:,} elements, drawn from {layer.noise_dim:,} noise numbers.")
    if explain:
        print(layer.explain())


def _compile(loaded: Any, seed: int) -> tuple[Any, Any]:
    from emfc.compiler import compile as compile_program

    with contextlib.redirect_stdout(sys.stderr):
        graph = loaded.parse(seed=seed)
        return graph, compile_program(graph)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def _cells(row: dict[str, Any]) -> list[str]:
    parents = list(row["parents"])
    told = ", ".join(parents[:4]) + (f" and {len(parents) - 4} more" if len(parents) > 4 else "")
    becomes = "observed" if row["observed"] else str(row["transform"])
    shape = "x".join(str(size) for size in row["shape"])
    return [str(row["name"]), str(row["family"]), shape or "-", told or "-", becomes]
