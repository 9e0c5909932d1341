"""What a long training shows: a bar with rates on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["BarProgress", "EpochRow", "LineProgress", "SilentProgress", "TrainingProgress", "make_progress"]


@dataclass(frozen=True)
class EpochRow:
    """One epoch of a training.

    Attributes:
        epoch: Number of the epoch, from 1.
        train_nll: Mean negative log likelihood over the training batches, nats per example.
        validation_nll: The same on the validation rows, with averaged weights.
        learning_rate: Learning rate at the end of the epoch.
        seconds: Duration of the epoch.
        examples_per_second: Training rate.
    """

    epoch: int
    train_nll: float
    validation_nll: float
    learning_rate: float
    seconds: float
    examples_per_second: float


class TrainingProgress(Protocol):
    """Hears of a training: entered at its start, told each epoch and remark, left at its end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, epochs: int, *, done: int = 0) -> None: ...

    def epoch(self, row: EpochRow, *, best: float) -> None: ...

    def remark(self, text: str) -> None: ...


class SilentProgress:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start(self, epochs: int, *, done: int = 0) -> None:
        """Hears the number of epochs."""

    def epoch(self, row: EpochRow, *, best: float) -> None:
        """Hears of an epoch."""

    def remark(self, text: str) -> None:
        """Hears a sentence."""


class LineProgress(SilentProgress):
    """Plain lines: the first epoch, then one every few seconds, and every remark.

    Args:
        stream: Where to write; standard error if left out.
        every: Seconds between two lines.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 5.0) -> None:
        self.stream = stream or sys.stderr
        self.every = every
        self.epochs = 0
        self._last: float | None = None
        self._held: str | None = None

    def start(self, epochs: int, *, done: int = 0) -> None:
        self.epochs = epochs

    def epoch(self, row: EpochRow, *, best: float) -> None:
        text = f"epoch {row.epoch}/{self.epochs}  {_figures(row, best)}"
        now = time.monotonic()
        if self._last is None or now - self._last >= self.every:
            self._last, self._held = now, None
            print(text, file=self.stream, flush=True)
        else:
            self._held = text

    def remark(self, text: str) -> None:
        self._tell_held()
        print(text, file=self.stream, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell_held()

    def _tell_held(self) -> None:
        """The line of the last epoch, if it was held back."""
        if self._held is not None:
            print(self._held, file=self.stream, flush=True)
            self._held = None


class BarProgress(SilentProgress):
    """A bar with rates on a terminal.

    Args:
        console: The console to draw on; standard error if left out.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=console or Console(stderr=True),
        )
        self._task = self.bar.add_task("training", total=None, figures="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def start(self, epochs: int, *, done: int = 0) -> None:
        self.bar.update(self._task, total=epochs, completed=done)

    def epoch(self, row: EpochRow, *, best: float) -> None:
        self.bar.update(self._task, completed=row.epoch, figures=_short_figures(row, best))

    def remark(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)


def make_progress(show: bool | None = None, *, stream: TextIO | None = None) -> TrainingProgress:
    """Returns the progress display for a stream: a bar on a terminal, lines otherwise, nothing if ``show`` is False."""
    if show is False:
        return SilentProgress()
    stream = stream or sys.stderr
    if stream.isatty():
        return BarProgress(Console(file=stream))
    return LineProgress(stream)


def _short_figures(row: EpochRow, best: float) -> str:
    return f"validation {row.validation_nll:.2f}  best {best:.2f}  {row.examples_per_second:,.0f}/s"


def _figures(row: EpochRow, best: float) -> str:
    return (
        f"train {row.train_nll:.2f}  validation {row.validation_nll:.2f}  best {best:.2f}  "
        f"{row.examples_per_second:,.0f} examples/s"
    )
