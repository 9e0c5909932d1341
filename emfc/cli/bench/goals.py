"""Goals: what the figures have to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from emfc.cli.bench.figures import COMPILE, COMPILED, COMPILED_FORWARD, DENSITY, DRAWS, GRADIENT_DRAWS, Figure
from emfc.cli.bench.scaling import LONG_PROGRAMS

__all__ = ["EVERY_DENSITY", "IN_CLOSED_FORM", "STEP_BY_STEP", "Finding", "findings"]

EVERY_DENSITY = ("brownian", "ornstein-uhlenbeck", "lorenz", "lorenz-scalars", "stochastic-volatility", "radon")
IN_CLOSED_FORM = ("brownian", "ornstein-uhlenbeck", "autoregression", "local-trend")
STEP_BY_STEP = ("lorenz", "lorenz-scalars", "stochastic-volatility")
GIBIBYTE = 2**30
LONG = 300
FEW = 100  # with more examples the arithmetic itself is too much of Pyro's time for anything to be so much faster


@dataclass(frozen=True)
class Finding:
    """A goal and the figure that is furthest from it.

    Attributes:
        what: What is measured.
        limit: The number to reach.
        at_least: Whether the figure has to be above the limit, not below.
        value: The worst figure.
        where: Where it was found.
    """

    what: str
    limit: float
    at_least: bool
    value: float
    where: str

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


Chosen = tuple[float | None, str]


def findings(figures: Sequence[Figure]) -> list[Finding]:
    """Hold figures against the goals.

    Args:
        figures: What was measured, of any programs and measures.

    Returns:
        One finding for each goal that the figures say something about.
    """
    found = []
    for what, limit, at_least, chosen in _goals(figures):
        measured = [(value, where) for value, where in chosen if value is not None]
        if measured:
            value, where = (min if at_least else max)(measured)
            found.append(Finding(what, limit, at_least, value, where))
    return found


def _goals(figures: Sequence[Figure]) -> Iterator[tuple[str, float, bool, list[Chosen]]]:
    def pick(
        measure: str,
        programs: Sequence[str],
        value: Callable[[Figure], float | None],
        which: Callable[[Figure], bool] = lambda _: True,
    ) -> list[Chosen]:
        return [
            (value(figure), _where(figure))
            for figure in figures
            if figure.measure == measure and figure.program in programs and which(figure)
        ]

    def over_hand(figure: Figure) -> float | None:
        return figure.over_hand

    def pyro_over(figure: Figure) -> float | None:
        return figure.pyro_over

    density = "density, forward and backward, over hand-written"
    yield (
        f"{density}, T >= 300",
        1.3,
        False,
        pick(DENSITY, EVERY_DENSITY, over_hand, lambda figure: figure.steps >= LONG),
    )
    yield (
        f"{density}, T = 30",
        2.0,
        False,
        pick(DENSITY, EVERY_DENSITY, over_hand, lambda figure: figure.steps < LONG),
    )
    yield ("operations of a density, longest T over shortest", 1.0, False, _growth_of_operations(figures))
    yield ("memory kept for the backward pass, over hand-written", 2.0, False, pick(DENSITY, EVERY_DENSITY, _kept))
    closed = "draws with gradient, T = 3000"
    yield (f"{closed}, over hand-written", 1.5, False, pick(GRADIENT_DRAWS, IN_CLOSED_FORM, over_hand, _is(3000)))
    few = pick(GRADIENT_DRAWS, IN_CLOSED_FORM, pyro_over, lambda figure: figure.steps == 3000 and figure.batch <= FEW)
    yield (f"{closed}, B = {FEW}, Pyro over ours", 20.0, True, few)
    yield ("draws, T = 300, over a hand-written loop", 1.2, False, pick(DRAWS, STEP_BY_STEP, over_hand, _is(LONG)))
    yield ("draws, T = 300, Pyro over ours", 3.0, True, pick(DRAWS, STEP_BY_STEP, pyro_over, _is(LONG)))
    compiled = "density through torch.compile, over hand-written"
    yield (compiled, 1.3, False, pick(COMPILED, ("brownian", "lorenz"), over_hand))
    yield (f"{compiled}, forward only", 1.3, False, pick(COMPILED_FORWARD, ("brownian", "lorenz"), over_hand))
    for measure, what in ((DENSITY, "density"), (COMPILE, "parse and compile")):
        growth = _growth(figures, measure, ("gated-recurrent",), (30, 300))
        yield (f"GRU-driven series, {what}, T = 300 over T = 30", 12.0, False, growth)
    yield ("100,000 sites, seconds", 120.0, False, pick(COMPILE, LONG_PROGRAMS, _seconds, _is(100_000)))
    yield ("100,000 sites, GiB at the highest", 2.0, False, pick(COMPILE, LONG_PROGRAMS, _peak, _is(100_000)))
    growth = _growth(figures, COMPILE, LONG_PROGRAMS, (10_000, 100_000))
    yield ("parse and compile, 100,000 sites over 10,000", 12.0, False, growth)
    hidden = f"hidden Markov model, density with gradient, B = {FEW}, Pyro's enumeration over ours"
    yield (hidden, 10.0, True, pick(DENSITY, ("hidden-markov",), pyro_over, lambda figure: figure.batch <= FEW))


def _where(figure: Figure) -> str:
    batch = f", B = {figure.batch}" if figure.batch else ""
    return f"{figure.program}, T = {figure.steps}{batch}"


def _is(steps: int) -> Callable[[Figure], bool]:
    return lambda figure: figure.steps == steps


def _kept(figure: Figure) -> float | None:
    return figure.kept / figure.kept_by_hand if figure.kept is not None and figure.kept_by_hand else None


def _seconds(figure: Figure) -> float:
    return figure.seconds


def _peak(figure: Figure) -> float | None:
    return None if figure.peak is None else figure.peak / GIBIBYTE


def _growth_of_operations(figures: Iterable[Figure]) -> list[Chosen]:
    counted = [figure for figure in figures if figure.operations and figure.program in EVERY_DENSITY]
    chosen: list[Chosen] = []
    for program, group in groupby(sorted(counted, key=_order), key=lambda figure: figure.program):
        held = list(group)
        first, last = held[0], held[-1]
        if first.operations and last.operations and first.steps < last.steps:
            chosen.append((last.operations / first.operations, f"{program}, T = {first.steps} and {last.steps}"))
    return chosen


def _growth(figures: Iterable[Figure], measure: str, programs: Sequence[str], lengths: tuple[int, int]) -> list[Chosen]:
    times = {
        (figure.program, figure.batch, figure.steps): figure.seconds for figure in figures if figure.measure == measure
    }
    short, long = lengths
    return [
        (times[program, batch, long] / seconds, f"{program}" + (f", B = {batch}" if batch else ""))
        for (program, batch, steps), seconds in times.items()
        if program in programs and steps == short and (program, batch, long) in times
    ]


def _order(figure: Figure) -> tuple[str, int, int]:
    return figure.program, figure.steps, figure.batch
