"""Mixtures by filtering: what holds of them besides the laws of the corpus, on programs too large to enumerate."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex

import emfc
from emfc.layers.filtering import Filter
from emfc.layers.latents import Gates
from tests.programs.accepted import PROGRAMS
from tests.programs.compiled import compiled, density, examples
from tests.programs.oracle import pyro_log_prob
from tests.programs.random_populations import random_populations

SUMMED = [name for name, case in PROGRAMS.items() if case.summed]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest, _clean_state):
    torch.set_default_dtype(request.param)
    return request.param


def close(actual, expected, dtype, *, float64=1e-9, float32=1e-4):
    tolerance = float64 if dtype is torch.float64 else float32
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def _transition():
    start = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    return pyro.param("transition", start, constraint=dist.constraints.simplex)


def hidden_markov(steps, data=None):
    transition = _transition()
    locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 3.0]))
    z = 0
    for t in pyro.markov(range(steps)):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=None if data is None else data[..., t])


def switching(steps, data=None):
    transition, gain = _transition(), torch.tensor([0.9, 0.0, -0.8])
    x, z = torch.zeros(()), 0
    for t in pyro.markov(range(steps)):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        x = pyro.sample(f"x_{t}", dist.Normal(gain[z] * x, 0.5), obs=None if data is None else data[..., t])


def two_chains(steps, data=None):
    transition = _transition()
    table = pyro.param("table", torch.linspace(-4.0, 4.0, 9).reshape(3, 3))
    a, b = 0, 1
    for t in pyro.markov(range(steps)):
        a = pyro.sample(f"a_{t}", dist.Categorical(transition[a]))
        b = pyro.sample(f"b_{t}", dist.Categorical(transition[b]))
        loc = Vindex(table)[a, b]
        pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=None if data is None else data[..., t])


@pytest.mark.parametrize(("model", "steps"), [(hidden_markov, 40), (switching, 25), (two_chains, 8)])
def test_chains_equal_the_enumeration_of_pyro(model, steps, dtype):
    layer = emfc.compile(model, steps)
    noise = torch.randn(3, steps, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = layer()(noise)
    pyro.clear_param_store()
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    expected = [-elbo.differentiable_loss(config_enumerate(model), lambda *args: None, steps, row) for row in x]
    close(density(layer, x), torch.stack(expected).detach(), dtype, float64=1e-8)
    close(layer().log_prob(x), torch.stack(expected).detach(), dtype, float64=1e-8)
    torch.stack(expected).sum().backward()
    layer().log_prob(x).sum().backward()
    store = pyro.get_param_store()
    for (name, parameter), mine in zip(store.named_parameters(), layer.parameters(), strict=True):
        assert name in dict(store.items())
        close(mine.grad, parameter.grad, dtype, float64=1e-7, float32=1e-3)


@pytest.mark.parametrize("steps", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_long_chain_goes_there_and_back(steps, dtype):
    layer = emfc.compile(hidden_markov, steps)
    noise = torch.randn(2, steps, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x, ladj = layer().call_and_ladj(noise)
        again, inverse_ladj = layer().inv.call_and_ladj(x)
        log_prob = layer().log_prob(x)
    close(again, noise, dtype, float64=1e-8, float32=5e-3)
    close(-inverse_ladj, ladj, dtype, float64=1e-8, float32=1e-4)
    normal = -0.5 * (noise**2 + math.log(2 * math.pi)).sum(-1)
    close(log_prob, normal - ladj, dtype, float64=1e-8, float32=1e-4)


def rows_of_populations(count):
    weights = pyro.param("weights", torch.tensor([0.3, 0.5, 0.2]), constraint=dist.constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 3.0]))
    with pyro.plate("rows", count):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 0.5))


def rows_of_mixtures(count):
    weights = pyro.param("weights", torch.tensor([0.3, 0.5, 0.2]), constraint=dist.constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 3.0]))
    with pyro.plate("rows", count):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, torch.full((3,), 0.5))))


def test_rows_of_populations_are_rows_of_mixtures(dtype):
    layer, other = emfc.compile(rows_of_populations, 200), emfc.compile(rows_of_mixtures, 200)
    noise = torch.randn(5, 200, generator=torch.Generator().manual_seed(2))
    for actual, expected in zip(layer().call_and_ladj(noise), other().call_and_ladj(noise), strict=True):
        close(actual, expected, dtype, float32=1e-3)
    x = layer()(noise).detach()
    for actual, expected in zip(layer().inv.call_and_ladj(x), other().inv.call_and_ladj(x), strict=True):
        close(actual, expected, dtype, float32=1e-3)


class _Calls:
    """How many steps of filters and draws a call takes."""

    def __init__(self, layer):
        held = Filter(layer.plan)
        self.filter = sum(len(part.steps) for bundle in held._bundles for part in bundle.parts)
        self.draws = sum(len(stage.draws) for stage in layer.sampling._schedule)


def looped_populations(count):
    for i in range(count):
        z = pyro.sample(f"z_{i}", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample(f"x_{i}", dist.Normal(torch.tensor([-1.0, 2.0])[z], 1.0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", [rows_of_populations, looped_populations], ids=lambda model: model.__name__)
def test_independent_rows_are_no_loop(model):
    few, many = _Calls(emfc.compile(model, 3)), _Calls(emfc.compile(model, 60))
    assert (few.filter, few.draws) == (many.filter, many.draws)


def shared(rows, *, late=True):
    table = pyro.param("table", torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), constraint=dist.constraints.simplex)
    g = pyro.sample("g", dist.Categorical(torch.tensor([0.4, 0.6])))
    with pyro.plate("rows", rows):
        z = pyro.sample("z", dist.Categorical(table[g]))
        x = pyro.sample("x", dist.Normal(1.0 * z + g, 0.5))
        if late:
            pyro.sample("y", dist.Normal(x * (1 + z) + g, 1.0))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
def test_labels_that_share_a_choice(optimize, late, dtype):
    rows = 12  # 2 * 3^12 populations all together
    layer = emfc.compile(shared, rows, late=late, optimize=optimize)
    noise = torch.randn(4, layer.noise_dim, generator=torch.Generator().manual_seed(3))
    x, ladj = layer().call_and_ladj(noise)
    table = layer.values()["table"]
    first, last = x[:, :rows, None], x[:, rows:, None]
    parts = []
    for g in range(2):
        joint = table[g].log() + dist.Normal(1.0 * torch.arange(3) + g, 0.5).log_prob(first)
        if late:
            joint = joint + dist.Normal(first * (1 + torch.arange(3)) + g, 1.0).log_prob(last)
        parts.append(math.log((0.4, 0.6)[g]) + joint.logsumexp(-1).sum(-1))
    expected = torch.stack(parts).logsumexp(0)
    close(layer().log_prob(x), expected, dtype)
    close(density(layer, x), expected, dtype)
    again, inverse_ladj = layer().inv.call_and_ladj(x)
    close(again, noise, dtype, float64=1e-8, float32=5e-3)
    close(-inverse_ladj, ladj, dtype, float64=1e-8, float32=1e-3)


def plated_chains(rows, steps):
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    with pyro.plate("series", rows):
        z = pyro.sample("z_0", dist.Categorical(torch.tensor([0.5, 0.5])))
        for t in range(steps):
            if t:
                z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 2.0])[z], 1.0))


@pytest.mark.usefixtures("float64")
def test_chains_in_a_plate_are_independent_chains():
    layer, one = emfc.compile(plated_chains, 7, 5), emfc.compile(plated_chains, 1, 5)
    noise = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(4))
    x, ladj = layer().call_and_ladj(noise.flatten(1))
    single, parts = one().call_and_ladj(noise.mT)
    torch.testing.assert_close(x.reshape(4, 5, 7).mT, single)
    torch.testing.assert_close(ladj, parts.sum(-1))
    torch.testing.assert_close(layer().log_prob(x), one().log_prob(single).sum(-1))
    assert _Calls(layer).draws == _Calls(one).draws


@pytest.mark.parametrize("name", SUMMED)
def test_direct_density_is_that_of_the_noise(name, dtype):
    layer = compiled(name)
    x, _ = examples(name, layer, number=4)
    results = []
    for function in (lambda value: layer().log_prob(value), lambda value: density(layer, value)):
        inputs = x.clone().requires_grad_()
        wanted = [inputs, *layer.parameters()]
        value = function(inputs)
        found = torch.autograd.grad(value.sum(), wanted, allow_unused=True)
        results.append((value, [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]))
    (value, gradients), (other, others) = results
    close(value, other, dtype, float64=1e-8, float32=1e-3)
    for actual, expected in zip(gradients, others, strict=True):
        close(actual, expected, dtype, float64=1e-6, float32=2e-2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SUMMED)
def test_the_filter_follows_each_prefix(name):
    """The weights before an element depend on nothing from it on."""
    layer = compiled(name)
    plan = layer.plan
    x, _ = examples(name, layer, number=1)
    parameters = layer.flat_parameters(x)
    held = Filter(plan)
    with torch.no_grad():
        reference = held.responsibilities(plan.environment(x, parameters))
        for kernel, weights, _ in reference:
            columns = torch.from_numpy(kernel.own.reshape(-1))
            total = weights.log_softmax(-1).reshape(1, len(columns), -1)
            for place, column in enumerate(columns):
                moved = x.clone()
                moved[:, column:] = layer()(torch.randn(1, layer.noise_dim))[:, column:]
                other = next(w for k, w, _ in held.responsibilities(plan.environment(moved, parameters)) if k is kernel)
                again = other.log_softmax(-1).reshape(1, len(columns), -1)
                torch.testing.assert_close(again[:, place], total[:, place])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gate", ["site", "element"])
def test_gates_of_a_chain(gate):
    layer = emfc.compile(hidden_markov, 6, gate=gate)
    layer.set_gates(0.4)
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    x, ladj = layer().call_and_ladj(noise)
    again, inverse_ladj = layer().inv.call_and_ladj(x)
    torch.testing.assert_close(again, noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(-inverse_ladj, ladj, rtol=1e-6, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda e: layer()(e), noise[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj[0], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_value_far_from_all_populations():
    layer = emfc.compile(hidden_markov, 6)
    x = torch.zeros(2, 6)
    x[0, 2] = 1e5
    x.requires_grad_()
    log_prob = layer().log_prob(x)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert Gates(None).values is None


def impossible_moves(steps):
    transition = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z = pyro.sample("z_0", dist.Categorical(torch.tensor([0.5, 0.5])))
    for t in range(steps):
        if t:
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=transition[z].log()))
        pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 1.0])[z], 1.0))


def test_moves_of_probability_zero(dtype):
    layer = emfc.compile(impossible_moves, 5)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(6)).requires_grad_()
    parts = torch.stack([dist.Normal(loc, 1.0).log_prob(x).sum(-1) for loc in (-1.0, 1.0)])
    expected = parts.logsumexp(0) + math.log(0.5)
    close(layer().log_prob(x), expected, dtype)
    close(density(layer, x), expected, dtype)
    (gradient,) = torch.autograd.grad(layer().log_prob(x).sum(), x)
    (other,) = torch.autograd.grad(expected.sum(), x)
    close(gradient, other, dtype)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 200))])
def test_random_labels(seed):
    model = random_populations(seed)
    layer, reference = emfc.compile(model), emfc.compile(model, optimize=False)
    noise = torch.randn(2, layer.noise_dim, generator=torch.Generator().manual_seed(seed))
    summed = [name for name, site in layer.graph.sites.items() if site.latent_discrete]
    with torch.no_grad():
        x, ladj = layer().call_and_ladj(noise)
        again, inverse_ladj = layer().inv.call_and_ladj(x)
        rows = layer.unpack(x)
        expected = torch.stack(
            [pyro_log_prob(model, (), {}, {name: v[i] for name, v in rows.items()}, summed=summed) for i in range(2)]
        )
        torch.testing.assert_close(layer().log_prob(x), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(density(layer, x), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(reference()(noise), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(again, noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(-inverse_ladj, ladj, rtol=1e-6, atol=1e-6)
