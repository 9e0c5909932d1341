"""The laws of gates on parameters: the program at 1, the constraint map at 0, invertible between."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td

from emfc.transforms import from_normal, gated, unconstrained_map
from emfc.transforms.parameter_gates import gate_on_parameters
from tests.transforms.cases import CASES, DTYPES, GATED, LIMIT, noise_grid, round_trip_error


def _has_location_and_scale(name):
    transform = from_normal(CASES[name].dist(torch.float64))
    while hasattr(transform, "dims"):
        transform = transform.base
    return gate_on_parameters(transform.unconstrained(), torch.tensor(0.5, dtype=torch.float64)) is not None


EVERY = pytest.mark.parametrize("name", [name for name in GATED if _has_location_and_scale(name)])
GATES = pytest.mark.parametrize("gate", [0.0, 0.03, 0.5, 0.9, 1.0])


def make(name, gate, dtype=torch.float64):
    return gated(from_normal(CASES[name].dist(dtype)), torch.as_tensor(gate, dtype=dtype), form="parameter")


@EVERY
@GATES
@pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
def test_round_trip(name, gate, precision):
    transform = make(name, gate, precision)
    noise = noise_grid(CASES[name], precision, min(LIMIT[precision], CASES[name].reach), 41)
    value, error, allowed = round_trip_error(transform, noise)
    assert torch.isfinite(value).all()
    assert transform.codomain.check(value).all()
    assert (error <= 2 * allowed).all(), (error / allowed).max()


@EVERY
def test_open_gate_is_the_program_and_closed_gate_the_constraint_map(name):
    noise = noise_grid(CASES[name], torch.float64, 3.0)
    program = from_normal(CASES[name].dist(torch.float64))
    for gate, expected in ((1.0, program), (0.0, unconstrained_map(program.codomain))):
        value, ladj = make(name, gate).call_and_ladj(noise)
        torch.testing.assert_close(value, expected(noise).expand_as(value), rtol=1e-8, atol=1e-8)
        reference = expected.call_and_ladj(noise)[1]
        torch.testing.assert_close(ladj, reference.expand_as(ladj), rtol=1e-8, atol=1e-8)


@EVERY
@GATES
def test_log_jacobian_is_that_of_autograd(name, gate):
    transform = make(name, gate)
    noise = noise_grid(CASES[name], torch.float64, 2.5, 3) + 0.0123
    value, ladj = transform.call_and_ladj(noise)
    torch.testing.assert_close(transform.inv.call_and_ladj(value)[1], -ladj, rtol=1e-7, atol=1e-7)
    if CASES[name].event_dim:
        pick = CASES[name].free.pick

        def moved(flat, shape):
            return pick(transform(flat.reshape(shape)))

        for row in range(len(noise)):
            flat = noise[row].reshape(-1)
            jacobian = torch.autograd.functional.jacobian(lambda x, s=noise[row].shape: moved(x, s).reshape(-1), flat)
            expected = torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(ladj[row].sum(), expected, rtol=1e-6, atol=1e-6)
        return
    held = noise.clone().requires_grad_()
    slope = torch.autograd.grad(transform(held).sum(), held)[0]
    torch.testing.assert_close(ladj.expand_as(slope), slope.log(), rtol=1e-6, atol=1e-6)


FORMS = {
    "normal": lambda loc, scale: td.Normal(loc, scale),
    "lognormal": lambda loc, scale: td.LogNormal(loc, scale),
    "independent": lambda loc, scale: td.Independent(td.Normal(loc.expand(1), scale), 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_location_and_scale_are_what_is_gated(name):
    gate, loc, scale = (torch.tensor(value, dtype=torch.float64) for value in (0.3, 2.0, 0.4))
    transform = gated(from_normal(FORMS[name](loc, scale)), gate, form="parameter")
    noise = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    expected = loc + scale**gate * (noise - (1 - gate) * loc)
    value = transform(noise)
    torch.testing.assert_close(value.log() if name == "lognormal" else value, expected)


@pytest.mark.parametrize("name", ["gamma", "beta", "uniform"])
def test_other_families_are_mixed_in_value(name):
    families = {"gamma": td.Gamma(2.0, 1.5), "beta": td.Beta(2.0, 3.0), "uniform": td.Uniform(-1.0, 2.0)}
    transform = from_normal(families[name])
    noise, gate = torch.linspace(-2, 2, 7), torch.tensor(0.3)
    torch.testing.assert_close(gated(transform, gate, form="parameter")(noise), gated(transform, gate)(noise))


def test_gradients_reach_the_gate_at_its_ends():
    for end in (0.0, 1.0):
        gate = torch.tensor(end, dtype=torch.float64, requires_grad=True)
        base = from_normal(td.StudentT(4.0, torch.tensor(1.0, dtype=torch.float64), 2.0))
        transform = gated(base, gate, form="parameter")
        value, ladj = transform.call_and_ladj(torch.tensor([0.7], dtype=torch.float64))
        (slope,) = torch.autograd.grad(value.sum() + ladj.sum(), gate)
        assert torch.isfinite(slope)
