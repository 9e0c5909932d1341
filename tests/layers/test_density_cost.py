"""What a density costs: operations, memory that is kept for the backward, and what a compiler makes of it."""

from __future__ import annotations

import math
import random

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode

import emfc
from emfc.cli.bench import programs
from emfc.layers.logdensity import LogDensity

LOG_TWO_PI = math.log(2 * math.pi)


@pytest.fixture
def float64(_clean_state):
    torch.set_default_dtype(torch.float64)
    return torch.float64


def brownian(steps):
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, 0.1))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, scale))


def ornstein_uhlenbeck(steps):
    decay = pyro.param("decay", torch.tensor(0.8))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(decay * x, scale))


def lorenz(steps):
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        x, y, z = state.unbind(-1)
        velocity = torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)
        state = pyro.sample(f"s_{t}", dist.Normal(state + 0.02 * velocity, scale).to_event(1))


def volatility(steps):
    decay = pyro.param("decay", torch.tensor(0.9))
    scale = pyro.param("scale", torch.tensor(0.2), constraint=constraints.positive)
    h = pyro.sample("h_0", dist.Normal(0.0, 0.5))
    pyro.sample("r_0", dist.Normal(0.0, torch.exp(h / 2)))
    for t in range(1, steps):
        h = pyro.sample(f"h_{t}", dist.Normal(decay * h, scale))
        pyro.sample(f"r_{t}", dist.Normal(0.0, torch.exp(h / 2)))


def counties(steps):
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfCauchy(1.0))
    held = [pyro.sample(f"county_{j}", dist.Normal(level, spread)) for j in range(10)]
    for i, j in enumerate(random.Random(7).choices(range(10), k=steps)):
        pyro.sample(f"y_{i}", dist.Normal(held[j] + slope * (i % 3), noise))


def gamma_walk(steps):
    x = pyro.sample("x_0", dist.Gamma(2.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Gamma(2.0 + x, 1.0))


PROGRAMS = [brownian, ornstein_uhlenbeck, lorenz, volatility, counties, gamma_walk]


def _examples(layer, rows):
    noise = 0.3 * torch.randn(rows, layer.noise_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return layer()(noise)


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operations(model, steps):
    layer = emfc.compile(model, steps)
    x = _examples(layer, 2).requires_grad_()
    layer().log_prob(x)  # tables that are made once
    with _Operations() as forward:
        value = layer().log_prob(x).sum()
    with _Operations() as backward:
        value.backward()
    return forward.count, backward.count


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_operations_do_not_grow_with_steps(model):
    assert _operations(model, 30) == _operations(model, 120)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", PROGRAMS[:5], ids=lambda model: model.__name__)
def test_operations_do_not_grow_with_three_thousand_steps(model):
    assert _operations(model, 30) == _operations(model, 3000)


def _normal(squares, scale, count):
    return -0.5 * squares / scale**2 - count * (scale.log() + 0.5 * LOG_TWO_PI)


def brownian_by_hand(x, log_scale):
    steps = x[:, 1:] - x[:, :-1]
    first = -0.5 * (x[:, 0] / 0.1).square() - math.log(0.1) - 0.5 * LOG_TWO_PI
    return first + _normal(steps.square().sum(1), log_scale.exp(), steps.shape[1])


def ornstein_uhlenbeck_by_hand(x, decay, log_scale):
    steps = x[:, 1:] - decay * x[:, :-1]
    first = -0.5 * x[:, 0].square() - 0.5 * LOG_TWO_PI
    return first + _normal(steps.square().sum(1), log_scale.exp(), steps.shape[1])


def lorenz_by_hand(values, log_scale):
    states = values.reshape(len(values), -1, 3).movedim(-1, 0).contiguous()
    x, y, z = states[:, :, :-1]
    a, b, c = states[:, :, 1:]
    steps = [a - x - 0.2 * (y - x), b - y - 0.02 * (x * (28 - z) - y), c - z - 0.02 * (x * y - 8 / 3 * z)]
    first = -0.5 * states[:, :, 0].square().sum(0) - 1.5 * LOG_TWO_PI
    return first + _normal(sum(step.square().sum(1) for step in steps), log_scale.exp(), 3 * x.shape[1])


def volatility_by_hand(x, decay, log_scale):
    h, r = x.reshape(len(x), -1, 2).movedim(-1, 0).contiguous()
    steps = h[:, 1:] - decay * h[:, :-1]
    first = -0.5 * (h[:, 0] / 0.5).square() - math.log(0.5) - 0.5 * LOG_TWO_PI
    returns = -0.5 * (r.square() * torch.exp(-h) + h).sum(1) - 0.5 * LOG_TWO_PI * h.shape[1]
    return first + _normal(steps.square().sum(1), log_scale.exp(), steps.shape[1]) + returns


BY_HAND = {
    brownian: brownian_by_hand,
    ornstein_uhlenbeck: ornstein_uhlenbeck_by_hand,
    lorenz: lorenz_by_hand,
    volatility: volatility_by_hand,
}


def _kept(function, *leaves):
    """Bytes of what autograd keeps, leaves apart."""
    held, alive = {}, []

    def pack(tensor):
        alive.append(tensor)
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(function())
    return sum(
        size for pointer, size in held.items() if pointer not in {x.untyped_storage().data_ptr() for x in leaves}
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", BY_HAND, ids=lambda model: model.__name__)
def test_a_density_keeps_at_most_twice_what_one_by_hand_keeps(model):
    layer, by_hand = emfc.compile(model, 100), BY_HAND[model]
    x = _examples(layer, 20).requires_grad_()
    raw = [parameter.detach().requires_grad_() for parameter in layer.unconstrained]
    torch.testing.assert_close(layer().log_prob(x), by_hand(x, *raw))
    assert _kept(lambda: layer().log_prob(x), x) <= 2 * _kept(lambda: by_hand(x, *raw), x)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", [brownian, ornstein_uhlenbeck, lorenz, volatility], ids=lambda model: model.__name__)
def test_what_a_chunked_density_keeps_does_not_grow(model):
    kept = []
    for steps in (60, 240):
        layer = emfc.compile(model, steps)
        held = LogDensity(layer.plan, chunk=20)
        x = _examples(layer, 20).requires_grad_()
        kept.append(_kept(lambda held=held, x=x, layer=layer: held(x, layer.parameters_like(x)), x))
        torch.testing.assert_close(held(x, layer.parameters_like(x)), layer().log_prob(x))
    assert kept[1] <= kept[0] + 20_000  # a number per example and piece


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_few_examples(model, rows):
    layer = emfc.compile(model, 12)
    x = _examples(layer, 2)[:rows].requires_grad_()
    value = layer().log_prob(x)
    assert value.shape == (rows,)
    value.sum().backward()
    assert x.grad.shape == x.shape


def _positive(*shape):
    start = torch.linspace(0.5, 1.5, 3) if shape else torch.tensor(0.5)
    return pyro.param("scale", start, constraint=constraints.positive)


def exponential_of_positive(steps):
    """The scale is the exponential of a parameter that is an exponential itself."""
    scale = _positive()
    x = pyro.sample("x_0", dist.Normal(0.0, scale.exp()))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, scale.exp() if t % 2 else scale))


def exponentials_of_positive(steps):
    scale = _positive(3)
    for t in range(steps):
        pyro.sample(f"x_{t}", dist.Normal(0.0, scale.exp()).to_event(1))
        pyro.sample(f"y_{t}", dist.LogNormal(0.0, scale).to_event(1))


def positive_families(steps):
    scale = _positive()
    for t in range(steps):
        pyro.sample(f"x_{t}", dist.LogNormal(0.0, scale))
        pyro.sample(f"y_{t}", dist.HalfNormal(scale.exp()))
        pyro.sample(f"z_{t}", dist.HalfNormal(scale))


def populations_of_one_scale(steps):
    scale = _positive()
    which = pyro.sample("which", dist.Bernoulli(0.3))
    for t in range(steps):
        pyro.sample(f"x_{t}", dist.Normal(2.0 * which, scale.exp()))
        pyro.sample(f"y_{t}", dist.Normal(0.0, scale))


FUSED = (*PROGRAMS, exponential_of_positive, exponentials_of_positive, positive_families, populations_of_one_scale)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", FUSED, ids=lambda model: model.__name__)
def test_a_fused_density_is_the_same(model):
    """Values and gradients, in the first call and in those that find what is compiled."""
    plain, layer = emfc.compile(model, 12), emfc.compile(model, 12, compile=True)
    x = _examples(plain, 5)
    results = []
    for held in (plain, layer, layer):
        inputs = [x.clone().requires_grad_(), *held.parameters()]
        value = held().log_prob(inputs[0])
        results.append([value, *torch.autograd.grad(value.sum(), inputs)])
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer().log_prob(inputs[0]), results[0][0], rtol=1e-9, atol=1e-9)
    outside = x.clone()
    outside[0, 0] = torch.nan
    assert layer().log_prob(outside)[0].isnan()


@pytest.mark.slow
@pytest.mark.parametrize("raw", [-60.0, -40.0, 40.0, 60.0, 100.0, 1000.0])
def test_a_fused_density_is_the_same_at_extreme_scales(raw):
    plain, layer = emfc.compile(brownian, 12), emfc.compile(brownian, 12, compile=True)
    x = _examples(plain, 5)
    for held in (plain, layer):
        held.unconstrained[0].data.fill_(raw)
    torch.testing.assert_close(layer().log_prob(x), plain().log_prob(x), equal_nan=True)
    torch.testing.assert_close(layer().log_prob(x), plain().log_prob(x), equal_nan=True)


@pytest.mark.slow
def test_a_fused_density_is_computed_once():
    layer = emfc.compile(brownian, 12, compile=True).requires_grad_(False)
    x = _examples(layer, 5)
    layer().log_prob(x)
    held, calls = layer.density.fused, []
    compiled = held._compiled
    held._compiled = lambda *args: calls.append(None) or compiled(*args)
    layer().log_prob(x)
    assert len(calls) == 1
    plain = emfc.compile(brownian, 12)
    for held in (plain, layer):
        held.set_values({"scale": torch.tensor(2.0)})
    torch.testing.assert_close(layer().log_prob(x), plain().log_prob(x))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["radon", "lorenz", "brownian"])
def test_a_fused_density_takes_any_number_of_examples(name):
    model = getattr(programs, name)
    layer, plain = emfc.compile(model, 30, compile=True), emfc.compile(model, 30)
    for rows in (10, 20, 30):
        x = _examples(plain, rows)
        results = []
        for held in (layer, plain):
            inputs = [x.clone().requires_grad_(), *held.parameters()]
            value = held().log_prob(inputs[0])
            results.append([value, *torch.autograd.grad(value.sum(), inputs)])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
