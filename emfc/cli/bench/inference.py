"""``emfc bench inference``: how near default inference comes to posteriors that are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from emfc.cli.options import JsonOption, numeric_defaults, require_named
from emfc.errors import UserError

__all__ = ["bench_inference", "register"]

_LEAST_DRAWS = 200


def register(app: typer.Typer) -> None:
    """Add the command to the group ``emfc bench``."""
    app.command("inference", epilog="Example: emfc bench inference --targets eight-schools --seeds 1")(bench_inference)


def bench_inference(
    targets: Annotated[
        str | None, typer.Option("--targets", metavar="A,B", help="Targets to measure; by default all.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", metavar="FOLDER", help="Real data and reference posteriors: posteriordb/, inference_gym/."
        ),
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", metavar="FOLDER", help="Programs.  [default: emfc's own models/]")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Seeds 0 to N - 1.", min=1)] = 3,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Seconds of training.  [default: 15, of long targets 30]", min=0.01),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", help="Draws to compare; k-hat takes 10,000 of them.", min=_LEAST_DRAWS)
    ] = 100_000,
    ways: Annotated[
        str | None,
        typer.Option(
            "--ways",
            metavar="A,B",
            help="Of emfc, AutoNormal, AutoMultivariateNormal, AutoIAFNormal, nuts and nuts-AutoIAFNormal.  "
            "[default: emfc]",
        ),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Also train Pyro's guides.")] = False,
    nuts: Annotated[bool, typer.Option("--nuts", help="Also run the no-U-turn sampler, where it has goals.")] = False,
    samples: Annotated[
        int, typer.Option("--samples", help="Draws of the sampler, after as many steps of warm-up.", min=8)
    ] = 500,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FILE", help="Add each result to this file, and skip those that it has."),
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", help="File to write, .md or .json. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how near inference with its default settings comes to posteriors that are known."""
    from emfc.cli.bench.inference_nuts import NUTS, PEER_NUTS
    from emfc.cli.bench.inference_references import Prepared, find_models, prepare
    from emfc.cli.bench.inference_targets import TARGETS
    from emfc.cli.bench.inference_ways import PEERS
    from emfc.cli.bench.keeping import check_keep, check_pages, keep_cell, source_digest, told_interruption
    from emfc.cli.bench.measure import one_thread
    from emfc.cli.bench.paper_workers import reason
    from emfc.cli.console import say

    named = list(TARGETS) if targets is None else [word.strip() for word in targets.split(",")]
    require_named(named, list(TARGETS), what="the target")
    known = ["emfc", *PEERS, NUTS, PEER_NUTS]
    asked = ["emfc"] if ways is None else [word.strip() for word in ways.split(",")]
    require_named(asked, known, what="the way")
    asked += [*(PEERS if peers else ()), *((NUTS, PEER_NUTS) if nuts else ())]
    if reference is not None and not reference.is_dir():
        raise UserError(f"the folder {reference} does not exist; --reference takes posteriordb/ and inference_gym/")
    check_pages(output or [], [] if keep is None else [keep])
    folder = find_models(models)
    check_keep(keep)
    cells = _kept(keep)
    chosen, missing = [], []
    with numeric_defaults("float64", 0), one_thread():
        for name in dict.fromkeys(named):
            found = prepare(TARGETS[name], folder, reference)
            told = found if isinstance(found, str) else found.missing
            if told is not None:
                missing.append(told)
                say(told)
            if isinstance(found, Prepared):
                chosen.append(found)
        if not chosen:
            raise UserError("nothing can be measured without data: give the folder of the real data with --reference")
        done = {_identity(cell) for cell in cells}
        mine = []
        for prepared, way, seed, run in _runs(chosen, asked, seeds, seconds, draws, samples):
            budget = prepared.target.seconds if seconds is None else seconds
            counts = samples if way in (NUTS, PEER_NUTS) else draws
            source = source_digest(folder / prepared.target.program.partition(":")[0])
            identity = (prepared.target.key, way, seed, budget, prepared.moments is not None, counts, source)
            if identity not in done:
                try:
                    cell = replace(run(), counts=counts, source=source)
                except Exception as error:  # is told, and the others go on
                    missing.append(f"{prepared.target.title}, {way}, seed {seed}: {reason(error)}")
                    say(missing[-1])
                    continue
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(f"interrupted; {told_interruption(keep)}") from None
                cells.append(cell)
                say(_told(cell))
                keep_cell(keep, cell)
            mine.append(next(cell for cell in reversed(cells) if _identity(cell) == identity))
    if not mine:
        raise UserError(f"nothing could be measured: {missing[-1]}")
    _show(mine, missing, as_json=as_json)
    _write(mine, missing, output or [])


def _runs(
    chosen: Sequence[Any], ways: Sequence[str], seeds: int, seconds: float | None, draws: int, samples: int
) -> Iterator[tuple[Any, str, int, Callable[[], Any]]]:
    """Target, way, seed, and what measures it; one seed after the other, so that an early stop leaves every target."""
    from emfc.cli.bench.inference_nuts import NUTS, PEER_NUTS, nuts_cell, peer_nuts_cell
    from emfc.cli.bench.inference_ways import infer_cell, peer_cell

    for seed in range(seeds):
        for prepared in chosen:
            target = prepared.target
            options: dict[str, Any] = {"seed": seed, "seconds": target.seconds if seconds is None else seconds}
            for way in dict.fromkeys(ways):
                if way == "emfc":
                    yield prepared, way, seed, partial(infer_cell, prepared, draws=draws, **options)
                elif way not in (NUTS, PEER_NUTS):
                    yield prepared, way, seed, partial(peer_cell, prepared, way, draws=draws, **options)
                elif target.nuts is not None and (way == NUTS or target.nuts.over_peer is not None):
                    cell = nuts_cell if way == NUTS else peer_nuts_cell
                    yield prepared, way, seed, partial(cell, prepared, samples=samples, **options)


def _identity(cell: Any) -> tuple[Any, ...]:
    compared = cell.mean_error is not None
    return cell.target, cell.way, cell.seed, cell.budget, compared, cell.counts, cell.source


def _kept(path: Path | None) -> list[Any]:
    """Results of earlier runs.

    Raises:
        UserError: The file is of something else.
    """
    from pydantic import TypeAdapter

    from emfc.cli.bench.inference_cells import Cell
    from emfc.cli.bench.inference_targets import TARGETS
    from emfc.cli.bench.keeping import read_cells

    read = TypeAdapter(Cell).validate_json
    cells = read_cells(path, read, what="emfc bench inference", beginning='{"target": ')
    return [cell for cell in cells if cell.target in TARGETS]


def _told(cell: Any) -> str:
    from emfc.cli.bench.inference_targets import TARGETS

    words = [f"{TARGETS[cell.target].title}, {cell.way}, seed {cell.seed}:"]
    for name, value in (("gap", cell.gap), ("k-hat", cell.khat), ("worst mean error", cell.mean_error)):
        words += [] if value is None else [f"{name} {value:.3g},"]
    words += [] if cell.ess is None else [f"{cell.ess:.0f} effective draws, {cell.divergences} divergences,"]
    return " ".join([*words, f"{cell.seconds:.1f} s"])


def _show(cells: Sequence[Any], missing: Sequence[str], *, as_json: bool) -> None:
    from emfc.cli.bench.inference_table import COLUMNS, NUTS_COLUMNS, as_document, nuts_rows, rows
    from emfc.cli.console import print_json, print_table

    if as_json:
        print_json(as_document(cells, missing))
        return
    for title, columns, lines in (("Inference", COLUMNS, rows(cells)), ("Samplers", NUTS_COLUMNS, nuts_rows(cells))):
        if lines:
            sides = ("left", "left", *("right",) * (len(columns) - 3), "left")
            print_table(list(zip(columns, sides, strict=True)), lines, title=title)


def _write(cells: Sequence[Any], missing: Sequence[str], outputs: Sequence[Path]) -> None:
    from emfc.cli.bench.inference_table import as_document, as_markdown
    from emfc.cli.console import finite_or_none, say
    from emfc.data.atomic import write_text

    for target in outputs:
        if target.suffix.lower() == ".md":
            text = as_markdown(cells, missing)
        else:
            text = json.dumps(finite_or_none(as_document(cells, missing)), indent=2) + "\n"
        write_text(target, text)
        say(f"wrote {target}")
