"""The incomplete beta function, its inverse and their derivatives against mpmath, over wide ranges of parameters."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.beta import log_beta_tails
from emfc.special.beta_density import beta_normaliser, log_beta_density
from emfc.special.beta_quantile import beta_quantile
from emfc.special.normal import noise_from_tails, tails_from_noise
from tests.transforms.tables.beta import beta_tails

BOTH = pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
LIMIT = {torch.float32: 8.0, torch.float64: 25.0}


def points(count, precision, seed, reach=1.0):
    """Concentrations from 1e-2 to 1e5, very unequal ones too, with x and its complement at noise of any size."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(3, count, dtype=torch.float64, generator=generator)
    a, b = 10 ** (uniform[:2] * 7 - 2)
    noise = (2 * uniform[2] - 1) * LIMIT[precision] * reach
    x, c = beta_quantile(a, b, *tails_from_noise(noise))
    kept = torch.minimum(x, c) > 100 * torch.finfo(precision).tiny
    return [value[kept].to(precision) for value in (a, b, x, c)]


def exact_log_tails(a, b, x, c):
    """By the smaller of x and its complement."""
    tails = beta_tails(x, a, b) if x <= c else beta_tails(c, b, a)[::-1]
    return [mp.log(tail) for tail in tails]


@BOTH
def test_smaller_tail_agrees_with_mpmath(precision):
    given_points = points(60, precision, 1)
    found = torch.stack(log_beta_tails(*given_points))
    bound = 1e-12 if precision == torch.float64 else 3e-5
    for index, arguments in enumerate(zip(*(value.tolist() for value in given_points), strict=True)):
        with mp.workdps(200):
            expected = exact_log_tails(*arguments)
            side = 0 if expected[0] < expected[1] else 1
            error = float(abs(found[side, index].item() - expected[side]))
        assert error <= bound * max(1.0, -float(expected[side])), (arguments, error)


@BOTH
def test_density_agrees_with_mpmath(precision):
    given_points = points(60, precision, 2)
    found = log_beta_density(*given_points)
    bound = 1e-12 if precision == torch.float64 else 3e-5
    for index, (a, b, x, c) in enumerate(zip(*(value.tolist() for value in given_points), strict=True)):
        with mp.workdps(60):
            inner = mp.mpf(x) if x <= c else 1 - mp.mpf(c)
            constant = mp.loggamma(mp.mpf(a) + b) - mp.loggamma(a) - mp.loggamma(b)
            expected = float((mp.mpf(a) - 1) * mp.log(inner) + (mp.mpf(b) - 1) * mp.log(1 - inner) + constant)
        scale = max(1.0, abs(math.log(x)), abs(math.log(c)), abs(expected))
        assert abs(found[index].item() - expected) <= bound * scale, (a, b, x)


@BOTH
def test_shape_derivatives_agree_with_mpmath(precision):
    given_points = points(40, precision, 3, 0.6)
    leaves = [value.clone().requires_grad_() for value in given_points[:2]]
    outputs = log_beta_tails(*leaves, *given_points[2:])
    gradients = [torch.autograd.grad(output.sum(), leaves, retain_graph=True) for output in outputs]
    bound = 1e-9 if precision == torch.float64 else 3e-4
    for index, arguments in enumerate(zip(*(value.tolist() for value in given_points), strict=True)):
        side = 0 if outputs[0][index] < outputs[1][index] else 1
        with mp.workdps(120):
            for place in (0, 1):
                step = mp.mpf(arguments[place]) * mp.mpf(10) ** -15
                ends = []
                for sign in (1, -1):
                    moved = [mp.mpf(value) for value in arguments]
                    moved[place] += sign * step
                    ends.append(exact_log_tails(*moved)[side])
                expected = float((ends[0] - ends[1]) / (2 * step))
            found = gradients[side][place][index].item()
            assert abs(found - expected) <= bound * abs(expected), (arguments, place, found, expected)


@BOTH
@pytest.mark.parametrize("seed", [0, 1])
def test_round_trip_over_all_concentrations(precision, seed):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(3, 40_000, dtype=torch.float64, generator=generator)
    a, b = (10 ** (uniform[:2] * 7 - 2)).to(precision)
    noise = ((2 * uniform[2] - 1) * LIMIT[precision] * (1.0 if seed else 0.1)).to(precision)
    x, c = beta_quantile(a, b, *tails_from_noise(noise))
    assert ((x > 0) & (c > 0) & (x <= 1) & (c <= 1)).all()
    back = noise_from_tails(*log_beta_tails(a, b, x, c))
    shown = torch.minimum(x, c) > 2 * torch.finfo(precision).tiny
    error = ((back - noise).abs() / noise.abs().clamp(min=1))[shown]
    assert shown.double().mean() > 0.6
    assert error.max() < (1e-11 if precision == torch.float64 else 1e-4)


def test_the_complement_carries_what_x_has_lost():
    a, b = torch.tensor([3.0, 1e-2, 2e4]), torch.tensor([0.5, 2.0, 0.1])
    small = torch.tensor([1e-20, 1e-12, 1e-30])
    lower, upper = log_beta_tails(a, b, 1 - small, small)
    mirrored = log_beta_tails(b, a, small, 1 - small)
    torch.testing.assert_close(upper, mirrored[0], rtol=1e-6, atol=0)
    assert (upper < -1e-3).all()
    assert (lower <= 0).all()
    x, c = beta_quantile(a, b, lower, upper)
    torch.testing.assert_close(c, small, rtol=1e-3, atol=0)
    torch.testing.assert_close(x, torch.ones_like(x))


def test_quantile_and_tails_have_derivatives_that_undo_each_other():
    """Along a quantile with its noise held fixed the tails do not change, whatever parameter moves."""
    a, b, _, _ = points(400, torch.float64, 5)
    noise = torch.linspace(-20, 20, len(a), dtype=torch.float64)
    a, b, noise = (value.requires_grad_() for value in (a, b, noise))
    log_p, log_q = tails_from_noise(noise)
    x, c = beta_quantile(a, b, log_p, log_q)
    back = noise_from_tails(*log_beta_tails(a, b, x, c))
    by_a, by_b, by_noise = torch.autograd.grad(back.sum(), (a, b, noise))
    direct = noise_from_tails(*log_beta_tails(a, b, x.detach(), c.detach()))
    size = torch.autograd.grad(direct.sum(), (a, b))
    shown = (torch.minimum(x, c) > 1e-290).double()
    assert shown.mean() > 0.6
    torch.testing.assert_close(by_noise * shown, shown, rtol=1e-9, atol=1e-9)
    for total, part in zip((by_a, by_b), size, strict=True):
        assert (total.abs() * shown <= 1e-9 * part.abs() + 1e-12).all()


def test_gradcheck_backwards_forwards_and_of_the_density_twice():
    a, b = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64), torch.tensor([1.5, 0.6, 9.0], dtype=torch.float64)
    x = torch.tensor([0.2, 0.7, 0.86], dtype=torch.float64)
    leaves = [value.requires_grad_() for value in (a, b, x)]
    assert torch.autograd.gradcheck(log_beta_tails, leaves, check_forward_ad=True)
    assert torch.autograd.gradcheck(log_beta_density, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_beta_density, leaves)
    noise = torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)

    def quantile(a, b, noise):
        return beta_quantile(a, b, *tails_from_noise(noise))

    assert torch.autograd.gradcheck(quantile, (a, b, noise), check_forward_ad=True)


def test_vmap_and_broadcasting():
    a = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64)
    x = torch.linspace(0.05, 0.95, 5, dtype=torch.float64).unsqueeze(-1)
    whole = log_beta_tails(a, torch.tensor(1.5, dtype=torch.float64), x)
    assert whole[0].shape == (5, 3)
    mapped = torch.func.vmap(lambda x: log_beta_tails(a, torch.tensor(1.5, dtype=torch.float64), x))(x)
    for one, other in zip(whole, mapped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    gradient = torch.func.vmap(torch.func.grad(lambda x: log_beta_tails(a, a, x)[0].sum()))(x)
    assert torch.isfinite(gradient).all()


def test_half_precision_is_computed_in_float32_and_empty_stays_empty():
    half = torch.tensor([2.0, 3.0], dtype=torch.bfloat16)
    assert log_beta_tails(half, half, half / 4)[0].dtype == torch.float32
    empty = torch.zeros(0)
    assert log_beta_tails(empty, empty, empty)[0].shape == (0,)
    assert beta_quantile(empty, empty, empty, empty)[0].shape == (0,)


def test_normaliser_is_the_density_at_the_mean():
    a = torch.tensor([1e-3, 0.5, 7.0, 1e5], dtype=torch.float64)
    b = torch.tensor([1e5, 0.5, 0.02, 1e5], dtype=torch.float64)
    mean = a / (a + b)
    expected = log_beta_density(a, b, mean, b / (a + b)) + mean.log() + (b / (a + b)).log()
    found = beta_normaliser(a, b) + torch.minimum(a, b).clamp(max=1).log()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    log_a=st.floats(-3, 6),
    log_b=st.floats(-3, 6),
    noise=st.floats(-50, 50),
    precision=st.sampled_from([torch.float32, torch.float64]),
)
def test_extreme_parameters_give_finite_values_and_no_nan(log_a, log_b, noise, precision):
    a, b = (torch.tensor(10**value, dtype=precision, requires_grad=True) for value in (log_a, log_b))
    e = torch.tensor(noise, dtype=precision, requires_grad=True)
    x, c = beta_quantile(a, b, *tails_from_noise(e))
    assert 0 < x <= 1
    assert 0 < c <= 1
    tails = log_beta_tails(a, b, x.detach(), c.detach())
    density = log_beta_density(a, b, x.detach(), c.detach())
    for value in (*tails, density):
        assert torch.isfinite(value)
    by_noise, by_shape = (x + c, x - c), (*tails, density)
    for results, leaves in ((by_noise, (a, b, e)), (by_shape, (a, b))):
        for result in results:
            for gradient in torch.autograd.grad(result, leaves, retain_graph=True):
                assert not torch.isnan(gradient)
