"""The cost of a training step of the gated flow over that of the flow without program, within one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emfc.cli.bench.paper_cells import Request, data_source, load_task_program
from emfc.cli.bench.paper_goals import Reached
from emfc.cli.bench.paper_rows import KINDS, FlowSize, build_flow
from emfc.cli.bench.paper_tasks import PaperTask

__all__ = ["MOST", "StepCost", "cost_goals", "step_cost"]

MOST = 1.15
"""A step of the gated flow takes at most so many times the time of a step of the flow without program."""

STEPS = 30
VALIDATION_ROWS = 10


@dataclass(frozen=True)
class StepCost:
    """Cost of a step of training.

    Attributes:
        task: Key of the task.
        baseline: Milliseconds of the processor for a step of the flow without program.
        gated: The same of the gated flow.
        ratio: Median of the ratios of rounds in which both take turns.
    """

    task: str
    baseline: float
    gated: float
    ratio: float

    @property
    def told(self) -> list[str]:
        """Cells of a table."""
        return [f"{self.baseline:.2f}", f"{self.gated:.2f}", f"{self.ratio:.3f}"]


def step_cost(request: Request, task: PaperTask, *, gated: str = "gemf-t", budget: float = 20.0) -> StepCost:
    """Time whole trainings of some steps, of the flow without program and of the gated one, by turns.

    Args:
        request: Any cell of the task, for sizes and data.
        task: The task.
        gated: Kind of the gated flow.
        budget: Seconds that this may take, about.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    from emfc.cli.bench.measure import one_thread, ratio
    from emfc.cli.options import numeric_defaults

    with numeric_defaults(request.dtype, request.seed), one_thread():
        program = load_task_program(task, next(iter(task.programs)), Path(request.models))
        data = data_source(program, task, request, "train")
        rows = STEPS * request.batch
        fixed = {"data": data(n=rows, seed=request.seed), "validation": data(n=VALIDATION_ROWS, seed=request.seed)}
        size = FlowSize(request.hidden, request.transforms, request.activation)
        graph = program.parse(seed=request.seed)
        first, second = (_training(graph, kind, size, request, fixed) for kind in (gated, "maf"))
        over, above, below = ratio(first, second, budget=budget)
    return StepCost(task.key, 1e3 * below / STEPS, 1e3 * above / STEPS, over)


def _training(graph: Any, kind: str, size: FlowSize, request: Request, fixed: dict[str, Any]) -> Callable[[], object]:
    from emfc.training import fit

    flow, _ = build_flow(graph, KINDS[kind], size, seed=request.seed)
    flow.start_from_data(flow.pack(fixed["data"]))

    def train() -> None:
        result = fit(flow, **fixed, steps=STEPS, batch_size=request.batch, start=False, seed=request.seed)
        if result.interrupted:
            raise KeyboardInterrupt

    return train


def cost_goals(costs: Sequence[StepCost]) -> list[Reached]:
    """Hold the costs against the goal."""
    what = "a training step of the gated flow, times that of MAF"
    return [Reached(cost.task, what, MOST, cost.ratio, "GEMF-T", cost.ratio <= MOST) for cost in costs]
