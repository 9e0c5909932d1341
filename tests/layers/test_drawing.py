"""The sampling direction of an optimised layer draws the numbers of the reference, site by site."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc.layers.drawing import Drawing
from emfc.layers.latents import Gates
from emfc.layers.schedule import components
from tests.programs.accepted import PROGRAMS
from tests.programs.chains import AFFINE, LOOPS
from tests.programs.recurrences import RECURRENCES, recurrence

ROWS = 4
NAMED = {**AFFINE, **LOOPS}
UNGATED = ("vector_bijections",)
GATES = (None, "site", "element")


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request, _clean_state):
    torch.set_default_dtype(request.param)
    return request.param


def compiled(model, *args, gate=None, **kwargs):
    """A program with and without optimisation, with the same gates."""
    pair = [emfc.compile(model, *args, gate=gate, optimize=optimize, **kwargs) for optimize in (True, False)]
    if gate:
        logits = 2 * torch.randn(pair[0].gate_logits.shape, generator=torch.Generator().manual_seed(1))
        for layer in pair:
            layer.gate_logits.data.copy_(logits)
    return pair


def outcome(layer, noise):
    """Examples, log-Jacobians and gradients by the noise and by every parameter."""
    held = noise.clone().requires_grad_()
    examples, ladj = layer.sampling(held, layer.flat_parameters(held), Gates(layer.element_gates()))
    weights = torch.linspace(0.5, 1.5, examples.numel()).reshape(examples.shape)
    wanted = [held, *layer.parameters()]
    loss = (weights * torch.tanh(examples)).sum() + ladj.sum()
    if not loss.requires_grad:
        return examples, ladj
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return examples, ladj, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients, strict=True))


def check(layer, reference, dtype):
    assert isinstance(layer.sampling, Drawing)
    noise = torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(2))
    tight = 1e-8 if dtype is torch.float64 else 2e-3
    for actual, expected in zip(outcome(layer, noise), outcome(reference, noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tight, atol=tight)
    assert torch.equal(layer()(noise), layer().call_and_ladj(noise)[0])
    empty, ladj = layer().call_and_ladj(noise[:0])
    assert (empty.shape, ladj.shape) == ((0, layer.dim), (0,))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in UNGATED])
def test_the_corpus_with_gates(name):
    """Without gates, and in float32, see the second law of `tests/test_laws.py`."""
    model, args, kwargs = PROGRAMS[name].build()
    layer, reference = compiled(model, *args, gate="element", **kwargs)
    if not layer.plan.populations.sites:
        check(layer, reference, torch.float64)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", NAMED)
def test_chains_loops_and_levels(name, gate, dtype):
    if gate == "site" and dtype is torch.float32:
        pytest.skip("gates of whole sites are checked in float64")
    check(*compiled(NAMED[name], gate=gate), dtype)


@pytest.mark.parametrize("gate", [None, "element"])
@pytest.mark.parametrize("name", RECURRENCES)
def test_carried_values(name, gate, dtype):
    check(*compiled(recurrence(name), 24, gate=gate), dtype)


EXPECTED = {
    "side_by_side": ["3 x Normal at once", "87 x Normal in 3 chains by a scan of step 1"],
    "volatility": ["1 x Normal at once", "29 x Normal by a scan of step 1", "29 x Normal at once"],
    "lorenz": ["3 x Normal at once", "57 x polynomials in a loop of 133 operations"],
    "lorenz_vector": ["1 x Normal at once", "19 x polynomials in a loop of 152 operations"],
    "pendulum": ["2 x Normal at once", "38 x 2 kinds of Normal in a straight-line loop of 38 steps"],
    "several_systems": ["4 x Normal at once", "44 x Normal in a loop over levels of 11 steps"],
    "seasonal": ["5 x Normal at once", "45 x Normal by a scan of step 5"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_stages_are_told(name):
    layer = emfc.compile(NAMED[name])
    assert layer.sampling.describe() == EXPECTED[name]
    assert all(line in layer.explain() for line in EXPECTED[name])


def test_no_loop_over_a_trend_and_what_is_measured_of_it():
    """Steps of the trend and measurements of the level are one class, and yet no row waits in a loop."""
    layer = emfc.compile(NAMED["local_trend"])
    assert len(layer.plan.kernels) < len(layer.sampling.describe())
    assert not any("loop" in line for line in layer.sampling.describe())


def test_half_precision_takes_the_reference():
    torch.set_default_dtype(torch.float32)
    layer, reference = compiled(NAMED["volatility"])
    noise = torch.randn(3, layer.noise_dim).to(torch.bfloat16)
    for actual, expected in zip(layer().call_and_ladj(noise), reference().call_and_ladj(noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["lorenz", "local_trend", "second_order", "heteroscedastic"])
def test_functions_that_transform_functions(name):
    """`vmap` over noises and forward derivatives agree with the plain call."""
    layer = emfc.compile(NAMED[name])
    noise = torch.randn(3, layer.noise_dim)
    plain, ladj = layer().call_and_ladj(noise)
    mapped, mapped_ladj = torch.func.vmap(lambda held: layer().call_and_ladj(held))(noise)
    torch.testing.assert_close(mapped, plain)
    torch.testing.assert_close(mapped_ladj, ladj)
    direction = torch.randn_like(noise)
    _, moved = torch.func.jvp(lambda held: layer()(held), (noise,), (direction,))
    step = 1e-6
    near = (layer()(noise + step * direction) - layer()(noise - step * direction)) / (2 * step)
    torch.testing.assert_close(moved, near, rtol=1e-5, atol=1e-6)


def test_forward_mode_outside_function_transforms():
    layer = emfc.compile(NAMED["drifting_walk"])
    noise, direction = torch.randn(2, 3, layer.noise_dim).unbind(0)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(noise, direction)
        moved = torch.autograd.forward_ad.unpack_dual(layer()(dual)).tangent
    _, expected = torch.func.jvp(lambda held: layer()(held), (noise,), (direction,))
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("name", ["second_order", "lorenz", "grid"])
def test_jacobians_of_many_rows_at_once(name):
    layer = emfc.compile(NAMED[name])
    noise = torch.randn(layer.noise_dim)
    rows = torch.autograd.functional.jacobian(lambda held: layer()(held), noise)
    at_once = torch.autograd.functional.jacobian(lambda held: layer()(held), noise, vectorize=True)
    torch.testing.assert_close(at_once, rows)


@pytest.mark.parametrize("name", ["lorenz", "local_trend", "several_systems", "gamma_chain"])
def test_a_layer_travels(name):
    """A layer that has drawn is copied and pickled without the functions that it wrote."""
    layer = emfc.compile(NAMED[name])
    noise = torch.randn(3, layer.noise_dim)
    expected = layer()(noise)
    for other in (copy.deepcopy(layer.sampling), pickle.loads(pickle.dumps(layer.sampling))):
        actual, _ = other(noise, layer.flat_parameters(noise), Gates(None))
        assert torch.equal(actual, expected)


EDGES = [
    ([[], [0], [1]], [[0], [1], [2]]),
    ([[2], [0], [1]], [[0, 1, 2]]),
    ([[1], [], [0, 3], [2]], [[1], [0], [2, 3]]),
    ([[0], [0]], [[0], [1]]),
    ([[1], [0], [1, 3], [2], [3, 0]], [[0, 1], [2, 3], [4]]),
]


@pytest.mark.parametrize(("edges", "expected"), EDGES)
def test_components_come_after_what_they_read(edges, expected):
    assert [sorted(held) for held in components(edges)] == expected


def test_components_of_a_long_chain():
    count = 20_000
    assert components([[], *([place] for place in range(count - 1))]) == [[place] for place in range(count)]


def test_polynomials_have_few_terms():
    """Brackets, stacks and vectors vanish: each term of a coordinate is one operation."""
    layer = emfc.compile(NAMED["lorenz_vector"])
    reference = emfc.compile(NAMED["lorenz_vector"], optimize=False)
    with torch.no_grad():
        layer.unconstrained[0].fill_(7.0)
        reference.unconstrained[0].fill_(7.0)
    check(layer, reference, torch.float64)


def test_carried_polynomials():
    """A carried value with a constant, a square and a cube, and a site that reads it."""

    def model():
        total = torch.zeros(())
        for t in range(24):
            x = pyro.sample(f"x_{t}", dist.Normal(0.3 - 0.1 * total * total, 1.0))
            total = 0.5 * total + 0.1 * x * x - 0.01 * x * x * total + 0.3

    layer, reference = compiled(model)
    assert any("polynomials" in line for line in layer.sampling.describe())
    check(layer, reference, torch.float64)


def test_what_may_cancel_is_not_expanded():
    """x + 1000 (x - y) keeps its brackets."""

    def model():
        x, y = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("x_0", "y_0"))
        for t in range(1, 5):
            x, y = (
                pyro.sample(f"x_{t}", dist.Normal(x + 1000.0 * (x - y) * x, 1.0)),
                pyro.sample(f"y_{t}", dist.Normal(y + 0.1 * x, 1.0)),
            )

    assert any("straight-line" in line for line in emfc.compile(model).sampling.describe())


def test_second_derivatives():
    layer = emfc.compile(NAMED["learned_by_all"])
    noise = torch.randn(2, layer.noise_dim, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda held: layer()(held)[:, -1], (noise,))


def test_one_tensor_in_two_parameters(dtype):
    """A location that is affine in the step before, and is the scale as well, makes no chain."""

    def model():
        x = pyro.sample("x_0", dist.Normal(0.0, 0.1))
        for t in range(1, 20):
            mean = 5 + 0.05 * x
            x = pyro.sample(f"x_{t}", dist.Normal(mean, mean))

    check(*compiled(model), dtype)
