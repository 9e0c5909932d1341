"""How far an inference is: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

__all__ = ["InferenceProgress"]


class InferenceProgress:
    """Shows steps and ELBO of a fit, or how many of several fits are done.

    Args:
        what: In words.
        seconds: Longest time, if there is one.
        steps: Most steps, if there are.
        stream: Where to write; standard error if left out.
        every: Seconds between two lines.
    """

    def __init__(
        self,
        what: str,
        *,
        seconds: float | None = None,
        steps: int | None = None,
        stream: TextIO | None = None,
        every: float = 5.0,
    ) -> None:
        self.what, self.seconds, self.steps = what, seconds, steps
        self.stream = stream or sys.stderr
        self.every = every
        self._bar: Any = None
        self._task: Any = None
        self._began = self._last = time.monotonic()
        self._shown = 0

    def __enter__(self) -> Self:
        self._began = self._last = time.monotonic()
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(file=self.stream),
                transient=True,
            )
            total = self.seconds if self.seconds is not None else self.steps
            self._task = self._bar.add_task(self.what, total=total, figures="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: int, elbo: float) -> None:
        """Hear of a step and the ELBO there."""
        self._show(step, f"step {step}" + (f"  ELBO {elbo:.3f}" if math.isfinite(elbo) else ""))

    def count(self, done: int, total: int) -> None:
        """Hear of one more fit of several."""
        self._show(done, f"{done} of {total}")

    def _show(self, step: int, figures: str) -> None:
        now = time.monotonic()
        if self._bar is not None:
            done = min(now - self._began, self.seconds) if self.seconds is not None else step
            self._bar.update(self._task, completed=done, figures=figures)
        elif now - self._last >= self.every or (self._shown == 0 and now - self._began >= 1.0):
            self._last, self._shown = now, self._shown + 1
            print(f"{self.what}: {figures}, {now - self._began:.0f} s", file=self.stream, flush=True)
