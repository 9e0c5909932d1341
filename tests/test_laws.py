"""The laws that every compiled program obeys, over the whole corpus (``docs`` lists them by number)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import emfc
from tests.programs.accepted import PROGRAMS
from tests.programs.compiled import compiled, density, draws, examples, perturb
from tests.programs.oracle import pyro_log_prob
from tests.programs.series import lorenz_scalar, lorenz_vector, random_walk

ROWS = 4
MOVING_SUPPORTS = ("computed_values",)
# torch draws the rows of LKJCholesky from other Betas than its density has; the draws of the layer follow the density.
WRONG_DRAWS = ("correlated_effects", "correlation_matrix")


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest, _clean_state):
    torch.set_default_dtype(request.param)
    return request.param


def close(actual, expected, dtype, *, float64=1e-8, float32=2e-3):
    tolerance = float64 if dtype is torch.float64 else float32
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_law_1_density_is_that_of_pyro(name, dtype):
    case, layer = PROGRAMS[name], compiled(name)
    x, mapping = examples(name, layer, number=ROWS)
    model, args, kwargs = case.build()
    values = {key: value.detach() for key, value in layer.values().items()}
    expected = torch.stack(
        [
            pyro_log_prob(
                model, args, kwargs, {site: rows[row] for site, rows in mapping.items()}, values, summed=case.summed
            )
            for row in range(ROWS)
        ]
    )
    with torch.no_grad():
        close(density(layer, x), expected, dtype)


@pytest.mark.parametrize("name", PROGRAMS)
def test_law_2_optimised_equals_site_by_site(name, dtype):
    layer, reference = compiled(name), compiled(name, optimize=False)
    x, _ = examples(name, layer, number=ROWS)
    noise = torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(2))
    results = []
    for either in (layer, reference):
        inputs, draws_from = x.clone().requires_grad_(), noise.clone().requires_grad_()
        log_prob = density(either, inputs)
        sample, ladj = either().call_and_ladj(draws_from)
        weights = torch.linspace(0.5, 1.5, sample.numel()).reshape(sample.shape)
        learnable = list(either.parameters())
        wanted = [inputs, draws_from, *learnable]
        loss = log_prob.sum() + (weights * torch.tanh(sample)).sum() + ladj.sum()
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        filled = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients, strict=True)]
        results.append((log_prob, sample, ladj, *filled))
    assert len(results[0]) == len(results[1])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, dtype, float64=1e-7, float32=2e-2)


@pytest.mark.parametrize("name", PROGRAMS)
def test_law_3_inverse_and_jacobian(name, dtype):
    layer = compiled(name)
    transform = layer()
    noise = torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        x, ladj = transform.call_and_ladj(noise)
        again, inverse_ladj = transform.inv.call_and_ladj(x)
    assert x.shape == (ROWS, layer.dim)
    assert layer.graph.noise_dim == layer.noise_dim
    assert ladj.shape == (ROWS,)
    assert not layer.outside(x).any()
    close(again, noise, dtype, float64=1e-7)
    close(-inverse_ladj, ladj, dtype, float64=1e-7, float32=5e-3)
    if dtype is torch.float64 and layer.noise_dim == layer.dim <= 64:
        jacobian = torch.autograd.functional.jacobian(lambda e: layer()(e), noise[0])
        close(torch.linalg.slogdet(jacobian).logabsdet, ladj[0], dtype, float64=1e-6)
        jacobian = torch.autograd.functional.jacobian(lambda e: layer().inv(e), x[0])
        close(torch.linalg.slogdet(jacobian).logabsdet, -ladj[0], dtype, float64=1e-6)
    elif dtype is torch.float64 and layer.noise_dim < layer.dim and name not in MOVING_SUPPORTS:
        constraint_map = layer.constraint_map()  # seen through it, values are as many as noises
        jacobian = torch.autograd.functional.jacobian(lambda e: constraint_map.inv(layer()(e)), noise[0])
        stretch = constraint_map.inv.call_and_ladj(x[0])[1]
        close(torch.linalg.slogdet(jacobian).logabsdet, ladj[0] + stretch, dtype, float64=1e-6)


def _two_sample_distance(a, b):
    """Kolmogorov-Smirnov distances of columns, ``[D]``."""
    grid = torch.cat([a, b]).sort(0).values.T.contiguous()
    left = torch.searchsorted(a.sort(0).values.T.contiguous(), grid, right=True) / len(a)
    right = torch.searchsorted(b.sort(0).values.T.contiguous(), grid, right=True) / len(b)
    return (left - right).abs().amax(-1)


def _rank_correlation(x):
    ranks = x.argsort(0).argsort(0).to(torch.float64)
    return torch.corrcoef(ranks.T).reshape(x.shape[1], x.shape[1])


@pytest.mark.usefixtures("dtype")
@pytest.mark.parametrize("name", PROGRAMS)
def test_law_4_samples_are_those_of_the_program(name):
    _samples_agree(name, number=3000, slow_number=100)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PROGRAMS)
def test_law_4_many_samples_are_those_of_the_program(name):
    _samples_agree(name, number=40_000, slow_number=2_000)


def _samples_agree(name, *, number, slow_number):
    if name in WRONG_DRAWS:
        pytest.skip("torch's own draws do not follow its density")
    case, layer = PROGRAMS[name], compiled(name)
    model, args, kwargs = case.build()
    values = {key: value.detach() for key, value in layer.values().items()}
    found = draws(model, args, kwargs, number=number, seed=4, parameters=values, slow_number=slow_number)
    expected = layer.pack(
        {site: found[site] for site in case.example_sites}, generator=torch.Generator().manual_seed(4)
    )
    noise = torch.randn(2 * number, layer.noise_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        actual = layer()(noise)
    size = len(expected) * len(actual) / (len(expected) + len(actual))
    level = 1e-4 / layer.dim  # Bonferroni
    critical = torch.sqrt(-0.5 * torch.log(torch.tensor(level / 2)) / size)
    assert (_two_sample_distance(actual, expected) < critical).all()
    if layer.dim > 1:
        vary = actual.std(0) > 0
        difference = (_rank_correlation(actual[:, vary]) - _rank_correlation(expected[:, vary])).abs()
        assert difference.max() < 6 / size**0.5


@pytest.mark.usefixtures("dtype")
@pytest.mark.parametrize("name", PROGRAMS)
def test_law_5_edges_are_true_dependencies(name):
    model, args, kwargs = PROGRAMS[name].build()
    graph = emfc.parse(model, *args, **kwargs)
    assert {site: set(held.parents) for site, held in graph.sites.items()} == {
        site: set(parents) for site, parents in PROGRAMS[name].parents.items()
    }


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def geometric_walk(steps):
    x = pyro.sample("x_0", dist.LogNormal(0.0, 0.1))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x) - 0.005 * t, 0.1))


def noisy_walk(steps):
    sigma = pyro.param("sigma", torch.ones(()), constraint=dist.constraints.positive)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, sigma))
        pyro.sample(f"y_{t}", dist.Laplace(torch.sin(x), 0.1))


def _density_operations(model, steps, *, backward):
    layer = emfc.compile(model, steps)
    x = layer()(0.1 * torch.randn(2, layer.noise_dim)).detach().requires_grad_()
    density(layer, x)  # tables that are made once
    counter = _Operations()
    with counter:
        value = density(layer, x).sum()
        if backward:
            value.backward()
    return counter.count


@pytest.mark.usefixtures("dtype")
@pytest.mark.parametrize("model", [random_walk, geometric_walk, noisy_walk], ids=lambda model: model.__name__)
def test_law_6_operations_do_not_grow_with_steps(model):
    for backward in (False, True):
        assert _density_operations(model, 30, backward=backward) == _density_operations(model, 300, backward=backward)


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [random_walk, geometric_walk, noisy_walk, lorenz_scalar, lorenz_vector],
    ids=lambda model: model.__name__,
)
def test_law_6_operations_do_not_grow_with_three_thousand_steps(model):
    for backward in (False, True):
        assert _density_operations(model, 30, backward=backward) == _density_operations(model, 3000, backward=backward)


LEARNED = [name for name in PROGRAMS if name in ("second_order", "constrained_parameters", "gru", "dynamics_module")]


@pytest.mark.parametrize("name", LEARNED)
def test_law_7_layers_share_nothing(name, dtype):
    model, args, kwargs = PROGRAMS[name].build()
    pyro.param("sigma", torch.tensor(7.0, dtype=dtype))
    before = {key: value.clone() for key, value in pyro.get_param_store().items()}
    first, second = emfc.compile(model, *args, **kwargs), emfc.compile(model, *args, **kwargs)
    start = {key: value.detach().clone() for key, value in second.values().items()}
    perturb(first)
    own = {parameter.data_ptr() for parameter in first.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in second.parameters())
    for key, value in second.values().items():
        torch.testing.assert_close(value.detach(), start[key], rtol=0, atol=0)
        assert not torch.equal(first.values()[key], value)
    if isinstance(model, torch.nn.Module):
        assert own.isdisjoint(parameter.data_ptr() for parameter in model.parameters())
    after = dict(pyro.get_param_store().items())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


LOADER = """
import json, sys
import torch
import emfc
for folder in sys.argv[1:]:
    flow = emfc.load(folder)
    data = torch.load(folder + "/../inputs.pt", weights_only=True)[folder.rsplit("/", 1)[1]]
    with torch.no_grad():
        lp = flow().log_prob(data)
    print(json.dumps([str(lp.dtype), [value.hex() for value in lp.double().tolist()]]))
"""


@pytest.mark.parametrize(
    "kind", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=["float64", "float32"]
)
def test_law_7_saved_flows_load_in_another_process(tmp_path, kind):
    torch.set_default_dtype(kind)
    inputs, expected = {}, []
    for name, case in PROGRAMS.items():
        model, args, kwargs = case.build()
        flow = emfc.EmbeddedModelFlow(model, *args, backbone=None, gate=None, **kwargs)
        perturb(flow)
        x, _ = examples(name, flow.layer, number=2)
        inputs[name] = x
        emfc.save(flow, tmp_path / name)
        with torch.no_grad():
            expected.append(flow().log_prob(x))
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", LOADER, *(str(tmp_path / name) for name in PROGRAMS)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=300)
    for name, line, values in zip(PROGRAMS, done.stdout.splitlines(), expected, strict=True):
        written, numbers = json.loads(line)
        assert written == str(kind), name
        loaded = torch.tensor([float.fromhex(number) for number in numbers], dtype=torch.float64)
        torch.testing.assert_close(loaded, values.double(), rtol=1e-6 if kind is torch.float32 else 1e-12, atol=0)
