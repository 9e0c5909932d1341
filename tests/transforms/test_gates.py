"""The laws of gates: always in the support, the program at 1, the constraint map at 0, invertible between."""

from __future__ import annotations

import math

import pytest
import torch

from emfc.transforms import UnsupportedFamilyError, from_normal, gated, unconstrained_map
from emfc.transforms.gates import GatedReal
from tests.transforms.cases import BOUND, CASES, DTYPES, GATED, LIMIT, noise_grid, round_trip_error

EVERY = pytest.mark.parametrize("name", GATED)
GATES = pytest.mark.parametrize("gate", [0.0, 0.03, 0.5, 0.9, 1.0])


def make(name, gate, dtype=torch.float64):
    return gated(from_normal(CASES[name].dist(dtype)), torch.as_tensor(gate, dtype=dtype))


@EVERY
@GATES
@pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
def test_round_trip(name, gate, precision):
    transform = make(name, gate, precision)
    noise = noise_grid(CASES[name], precision, min(LIMIT[precision], CASES[name].reach), 101)
    value, error, allowed = round_trip_error(transform, noise)
    assert torch.isfinite(value).all()
    assert transform.codomain.check(value).all()
    assert (error <= allowed).all(), (error / allowed).max()


@EVERY
def test_open_gate_is_the_program_and_closed_gate_the_constraint_map(name):
    case = CASES[name]
    noise = noise_grid(case, torch.float64, 3.0)
    program = from_normal(case.dist(torch.float64))
    for gate, expected in ((1.0, program), (0.0, unconstrained_map(program.codomain))):
        transform = make(name, gate)
        value, ladj = transform.call_and_ladj(noise)
        torch.testing.assert_close(value, expected(noise).expand_as(value), rtol=1e-8, atol=1e-8)
        reference = expected.call_and_ladj(noise)[1]
        torch.testing.assert_close(ladj, reference.expand_as(ladj), rtol=1e-8, atol=1e-8)
        back, inverse_ladj = transform.inv.call_and_ladj(value)
        torch.testing.assert_close(back, noise.expand_as(back), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-6, atol=1e-6)
        assert transform.discrete == case.discrete


@EVERY
@GATES
def test_log_jacobian_is_that_of_autograd(name, gate):
    transform = make(name, gate)
    noise = noise_grid(CASES[name], torch.float64, 2.5, 5) + 0.0123
    value, ladj = transform.call_and_ladj(noise)
    inverse_ladj = transform.inv.call_and_ladj(value)[1]
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-7, atol=1e-7)
    if CASES[name].event_dim:
        pick = CASES[name].free.pick
        jacobian = torch.func.vmap(torch.func.jacrev(lambda e: pick(transform(e))))(noise)
        expected = torch.linalg.slogdet(jacobian)[1]
    else:
        leaf = noise.clone().requires_grad_()
        expected = torch.autograd.grad(transform(leaf).sum(), leaf)[0].log()
    torch.testing.assert_close(ladj, expected, rtol=1e-7, atol=1e-7)


@EVERY
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("gate", [0.0, 0.4, 0.95, 1.0])
def test_gradients_agree_with_differences(name, direction, gate):
    """Central differences; one-sided ones of third order for a gate at the end of its range."""
    case = CASES[name]
    noise = noise_grid(case, torch.float64, 1.5, 2) + 0.0123
    values = make(name, gate)(noise).detach()
    torch.manual_seed(1)
    weights = torch.rand(2, *noise.shape, dtype=torch.float64) + 0.5

    def score(x, lam, *parameters):
        transform = gated(from_normal(case.build(*parameters)), lam)
        forward = direction == "forward"
        y, ladj = transform.call_and_ladj(x) if forward else transform.inv.call_and_ladj(case.free.fill(x))
        y = case.free.pick(y) if forward else y
        return (weights[0] * y).sum() + (weights[1].flatten()[: ladj.numel()] * ladj.flatten()).sum()

    inputs = [noise if direction == "forward" else case.free.pick(values), torch.tensor(gate, dtype=torch.float64)]
    inputs += case.tensors(torch.float64)
    leaves = [t.clone().requires_grad_() for t in inputs]
    gradients = torch.autograd.grad(score(*leaves), leaves, allow_unused=gate == 0.0)
    for index, gradient in enumerate(gradients):
        torch.manual_seed(index)
        toward = torch.rand_like(inputs[index]) + 0.5
        if index > 1 and "tril" in name + "".join(case.parameters):
            toward = toward.tril() if toward.dim() == 2 else toward

        def along(step, index=index, toward=toward):
            moved = list(inputs)
            moved[index] = inputs[index] + step * toward
            return score(*moved)

        h = 1e-4
        if index == 1 and gate in (0.0, 1.0):
            s = h if gate == 0.0 else -h
            stencil = (-11 / 6, 3.0, -3 / 2, 1 / 3)
            expected = sum(w * along(k * s) for k, w in enumerate(stencil)) / s
        else:
            expected = (8 * (along(h / 2) - along(-h / 2)) - (along(h) - along(-h))) / (6 * h)
        found = torch.zeros(()) if gradient is None else (gradient * toward).sum()
        tolerance = 1e-6 * max(1.0, abs(float(expected)))
        assert abs(float(found - expected)) <= tolerance, (index, float(found), float(expected))


@EVERY
def test_vmap_and_gate_per_element(name):
    case = CASES[name]
    if "counts" in name:
        pytest.skip("the number of levels is fixed outside")
    shape = case.noise_shape()
    gate = torch.linspace(0.1, 0.9, math.prod(shape), dtype=torch.float64).reshape(shape)
    transform = gated(from_normal(case.dist(torch.float64)), gate)
    noise = noise_grid(case, torch.float64, 2.0, 3)
    value = transform(noise)
    torch.testing.assert_close(torch.func.vmap(transform)(noise), value, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.func.vmap(transform.inv)(value), noise, rtol=1e-7, atol=1e-7)


@EVERY
def test_outside_the_support_is_minus_infinity(name):
    transform = make(name, 0.5)
    inner = getattr(transform.codomain, "base_constraint", transform.codomain)
    value = torch.full(CASES[name].value_shape(), -1e3, dtype=torch.float64)
    if inner.event_dim == 0 and not inner.check(value).any():
        noise, ladj = transform.inv.call_and_ladj(value)
        assert torch.isfinite(noise).all()
        assert (ladj == -math.inf).all()


def test_affine_families_stay_closed_forms():
    assert not isinstance(make("normal", 0.5), GatedReal)
    assert not isinstance(make("lognormal", 0.5).core, GatedReal)
    assert not isinstance(make("multivariate normal by cholesky", 0.5), GatedReal)


def test_random_gates_and_tables():
    """Many random tables and gates at once: every element within the bound."""
    for dtype in DTYPES:
        logits = 4 * torch.randn(500, 17, dtype=dtype)
        transform = gated(from_normal(torch.distributions.Categorical(logits=logits)), torch.rand(500, dtype=dtype))
        noise = torch.randn(50, 500, dtype=dtype) * LIMIT[dtype] / 4
        _, error, allowed = round_trip_error(transform, noise.clamp(-LIMIT[dtype], LIMIT[dtype]))
        assert (error <= allowed).all(), (error / allowed).max()
        assert BOUND[dtype] > 0


def test_a_vector_transform_that_is_not_affine_is_refused():
    transform = from_normal(CASES["affine of a multivariate normal"].dist(torch.float64))
    with pytest.raises(UnsupportedFamilyError, match="MultivariateNormal"):
        gated(transform, torch.tensor(0.5))
