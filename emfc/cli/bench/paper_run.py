"""A run of the benchmark of the paper: cells that are done are taken, others measured, each told and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from emfc.cli.bench.keeping import keep_cell
from emfc.cli.bench.paper_cells import Cell, Request, code_digest, measure_cell
from emfc.cli.bench.paper_cost import step_cost
from emfc.cli.bench.paper_table import Results, told_request
from emfc.cli.bench.paper_tasks import TASKS
from emfc.cli.bench.paper_workers import reason, run_cells
from emfc.cli.console import say
from emfc.errors import UserError

__all__ = ["run_plan", "time_steps"]

Identity = tuple[Any, ...]

OTHER_CODE = "some cells were measured before the code of emfc was changed; to measure all anew, give another --keep"


def run_plan(
    planned: Mapping[str, Sequence[Request]],
    missing: Sequence[str],
    kept: Sequence[Cell],
    *,
    keep: Path | None,
    processes: int,
    samples: bool,
    cost: bool,
    show: Callable[[Results], None],
    measure: Callable[..., Cell] = measure_cell,
) -> Results:
    """Measure what isn't done yet.

    Args:
        planned: Cells of each study; those of two studies are measured once.
        missing: What is left out, in sentences.
        kept: Cells of earlier runs.
        keep: File that new cells are added to.
        processes: Cells at a time.
        samples: Whether the first seed's flows draw examples for pictures; a kept one that drew none is done again.
        cost: Whether to time training steps.
        show: What shows the results where the run is interrupted.
        measure: What measures a cell.

    Returns:
        The results.

    Raises:
        UserError: No cell could be measured, or one could not be kept; those that are done are shown.
        KeyboardInterrupt: Ctrl-C; what was measured is kept and shown.
    """
    for sentence in missing:
        say(sentence)
    wanted = {request.identity: request for requests in planned.values() for request in requests}
    drawing = _drawing(planned) if samples else set()
    done: dict[Identity, Cell] = {}
    for cell in kept:
        identity = cell.request.identity
        if identity in wanted and (identity not in drawing or cell.samples is not None):
            done[identity] = cell
    jobs = [(request, identity in drawing) for identity, request in wanted.items() if identity not in done]
    results = Results(missing=list(missing))
    new = 0
    try:
        with closing(run_cells(jobs, processes=processes, measure=measure)) as running:
            for request, found in running:
                new += 1
                told = f"{new}/{len(jobs)} {told_request(request)}"
                if isinstance(found, str):
                    results.failures.append((request, found))
                    say(f"{told}: {found}")
                    continue
                done[request.identity] = found
                say(f"{told}: {found.nll:.3f} nats, {found.steps:,} steps in {found.seconds:.0f} s")
                keep_cell(keep, found)
        if cost:
            time_steps(results, planned)
    except UserError as error:
        told = _stopped(results, planned, done, str(error), show)
        raise UserError(f"{told} shown, the last of them is kept nowhere") from error
    except KeyboardInterrupt:
        if not done:
            raise KeyboardInterrupt("interrupted before a cell was done; nothing was kept") from None
        told = _stopped(results, planned, done, "interrupted", show)
        where = "shown but kept nowhere; give a file with --keep" if keep is None else f"kept in {keep}"
        raise KeyboardInterrupt(f"{told} {where}") from None
    _gather(results, planned, done)
    others = len({cell.code for cell in done.values()} - {code_digest()})
    if others:
        results.missing.append(OTHER_CODE)
        say(OTHER_CODE)
    if not done:
        raise UserError(f"nothing could be measured: {results.left_out[-1]}")
    return results


def _stopped(
    results: Results,
    planned: Mapping[str, Sequence[Request]],
    done: Mapping[Identity, Cell],
    why: str,
    show: Callable[[Results], None],
) -> str:
    """Show what is done of a run that ends early; how much that is, in words."""
    _gather(results, planned, done)
    wanted = {request.identity for requests in planned.values() for request in requests}
    told = f"{why}; {len(done)} of {len(wanted)} cells are"
    results.missing.append(f"{told} measured")
    show(results)
    return told


def _gather(results: Results, planned: Mapping[str, Sequence[Request]], done: Mapping[Identity, Cell]) -> None:
    for study, requests in planned.items():
        found = [done[request.identity] for request in requests if request.identity in done]
        if found:
            results.cells[study] = found


def _drawing(planned: Mapping[str, Sequence[Request]]) -> set[Identity]:
    """Cells of the main study whose flows draw examples: those of the first seed."""
    requests = planned.get("main", ())
    first = min((request.seed for request in requests), default=0)
    return {request.identity for request in requests if request.seed == first}


def time_steps(results: Results, planned: Mapping[str, Sequence[Request]]) -> None:
    """Time training steps of each task; one that fails is told, and the others go on.

    Args:
        results: What the times are added to.
        planned: Cells of each study.
    """
    for key in dict.fromkeys(request.task for requests in planned.values() for request in requests):
        request = next(held for requests in planned.values() for held in requests if held.task == key)
        title = TASKS[key].title
        try:
            found = step_cost(request, TASKS[key])
        except Exception as error:
            results.missing.append(f"{title}, the time of a training step: {reason(error)}")
            say(results.missing[-1])
            continue
        results.costs.append(found)
        say(f"{title}: a training step of GEMF-T takes {found.ratio:.2f} times that of MAF")
