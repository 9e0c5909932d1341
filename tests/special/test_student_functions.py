"""Student's t in logs against mpmath, from a tenth of a degree of freedom to 1e8."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.normal import noise_from_tails, tails_from_noise
from emfc.special.student import log_student_density, log_student_tails
from emfc.special.student_quantile import student_quantile
from tests.transforms.tables.beta import student_tails

BOTH = pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
LIMIT = {torch.float32: 8.0, torch.float64: 25.0}


def points(count, precision, seed, reach=1.0, low=-1.0, high=8.0):
    """Degrees of freedom and values at noise of any size."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, count, dtype=torch.float64, generator=generator)
    df = 10 ** (uniform[0] * (high - low) + low)
    t = student_quantile(df, *tails_from_noise((2 * uniform[1] - 1) * LIMIT[precision] * reach))
    kept = t.abs() < torch.finfo(precision).max / 100
    return df[kept].to(precision), t[kept].to(precision)


@BOTH
def test_smaller_tail_agrees_with_mpmath(precision):
    df, t = points(60, precision, 1)
    found = torch.minimum(*log_student_tails(df, t))
    bound = 1e-13 if precision == torch.float64 else 5e-6
    for value, freedom, place in zip(found.tolist(), df.tolist(), t.tolist(), strict=True):
        with mp.workdps(200):
            expected = mp.log(student_tails(mp.mpf(-abs(place)), freedom)[0])
            error = float(abs(value - expected))
        assert error <= bound * max(1.0, -float(expected)), (freedom, place, error)


@BOTH
def test_derivative_by_degrees_of_freedom_agrees_with_mpmath(precision):
    """It vanishes as the square of their inverse, so that float32 has digits of it for few only."""
    df, t = points(40, precision, 2, 0.7, high=4.0 if precision == torch.float64 else 1.5)
    df.requires_grad_()
    outputs = log_student_tails(df, t)
    small = torch.minimum(*outputs)
    (found,) = torch.autograd.grad(small.sum(), df)
    bound = 1e-9 if precision == torch.float64 else 5e-3
    for value, freedom, place in zip(found.tolist(), df.tolist(), t.tolist(), strict=True):
        with mp.workdps(150):
            step = mp.mpf(freedom) * mp.mpf(10) ** -15
            ends = [mp.log(student_tails(mp.mpf(-abs(place)), freedom + sign * step)[0]) for sign in (1, -1)]
            expected = float((ends[0] - ends[1]) / (2 * step))
        assert abs(value - expected) <= bound * abs(expected), (freedom, place, value, expected)


@BOTH
@pytest.mark.parametrize("reach", [0.1, 1.0])
def test_round_trip_over_all_degrees_of_freedom(precision, reach):
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(2, 40_000, dtype=torch.float64, generator=generator)
    df = (10 ** (uniform[0] * 9 - 1)).to(precision)
    noise = ((2 * uniform[1] - 1) * LIMIT[precision] * reach).to(precision)
    t = student_quantile(df, *tails_from_noise(noise))
    assert torch.isfinite(t).all()
    back = noise_from_tails(*log_student_tails(df, t))
    shown = t.abs() < torch.finfo(precision).max / 1e4
    error = ((back - noise).abs() / noise.abs().clamp(min=1))[shown]
    assert shown.double().mean() > 0.8
    assert error.max() < (1e-13 if precision == torch.float64 else 5e-6)


def test_few_degrees_of_freedom_stay_finite_far_out():
    """Noise of 25 at half a degree of freedom is a value of about 1e275, whose square overflows."""
    df = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([-25.0, 25.0], dtype=torch.float64)
    t = student_quantile(df, *tails_from_noise(noise))
    assert 1e274 < t[1].item() < 1e276
    back = noise_from_tails(*log_student_tails(df, t))
    torch.testing.assert_close(back, noise, rtol=1e-12, atol=0)
    density = log_student_density(df, t)
    torch.testing.assert_close(density, torch.min(*log_student_tails(df, t)) + math.log(0.5) - t.abs().log())
    for value in (t[1], back[0], density[0]):
        (gradient,) = torch.autograd.grad(value, df, retain_graph=True)
        assert torch.isfinite(gradient)


def test_one_and_two_degrees_of_freedom_have_closed_forms():
    t = torch.linspace(-50, 50, 101, dtype=torch.float64)
    lower = torch.exp(log_student_tails(torch.tensor(1.0, dtype=torch.float64), t)[0])
    torch.testing.assert_close(lower, 0.5 + torch.atan(t) / math.pi, rtol=1e-12, atol=1e-15)
    lower = torch.exp(log_student_tails(torch.tensor(2.0, dtype=torch.float64), t)[0])
    torch.testing.assert_close(lower, 0.5 + t / (2 * torch.sqrt(2 + t * t)), rtol=1e-12, atol=1e-15)


def test_the_two_ways_agree_where_they_meet():
    """Just inside and outside of the region in which the normal form is used."""
    for df, t in ((8.0, 3.0), (100.0, 18.6), (2000.0, 20.0)):
        df = torch.tensor(df, dtype=torch.float64)
        for edge in (df * (1 + torch.tensor([-1e-9, 1e-9], dtype=torch.float64)), df.expand(2)):
            place = torch.tensor([t, t], dtype=torch.float64) * torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=torch.float64)
            log_p, log_q = log_student_tails(edge, place)
            slope = torch.exp(log_student_density(edge, place) - log_q)
            expected = log_q[0] - slope[0] * (place[1] - place[0])
            torch.testing.assert_close(log_q[1], expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(student_quantile(edge, log_p, log_q), place, rtol=1e-12, atol=0)


@BOTH
def test_density_agrees_with_mpmath(precision):
    df, t = points(60, precision, 5)
    found = log_student_density(df, t)
    for value, freedom, place in zip(found.tolist(), df.tolist(), t.tolist(), strict=True):
        with mp.workdps(60):
            n = mp.mpf(freedom)
            constant = mp.loggamma((n + 1) / 2) - mp.loggamma(n / 2) - mp.log(n * mp.pi) / 2
            expected = float(constant - (n + 1) / 2 * mp.log1p(mp.mpf(place) ** 2 / n))
        bound = 1e-13 if precision == torch.float64 else 2e-6
        assert abs(value - expected) <= bound * max(1.0, abs(expected)), (freedom, place)


def test_gradcheck_and_vmap():
    df = torch.tensor([0.7, 5.0, 60.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([-1.2, 0.4, 2.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_student_tails, (df, t), check_forward_ad=True)
    assert torch.autograd.gradcheck(log_student_density, (df, t), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_student_density, (df, t))

    def quantile(df, noise):
        return student_quantile(df, *tails_from_noise(noise))

    assert torch.autograd.gradcheck(quantile, (df, t), check_forward_ad=True)
    mapped = torch.func.vmap(torch.func.grad(lambda df, t: student_quantile(df, *tails_from_noise(t))))(df, t)
    expected = torch.autograd.grad(quantile(df, t).sum(), df)[0]
    torch.testing.assert_close(mapped, expected)


@settings(max_examples=40, deadline=None)
@given(
    log_df=st.floats(-1, 8),
    noise=st.floats(-50, 50),
    precision=st.sampled_from([torch.float32, torch.float64]),
)
def test_extreme_parameters_give_finite_values_and_no_nan(log_df, noise, precision):
    df = torch.tensor(10**log_df, dtype=precision, requires_grad=True)
    e = torch.tensor(noise, dtype=precision, requires_grad=True)
    t = student_quantile(df, *tails_from_noise(e))
    place = t.detach().requires_grad_()
    at_place = [(value, place) for value in (*log_student_tails(df, place), log_student_density(df, place))]
    for value, argument in [(t, e), *at_place]:
        assert torch.isfinite(value)
        for gradient in torch.autograd.grad(value, (df, argument), retain_graph=True):
            assert not torch.isnan(gradient)
