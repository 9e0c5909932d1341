"""The structured layer beyond the laws of the corpus: gates, parameters, examples, supports, telling."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import emfc
from emfc import CompileError, UserError


def families():
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(1.0, scale))
    b = pyro.sample("b", dist.LogNormal(a, 0.5).expand([2]).to_event(1))
    pyro.sample("c", dist.Exponential(b.sum(-1)))
    pyro.sample("d", dist.Uniform(-1.0, 3.0))
    pyro.sample("e", dist.MultivariateNormal(b, torch.tensor([[2.0, 0.3], [0.3, 1.0]])))
    pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))


def populations():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.8])))
    loc = torch.tensor([-2.0, 2.0])
    x = pyro.sample("x", dist.Normal(loc[z], 0.5))
    pyro.sample("y", dist.Normal(x + loc[z], torch.tensor([0.1, 1.0])[z]))


def moving_support():
    a = pyro.sample("a", dist.LogNormal(0.5, 2.0))
    pyro.sample("b", dist.Uniform(0.0, a))


PROGRAMS = {"families": families, "populations": populations, "moving support": moving_support}


@pytest.fixture(params=PROGRAMS.values(), ids=PROGRAMS.keys())
def model(request):
    return request.param


@pytest.mark.parametrize("gate", ["site", "element"])
def test_gates_start_nearly_open(model, gate):
    layer, bare = emfc.compile(model, gate=gate), emfc.compile(model)
    values = torch.cat([value.reshape(-1) for value in layer.gate_values().values()])
    assert ((values > 0.98) & (values < 1)).all()
    noise = torch.randn(200, layer.dim)
    torch.testing.assert_close(layer()(noise), bare()(noise), rtol=0.2, atol=0.2)


@pytest.mark.parametrize("gate", ["site", "element"])
def test_open_gates_are_exactly_the_program(model, gate, dtype):
    layer, bare = emfc.compile(model, gate=gate), emfc.compile(model)
    layer.set_gates(1.0)
    noise = torch.randn(50, layer.dim)
    tight = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(layer()(noise), bare()(noise), rtol=tight, atol=tight)
    examples = bare()(noise)
    torch.testing.assert_close(layer().log_prob(examples), bare().log_prob(examples), rtol=tight, atol=10 * tight)


@pytest.mark.parametrize("gate", ["site", "element"])
@pytest.mark.parametrize("name", ["families", "populations"])
def test_closed_gates_are_exactly_the_constraint_map(name, gate, dtype):
    layer = emfc.compile(PROGRAMS[name], gate=gate)
    layer.set_gates(0.0)
    noise = torch.randn(50, layer.dim)
    tight = 1e-10 if dtype == torch.float64 else 1e-4
    value, ladj = layer().call_and_ladj(noise)
    expected, expected_ladj = layer.constraint_map().call_and_ladj(noise)
    torch.testing.assert_close(value, expected, rtol=tight, atol=tight)
    torch.testing.assert_close(ladj, expected_ladj, rtol=tight, atol=tight)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gate", ["site", "element"])
def test_gated_layers_invert_and_stay_in_the_support(model, gate, value, dtype):
    layer = emfc.compile(model, gate=gate)
    layer.set_gates(value)
    noise = torch.randn(64, layer.dim)
    examples, ladj = layer().call_and_ladj(noise)
    assert not layer.outside(examples).any()
    back, inverse_ladj = layer().inv.call_and_ladj(examples)
    tight = 1e-8 if dtype == torch.float64 else 5e-3
    torch.testing.assert_close(back, noise, rtol=tight, atol=tight)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=tight, atol=10 * tight)


def test_gates_get_gradients_even_when_closed(model):
    layer = emfc.compile(model, gate="site")
    for value in (0.2, 1.0):
        layer.set_gates(value)
        layer.zero_grad()
        examples = layer()(torch.randn(8, layer.dim)).detach()
        layer().log_prob(examples).sum().backward()
        assert layer.gate_logits.grad.isfinite().all()
        if value == 0.2:
            assert (layer.gate_logits.grad != 0).all()


def test_gate_misuse_is_told():
    with pytest.raises(UserError, match="gate must be"):
        emfc.compile(families, gate="sites")
    with pytest.raises(UserError, match="without gates"):
        emfc.compile(families).set_gates(1.0)
    with pytest.raises(UserError, match="a number in"):
        emfc.compile(families, gate="site").set_gates(1.5)


def test_parameters_are_set_by_constrained_value():
    layer = emfc.compile(families)
    layer.set_values({"scale": torch.tensor(2.0)})
    torch.testing.assert_close(layer.values()["scale"].detach(), torch.tensor(2.0))
    noise = torch.zeros(1, layer.dim)
    noise[0, 0] = 1.0
    assert layer()(noise)[0, 0].item() == pytest.approx(3.0)
    with pytest.raises(UserError, match="has no parameter 'loc'; it has scale"):
        layer.set_values({"loc": torch.tensor(1.0)})
    with pytest.raises(UserError, match="violates its constraint"):
        layer.set_values({"scale": torch.tensor(-1.0)})
    with pytest.raises(UserError, match="has shape"):
        layer.set_values({"scale": torch.ones(2)})


def test_two_layers_share_nothing():
    first, second = emfc.compile(families), emfc.compile(families)
    first.set_values({"scale": torch.tensor(7.0)})
    assert second.values()["scale"].item() == pytest.approx(0.5)
    assert len(pyro.get_param_store()) == 0
    third = copy.deepcopy(first)
    third.set_values({"scale": torch.tensor(1.0)})
    assert first.values()["scale"].item() == pytest.approx(7.0)


def test_examples_are_packed_and_unpacked(dtype):
    layer = emfc.compile(families)
    examples = layer()(torch.randn(5, 3, layer.dim))
    values = layer.unpack(examples)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "a": (5, 3), "b": (5, 3, 2), "c": (5, 3), "d": (5, 3), "e": (5, 3, 2), "k": (5, 3),
    }  # fmt: skip
    assert values["k"].dtype == torch.int64
    packed = layer.pack(values)
    assert packed.dtype == dtype
    torch.testing.assert_close(packed[..., :-1], examples[..., :-1].detach())
    assert torch.equal(layer.unpack(packed)["k"], values["k"])
    assert not layer.outside(packed).any()


def test_packing_errors_say_what_is_wrong():
    layer = emfc.compile(populations)
    with pytest.raises(UserError, match="lacks values for 'y'"):
        layer.pack({"x": torch.zeros(3)})
    with pytest.raises(UserError, match="no site 'xx' in an example; did you mean 'x'"):
        layer.pack({"xx": torch.zeros(3), "y": torch.zeros(3)})
    with pytest.raises(UserError, match="different numbers of examples"):
        layer.pack({"x": torch.zeros(3), "y": torch.zeros(4)})
    other = emfc.compile(families)
    values = other.unpack(torch.ones(1, 8))
    with pytest.raises(UserError, match="whole numbers"):
        other.pack({**values, "k": torch.tensor([0.5])})
    with pytest.raises(UserError, match="has 2 elements, not 3"):
        layer().inv(torch.zeros(4, 3))


def test_element_names_and_levels():
    layer = emfc.compile(families)
    assert layer.element_names() == ["a", "b[0]", "b[1]", "c", "d", "e[0]", "e[1]", "k"]
    assert layer.levels is None

    def counts():
        pyro.sample("k", dist.Categorical(torch.ones(2, 3)).to_event(1))
        pyro.sample("n", dist.Binomial(5, torch.tensor(0.3)))
        pyro.sample("b", dist.Bernoulli(0.3))

    assert emfc.compile(counts).levels == [3, 3, 6, 2]


def test_values_outside_the_support_are_found_and_have_density_zero():
    layer = emfc.compile(families)
    examples = layer()(torch.randn(6, layer.dim)).detach()
    examples[0, 1] = -1.0  # LogNormal
    examples[1, 3] = -0.5  # Exponential
    examples[2, 4] = 3.5  # Uniform(-1, 3)
    examples[3, 7] = 3.0  # three levels: [0, 3)
    examples[4, 0] = math.nan
    outside = layer.outside(examples)
    assert [index.tolist() for index in outside.nonzero()] == [[0, 1], [1, 3], [2, 4], [3, 7], [4, 0]]
    log_prob = layer().log_prob(examples)
    assert torch.isneginf(log_prob[:4]).all()
    assert log_prob[5].isfinite()


def test_the_constraint_map_inverts():
    layer = emfc.compile(families)
    real = torch.randn(20, layer.dim)
    value, ladj = layer.constraint_map().call_and_ladj(real)
    back, inverse = layer.constraint_map().inv.call_and_ladj(value)
    torch.testing.assert_close(back, real, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(inverse, -ladj, rtol=1e-3, atol=1e-3)


def test_a_support_that_moves_has_no_constraint_map():
    with pytest.raises(CompileError, match="depends on other sites") as caught:
        emfc.compile(moving_support).constraint_map()
    assert caught.value.code == "E-SUPPORT"
    assert caught.value.site == "b"


def test_batch_shapes_of_any_rank():
    layer = emfc.compile(populations)
    flat = layer()(torch.randn(6, layer.dim))
    for shape in ((), (6,), (2, 3), (0,)):
        noise = torch.randn(*shape, layer.dim)
        value, ladj = layer().call_and_ladj(noise)
        assert value.shape == (*shape, layer.dim)
        assert ladj.shape == shape
        assert layer().log_prob(value).shape == shape
    assert flat.shape == (6, layer.dim)


def test_the_layer_tells_what_it_became():
    layer = emfc.compile(populations)
    told = {row["name"]: row for row in layer.rows()}
    assert told["z"]["transform"] == "summed out (2 populations)"
    assert told["x"]["parents"] == ["z"]
    assert told["y"]["parents"] == ["z", "x"]
    assert told["y"]["transform"] == "mixture of 2 x Normal"
    text = layer.explain()
    assert "1 discrete sites summed out, 2 populations" in text
    assert "density in 1 stage" in text


def test_double_precision_layers_of_single_precision_programs():
    layer = emfc.compile(populations).to(torch.float64)
    value = layer()(torch.randn(4, layer.dim, dtype=torch.float64))
    assert value.dtype == torch.float64


def test_stored_modules_are_as_before_after_compiling():
    linear = torch.nn.Linear(2, 2)
    before = copy.deepcopy(linear.state_dict())

    def model():
        held = pyro.module("net", linear)
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(held(a), 1.0).to_event(1))

    layer = emfc.compile(model)
    assert set(layer.values()) == {"net$$$weight", "net$$$bias"}
    for name, value in linear.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_copied_layer_computes_the_same(model):
    layer = emfc.compile(model, gate="site")
    other = copy.deepcopy(layer)
    noise = torch.randn(3, layer.dim)
    assert torch.equal(layer()(noise), other()(noise))
    assert layer.rows() == other.rows()


def test_a_single_example_is_unpacked():
    layer = emfc.compile(populations)
    assert layer.unpack(torch.zeros(2))["x"].shape == ()
    assert layer.pack({"x": torch.tensor(0.0), "y": torch.tensor(1.0)}).shape == (2,)


def test_values_outside_may_break_what_reads_them():
    def model():
        a = pyro.sample("a", dist.Exponential(1.0))
        pyro.sample("x", dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), a * torch.ones(2)))
        pyro.sample("y", dist.Uniform(0.0, a))

    layer = emfc.compile(model)
    examples = layer()(torch.randn(3, layer.noise_dim)).detach()
    alone = layer().log_prob(examples)
    broken = examples.clone()
    broken[1, 0] = -3.0  # no variance
    assert layer.outside(broken)[:, 0].tolist() == [False, True, False]
    log_prob = layer().log_prob(broken)
    assert torch.isneginf(log_prob[1])
    torch.testing.assert_close(log_prob[[0, 2]], alone[[0, 2]])
    assert layer().inv(broken).isfinite().all()


def test_matrices_are_outside_one_by_one():
    layer = emfc.compile(lambda: pyro.sample("w", dist.Wishart(torch.tensor(4.0), scale_tril=torch.eye(2))))
    assert (layer.dim, layer.noise_dim) == (4, 3)
    examples = torch.tensor([[2.0, 0.5, 0.5, 1.0], [2.0, 0.5, 0.4, 1.0], [1.0, 2.0, 2.0, 1.0]])
    assert layer.outside(examples).any(-1).tolist() == [False, True, True]
    assert layer.outside(examples).all(-1).tolist() == [False, True, True]
    assert layer().log_prob(examples).isfinite().tolist() == [True, False, False]


def test_sites_with_fewer_noises_than_values():
    def model():
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
        pyro.sample("fixed", dist.Delta(2 * shares, event_dim=1))
        with pyro.plate("rows", 2):
            pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(1.5)))

    layer = emfc.compile(model, gate="element")
    assert (layer.dim, layer.noise_dim) == (24, 8)
    assert emfc.parse(model).noise_dim == 8
    assert "D=24, N=8" in repr(layer)
    shapes = {name: tuple(gate.shape) for name, gate in layer.gate_values().items()}
    assert shapes == {"shares": (2,), "fixed": (0,), "factor": (2, 3)}
    with pytest.raises(UserError, match="takes 8 noise numbers, not 24"):
        layer()(torch.zeros(24))
    assert layer().forward_shape((5, 8)) == (5, 24)
    assert layer().inverse_shape((5, 24)) == (5, 8)
    with pytest.raises(CompileError, match=r"pyro\.deterministic"):
        layer.constraint_map()


def test_a_value_that_is_no_number_spoils_its_own_row_alone():
    def model():
        for t in range(2):
            pyro.sample(f"x_{t}", dist.Laplace(0.0, 0.5))

    x = torch.tensor([[0.0, torch.nan], [-1e3, 1.0]])
    for optimize in (True, False):
        layer = emfc.compile(model, optimize=optimize)
        alone = layer().inv.call_and_ladj(x[1:])
        for found, expected in zip(layer().inv.call_and_ladj(x), alone, strict=True):
            torch.testing.assert_close(found[1:], expected)
        assert layer().log_prob(x).isnan().tolist() == [True, False]


def test_a_constant_density_has_no_slope(dtype):
    def model():
        pyro.sample("x", dist.Uniform(torch.zeros(3), 1.0).to_event(1))

    x = torch.full((2, 3), 0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(emfc.compile(model)().log_prob(x).sum(), x)
    assert (slope == 0).all()
