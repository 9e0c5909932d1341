"""Functions behind the closed families against mpmath: normal tails, hazards, smooth quotients, von Mises."""

from __future__ import annotations

import math
import random

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.hazard import conjugate_log_hazard, log_hazard_from_tails, tails_from_log_hazard
from emfc.special.legendre import legendre_rule
from emfc.special.normal import (
    log_ndtr,
    ndtri_exp,
    noise_from_distances,
    noise_from_signed_tail,
    noise_from_tails,
    tails_from_noise,
)
from emfc.special.ratios import bounded_exp, expm1_ratio, log1p_ratio, log_distance, log_expm1_ratio, logistic_pair
from emfc.special.soft_laplace import soft_laplace_log_density, soft_laplace_quantile, soft_laplace_tails
from emfc.special.von_mises import log_bessel_i0e, von_mises_log_density, von_mises_quantile, von_mises_tails

DTYPES = [torch.float32, torch.float64]
BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
NOISE = [-1e4, -60.0, -37.1, -36.9, -25.0, -12.6, -12.4, -8.0, -3.0, -1.0, -1e-3, 0.0, 1e-9, 0.7, 2.5, 5.0, 12.45, 30.0]


def relative(found, expected, eps):
    return float(abs(mp.mpf(found) - expected) / abs(expected)) / eps


@BOTH
def test_both_tails_of_noise(precision):
    noise = torch.tensor(NOISE, dtype=precision)
    info = torch.finfo(precision)
    tails = tails_from_noise(noise)
    for side, tail in zip((1, -1), tails, strict=True):
        torch.testing.assert_close(tail, log_ndtr(side * noise), rtol=4 * info.eps, atol=0)
        for e, value in zip(noise.tolist(), tail.tolist(), strict=True):
            with mp.workdps(60 if side * e < 8 else 800):
                expected = mp.log(mp.erfc(-side * mp.mpf(e) / mp.sqrt(2)) / 2)
                conditioned = max(1.0, e * e) if side * e > 0 else 1.0
                if expected < -4 * info.tiny:
                    assert relative(value, expected, info.eps) < 6 * conditioned
    assert all(torch.isfinite(tail).all() for tail in tails_from_noise(torch.tensor([-math.inf, math.inf, 1e30])))


def test_derivatives_of_tails_at_the_median_and_far_out():
    noise = torch.tensor([-40.0, -3.0, 0.0, 2.0, 40.0], requires_grad=True)
    for function in (log_ndtr, lambda e: tails_from_noise(e)[0], lambda e: tails_from_noise(-e)[1]):
        first = torch.autograd.grad(function(noise).sum(), noise, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), noise)[0]
        with mp.workdps(800):
            for k, e in enumerate(noise.tolist()):
                expected = mp.npdf(e) / mp.ncdf(e)
                assert abs(first[k].item() - expected) <= 1e-11 * abs(expected) + mp.mpf(10) ** -300
                curvature = -expected * (e + expected)
                assert abs(second[k].item() - curvature) <= 1e-7 * abs(curvature) + mp.mpf(10) ** -300


def test_noise_of_tails_is_the_inverse_with_derivatives():
    noise = torch.tensor([-45.0, -8.0, -1e-3, 0.0, 0.4, 20.0], requires_grad=True)
    log_p, log_q = tails_from_noise(noise)
    side = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    small = torch.where(side < 0, log_p, log_q)
    for back in (noise_from_tails(log_p, log_q), noise_from_signed_tail(-side * small), -side * ndtri_exp(small)):
        torch.testing.assert_close(back, noise, rtol=1e-12, atol=1e-12)
        (slope,) = torch.autograd.grad(back.sum(), noise, retain_graph=True)
        torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-10, atol=1e-10)
    curve = torch.autograd.functional.hessian(lambda e: noise_from_tails(*tails_from_noise(e)).sum(), noise.detach())
    assert curve.abs().max() < 1e-9


def test_noise_of_distances():
    width = 3.0
    below = torch.tensor([1e-200, 0.3, 1.5, 2.999], requires_grad=True)
    noise = noise_from_distances(below, width - below)
    with mp.workdps(250):
        for b, e in zip(below.tolist(), noise.tolist(), strict=True):
            share = mp.mpf(b) / 3
            assert abs(mp.ncdf(e) / share - 1) < 1e-11
    (slope,) = torch.autograd.grad(noise.sum(), below)
    expected = 1 / (width * torch.exp(-0.5 * noise**2 - 0.5 * math.log(2 * math.pi)))
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=0)


@BOTH
def test_hazards(precision):
    eps = torch.finfo(precision).eps
    y = torch.tensor([-600.0, -40.0, -5.0, -0.4, -0.36, 0.0, 1.0, 3.0, 6.0], dtype=precision)
    y = y[y > -80] if precision == torch.float32 else y
    log_p, log_q = tails_from_log_hazard(y)
    conjugate = conjugate_log_hazard(y)
    with mp.workdps(700):
        for k, value in enumerate(y.tolist()):
            hazard = mp.exp(mp.mpf(value))
            low = mp.log(-mp.expm1(-hazard))
            if -low < 4 * torch.finfo(precision).tiny:
                continue
            assert relative(log_p[k].item(), low, eps) < 8 * (1 + float(hazard) if value > 0 else 1)
            assert relative(log_q[k].item(), -hazard, eps) < 8 * (1 + abs(value))
            assert abs(conjugate[k].item() - mp.log(-low)) <= 8 * eps * (1 + float(hazard) + abs(value))
    torch.testing.assert_close(log_hazard_from_tails(log_p, log_q), y, rtol=16 * eps, atol=16 * eps)
    torch.testing.assert_close(conjugate_log_hazard(conjugate), y, rtol=64 * eps, atol=64 * eps * float(y[-1].exp()))


@BOTH
@pytest.mark.parametrize(
    ("function", "exact", "low"),
    [
        (expm1_ratio, lambda w: mp.expm1(w) / w, -80.0),
        (log1p_ratio, lambda w: mp.log1p(w) / w, -0.999),
        (log_expm1_ratio, lambda w: mp.log(mp.expm1(w) / w), -1e6),
    ],
)
def test_smooth_quotients(function, exact, low, precision):
    """Value and first two derivatives, across the change from the series to the closed form."""
    eps = torch.finfo(precision).eps
    places = [low, -0.51, -0.49, -0.21, -0.19, -1e-3, -1e-9, 1e-12, 1e-5, 0.19, 0.21, 0.49, 0.51, 3.0, 60.0]
    w = torch.tensor([place for place in places if place >= low], dtype=precision, requires_grad=True)
    value = function(w)
    (first,) = torch.autograd.grad(value.sum(), w, create_graph=True)
    with mp.workdps(60):
        for k, place in enumerate(w.tolist()):
            expected, slope = exact(mp.mpf(place)), mp.diff(exact, mp.mpf(place))
            assert abs(value[k].item() - expected) <= 8 * eps * abs(expected)
            assert abs(first[k].item() - slope) <= 200 * eps * abs(slope)
    assert function(torch.zeros((), dtype=precision)) == (0.0 if function is log_expm1_ratio else 1.0)


@BOTH
def test_subnormal_numbers(precision):
    info = torch.finfo(precision)
    x = torch.tensor([info.tiny * info.eps, info.tiny * info.eps * 7, info.tiny, 1.0, 0.0, -3.0], dtype=precision)
    result = log_distance(x.requires_grad_())
    for value, found in zip(x.tolist()[:4], result.tolist()[:4], strict=True):
        assert abs(found - float(mp.log(value))) <= 4 * info.eps * abs(found)
    assert torch.isfinite(result).all()
    assert torch.isfinite(torch.autograd.grad(result.sum(), x)[0]).all()
    argument = math.log(info.tiny) - 6.0
    low, high = logistic_pair(torch.tensor([argument, -argument], dtype=precision))
    assert abs(low[0].item() / math.exp(argument) - 1) < 1e-2
    assert high[1].item() == low[0].item()


def soft_laplace(a, s, x):
    a, s, x = mp.mpf(a), mp.mpf(s), mp.mpf(x)
    b, u = 1 / a, x / s
    below = mp.exp(s * s / (2 * a * a) + x / a) * mp.erfc((u + s / a) / mp.sqrt(2)) / 2
    above = mp.exp(s * s / (2 * b * b) - x / b) * mp.erfc((s / b - u) / mp.sqrt(2)) / 2
    share = (a * below - b * above) / (a + b)
    tails = mp.erfc(-u / mp.sqrt(2)) / 2 + share, mp.erfc(u / mp.sqrt(2)) / 2 - share
    return [mp.log(value) for value in (*tails, (below + above) / (a + b))]


@BOTH
def test_soft_laplace_over_six_orders_of_magnitude(precision):
    generator = random.Random(0)
    eps = torch.finfo(precision).eps
    for _ in range(250):
        a, s = (10 ** generator.uniform(-3, 3) for _ in range(2))
        x = generator.choice([-1, 1]) * 10 ** generator.uniform(-3, 2) * generator.choice([s, a, 1 / a])
        arguments = [torch.tensor(value, dtype=precision) for value in (a, s, x)]
        with mp.workdps(120):
            expected = soft_laplace(*(value.item() for value in arguments))
        found = [*soft_laplace_tails(*arguments), soft_laplace_log_density(*arguments)]
        for one, other in zip(found, expected, strict=True):
            if -2000 < other < -1e-30:
                assert abs(one.item() - other) <= 1000 * eps * abs(other)
    log_p, log_q = tails_from_noise(torch.linspace(-8, 8, 33, dtype=precision))
    a, s = (torch.tensor(value, dtype=precision).unsqueeze(-1) for value in ([0.01, 1.0, 50.0], [0.1, 3.0, 40.0]))
    low, high = soft_laplace_tails(a, s, soft_laplace_quantile(a, s, log_p, log_q))
    error = torch.where(log_p < log_q, low - log_p, high - log_q).abs() / torch.minimum(log_p, log_q).abs()
    assert error.max() <= 4000 * eps


def log_integral(k, low, high):
    """Log of the integral of exp(k (cos t - 1)), split where the integrand changes fast."""
    places = {low, high}
    for mode in (-2 * mp.pi, 0, 2 * mp.pi):
        places |= {mode, mode + mp.pi, *(mode + side * z / mp.sqrt(k + 1) for side in (-1, 1) for z in (0.5, 2, 5, 12))}
    for end, side in ((low, 1), (high, -1)):
        rate = abs(k * mp.sin(end)) + mp.sqrt(k) + 1
        places |= {end + side * z / rate for z in (2, 10, 40, 120)}
    inside = sorted(place for place in places if low <= place <= high)
    top = max(k * (mp.cos(place) - 1) for place in inside)
    return top + mp.log(mp.quad(lambda t: mp.exp(k * (mp.cos(t) - 1) - top), inside))


@BOTH
def test_von_mises_tails_over_ten_orders_of_magnitude(precision):
    """Both logs, next to the cut and far from the mode; the cut of float32 lies 1e-7 beside pi."""
    generator = random.Random(1)
    eps = torch.finfo(precision).eps
    for _ in range(60):
        k = 10 ** generator.uniform(-4, 6)
        loc = generator.choice([generator.uniform(-3.14, 3.14), 3.14, -3.1, 0.0, 1e-3])
        x = generator.choice([generator.uniform(-3.14, 3.14), loc + generator.gauss(0, 3) / math.sqrt(k), -3.1415, 3.1])
        if abs(x) > 3.1415:
            continue
        loc, k, x = (torch.tensor(value, dtype=precision) for value in (loc, k, x))
        with mp.workdps(30):
            exact = [mp.mpf(value.item()) for value in (loc, k, x)]
            whole = log_integral(exact[1], -mp.pi, mp.pi)
            expected = [
                log_integral(exact[1], -mp.pi - exact[0], exact[2] - exact[0]) - whole,
                log_integral(exact[1], exact[2] - exact[0], mp.pi - exact[0]) - whole,
            ]
            height = exact[1] * (mp.cos(exact[2] - exact[0]) - 1) - whole
        for found, other in zip(von_mises_tails(loc, k, x), expected, strict=True):
            if other < -1e-25:
                rounding = 100 + 3 * math.sqrt(float(k)) + 8 / (math.pi - abs(float(x)))
                assert abs(found.item() - other) <= eps * rounding * max(1e-3, abs(other))
        found = von_mises_log_density(loc, k, x).item()
        assert abs(found - height) <= eps * (20 + 8 * math.sqrt(float(k) * abs(float(height)))) * max(1, abs(height))


@pytest.mark.parametrize(("loc", "k", "x"), [(0.5, 3.0, -2.0), (2.9, 40.0, -3.1), (-3.0, 1e4, -3.02), (1.0, 1e-3, 3.0)])
def test_von_mises_derivatives_agree_with_mpmath(loc, k, x):
    arguments = [torch.tensor(value, requires_grad=True) for value in (loc, k, x)]
    log_p, log_q = von_mises_tails(*arguments)

    def lower(m, k, x):
        return log_integral(k, -mp.pi - m, x - m) - log_integral(k, -mp.pi, mp.pi)

    def upper(m, k, x):
        return log_integral(k, x - m, mp.pi - m) - log_integral(k, -mp.pi, mp.pi)

    with mp.workdps(40):
        for tail, function in ((log_p, lower), (log_q, upper)):
            gradients = torch.autograd.grad(tail, arguments, retain_graph=True)
            for place, gradient in enumerate(gradients):
                point = [mp.mpf(value) for value in (loc, k, x)]
                step = mp.mpf(10) ** -9 * max(1, abs(point[place]) if place == 1 else mp.mpf(1))
                ends = []
                for side in (1, -1):
                    moved = list(point)
                    moved[place] += side * step
                    ends.append(function(*moved))
                slope = (ends[0] - ends[1]) / (2 * step)
                assert abs(gradient.item() - slope) <= 1e-6 * abs(slope) + 1e-14


@BOTH
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(st.floats(-7, 7), st.floats(-6, 6), st.floats(-1, 1))
def test_von_mises_quantile_is_the_inverse(precision, loc, log_k, share):
    """The tail at the quantile, by its exact distances to the cuts."""
    eps = torch.finfo(precision).eps
    limit = 25 if precision == torch.float64 else 8
    loc, k = torch.tensor(loc, dtype=precision), torch.tensor(10**log_k, dtype=precision)
    log_p, log_q = tails_from_noise(share * torch.linspace(-limit, limit, 21, dtype=precision))
    x, below, above = von_mises_quantile(loc, k, log_p, log_q)
    assert ((below >= 0) & (above >= 0) & (x.abs() <= 3.1415928)).all()
    low, high = von_mises_tails(loc, k, x, below, above)
    error = torch.where(log_p < log_q, low - log_p, high - log_q).abs() / torch.minimum(log_p, log_q).abs()
    assert error.max() <= eps * (2000 + 40 * math.sqrt(float(k)))


def test_bessel_function_and_its_derivative():
    k = torch.tensor([0.0, 1e-8, 0.5, 5.0, 29.9, 30.1, 1e3, 1e6, 1e12], requires_grad=True)
    value = log_bessel_i0e(k)
    (slope,) = torch.autograd.grad(value.sum(), k)
    with mp.workdps(60):
        for place, argument in enumerate(k.tolist()):
            scaled = mp.log(mp.besseli(0, argument)) - argument
            assert abs(value[place].item() - scaled) <= 4e-16 * max(1, abs(scaled))
            expected = mp.besseli(1, argument) / mp.besseli(0, argument) - 1
            assert abs(slope[place].item() - expected) <= 1e-12 * abs(expected)


@pytest.mark.parametrize("count", [1, 4, 8, 28, 64])
def test_the_rule_of_gauss_and_legendre_is_exact_for_polynomials(count):
    rule = legendre_rule(count)
    assert [node for node, _ in rule] == sorted(node for node, _ in rule)
    for power in range(2 * count):
        total = math.fsum(weight * node**power for node, weight in rule)
        assert abs(total * (power + 1) - 1) <= 1e-13


@BOTH
@pytest.mark.parametrize("room", [0.0, 5.0, 16.0])
def test_a_bounded_exponential_leaves_room_for_a_factor(room, precision):
    largest = torch.finfo(precision).max
    result = bounded_exp(torch.tensor([-math.inf, 0.0, 1e4, math.inf], dtype=precision), room=room)
    assert result[:2].tolist() == [0.0, 1.0]
    assert torch.isfinite(result[2:] * (0.999 * math.exp(room))).all()
    assert (result[2:] * math.exp(room) > 0.99 * largest).all()
