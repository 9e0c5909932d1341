"""Cost of a density, as ratios within one run: against hand-written PyTorch and against Pyro."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import emfc

pytestmark = pytest.mark.benchmark

STEPS, BATCH, ROUNDS = 300, 1000, 60
START, SCALE = 0.1, 0.1


def brownian(steps: int) -> None:
    """Brownian motion with a learned step size."""
    scale = pyro.param("scale", torch.tensor(SCALE), constraint=dist.constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, START))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, scale))


def hand_written(x: Tensor, log_scale: Tensor) -> Tensor:
    """The same arithmetic as a good engineer writes it for this program alone."""
    scale = log_scale.exp()
    first = x[:, 0] / START
    rest = (x[:, 1:] - x[:, :-1]) / scale
    constant = STEPS * 0.5 * math.log(2 * math.pi) + math.log(START) + (STEPS - 1) * log_scale
    return -0.5 * (first.square() + rest.square().sum(-1)) - constant


def by_pyro(x: Tensor) -> Tensor:
    """The program conditioned on the examples, vectorised over them by broadcasting."""
    values = {f"x_{t}": x[:, t] for t in range(STEPS)}
    return poutine.trace(poutine.condition(brownian, values)).get_trace(STEPS).log_prob_sum()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alternating(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median seconds of two functions that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (first, second) * 3:
        function()
    for _ in range(rounds):
        for held, function in zip(times, (first, second), strict=True):
            start = time.perf_counter()
            function()
            held.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


@pytest.mark.parametrize("single", [True, False], ids=["float32", "float64"])
def test_brownian_density(single, one_thread):
    dtype = torch.float32 if single else torch.float64
    torch.set_default_dtype(dtype)
    flow = emfc.EmbeddedModelFlow(brownian, STEPS, backbone=None)
    x = (torch.randn(BATCH, STEPS) * SCALE).cumsum(-1).requires_grad_()
    log_scale = torch.tensor(math.log(SCALE), requires_grad=True)
    torch.testing.assert_close(flow().log_prob(x), hand_written(x, log_scale), rtol=1e-4, atol=1e-2)

    def ours() -> None:
        flow().log_prob(x).sum().backward()

    def hand() -> None:
        hand_written(x, log_scale).sum().backward()

    def pyros() -> None:
        pyro.clear_param_store()
        by_pyro(x).backward()

    ratio = [a / b for a, b in (alternating(ours, hand, ROUNDS) for _ in range(5))]
    slower = [b / a for a, b in (alternating(ours, pyros, 5) for _ in range(3))]
    print(f"\nBrownian, {STEPS} steps, batch {BATCH}, {dtype}, forward and backward:")
    print(f"  ours / hand-written: {statistics.median(ratio):.2f} (of {', '.join(f'{r:.2f}' for r in ratio)})")
    print(f"  Pyro / ours: {statistics.median(slower):.0f}")
    assert statistics.median(ratio) <= 2.0
    assert statistics.median(slower) >= 5.0


def test_compile_time_grows_linearly(one_thread):
    """`emfc check` of 10,000 sites against 1,000: at most 1.2 times linear."""
    emfc.compile(brownian, 100)
    seconds = {}
    for steps in (1000, 10_000, 1000, 10_000, 1000, 10_000):
        start = time.perf_counter()
        emfc.compile(brownian, steps)
        seconds.setdefault(steps, []).append(time.perf_counter() - start)
    short, long = (statistics.median(seconds[steps]) for steps in (1000, 10_000))
    print(f"\ncompile: 1,000 sites {short:.2f} s, 10,000 sites {long:.2f} s, {long / short / 10:.2f} times linear")
    assert long < 30
    assert long / short <= 12
