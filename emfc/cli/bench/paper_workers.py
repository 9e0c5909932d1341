"""Cells one after another in this process, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from emfc.cli.bench.paper_cells import Cell, Request, measure_cell
from emfc.errors import UserError
from emfc.program.errors import CompileError

__all__ = ["Failure", "reason", "run_cells"]

Failure = str
"""Why a cell has no figures, in one sentence."""

Job = tuple[Request, bool]
Measure = Callable[..., Cell]


def run_cells(
    jobs: Sequence[Job], *, processes: int = 1, measure: Measure = measure_cell
) -> Generator[tuple[Request, Cell | Failure]]:
    """Measure cells, and give each as soon as it is done.

    A cell that fails, or whose process dies, is given with the reason, and the others go on. Where the loop over them
    ends early, as by Ctrl-C, all processes are ended at once.

    Args:
        jobs: What to measure, and whether to draw examples for a picture.
        processes: How many at a time; one is this process.
        measure: What measures a cell; a function that can be imported.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    if processes == 1:
        for request, samples in jobs:
            yield request, _attempt(measure, request, samples)
        return
    yield from _in_processes(jobs, min(processes, len(jobs)), measure)


def _attempt(measure: Measure, request: Request, samples: bool) -> Cell | Failure:
    try:
        return measure(request, samples=samples)
    except Exception as error:
        return reason(error)


def reason(error: Exception) -> Failure:
    """Why something failed, in one sentence."""
    if isinstance(error, CompileError | UserError):
        return str(error)
    return f"a fault of emfc itself: {type(error).__name__}: {' '.join(str(error).split())}"


class _Worker:
    """A process that measures one cell after another."""

    def __init__(self, measure: Measure) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.request: Request | None = None
        self.process = context.Process(target=_serve, args=(theirs, measure), daemon=True)
        with _without_interrupts():
            self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.request = job[0]
        self.pipe.send(job)

    def take(self) -> Cell | Failure:
        """What the process sent, or how it ended."""
        try:
            found: Cell | Failure = self.pipe.recv()
        except EOFError:
            self.process.join()
            return f"its process ended with status {self.process.exitcode}"
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs, and for good in processes that it starts, where the system can do that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its first start lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_processes(jobs: Sequence[Job], processes: int, measure: Measure) -> Iterator[tuple[Request, Cell | Failure]]:
    left = deque(jobs)
    workers: list[_Worker] = []
    try:
        while left or workers:
            while left and len(workers) < processes:
                worker = _Worker(measure)
                workers.append(worker)
                worker.give(left.popleft())
            ready = wait([worker.pipe for worker in workers])
            for worker in [held for held in workers if held.pipe in ready]:
                request, found = worker.request, worker.take()
                if left and worker.process.is_alive():
                    worker.give(left.popleft())
                else:
                    workers.remove(worker)
                    worker.end()
                if request is not None:
                    yield request, found
    finally:
        for worker in workers:
            worker.end()


def _serve(pipe: Connection[Any, Any], measure: Measure) -> None:
    """The loop of a worker: Ctrl-C is for the process that started it, whose end is also its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            request, samples = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(measure, request, samples))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
