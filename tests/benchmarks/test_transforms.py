"""Cost of transforms, as ratios within one run on a million elements and one thread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import pyro.distributions as pd
import pytest
import scipy.special
import torch
from torch import Tensor
from torch import distributions as td

from emfc.special.normal import log_normal_density
from emfc.transforms import from_normal

pytestmark = pytest.mark.benchmark

SIZE = 1_000_000
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
WAYS = pytest.mark.parametrize("way", ["noise to value", "value to noise"])
LOG_TWO = math.log(2)


@pytest.fixture(autouse=True)
def one_thread():
    torch._dynamo.reset()  # what was compiled for other families counts against the limit of recompilations
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """Median over rounds of the times of two functions that take turns, the first over the second."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (first, second) * 2:
        function()
    for _ in range(rounds):
        for held, function in zip(times, (first, second), strict=True):
            start = time.perf_counter()
            function()
            held.append(time.perf_counter() - start)
    return statistics.median(a / b for a, b in zip(*times, strict=True))


def show(name: str, dtype: torch.dtype, way: str, found: dict[str, float]) -> None:
    """One line of the table of `docs/benchmarks.md`."""
    cells = " | ".join(f"{kind} {value:.2f}" for kind, value in found.items())
    print(f"\n| {name} | {str(dtype).removeprefix('torch.')} | {way} | {cells} |")


def normal_draw(e: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return loc + scale * e, scale.log().expand(e.shape)


def normal_noise(x: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return (x - loc) / scale, (-scale.log()).expand(x.shape)


def logistic_draw(e: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    log_p, log_q = torch.special.log_ndtr(e), torch.special.log_ndtr(-e)
    return loc + scale * (log_p - log_q), log_normal_density(e) - log_p - log_q + scale.log()


def logistic_noise(x: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    z = (x - loc) / scale
    tail = torch.nn.functional.logsigmoid(-z.abs())
    e = torch.copysign(torch.special.ndtri(tail.exp()), z)
    return e, 2 * tail + z.abs() - scale.log() - log_normal_density(e)


def laplace_draw(e: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    tail = torch.special.log_ndtr(-e.abs())
    return loc + scale * torch.copysign(tail + LOG_TWO, e), log_normal_density(e) - tail + scale.log()


def laplace_noise(x: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    z = (x - loc) / scale
    tail = -z.abs() - LOG_TWO
    e = torch.copysign(torch.special.ndtri(tail.exp()), z)
    return e, tail - scale.log() - log_normal_density(e)


def uniform_draw(e: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    width = high - low
    x = low + width * torch.special.ndtr(e)
    return x.clamp(torch.nextafter(low, high), torch.nextafter(high, low)), log_normal_density(e) + width.log()


def uniform_noise(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    width = high - low
    e = torch.special.ndtri((x - low) / width)
    return e, -width.log() - log_normal_density(e)


BARE = {
    "Normal": (td.Normal, (0.3, 1.7), normal_draw, normal_noise),
    "Logistic": (pd.Logistic, (0.3, 1.7), logistic_draw, logistic_noise),
    "Laplace": (td.Laplace, (0.3, 1.7), laplace_draw, laplace_noise),
    "Uniform": (td.Uniform, (-1.0, 2.5), uniform_draw, uniform_noise),
}


@pytest.mark.parametrize("name", BARE)
@BOTH
@WAYS
def test_closed_forms_against_bare_arithmetic(name, dtype, way):
    """Value and log-Jacobian, eager and compiled, beside the formulas alone, some of which saturate in the tails."""
    family, numbers, draw, noise = BARE[name]
    parameters = [torch.tensor(number, dtype=dtype) for number in numbers]
    e = torch.randn(SIZE, dtype=dtype)
    forward = way == "noise to value"
    x = e if forward else draw(e, *parameters)[0]

    def ours(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        transform = from_normal(family(*parameters, validate_args=False))
        return transform.call_and_ladj(x) if forward else transform.inverse_and_ladj(x)

    bare = draw if forward else noise
    for one, other in zip(ours(x, *parameters), bare(x, *parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    compiled, bare_compiled = torch.compile(ours), torch.compile(bare)
    found = {
        "eager": ratio(lambda: ours(x, *parameters), lambda: bare(x, *parameters), 41),
        "compiled": ratio(lambda: compiled(x, *parameters), lambda: bare_compiled(x, *parameters), 41),
    }
    show(name, dtype, way, found)
    assert max(found.values()) <= 1.5


def _between(low: float, high: float, dtype: torch.dtype) -> Tensor:
    return low + (high - low) * torch.rand(SIZE, dtype=dtype)


SCIPY = {
    "Gamma": (
        lambda dtype: td.Gamma(_between(0.5, 20, dtype), torch.ones((), dtype=dtype), validate_args=False),
        lambda dist, x: scipy.special.gammainc(dist.concentration.numpy(), x),
        lambda dist, p: scipy.special.gammaincinv(dist.concentration.numpy(), p),
    ),
    "Beta": (
        lambda dtype: td.Beta(_between(0.5, 20, dtype), _between(0.5, 20, dtype), validate_args=False),
        lambda dist, x: scipy.special.betainc(dist.concentration1.numpy(), dist.concentration0.numpy(), x),
        lambda dist, p: scipy.special.betaincinv(dist.concentration1.numpy(), dist.concentration0.numpy(), p),
    ),
    "StudentT": (
        lambda dtype: td.StudentT(_between(1, 30, dtype), validate_args=False),
        lambda dist, x: scipy.special.stdtr(dist.df.numpy(), x),
        lambda dist, p: scipy.special.stdtrit(dist.df.numpy(), p),
    ),
}


@pytest.mark.parametrize("name", SCIPY)
@BOTH
@WAYS
def test_iterated_families_against_scipy(name, dtype, way):
    """Value and log-Jacobian with what gradients need, eager and compiled, beside scipy's value alone."""
    build, cdf, ppf = SCIPY[name]
    dist = build(dtype)
    e = torch.randn(SIZE, dtype=dtype)
    forward = way == "noise to value"
    x = e if forward else from_normal(dist).call_and_ladj(e)[0]
    array = x.numpy()

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        transform = from_normal(dist)
        return transform.call_and_ladj(x) if forward else transform.inverse_and_ladj(x)

    def theirs() -> object:
        return ppf(dist, scipy.special.ndtr(array)) if forward else scipy.special.ndtri(cdf(dist, array))

    near = e.abs() < 3
    tolerance = 1e-2 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(ours(x)[0][near], torch.from_numpy(theirs())[near], rtol=tolerance, atol=tolerance)
    compiled = torch.compile(ours)
    found = {"eager": ratio(lambda: ours(x), theirs, 5), "compiled": ratio(lambda: compiled(x), theirs, 5)}
    show(name, dtype, way, found)
    assert max(found.values()) <= 1


@BOTH
def test_mixture_of_ten_normals_against_its_own_density(dtype):
    torch.manual_seed(1)
    logits, loc, scale = (
        torch.randn(10, dtype=dtype),
        4 * torch.randn(10, dtype=dtype),
        torch.rand(10, dtype=dtype) + 0.2,
    )
    dist = td.MixtureSameFamily(
        td.Categorical(logits=logits, validate_args=False),
        td.Normal(loc, scale, validate_args=False),
        validate_args=False,
    )
    e = torch.randn(SIZE, dtype=dtype)
    x = from_normal(dist).call_and_ladj(e)[0]
    compiled = torch.compile(lambda e: from_normal(dist).call_and_ladj(e))
    found = {
        "eager": ratio(lambda: from_normal(dist).call_and_ladj(e), lambda: dist.log_prob(x), 5),
        "compiled": ratio(lambda: compiled(e), lambda: dist.log_prob(x), 5),
    }
    show("mixture of 10 Normal, over its log_prob", dtype, "noise to value", found)
    assert max(found.values()) <= 40
