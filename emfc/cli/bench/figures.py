"""Figures: what one program costs in one direction, beside the hand-written version, Pyro and the plain layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emfc.cli.bench.measure import kept_bytes, operations, ratio
from emfc.cli.bench.subjects import SUBJECTS, pyro_density, pyro_draw, pyro_enumeration
from emfc.compiler import compile as compile_program

__all__ = ["MEASURES", "Figure", "Settings", "measure_programs"]

DENSITY, DRAWS, GRADIENT_DRAWS, COMPILE = "density", "draws", "draws with gradient", "compile"
COMPILED, COMPILED_FORWARD = "compiled density", "compiled density, forward only"
MEASURES = (DENSITY, DRAWS, GRADIENT_DRAWS, COMPILED, COMPILE)

MOST_PLAIN_STEPS = 300
COMPARED_STEPS = 60


@dataclass(frozen=True)
class Figure:
    """One row of the table. Times are processor seconds on one thread; what was not measured is None.

    Attributes:
        program: Key of the program.
        measure: One of `MEASURES`.
        steps: Length T of the series.
        batch: Number B of examples at once; 0 for compiling.
        seconds: What emfc takes.
        by_hand: What the hand-written version takes.
        by_pyro: What Pyro takes.
        over_hand: Median ratio of emfc to the hand-written version.
        pyro_over: Median ratio of Pyro to emfc.
        plain_over: Median ratio of the layer that works site by site to the optimised one.
        operations: Dispatched operations of emfc.
        operations_by_hand: Of the hand-written version.
        kept: Bytes that emfc keeps for the backward pass.
        kept_by_hand: That the hand-written version keeps.
        peak: Bytes of memory at the highest, of a process that only compiles.
    """

    program: str
    measure: str
    steps: int
    batch: int
    seconds: float
    by_hand: float | None = None
    by_pyro: float | None = None
    over_hand: float | None = None
    pyro_over: float | None = None
    plain_over: float | None = None
    operations: int | None = None
    operations_by_hand: int | None = None
    kept: int | None = None
    kept_by_hand: int | None = None
    peak: int | None = None


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        steps: Lengths of the series.
        batches: Numbers of examples.
        measures: Of `MEASURES`.
        budget: Seconds for the rounds of one ratio.
        against_pyro: Whether Pyro runs too.
        against_plain: Whether the layer that works site by site runs too.
    """

    steps: Sequence[int] = (30, 300, 3000)
    batches: Sequence[int] = (100, 1000)
    measures: Sequence[str] = MEASURES
    budget: float = 1.0
    against_pyro: bool = True
    against_plain: bool = True


def measure_programs(programs: Sequence[str], settings: Settings) -> Iterator[Figure]:
    """Measure programs, one after the other, in the default dtype.

    Args:
        programs: Keys of `SUBJECTS`.
        settings: What to measure.

    Yields:
        A figure as soon as it is known.
    """
    for key in programs:
        for steps in SUBJECTS[key].lengths(settings.steps):
            yield from _measure_program(key, steps, settings)


def _measure_program(key: str, steps: int, settings: Settings) -> Iterator[Figure]:
    subject = SUBJECTS[key]
    model = subject.program()
    if COMPILE in settings.measures:
        compile_program(model, 4)  # what is prepared once isn't counted
    began = time.process_time()
    layer = compile_program(model, steps)
    seconds = time.process_time() - began
    if COMPILE in settings.measures:
        yield Figure(key, COMPILE, steps, 0, seconds)
    plain = None
    if settings.against_plain and steps <= MOST_PLAIN_STEPS and subject.plain:
        plain = compile_program(model, steps, optimize=False)
    for batch in settings.batches:
        case = _Case(key, model, steps, batch, layer, plain, settings)
        if DENSITY in settings.measures:
            yield case.density()
        if DRAWS in settings.measures and subject.draw is not None:
            yield case.draws(with_gradient=False)
        if GRADIENT_DRAWS in settings.measures and subject.draw is not None:
            yield case.draws(with_gradient=True)
        if COMPILED in settings.measures and subject.compiled and steps == 300 and batch == max(settings.batches):
            yield from case.compiled_density()


class _Case:
    """A program of one length with a batch of its own draws."""

    def __init__(
        self,
        key: str,
        model: Callable[[int], Any],
        steps: int,
        batch: int,
        layer: Any,
        plain: nn.Module | None,
        settings: Settings,
    ) -> None:
        self.key, self.subject, self.model, self.steps, self.batch = key, SUBJECTS[key], model, steps, batch
        self.layer, self.plain, self.settings = layer, plain, settings
        self.raw = list(layer.unconstrained)
        dtype = torch.get_default_dtype()
        self.noise = torch.randn(batch, layer.noise_dim, dtype=dtype)
        with torch.no_grad():
            draw = self.subject.draw
            drawn = draw(self.noise, *self.raw) if draw else layer()(self.noise)
        self.x = drawn.contiguous().requires_grad_()
        self.noise.requires_grad_()

    def density(self) -> Figure:
        """Log density of the batch, forward and backward."""

        def ours() -> None:
            self.layer().log_prob(self.x).sum().backward()

        def by_hand() -> None:
            self.subject.density(self.x, *self.raw).sum().backward()

        def plain() -> None:
            if self.plain is not None:
                self.plain().log_prob(self.x).sum().backward()

        sites = {name: value.detach().requires_grad_() for name, value in self.layer.unpack(self.x).items()}
        pyros = pyro_enumeration if self.subject.enumerated else pyro_density

        def by_pyro() -> None:
            pyros(self.model, self.steps, sites).backward()

        self._agree(self.layer().log_prob(self.x), self.subject.density(self.x, *self.raw))
        inputs = [self.x, *self.raw]
        return self._figure(
            DENSITY,
            ours,
            by_hand,
            by_pyro,
            plain,
            operations=operations(ours),
            operations_by_hand=operations(by_hand),
            kept=kept_bytes(lambda: self.layer().log_prob(self.x), inputs),
            kept_by_hand=kept_bytes(lambda: self.subject.density(self.x, *self.raw), inputs),
        )

    def draws(self, *, with_gradient: bool) -> Figure:
        """Draws of the batch; with gradient, backward to the noise and the parameters too."""
        weights = torch.randn_like(self.x)
        draw = self.subject.draw
        if draw is None:
            raise RuntimeError(f"{self.key} has no hand-written draws")

        def run(function: Callable[[], Tensor]) -> Callable[[], None]:
            def go() -> None:
                with torch.set_grad_enabled(with_gradient):
                    drawn = function()
                if with_gradient:
                    drawn.backward(weights)

            return go

        def plain() -> Tensor:
            drawn: Tensor = (self.plain or self.layer)()(self.noise)
            return drawn

        head = self.x.shape[1] * min(self.steps, COMPARED_STEPS) // self.steps  # rounding grows in a chaotic series
        self._agree(self.layer()(self.noise)[:, :head], draw(self.noise, *self.raw)[:, :head])
        return self._figure(
            GRADIENT_DRAWS if with_gradient else DRAWS,
            run(lambda: self.layer()(self.noise)),
            run(lambda: draw(self.noise, *self.raw)),
            run(lambda: pyro_draw(self.model, self.steps, self.batch)),
            run(plain),
        )

    def compiled_density(self) -> Iterator[Figure]:
        """Log density through ``torch.compile``, as is the hand-written version; with and without backward."""
        torch._dynamo.reset()  # what was compiled for other programs counts against the limit of recompilations
        layer = compile_program(self.model, self.steps, compile=True).to(self.x.dtype)
        raw = list(layer.unconstrained)
        by_hand = torch.compile(self.subject.density)

        def backward(function: Callable[[], Tensor]) -> Callable[[], None]:
            return lambda: function().sum().backward()

        def forward(function: Callable[[], Tensor]) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    function()

            return run

        def ours() -> Tensor:
            density: Tensor = layer().log_prob(self.x)
            return density

        def hand() -> Tensor:
            return by_hand(self.x, *raw)

        self._agree(ours(), hand())
        yield self._figure(COMPILED, backward(ours), backward(hand), None, None)
        without = forward(ours), forward(hand)
        for run in without:  # compiles once more, without gradients, which must not count as a round
            run()
        yield self._figure(COMPILED_FORWARD, *without, None, None)

    def _figure(
        self,
        measure: str,
        ours: Callable[[], None],
        by_hand: Callable[[], None],
        by_pyro: Callable[[], None] | None,
        plain: Callable[[], None] | None,
        **counts: int,
    ) -> Figure:
        budget = self.settings.budget
        over_hand, seconds, hand_seconds = ratio(ours, by_hand, budget=budget)
        pyro_over = pyro_seconds = plain_over = None
        if self.settings.against_pyro and by_pyro is not None:
            pyro_over, pyro_seconds, _ = ratio(by_pyro, ours, budget=budget / 2, most=9)
        if self.plain is not None and plain is not None:
            plain_over, _, _ = ratio(plain, ours, budget=budget / 2, most=9)
        return Figure(
            self.key,
            measure,
            self.steps,
            self.batch,
            seconds,
            hand_seconds,
            pyro_seconds,
            over_hand,
            pyro_over,
            plain_over,
            **counts,
        )

    def _agree(self, ours: Tensor, by_hand: Tensor) -> None:
        """What is not equal is not compared."""
        ours, by_hand = ours.detach(), by_hand.detach()
        off = float((ours - by_hand).abs().max())
        allowed = (1e-3 if ours.dtype == torch.float32 else 1e-8) * (1.0 + float(by_hand.abs().max()))
        if not off <= allowed:
            raise RuntimeError(f"{self.key}, {self.steps} steps: emfc and the hand-written version differ by {off}")
