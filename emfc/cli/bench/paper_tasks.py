"""Tasks of the benchmark of the embedded-model flows paper: simulators, programs, the best possible value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["FEW_TASKS", "TASKS", "PaperProgram", "PaperTask"]


@dataclass(frozen=True)
class PaperProgram:
    """A program of a task.

    Attributes:
        name: Its function in the task's file.
        title: What it is, in words.
        settings: Keyword arguments of it alone.
        wrong: Whether it is meant to be wrong.
        start: The function in the file that finds starting values of its parameters in examples, if there is one.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    wrong: bool = False
    start: str | None = None


@dataclass(frozen=True)
class PaperTask:
    """Data that come from a simulator, and programs of them.

    Attributes:
        key: Its name on the command line.
        title: Its name in tables.
        file: The file in ``models/`` with the programs and ``data()``.
        dim: Number of elements of an example.
        programs: Each program by its key; the first is the one of rows that name none.
        rows: Rows that are measured where none are named.
        floor: Best possible expected negative log likelihood in nats, where it is known.
        process: The process that the data come from, as a program, if there is one: its own loss on the test examples
            is what that of others is held against.
        density: The log density of the data as a function of flat examples, if there is one: the same.
        wrong_supports: Key of the program whose supports flows without program have beside wrong programs, where these
            differ from those of the first.
        settings: Keyword arguments of ``data()`` and of every program.
        hidden: Widths of the hidden layers of the baseline.
        transforms: Learned layers of the baseline.
        test_rows: Fresh examples that a flow is tested on.
        picture: How examples are drawn: ``"series"``, ``"plane"``, ``"blocks"`` of images or ``"images"``.
        image: Height and width of an image, where examples are or hold images.
        protocols: What ``data()`` takes as ``protocol``; empty where all data are fresh draws of one process.
        needs_file: Whether the data are a file of the user's.
    """

    key: str
    title: str
    file: str
    dim: int
    programs: Mapping[str, PaperProgram]
    rows: tuple[str, ...]
    floor: float | None = None
    process: str | None = None
    density: str | None = None
    wrong_supports: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[int, ...] = (512, 512)
    transforms: int = 2
    test_rows: int = 10_000
    picture: str = "series"
    image: tuple[int, int] | None = None
    protocols: tuple[str, ...] = ()
    needs_file: bool = False

    @property
    def wrong_programs(self) -> dict[str, PaperProgram]:
        """Programs that are wrong on purpose."""
        return {key: program for key, program in self.programs.items() if program.wrong}


_LEARNED = ("maf", "maf-l", "nsf")
_EMBEDDED = ("emf-t", "emf-m", "gemf-t", "gemf-t-element", "gemf-m", "gemf-m-element", "b-maf")
_ON_SPLINES = (*(f"nsf-{row}" for row in _EMBEDDED[:-1]), "b-nsf")
_ONE_PROGRAM = (*_LEARNED, *_EMBEDDED, *_ON_SPLINES, "bare")
_SERIES = (*_ONE_PROGRAM, "emf-t:s", "gemf-t:s", "gemf-m:s", "bare:s", "emf-t:right", "gemf-t:right", "bare:right")

_BARE_BLOCKS = ("bare", "bare:pooled", "bare:by")

_MIXTURE = PaperProgram("by_dimension", "mixture by dimension", start="start")
_WRONG = {
    "wrong-dynamics": PaperProgram("wrong_dynamics", "wrong dynamics", wrong=True),
    "wrong-order": PaperProgram("wrong_order", "shuffled order", wrong=True),
    "backwards": PaperProgram("wrong_order", "reversed order", {"backwards": True}, wrong=True),
    "wrong-scale": PaperProgram("wrong_scale", "mis-scaled prior", wrong=True),
}


def _blocks(by: str) -> dict[str, PaperProgram]:
    return {
        "h": PaperProgram("model", "hierarchical"),
        "pooled": PaperProgram("pooled", "hierarchical with learned scales"),
        "by": PaperProgram(f"by_{by}", f"hierarchical by {by}", start=f"start_by_{by}"),
        "wrong-order": PaperProgram("wrong_order", "wrong order", wrong=True),
        "wrong-scale": PaperProgram("wrong_scale", "mis-scaled prior", wrong=True),
    }


def _series(right: str, title: str, *, continuity: str = "model") -> dict[str, PaperProgram]:
    return {
        "c": PaperProgram(continuity, "continuity"),
        "s": PaperProgram("smoothness", "smoothness"),
        "right": PaperProgram(right, title),
        **_WRONG,
    }


_TASKS = (
    PaperTask(
        "brownian",
        "exponentiated Brownian motion",
        "brownian.py",
        30,
        {
            **_series("walk", "right", continuity="continuity"),
            "log": PaperProgram("model", "continuity of the logarithm"),
        },
        (*_SERIES, "gemf-t:log", "bare:log"),
        floor=-26.509,
        process="process",
        wrong_supports="wrong-dynamics",
    ),
    PaperTask(
        "ornstein-uhlenbeck",
        "Ornstein-Uhlenbeck process",
        "ornstein_uhlenbeck.py",
        30,
        _series("equation", "right"),
        _SERIES,
        floor=24.076,
        process="process",
    ),
    PaperTask(
        "lorenz",
        "Lorenz system",
        "lorenz.py",
        90,
        _series("equations", "right"),
        _SERIES,
        floor=-242.793,
        process="process",
    ),
    PaperTask(
        "van-der-pol",
        "Van der Pol oscillator",
        "van_der_pol.py",
        240,
        _series("equations", "right"),
        _SERIES,
        floor=-563.962,
        process="process",
    ),
    PaperTask(
        "eight-gaussians",
        "eight Gaussians",
        "eight_gaussians.py",
        2,
        {"m": replace(_MIXTURE, start="start_by_dimension"), "right": PaperProgram("model", "right")},
        (*_ONE_PROGRAM, "bare:right"),
        floor=2.832,
        density="log_density",
        test_rows=50_000,
        picture="plane",
    ),
    PaperTask(
        "checkerboard",
        "checkerboard",
        "checkerboard.py",
        2,
        {"m": _MIXTURE},
        _ONE_PROGRAM,
        floor=3.466,
        density="log_density",
        test_rows=50_000,
        picture="plane",
    ),
    PaperTask(
        "two-spirals",
        "two spirals",
        "two_spirals.py",
        2,
        {"m": _MIXTURE},
        _ONE_PROGRAM,
        floor=2.645,
        density="log_density",
        test_rows=50_000,
        picture="plane",
    ),
    PaperTask(
        "iris",
        "iris, blocks of ten flowers of a species",
        "iris_blocks.py",
        40,
        _blocks("species"),
        (*_ONE_PROGRAM, "gemf-t:pooled", "gemf-t:by", "bare:pooled", "bare:by"),
        protocols=("paper", "held-out"),
    ),
    PaperTask(
        "digits",
        "digits, blocks of twenty images of a digit",
        "digits_blocks.py",
        1280,
        _blocks("digit"),
        (*_LEARNED, *_EMBEDDED, "nsf-gemf-t", "emf-t:pooled", "gemf-t:pooled", "gemf-t:by", *_BARE_BLOCKS),
        test_rows=4_000,
        picture="blocks",
        image=(8, 8),
        protocols=("paper", "held-out"),
    ),
    PaperTask(
        "pixels",
        "images, pixel by pixel",
        "pixels.py",
        784,
        {"m": PaperProgram("model", "mixture by pixel", start="start")},
        # Without gates, as in the paper: a gated mixture of a hundred components is inverted by a search.
        (*_LEARNED, "emf-t", "emf-m", "nsf-emf-t", "bare"),
        picture="images",
        image=(28, 28),
        needs_file=True,
    ),
)
TASKS: dict[str, PaperTask] = {task.key: task for task in _TASKS}
"""The tasks by their keys."""

FEW_TASKS = ("brownian", "ornstein-uhlenbeck", "lorenz", "van-der-pol", "eight-gaussians")
"""Tasks of the learning curves, where none are named."""
