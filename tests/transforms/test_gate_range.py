"""Every gate from closed to open, and nearly so, for every family; and gates of triangular maps."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

from emfc.transforms import NormalTransform, TriangularTransform, from_normal, gated
from emfc.transforms.affine import NormalAffine
from tests.transforms.cases import CASES, DTYPES, GATED, LIMIT, noise_grid, round_trip_error

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
GATES = [0.0, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 1.0]


@pytest.mark.parametrize("name", GATED)
@BOTH
def test_every_gate(name, precision):
    """Round trips for all gates at once; gradients by the gate, parameters, noise and values are numbers."""
    case = CASES[name]
    shape = case.noise_shape()
    gate = torch.tensor(GATES, dtype=precision).reshape(-1, 1, *[1] * len(shape)).requires_grad_()
    parameters = [t.requires_grad_() if t.is_floating_point() else t for t in case.tensors(precision)]
    transform = gated(from_normal(case.build(*parameters)), gate)
    noise = noise_grid(case, precision, min(LIMIT[precision], case.reach), 21)
    leaves = [gate, *(t for t in parameters if t.requires_grad)]
    values, error, allowed = round_trip_error(transform, noise.expand(len(GATES), *noise.shape))
    assert torch.isfinite(values).all()
    assert transform.codomain.check(values).all()
    assert (error <= allowed).all(), (error / allowed).flatten(1).amax(1)
    for direction, x in ((transform, noise), (transform.inv, values.detach())):
        x = x.clone().requires_grad_()
        y, ladj = direction.call_and_ladj(x)
        for gradient in torch.autograd.grad(y.sum() + ladj.sum(), [x, *leaves], retain_graph=True):
            assert not torch.isnan(gradient).any()


class Spiral(TriangularTransform):
    """Each element a Laplace or normal whose scale and place depend on the elements before it."""

    size = 4

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def conditional(self, place: int, before: torch.Tensor) -> NormalTransform:
        loc = torch.sin(before).sum(-1) * self.rate
        scale = torch.exp(0.3 * torch.tanh(before).sum(-1)) * self.rate
        if place == 2:
            return NormalAffine(loc, scale)
        return from_normal(td.Laplace(loc, scale, validate_args=False))


@pytest.fixture
def rate():
    return torch.tensor([0.7, 1.4], requires_grad=True)


def test_a_triangular_map_is_a_bijection(rate):
    transform = Spiral(rate)
    noise = torch.randn(3, 2, 4)
    value, ladj = transform.call_and_ladj(noise)
    assert value.shape == (3, 2, 4)
    assert ladj.shape == (3, 2)
    back, inverse = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(inverse, -ladj)
    jacobian = torch.func.jacrev(lambda e: Spiral(rate.detach()[0])(e))(noise[0, 0])
    assert (jacobian.triu(1) == 0).all()
    torch.testing.assert_close(ladj[0, 0], torch.linalg.slogdet(jacobian)[1])
    assert transform.unconstrained() is transform
    assert transform.domain is constraints.real_vector
    assert repr(transform) == "Spiral(size=4)"


@pytest.mark.parametrize("gate", [0.0, 1e-6, 0.3, [0.1, 1.0, 0.0, 0.8], 1.0], ids=str)
def test_a_triangular_map_has_a_gate(gate, rate):
    gate = torch.tensor(gate)
    base, transform = Spiral(rate), gated(Spiral(rate), gate)
    noise = 2 * torch.randn(3, 2, 4)
    value, ladj = transform.call_and_ladj(noise)
    torch.testing.assert_close(value, gate * base(noise) + (1 - gate) * noise)
    back, inverse = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(inverse, -ladj)
    one = transform.conditional(2, value[..., :2])
    torch.testing.assert_close(one(noise[..., 2]), value[..., 2])

    def inverse_of(value, gate, rate):
        return gated(Spiral(rate), gate).inv.call_and_ladj(value)

    inputs = (value.detach().requires_grad_(), gate.clone().clamp(0.01, 0.99).requires_grad_(), rate)
    assert torch.autograd.gradcheck(inverse_of, inputs, fast_mode=True, atol=1e-6, rtol=1e-4)


def test_gates_of_triangular_maps_work_in_vmap(rate):
    transform = gated(Spiral(rate.detach()), torch.tensor(0.6))
    noise = torch.randn(5, 2, 4)
    value = torch.func.vmap(transform)(noise)
    torch.testing.assert_close(value, transform(noise))
    torch.testing.assert_close(torch.func.vmap(transform.inv)(value), noise)
