"""``emfc bench``: what programs cost, beside hand-written PyTorch, Pyro and the layer that works site by site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.bench import inference, paper, paper_report
from emfc.cli.options import DtypeName, DtypeOption, JsonOption, SeedOption, numeric_defaults, require_named
from emfc.errors import UserError

__all__ = ["bench", "register"]

QUICK_STEPS, QUICK_BATCHES, QUICK_BUDGET = "30,300", "100", 0.3


def register(app: typer.Typer) -> None:
    """Add the command to the application, with ``inference``, ``paper`` and ``paper-report`` under it."""
    group = typer.Typer(rich_markup_mode=None)
    group.callback(invoke_without_command=True, epilog="Example: emfc bench --programs brownian,lorenz --quick")(bench)
    inference.register(group)
    paper.register(group)
    paper_report.register(group)
    app.add_typer(group, name="bench")


def bench(
    context: typer.Context,
    programs: Annotated[
        str | None, typer.Option("--programs", metavar="A,B", help="Programs to measure; by default all.")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            "--measures",
            metavar="A,B",
            help="Of density, draws, draws-with-gradient, compiled-density and compile; by default all.",
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="N,M", help="Lengths.  [default: 30,300,3000]")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="N,M", help="Examples at once.  [default: 100,1000]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short lengths, few rounds, no torch.compile.")] = False,
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", help="File to write, .md or .json. Repeatable.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Picture of cost against length: .svg, .png or .pdf.")
    ] = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = DtypeName.float32,
) -> None:
    """Measure what compiled programs cost, as ratios within one run on one thread."""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    from emfc.cli.bench.figures import COMPILED, MEASURES, Settings, measure_programs
    from emfc.cli.bench.keeping import check_pages
    from emfc.cli.bench.measure import one_thread
    from emfc.cli.bench.scaling import LONG_PROGRAMS
    from emfc.cli.bench.subjects import SUBJECTS
    from emfc.cli.console import say
    from emfc.report import check_picture_target

    known = [*SUBJECTS, *LONG_PROGRAMS]
    named = _names(programs, known, what="the program")
    if programs is None and quick:
        named = [name for name in named if name in SUBJECTS]
    chosen = _names(measures and measures.replace("-", " "), MEASURES, what="the measure")
    if measures is None and quick:
        chosen = [measure for measure in chosen if measure != COMPILED]
    settings = Settings(
        steps=_numbers("--steps", steps or (QUICK_STEPS if quick else "30,300,3000"), least=3),
        batches=_numbers("--batch", batch or (QUICK_BATCHES if quick else "100,1000"), least=1),
        measures=chosen,
        budget=QUICK_BUDGET if quick else 1.0,
    )
    check_pages(output or [])
    if picture is not None:
        check_picture_target(picture)
    figures: list[Any] = []
    with numeric_defaults(dtype, seed), one_thread():
        for figure in measure_programs([name for name in named if name in SUBJECTS], settings):
            figures.append(figure)
            say(_told(figure))
        if "compile" in chosen:
            for figure in _long_programs([name for name in named if name in LONG_PROGRAMS], quick=quick):
                figures.append(figure)
                say(_told(figure))
    if not figures:
        raise UserError("nothing can be measured: none of these programs has any of these measures; name others")
    _show(figures, as_json=as_json)
    _write(figures, output or [], picture)


def _refuse_options(context: typer.Context) -> None:
    """Refuse options of this command before the name of another."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"give the options of emfc bench {context.invoked_subcommand} after its name")


def _long_programs(names: list[str], *, quick: bool) -> Iterator[Any]:
    from emfc.cli.bench.scaling import compile_alone

    for name in names:
        for sites in (1_000, 10_000) if quick else (10_000, 100_000):
            yield compile_alone(name, sites)


def _show(figures: list[Any], *, as_json: bool) -> None:
    from emfc.cli.bench.goals import findings
    from emfc.cli.bench.table import GOAL_COLUMNS, RATIO_COLUMNS, as_document, goal_rows, ratio_rows
    from emfc.cli.console import print_json, print_table

    if as_json:
        print_json(as_document(figures))
        return
    ratios, goals = ratio_rows(figures), goal_rows(findings(figures))
    if ratios:
        sides = ("left", "left", *("right",) * (len(RATIO_COLUMNS) - 2))
        print_table(list(zip(RATIO_COLUMNS, sides, strict=True)), ratios, title="Cost, as ratios")
    if goals:
        sides = ("left", "left", "right", "left", "left")
        print_table(list(zip(GOAL_COLUMNS, sides, strict=True)), goals, title="Goals")


def _write(figures: list[Any], outputs: list[Path], picture: Path | None) -> None:
    import json

    from emfc.cli.bench.table import as_document, as_markdown
    from emfc.cli.console import finite_or_none, say
    from emfc.data.atomic import write_text
    from emfc.report import draw_costs

    for target in outputs:
        markdown = target.suffix.lower() == ".md"
        text = as_markdown(figures) if markdown else json.dumps(finite_or_none(as_document(figures)), indent=2) + "\n"
        write_text(target, text)
        say(f"wrote {target}")
    if picture is not None:
        draw_costs(picture, _panels(figures))
        say(f"wrote {picture}")


def _panels(figures: list[Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Milliseconds against length for the largest batch, where there is more than one length.

    Densities come first, then draws: those with gradient, where both were measured.
    """
    from emfc.cli.bench.figures import DENSITY, DRAWS, GRADIENT_DRAWS
    from emfc.cli.bench.table import title_of

    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    most = max((figure.batch for figure in figures), default=0)
    draws = GRADIENT_DRAWS if any(figure.measure == GRADIENT_DRAWS for figure in figures) else DRAWS
    for measure in (DENSITY, draws):
        for figure in figures:
            if figure.measure != measure or figure.batch != most:
                continue
            lines = panels.setdefault(f"{title_of(figure.program)}: {measure}", {})
            ways = {"emfc": figure.seconds, "hand-written": figure.by_hand, "Pyro": figure.by_pyro}
            for name, value in ways.items():
                if value is not None:
                    lines.setdefault(name, []).append((figure.steps, 1e3 * value))
    return {title: lines for title, lines in panels.items() if len(lines["emfc"]) > 1}


def _told(figure: Any) -> str:
    from emfc.cli.bench.table import title_of

    batch = f", B = {figure.batch}" if figure.batch else ""
    ratio = f"{figure.over_hand:.2f} times hand-written" if figure.over_hand else f"{figure.seconds:.3g} s"
    return f"{title_of(figure.program)}, {figure.measure}, T = {figure.steps}{batch}: {ratio}"


def _names(text: str | None, known: Any, *, what: str) -> list[str]:
    if text is None:
        return list(known)
    given = [word.strip() for word in text.split(",")]
    require_named(given, list(known), what=what)
    return given


def _numbers(option: str, text: str, *, least: int) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} needs whole numbers with commas between, such as 30,300; not {text!r}") from error
    if min(numbers) < least:
        raise UserError(f"{option} needs numbers of at least {least}; it was given {text!r}")
    return numbers
