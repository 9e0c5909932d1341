"""Training of one cell: always ``emfc.fit``, for some steps or for some minutes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from emfc.errors import UserError
from emfc.training import EpochRow, SilentProgress, fit

if TYPE_CHECKING:
    from emfc.cli.bench.paper_cells import Request

__all__ = ["TEST_SEED", "Trained", "train"]

TEST_SEED, VALIDATION_SEED, TRAINING_SEED = 3_000_000_000, 3_400_000_000, 3_800_000_000
"""Where the seeds of examples begin, far from those that ``fit`` makes of a small seed."""

ROWS = 10_000
VALIDATION_ROWS = 2_000
VALIDATION_FRACTION = 0.1
LEAST_BATCH = 10
TRIAL_EPOCHS = 3
"""Epochs of the trial that tells how many steps fit into some minutes; the first, with the start, is timed apart."""
SHARE = 0.97
"""Share of the minutes that is planned for, since a step doesn't always cost the same."""

Start = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        steps: Steps that were made.
        seconds: Wall time.
        processor: Processor time.
        stopped: Why it ended.
        diverged: How often it went back to earlier weights.
    """

    steps: int
    seconds: float
    processor: float
    stopped: str
    diverged: int = 0


class _Clock(SilentProgress):
    """Notes the processor time at the end of each epoch."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def epoch(self, row: EpochRow, *, best: float) -> None:
        self.marks.append(time.process_time())


def train(
    flow: Any, request: Request, data: Callable[..., Any], apart: Callable[..., Any], *, start: Start | None
) -> Trained:
    """Train a flow in place.

    Args:
        flow: The flow.
        request: What the cell is to measure.
        data: The simulator, a function of ``n`` and ``seed``.
        apart: That of validation examples.
        start: The program's own way from examples to starting values of its parameters, if it has one.

    Raises:
        UserError: The data don't fit the flow, training can't be kept from diverging, or not a step fits into the
            minutes.
        KeyboardInterrupt: Training was interrupted.
    """
    began, processor = time.perf_counter(), time.process_time()
    options, rows = _options(request, data, apart)
    if start is not None:
        _set_start(flow, start, options["data"], request)
    if not any(parameter.requires_grad for parameter in flow.parameters()):
        return Trained(0, 0.0, 0.0, "nothing to learn")
    each = -(-rows // options["batch_size"])
    steps = request.steps
    if steps is None:
        minutes = request.minutes or 0.0
        steps = _steps_until(processor + SHARE * 60 * minutes, flow, options, each)
        if steps < 1:
            raise UserError(f"not a step of training fits into {minutes:g} minutes; give more")
    result = fit(flow, steps=steps, **options)
    if result.interrupted:
        raise KeyboardInterrupt
    return Trained(
        min(steps, result.epochs * each),
        time.perf_counter() - began,
        time.process_time() - processor,
        "steps" if result.stopped == "epochs" else result.stopped,
        result.diverged,
    )


def _options(request: Request, data: Callable[..., Any], apart: Callable[..., Any]) -> tuple[dict[str, Any], int]:
    """Keyword arguments of ``fit`` that all flows of a task and a seed share, and the rows of an epoch."""
    options: dict[str, Any] = {"batch_size": request.batch, "seed": request.seed}
    if request.learning_rate is not None:
        options["learning_rate"] = request.learning_rate
    if request.examples is None:
        validation = apart(n=VALIDATION_ROWS, seed=VALIDATION_SEED + request.seed)
        return options | {"data": data, "validation": validation, "rows": ROWS}, ROWS
    examples = data(n=request.examples, seed=TRAINING_SEED + request.seed)
    held = max(round(VALIDATION_FRACTION * request.examples), 1)
    rows = request.examples - held
    options["batch_size"] = min(request.batch, max(rows // LEAST_BATCH, LEAST_BATCH))
    return options | {"data": _part(examples, slice(held, None)), "validation": _part(examples, slice(held))}, rows


def _part(examples: Any, rows: slice) -> Any:
    if isinstance(examples, Tensor):
        return examples[rows]
    return {name: value[rows] for name, value in examples.items()}


def _set_start(flow: Any, start: Start, data: Any, request: Request) -> None:
    """Give the program's parameters the starting values that its file finds in examples."""
    from emfc.cli.contenders import set_start

    examples = data(n=ROWS, seed=TRAINING_SEED + request.seed) if callable(data) else data
    values = start(examples)
    set_start(flow, {name: value for name, value in values.items() if name in flow.graph.parameters})


def _steps_until(end: float, flow: Any, options: Mapping[str, Any], each: int) -> int:
    """Steps that fit before a reading of the processor's clock, found by a trial on a copy of the flow."""
    clock = _Clock()
    began = time.process_time()
    trial = fit(copy.deepcopy(flow), epochs=TRIAL_EPOCHS, patience=TRIAL_EPOCHS, progress=clock, **options)
    if trial.interrupted:
        raise KeyboardInterrupt
    epoch = (clock.marks[-1] - clock.marks[0]) / (len(clock.marks) - 1) if len(clock.marks) > 1 else clock.marks[0]
    start = max(clock.marks[0] - began - epoch, 0.0)
    return int((end - time.process_time() - start) / (epoch / each))
