"""The constraint maps of vectors and matrices: torch's conventions, exact tails, draws inside, nothing NaN outside."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import constraints
from torch.distributions import transforms as tt

from emfc.transforms import UnsupportedFamilyError, unconstrained_map
from emfc.transforms.ordered import OrderedMap
from emfc.transforms.packed_triangle import packed, side_of_triangle, triangle
from tests.transforms.case import CORRELATIONS, EVERY, SIMPLEX, SYMMETRIC, UNIT_ROWS, _lower

MAPS = {
    "simplex": (constraints.simplex, lambda d: d - 1, SIMPLEX.pick),
    "ordered vector": (constraints.ordered_vector, lambda d: d, EVERY.pick),
    "correlation factor": (constraints.corr_cholesky, lambda d: d * (d - 1) // 2, UNIT_ROWS.pick),
    "correlation matrix": (constraints.corr_matrix, lambda d: d * (d - 1) // 2, CORRELATIONS.pick),
    "lower factor": (constraints.lower_cholesky, lambda d: d * (d + 1) // 2, _lower(0)),
    "positive definite": (constraints.positive_definite, lambda d: d * (d + 1) // 2, SYMMETRIC.pick),
    "real vector": (constraints.real_vector, lambda d: d, EVERY.pick),
    "positive vector": (constraints.independent(constraints.positive, 1), lambda d: d, EVERY.pick),
}
EACH = pytest.mark.parametrize("name", MAPS)


def coordinates(name, side, scale=1.0, batch=(7,), dtype=torch.float64):
    torch.manual_seed(side)
    return scale * torch.randn(*batch, MAPS[name][1](side), dtype=dtype)


@EACH
@pytest.mark.parametrize("side", [2, 3, 5])
def test_inverse_log_jacobian_and_shapes(name, side):
    constraint, count, pick = MAPS[name]
    transform = unconstrained_map(constraint)
    x = coordinates(name, side, batch=(4, 3))
    value, ladj = transform.call_and_ladj(x)
    shape = (side,) * transform.codomain.event_dim
    assert value.shape == (4, 3, *shape) == transform.forward_shape(x.shape) == transform.inv.inverse_shape(x.shape)
    assert x.shape == transform.inverse_shape(value.shape) == transform.inv.forward_shape(value.shape)
    assert x.shape[-1] == count(side)
    assert ladj.shape == (4, 3)
    assert constraint.check(value).all()
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-9, atol=1e-9)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: pick(transform.call_and_ladj(y)[0])))(x.flatten(0, 1))
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1].reshape(4, 3), ladj, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("constraint", "theirs"),
    [(constraints.simplex, tt.StickBreakingTransform()), (constraints.corr_cholesky, tt.CorrCholeskyTransform())],
)
def test_conventions_are_those_of_torch(constraint, theirs):
    x = torch.randn(20, 10, dtype=torch.float64)
    ours, ladj = unconstrained_map(constraint).call_and_ladj(x)
    torch.testing.assert_close(ours, theirs(x), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ladj, theirs.log_abs_det_jacobian(x, ours), rtol=1e-9, atol=1e-11)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [3.0, 30.0, 1e3])
@pytest.mark.parametrize("side", [2, 3, 10])
def test_far_coordinates_give_values_inside(name, dtype, scale, side):
    constraint = MAPS[name][0]
    transform = unconstrained_map(constraint)
    x = coordinates(name, side, scale, (200,), dtype).requires_grad_()
    value, ladj = transform.call_and_ladj(x)
    assert constraint.check(value.detach()).all()
    assert torch.isfinite(value).all()
    assert torch.isfinite(ladj).all()
    if name == "simplex":
        assert (value > 0).all()
    leaf = value.detach().requires_grad_()
    back, inverse_ladj = transform.inv.call_and_ladj(leaf)
    assert torch.isfinite(back).all()
    assert torch.isfinite(inverse_ladj).all()
    for output, argument in ((value.sum() + ladj.sum(), x), (back.sum() + inverse_ladj.sum(), leaf)):
        assert not torch.isnan(torch.autograd.grad(output, argument)[0]).any()


@EACH
@pytest.mark.parametrize("wrong", [0.0, -1.0, 3.0, -1e30, math.inf, -math.inf])
def test_values_outside_have_log_jacobian_minus_infinity(name, wrong):
    if name == "real vector" and math.isfinite(wrong):
        return
    transform = unconstrained_map(MAPS[name][0])
    if name == "positive vector" and 0 < wrong < math.inf:
        return
    value = torch.full((5, *(3,) * transform.codomain.event_dim), wrong, dtype=torch.float64, requires_grad=True)
    if name == "real vector":
        assert (transform.inv.call_and_ladj(value)[1] == -math.inf).all()
        return
    coordinate, ladj = transform.inv.call_and_ladj(value)
    assert torch.isfinite(coordinate).all()
    assert (ladj == -math.inf).all()
    assert not torch.isnan(torch.autograd.grad(coordinate.sum(), value)[0]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_empty_and_nearly_full_sticks_lose_no_digits(dtype):
    """Each part from e^-60 to 1 - e^-60 of what is left, against mpmath."""
    x = torch.tensor([[-60.0, 20.0, -25.0, 20.0], [20.0, 20.0, -20.0, 5.0], [0.1, -0.2, 30.0, -30.0]], dtype=dtype)
    if dtype == torch.float64:
        x = 5 * x
    transform = unconstrained_map(constraints.simplex)
    value, ladj = transform.call_and_ladj(x)
    eps = torch.finfo(dtype).eps
    with mp.workdps(400):
        for row in range(3):
            left, log_jacobian = mp.mpf(1), mp.mpf(0)
            for place in range(4):
                z = 1 / (1 + (4 - place) * mp.exp(-mp.mpf(x[row, place].item())))
                exact = z * left
                log_jacobian += mp.log(exact) + mp.log(1 - z)
                left *= 1 - z
                assert abs(value[row, place].item() / exact - 1) < 400 * eps
            assert abs(value[row, 4].item() / left - 1) < 400 * eps
            assert abs(ladj[row].item() / log_jacobian - 1) < 8 * eps
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, x, rtol=8 * eps, atol=8 * eps)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_partial_correlations_near_one_lose_no_digits(dtype):
    scale = 1.0 if dtype == torch.float32 else 8.0
    x = scale * torch.tensor([[16.0, -1.0, 9.0], [-16.0, 12.0, -12.0], [0.001, -14.0, 0.02]], dtype=dtype)
    transform = unconstrained_map(constraints.corr_cholesky)
    value, ladj = transform.call_and_ladj(x)
    eps = torch.finfo(dtype).eps
    with mp.workdps(400):
        for row in range(3):
            t = [mp.tanh(mp.mpf(number.item())) for number in x[row]]
            exact = [t[0], mp.sqrt(1 - t[0] ** 2), t[1], t[2] * mp.sqrt(1 - t[1] ** 2)]
            exact.append(mp.sqrt((1 - t[1] ** 2) * (1 - t[2] ** 2)))
            found = [value[row, i, j].item() for i, j in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2))]
            for one, other in zip(found, exact, strict=True):
                assert abs(one / other - 1) < 300 * eps
            log_jacobian = mp.log(1 - t[0] ** 2) + mp.log(1 - t[2] ** 2) + 1.5 * mp.log(1 - t[1] ** 2)
            assert abs(ladj[row].item() / log_jacobian - 1) < 8 * eps
    back, _ = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, x, rtol=8 * eps, atol=8 * eps)


def test_identity_has_gradients():
    """Zero correlations, where a formula by logs of absolute values has none."""
    transform = unconstrained_map(constraints.corr_cholesky)
    for function in (lambda v: transform.inv(v), lambda v: transform.inv.call_and_ladj(v)[1]):
        leaf = torch.eye(3, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(function(leaf).sum(), leaf)[0]
        assert torch.isfinite(gradient).all()
    slope = torch.func.jacrev(transform.inv)(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(_lower(-1)(slope), torch.eye(3, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.float64])
)
def test_ordered_vectors_are_strictly_ordered(numbers, dtype):
    x = torch.tensor(numbers, dtype=dtype)
    value = OrderedMap().call_and_ladj(x)[0]
    assert constraints.ordered_vector.check(value)
    assert value[0] == x[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_a_large_simplex_are_one(dtype):
    x = 0.5 * torch.randn(20, 999, dtype=dtype)
    value = unconstrained_map(constraints.simplex)(x)
    assert ((value.double().sum(-1) - 1).abs() < 8 * torch.finfo(dtype).eps).all()
    torch.testing.assert_close(
        unconstrained_map(constraints.simplex).inv(value), x, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5
    )


def test_a_simplex_of_one_number():
    value, ladj = unconstrained_map(constraints.simplex).call_and_ladj(torch.zeros(3, 0))
    assert torch.equal(value, torch.ones(3, 1))
    assert torch.equal(ladj, torch.zeros(3))


@EACH
def test_vmap(name):
    transform = unconstrained_map(MAPS[name][0])
    x = coordinates(name, 3)
    for function, argument in ((transform.call_and_ladj, x), (transform.inv.call_and_ladj, transform(x))):
        for one, other in zip(torch.func.vmap(function)(argument), function(argument), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
@EACH
def test_compiles(name):
    transform = unconstrained_map(MAPS[name][0])
    x = coordinates(name, 3).requires_grad_()

    def run(x):
        value, ladj = transform.call_and_ladj(x)
        return (value, ladj, *transform.inv.call_and_ladj(value))

    results = torch.compile(run, fullgraph=True)(x)
    for one, other in zip(results, run(x), strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(parts[0].sum() + parts[1].sum(), x)[0] for parts in (results, run(x))]
    torch.testing.assert_close(*gradients)


def test_triangles_are_in_the_order_of_rows():
    vector = torch.arange(1.0, 7.0)
    expected = torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0], [4.0, 5.0, 6.0]])
    assert torch.equal(triangle(vector, diagonal=True), expected)
    assert torch.equal(packed(expected, diagonal=True), vector)
    strict = triangle(vector, diagonal=False)
    assert strict.shape == (4, 4)
    assert torch.equal(packed(strict, diagonal=False), vector)
    with pytest.raises(ValueError, match="5 numbers"):
        side_of_triangle(5, diagonal=True)


def test_a_support_without_a_map_is_refused():
    with pytest.raises(UnsupportedFamilyError, match="Sphere"):
        unconstrained_map(constraints.sphere)
