"""Emitted code and the direct log density give the numbers of the interpretation, site by site."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc.layers.columns import Columns
from emfc.layers.emit import Code
from emfc.layers.logdensity import LogDensity
from emfc.layers.normal_groups import Term
from emfc.layers.normals import normal_sum
from emfc.layers.readers import Environment, Picker
from emfc.layers.structured import StructuredLayer
from emfc.passes.slices import Load, Slice, Step
from emfc.program.ir import Ref
from tests.programs.accepted import PROGRAMS
from tests.programs.compiled import compiled, density, examples

ROWS = 4


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest, _clean_state):
    torch.set_default_dtype(request.param)
    return request.param


def close(actual, expected, dtype, *, float64=1e-9, float32=2e-3):
    tolerance = float64 if dtype is torch.float64 else float32
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradients(value, inputs):
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_written_functions_equal_the_interpretation(name, dtype):
    layer = compiled(name)
    x, _ = examples(name, layer, number=ROWS)
    with torch.no_grad():
        environment = layer.plan.environment(x, layer.flat_parameters(x))
        for kernel in layer.plan.ordinary:
            written = kernel.parameters(environment, kernel.full)
            expected = kernel._interpreted(environment, kernel.full, 2)
            for path, value in zip(kernel.held.paths, expected, strict=True):
                close(written[path], value, dtype, float64=1e-13, float32=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_log_density_without_noise_is_that_of_the_reference(name, dtype):
    results = []
    for layer in (compiled(name), compiled(name, optimize=False)):
        x, _ = examples(name, compiled(name), number=ROWS)
        x.requires_grad_()
        value = layer().log_prob(x) if layer.optimize else density(layer, x)
        weights = torch.linspace(0.5, 1.5, ROWS)
        results.append([value, *gradients((weights * value).sum(), [x, *layer.parameters()])])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, dtype, float64=1e-7, float32=2e-2)


def mixed(steps=6):
    """Everything that the direct density treats in its own way."""
    phi = pyro.param("phi", torch.tensor(0.9))
    sigma = pyro.param("sigma", torch.tensor([0.2, 0.3]), constraint=dist.constraints.positive)
    level = pyro.sample("level", dist.Normal(0.5, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    h = pyro.sample("h_0", dist.Normal(0.0, 1.0))
    price = pyro.sample("p_0", dist.LogNormal(level, 0.1))
    for t in range(1, steps):
        h = pyro.sample(f"h_{t}", dist.Normal((phi + sigma[0]) * h, sigma[0]))
        pyro.sample(f"r_{t}", dist.Normal(level, torch.exp(h / 2)))
        pyro.sample(f"w_{t}", dist.Normal(h, torch.exp(0.1 * h)))
        price = pyro.sample(f"p_{t}", dist.LogNormal(torch.log(price) + 0.1 * h, sigma[1]))
        pyro.sample(f"v_{t}", dist.Normal(torch.stack([h, -h]), torch.stack([spread, sigma[0]])).to_event(1))
        pyro.sample(f"y_{t}", dist.Normal(level, spread))


MODELS = {
    "mixed": mixed,
    "random_walk": PROGRAMS["random_walk"].model,
    "lorenz_vector": PROGRAMS["lorenz_vector"].model,
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def pair(request, float64):
    layer, reference = emfc.compile(request.param), emfc.compile(request.param, optimize=False)
    x = layer()(torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(1))).detach()
    return layer, reference, x


def test_values_and_gradients(pair):
    layer, reference, x = pair
    results = []
    for either in (layer, reference):
        inputs = [x.clone().requires_grad_(), *either.parameters()]
        value = either().log_prob(inputs[0])
        even = gradients(value.sum(), inputs)
        value = either().log_prob(inputs[0])
        results.append([value, *even, *gradients(value @ torch.linspace(0.5, 1.5, ROWS), inputs)])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, torch.float64)


def test_second_derivatives(pair):
    layer, reference, x = pair
    results = []
    for either in (layer, reference):
        inputs = [x.clone().requires_grad_(), *either.parameters()]
        first = torch.autograd.grad(either().log_prob(inputs[0]).sum(), inputs, create_graph=True)
        results.append(gradients(sum(g.square().sum() for g in first), inputs))
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, torch.float64)


def test_function_transforms(pair):
    layer, reference, x = pair
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        actual, expected = (transform(lambda v, held=held: held().log_prob(v).sum())(x) for held in (layer, reference))
        close(actual, expected, torch.float64)
    close(torch.func.vmap(lambda v: layer().log_prob(v))(x), reference().log_prob(x), torch.float64)
    direction = torch.ones_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = layer().log_prob(torch.autograd.forward_ad.make_dual(x, direction))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    v = x.clone().requires_grad_()
    close(tangent, torch.autograd.grad(reference().log_prob(v).sum(), v)[0].sum(-1), torch.float64)
    value = layer().log_prob(v)
    batched = torch.autograd.grad(value, v, torch.eye(ROWS), is_grads_batched=True)[0]
    close(batched.sum(0), torch.autograd.grad(reference().log_prob(v).sum(), v)[0], torch.float64)


def test_only_some_gradients_are_wanted(pair):
    layer, reference, x = pair
    for name, parameter in layer.named_parameters():
        other = dict(reference.named_parameters())[name]
        actual, expected = layer().log_prob(x).sum(), reference().log_prob(x).sum()
        close(gradients(actual, [parameter])[0], gradients(expected, [other])[0], torch.float64)
    for either in (layer, reference):
        either.requires_grad_(False)
    v = x.clone().requires_grad_()
    close(gradients(layer().log_prob(v).sum(), [v])[0], gradients(reference().log_prob(v).sum(), [v])[0], torch.float64)
    assert not layer().log_prob(x).requires_grad


def test_outside_the_support(pair):
    layer, reference, x = pair
    for bad in (float("nan"), float("inf"), -1.0):
        y = x.clone()
        y[0, 1] = bad
        with torch.no_grad():
            actual, expected = layer().log_prob(y), reference().log_prob(y)
        missing = y.isnan().any(-1)
        assert (actual.isnan() == missing).all()
        assert (expected.isnan() >= missing).all()
        close(actual[~missing], torch.where(expected.isnan(), -torch.inf, expected)[~missing], torch.float64)
        assert actual[1:].isfinite().all()


def test_copies_and_pickles(pair):
    _, reference, x = pair
    layer = StructuredLayer(reference.program)
    expected = layer().log_prob(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(again().log_prob(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-3, 1e20, 1e30])
@pytest.mark.parametrize("learned", [True, False])
def test_scales_far_from_one(scale, learned, dtype):
    def model():
        held = pyro.param("scale", torch.tensor(scale), constraint=dist.constraints.positive) if learned else scale
        for i in range(3):
            pyro.sample(f"x_{i}", dist.Normal(0.0, held))

    layer = emfc.compile(model)
    x = scale * torch.tensor([[0.5, -1.0, 2.0]])
    x.requires_grad_()
    value = layer().log_prob(x)
    noise = x.detach().double() / layer.values()["scale"].detach().double() if learned else x.detach().double() / scale
    expected = -0.5 * noise.square().sum(-1) - 3 * math.log(scale) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(value.sum(), [x, *layer.parameters()])
    torch.testing.assert_close(found[0] * scale, -x.detach() / scale, rtol=1e-4, atol=1e-4)
    if learned:
        torch.testing.assert_close(found[1], torch.tensor(5.25 - 3), rtol=1e-3, atol=1e-3)


PATTERNS = {
    "all": [range(12)],
    "two": [[0], range(1, 12), range(11)],
    "strided": [range(0, 12, 2), range(1, 12, 2), range(0, 10, 2)],
    "rows": [np.arange(12).reshape(3, 4)[:, :2], np.arange(12).reshape(3, 4)[:, 2:], np.arange(8).reshape(2, 4)],
    "overlapping": [range(12), np.arange(10)[:, None] + np.arange(3), [5] * 4],
    "no order": [[3, 1, 2, 0], [11, 4, 5, 10, 9, 8, 6, 7], [[1, 1], [7, 3]]],
}


@pytest.mark.parametrize("covering", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_columns_are_what_is_picked(name, covering, dtype):
    positions = [np.asarray(held) for held in PATTERNS[name]]
    own = {"all": 1, "two": 2, "strided": 2, "rows": 2, "overlapping": 1, "no order": 2}[name]
    major = [place for place, held in enumerate(positions) if held.ndim == 2] if covering else []
    columns = Columns([Picker(held) for held in positions], own if covering else 0, major)
    matrix = torch.randn(5, 12, requires_grad=True)
    taken = columns(matrix)
    weights = [torch.randn(5, *held.shape) for held in positions]
    total = sum((value * weight).square().sum() for value, weight in zip(taken, weights, strict=True))
    plain = [matrix[:, torch.as_tensor(held)] for held in positions]
    expected = sum((value * weight).square().sum() for value, weight in zip(plain, weights, strict=True))
    for actual, wanted in zip(taken, plain, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    first, second = (torch.autograd.grad(value, matrix, create_graph=True)[0] for value in (total, expected))
    close(first, second, dtype, float64=1e-12, float32=1e-4)
    again, wanted = (
        torch.autograd.grad(value.square().sum(), matrix, retain_graph=True)[0] for value in (first, second)
    )
    close(again, wanted, dtype, float64=1e-10, float32=1e-2)
    close(torch.autograd.grad(total, matrix)[0], second, dtype, float64=1e-12, float32=1e-4)


def test_gradients_of_one_part_alone(float64):
    columns = Columns([Picker(np.arange(0, 6, 2)), Picker(np.arange(1, 6, 2)), Picker(np.arange(4))], 2)
    matrix = torch.randn(2, 6, requires_grad=True)
    for place, where in enumerate(([0, 2, 4], [1, 3, 5], [0, 1, 2, 3])):
        found = torch.autograd.grad(columns(matrix)[place].sum(), matrix)[0]
        expected = torch.zeros(2, 6).index_fill(1, torch.tensor(where), 1.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def _scales():
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, 1, 1), (5, 1, 1), (1, 1, 3), (5, 1, 3), (1, 4, 1), (5, 4, 3), (1, 4, 3)]
    return {str(shape): torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for shape in shapes}


@pytest.mark.parametrize("logarithm", [True, False])
@pytest.mark.parametrize("name", _scales())
def test_normal_sum(name, logarithm, float64):
    scale = _scales()[name]
    scale = (scale.log() if logarithm else scale).requires_grad_()
    difference = torch.randn(5, 4, 3, requires_grad=True)
    term = Term(12, logarithm)
    for direct in (True, False):
        value = normal_sum([term], [difference, scale], direct=direct)
        deviation = scale.exp() if logarithm else scale
        expected = dist.Normal(0.0, deviation).log_prob(difference).expand(5, 4, 3).flatten(1).sum(-1)
        torch.testing.assert_close(value, expected)
        for weight in (torch.ones(()).expand(5), torch.linspace(0.5, 2.0, 5)):
            found = torch.autograd.grad(value, [difference, scale], weight, retain_graph=True)
            wanted = torch.autograd.grad(expected, [difference, scale], weight, retain_graph=True)
            torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda *held: normal_sum([term], held, direct=True), (difference, scale))
    assert torch.autograd.gradgradcheck(lambda *held: normal_sum([term], held, direct=True), (difference, scale))


@pytest.mark.parametrize("logarithm", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e-200])
@pytest.mark.parametrize("name", ["(1, 1, 1)", "(5, 1, 1)"])
def test_normal_sum_of_classes_with_one_scale(name, size, logarithm, float64):
    scale = size * _scales()[name]
    scale = (scale.log() if logarithm else scale).requires_grad_()
    differences = [(size * torch.randn(5, count, 3)).requires_grad_() for count in (4, 2)]
    other = torch.randn(5, 2, 3, requires_grad=True)
    terms = [Term(12, logarithm), Term(6, False, 0.7), Term(6, logarithm)]
    value = normal_sum(terms, [differences[0], scale, other, None, differences[1], scale], direct=True)
    deviation = scale.exp() if logarithm else scale
    expected = dist.Normal(0.0, 0.7).log_prob(other).flatten(1).sum(-1)
    for difference in differences:
        noise = difference / deviation
        expected = expected - (0.5 * noise.square() + deviation.log()).flatten(1).sum(-1)
        expected = expected - difference[0].numel() * 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(value, expected)
    inputs = [*differences, other, scale]
    for weight in (torch.ones(()).expand(5), torch.linspace(0.5, 2.0, 5)):
        found = torch.autograd.grad(value, inputs, weight, retain_graph=True)
        wanted = torch.autograd.grad(expected, inputs, weight, retain_graph=True)
        torch.testing.assert_close(found, wanted)
    if size == 1.0:

        def sum_of(first, second, alone, held):
            return normal_sum(terms, [first, held, alone, None, second, held], direct=True)

        assert torch.autograd.gradcheck(sum_of, inputs)
        assert torch.autograd.gradgradcheck(sum_of, inputs)


@pytest.mark.parametrize("number", [0.3, 1e-200])
def test_normal_sum_with_a_known_scale(number, float64):
    difference = (number * torch.randn(5, 4)).requires_grad_()
    value = normal_sum([Term(4, False, number)], [difference, None], direct=True)
    noise = difference / number
    expected = -0.5 * noise.square().sum(-1) - 4 * math.log(number) - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value.sum(), difference)[0] * number,
        torch.autograd.grad(expected.sum(), difference)[0] * number,
    )


def test_the_text_is_straight_arithmetic(float64):
    layer = emfc.compile(PROGRAMS["lorenz_scalar"].model)
    x = torch.randn(2, layer.dim)
    environment = Environment(x, layer.flat_parameters(x))
    for kernel in layer.plan.ordinary:
        kernel.parameters(environment, kernel.full)
        for held in kernel.code._written.values():
            assert "cast" not in held.source
            assert "c0" not in held.source


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_give_the_same(chunk, dtype):
    results = []
    layer = emfc.compile(mixed, 8)
    x = layer()(torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(1))).detach()
    for held in (LogDensity(layer.plan, chunk=chunk), LogDensity(layer.plan)):
        inputs = [x.clone().requires_grad_(), *layer.parameters()]
        value = held(inputs[0], layer.parameters_like(inputs[0]))
        results.append([value, *gradients(value @ torch.linspace(0.5, 1.5, ROWS), inputs)])
        with torch.no_grad():
            close(held(x, layer.parameters_like(x)), value.detach(), dtype)
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, dtype)


@pytest.mark.parametrize("name", ["alpha=print('no'), beta", "alpha)\nimport os\n(", ""])
def test_hostile_names_are_not_written(name):
    load = Load(np.arange(1), "float")
    step = Step("add.Tensor", (Ref(0), 1.0), ((name, 1),), (0,), ("float",), ((1,),), ("float",), True)
    with pytest.raises(ValueError, match="no name of an argument"):
        Code(Slice((load, step), (0, 1), (1,)), {}).function([(1, "float")], 2, torch.float64)


def test_hostile_texts_are_only_texts():
    load = Load(np.arange(1), "float")
    step = Step(
        "gelu.default", (Ref(0),), (("approximate", "'+print('no')+'"),), (0,), ("float",), ((1,),), ("float",), True
    )
    held = Code(Slice((load, step), (0, 1), (1,)), {}).function([(1, "float")], 2, torch.float64)
    with pytest.raises(RuntimeError):
        held.call(torch.ones(1, 1, 1))
