"""Cost of a training step of the gated flow, beside the same flow without its program."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from emfc.cli.bench.measure import one_thread
from emfc.flows import EmbeddedModelFlow
from emfc.training.optimiser import WeightAverage, make_optimiser

pytestmark = pytest.mark.benchmark

MODELS = Path(__file__).parents[2] / "models"
LIMIT = 1.15
ROWS, HIDDEN = 100, (512, 512)


def _module(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"_timed_{name}", MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _step(flow: EmbeddedModelFlow, examples: torch.Tensor) -> Callable[[], float]:
    """One step of training, with everything that a step of ``fit`` does."""
    optimiser = make_optimiser(flow, learning_rate=1e-4, weight_decay=1e-4, gate_factor=10.0, program_factor=1.0)
    average = WeightAverage(flow, 0.995)
    parameters = list(flow.parameters())

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = -flow().log_prob(examples).mean()
        assert torch.isfinite(loss)
        loss.backward()
        assert torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, 5.0))
        optimiser.step()
        average.update()
        return float(loss.detach())

    return step


def _ratio(first: Callable[[], float], second: Callable[[], float], *, repeats: int = 60, unmeasured: int = 5) -> float:
    """Median processor time of one over that of the other, by turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + unmeasured):
        for work, times in zip((first, second), taken, strict=True):
            began = time.process_time()
            work()
            if turn >= unmeasured:
                times.append(time.process_time() - began)
    return statistics.median(taken[0]) / statistics.median(taken[1])


@pytest.mark.parametrize("gate", ["site", "element"])
@pytest.mark.parametrize(("name", "program"), [("brownian", "continuity"), ("lorenz", "model")])
def test_a_step_of_the_gated_flow(name, program, gate):
    """Two affine autoregressive layers of 512 x 512, batches of 100 series of 30 steps."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    module = _module(name)
    flow = EmbeddedModelFlow(getattr(module, program), gate=gate, hidden_features=HIDDEN)
    baseline = flow.baseline()
    examples = flow.pack(module.data(n=ROWS))
    for each in (flow, baseline):
        each.start_from_data(examples)
    with one_thread():
        ratio = _ratio(_step(flow, examples), _step(baseline, examples))
    print(f"\n  step of the gated flow over that of the flow without program: {ratio:.3f} (at most {LIMIT}; {name})")
    assert ratio <= LIMIT
