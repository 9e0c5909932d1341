"""One cell of the benchmark of the paper: a flow that is built, trained and tested on fresh examples."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfc.cli.bench.paper_rows import KINDS, FlowSize, build_flow
from emfc.cli.bench.paper_tasks import TASKS, PaperTask
from emfc.errors import UserError

__all__ = ["Cell", "Request", "Source", "code_digest", "data_source", "load_task_program", "measure_cell"]

SAMPLE_SEED = 4_100_000_000
SAMPLES = {"series": 48, "plane": 2_000, "blocks": 8, "images": 25}
DIGITS = 4
ROOMS = ("special", "transforms", "distributions", "program", "passes", "layers", "flows", "training", "data")
PARTS = ("tasks", "training", "rows")
AT_ONCE = 2_000


@dataclass(frozen=True)
class Request:
    """What a cell is to measure: everything that its figures depend on.

    Attributes:
        task: Key of the task.
        kind: Key of the kind of flow.
        program: Key of the program; None for a flow without one.
        supports: Key of the program whose supports a flow without one has.
        seed: Seed of data, weights and training.
        steps: Steps of training; None where minutes are given.
        minutes: Processor minutes of training, instead of steps.
        examples: Number of training examples; None for fresh ones in every epoch.
        protocol: Where training and test examples come from; None for the task's only way.
        batch: Examples of a step.
        hidden: Widths of the baseline's hidden layers.
        transforms: Layers of the baseline.
        activation: Activation of all networks; None for the default.
        learning_rate: None for the default of ``emfc.fit``.
        test_rows: Fresh examples to test on.
        dtype: Floating-point type.
        source: Digest of the task's program file, and of the file of data.
        file: The user's file of data.
        settings: What the task and the program are called with, and the program's start; empty where all is default.
        models: The folder of the programs; it doesn't count for the identity.
    """

    task: str
    kind: str
    program: str | None
    supports: str
    seed: int
    steps: int | None
    minutes: float | None
    examples: int | None
    protocol: str | None
    batch: int
    hidden: tuple[int, ...]
    transforms: int
    activation: str | None
    learning_rate: float | None
    test_rows: int
    dtype: str
    source: str
    file: str | None = None
    settings: str = ""
    models: str = ""

    @property
    def row(self) -> str:
        """The row as it is written on the command line."""
        return self.kind if self.program is None else f"{self.kind}:{self.program}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """What two cells must have in common to be the same."""
        values = asdict(self) | {"hidden": tuple(self.hidden)}
        return tuple(value for name, value in values.items() if name not in ("models", "file"))


@dataclass(frozen=True)
class Cell:
    """What a flow reached; what was not measured is None.

    Attributes:
        request: What was asked for.
        nll: Mean negative log likelihood of the test examples, in nats.
        nll_se: Its standard error over the test examples.
        best_nll: The same mean under the process that the data come from, where that is known.
        parameters: Number of learned numbers.
        baseline_parameters: That of the baseline.
        hidden: Widths of the hidden layers.
        steps: Steps of training that were made.
        seconds: Wall time of training.
        processor: Processor time of training.
        build_seconds: Processor time of compiling and building.
        stopped: Why training ended.
        diverged: How often training went back to earlier weights.
        gates: Values of the gates by site, in the order of the example.
        values: The program's parameters after training.
        samples: Draws of the flow for a picture, ``[n][D]``.
        code: Digest of the code of emfc that measured it.
    """

    request: Request
    nll: float
    nll_se: float
    parameters: int
    baseline_parameters: int
    hidden: tuple[int, ...]
    steps: int
    seconds: float
    processor: float
    build_seconds: float
    stopped: str
    diverged: int = 0
    best_nll: float | None = None
    gates: Mapping[str, list[float]] = field(default_factory=dict)
    values: Mapping[str, list[float]] = field(default_factory=dict)
    samples: list[list[float]] | None = None
    code: str = ""

    @property
    def all_gates(self) -> list[float]:
        """Values of all gates in a row."""
        return [value for values in self.gates.values() for value in values]


Source = Callable[..., Any]


def load_task_program(task: PaperTask, key: str, models: Path) -> Any:
    """Load one of a task's programs, with its settings.

    Raises:
        UserError: The file or the program is not there.
    """
    from emfc.cli.loader import load_program

    program = task.programs[key]
    return load_program(f"{models / task.file}:{program.name}", {**task.settings, **program.settings})


def data_source(program: Any, task: PaperTask, request: Request, part: str) -> Source:
    """The task's simulator as a function of ``n`` and ``seed``.

    Args:
        program: A loaded program of the task.
        task: The task.
        request: What the cell is to measure.
        part: ``"train"``, ``"validation"`` or ``"test"``, where the protocol tells them apart.

    Raises:
        UserError: The file has no ``data``.
    """
    if program.data is None:
        raise UserError(f"{program.path} has no data(); a task of the benchmark needs a simulator")
    settings = dict(task.settings)
    if request.protocol is not None:
        settings |= {"protocol": request.protocol, "part": part, "split": request.seed}
    if task.needs_file:
        settings |= {"path": request.file, "part": part}
    return partial(_drawn, program, settings)


def _drawn(program: Any, settings: Mapping[str, Any], *, n: int, seed: int) -> Any:
    try:
        return program.data(n=n, seed=seed, **settings)
    except (ValueError, OSError) as error:
        raise UserError(f"{program.path}: data() cannot give {n:,} examples: {error}") from error


def measure_cell(request: Request, *, task: PaperTask | None = None, samples: bool = False) -> Cell:
    """Build, train and test one flow, on one thread of this process.

    Args:
        request: What to measure.
        task: The task, where it isn't the one of that key.
        samples: Whether to draw examples for a picture.

    Raises:
        UserError: The data or the program don't fit, or training can't be kept from diverging.
        CompileError: The program is refused.
        KeyboardInterrupt: Training was interrupted.
    """
    from emfc.cli.bench.measure import one_thread
    from emfc.cli.options import numeric_defaults

    with numeric_defaults(request.dtype, request.seed), one_thread():
        return _measured(request, task or TASKS[request.task], samples=samples)


def _measured(request: Request, task: PaperTask, *, samples: bool) -> Cell:
    from emfc.cli.bench.paper_training import TEST_SEED, train
    from emfc.training import evaluate

    kind = KINDS[request.kind]
    program = load_task_program(task, request.program or request.supports, Path(request.models))
    sources = [data_source(program, task, request, part) for part in ("train", "validation", "test")]
    test = sources[2](n=request.test_rows, seed=TEST_SEED + request.seed)
    began = time.process_time()
    graph = program.parse(seed=request.seed)
    size = FlowSize(request.hidden, request.transforms, request.activation)
    flow, target = build_flow(graph, kind, size, seed=request.seed)
    built = time.process_time() - began
    trained = train(flow, request, sources[0], sources[1], start=_start(task, request, program))
    nll = evaluate(flow, test)
    if not math.isfinite(nll.nll):
        raise UserError(f"the test loss is {nll.nll}")
    return Cell(
        request,
        nll.nll,
        nll.standard_error,
        flow.parameter_count,
        target,
        flow.configuration.hidden_features,
        trained.steps,
        trained.seconds,
        trained.processor,
        built,
        trained.stopped,
        trained.diverged,
        best_nll=_best_nll(request, task, test),
        gates={name: _numbers(value) for name, value in flow.layer.gate_values().items()},
        values={name: _numbers(value) for name, value in flow.layer.values().items() if value.numel() <= task.dim},
        samples=_samples(flow, task, request.seed) if samples else None,
        code=code_digest(),
    )


def _start(task: PaperTask, request: Request, program: Any) -> Callable[[Any], Mapping[str, Any]] | None:
    """The function that finds starting values of the program's parameters in examples."""
    name = None if request.program is None else task.programs[request.program].start
    if name is None:
        return None
    hooked: Callable[[Any], Mapping[str, Any]] = replace(
        program, start=_function(task, name, Path(request.models))
    ).call_start
    return hooked


def _best_nll(request: Request, task: PaperTask, test: Any) -> float | None:
    """The loss of the test examples under the process that they come from."""
    from emfc.cli.loader import load_program
    from emfc.flows import EmbeddedModelFlow
    from emfc.training import evaluate

    models = Path(request.models)
    if task.density is not None:
        density = _function(task, task.density, models)
        (examples,) = test.values()
        found = -float(torch.cat([density(part) for part in examples.double().split(AT_ONCE)]).mean())
        return found if math.isfinite(found) else None
    if task.process is None:
        return None
    process = load_program(f"{models / task.file}:{task.process}", task.settings)
    return evaluate(EmbeddedModelFlow(process.parse(seed=0), backbone=None), test).nll


def _function(task: PaperTask, name: str, models: Path) -> Callable[..., Any]:
    from emfc.cli.loader import load_program

    return load_program(f"{models / task.file}:{name}").model


@torch.no_grad()
def _samples(flow: Any, task: PaperTask, seed: int) -> list[list[float]]:
    torch.manual_seed(SAMPLE_SEED + seed)
    flow.eval()
    drawn: Tensor = flow().sample((SAMPLES[task.picture],))
    return [_numbers(example) for example in drawn]


def _numbers(value: Tensor) -> list[float]:
    return [float(f"{number:.{DIGITS}g}") for number in value.detach().double().reshape(-1).tolist()]


@cache
def code_digest() -> str:
    """A short digest of the code of emfc that figures come from, as it was when this process began to measure."""
    total = hashlib.sha256()
    here = Path(__file__).resolve().parent
    rooms = [path for room in ROOMS for path in sorted((here.parents[1] / room).glob("*.py"))]
    for path in [*rooms, *(here / f"paper_{part}.py" for part in PARTS)]:
        total.update(path.read_bytes())
    return total.hexdigest()[:12]
