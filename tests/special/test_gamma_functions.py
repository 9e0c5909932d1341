"""Log incomplete gamma ratios, density, shape derivatives and quantile against mpmath, over the whole range."""

from __future__ import annotations

import math
import random

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.gamma import concentration_slopes, gamma_noise_and_density, log_gamma_density, log_gamma_tails
from emfc.special.gamma_quantile import gamma_quantile, gamma_quantile_and_log
from emfc.special.normal import log_normal_density, noise_from_tails, tails_from_noise
from emfc.special.stirling import deviance, digamma_less_log, log_gamma_one_plus, stirling_error

DTYPES = pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
LIMIT = {torch.float32: 8.0, torch.float64: 25.0}
BOUND = {torch.float32: 2e-4, torch.float64: 1e-9}
CONCENTRATIONS = st.floats(-3.0, 6.0).map(lambda power: 10.0**power)


def sample_points(count: int, seed: int) -> tuple[list[float], list[float]]:
    """Concentrations and places in their bulk, in both tails and at the edges of the regions."""
    source = random.Random(seed)
    a, x = [], []
    for _ in range(count):
        concentration = 10 ** source.uniform(-3, 6)
        third = 1 - 1 / (9 * concentration) + source.gauss(0, 6) / (3 * math.sqrt(concentration))
        place = concentration * max(third, 0.05) ** 3 if concentration > 1 else 10 ** source.uniform(-6, 2)
        edge = source.choice([0, 0, 0, 2.0, 2.001, concentration, 0.6 * concentration, 1.4 * concentration])
        far = abs(edge - concentration) > 60 * math.sqrt(concentration)
        a.append(concentration)
        x.append(place if edge == 0 or far else edge)
    for concentration in (7.999, 8.0, 19.999, 20.0, 99.999, 100.0):
        a += [concentration] * 2
        x += [0.8 * concentration, 1.3 * concentration]
    return a, x


@DTYPES
def test_tails_and_density(precision):
    a, x = (torch.tensor(values, dtype=precision) for values in sample_points(150, 1))
    log_p, log_q = log_gamma_tails(a, x)
    density = log_gamma_density(a, x)
    small_bound, other_bound = (1.5e-14, 2e-13) if precision == torch.float64 else (2e-6, 2e-4)
    for row in torch.stack((a, x, log_p, log_q, density), -1).tolist():
        with mp.workdps(70):
            concentration, place = mp.mpf(row[0]), mp.mpf(row[1])
            lower = mp.gammainc(concentration, 0, place, regularized=True)
            upper = mp.gammainc(concentration, place, mp.inf, regularized=True)
            logs = [mp.log(lower), mp.log(upper)]
            expected = (concentration - 1) * mp.log(place) - place - mp.loggamma(concentration)
            order = (0, 1) if lower < upper else (1, 0)
            error = abs(row[2 + order[0]] - logs[order[0]]) / max(1, -logs[order[0]])
            assert error <= small_bound, row
            if logs[order[0]] > -80:
                assert abs(row[2 + order[1]] / logs[order[1]] - 1) <= other_bound, row
            assert abs(row[4] - expected) <= 2 * small_bound * max(1, abs(expected)), row


def moments_beyond(a: mp.mpf, x: mp.mpf, upper: bool) -> mp.mpf:
    """Mean of log T beyond x, by quadrature in the log of T / x."""
    sign = 1 if upper else -1
    distance, scale = abs(x - a), 1 / (abs(x - a) + mp.sqrt(x))

    def weight(t):
        return mp.exp(-distance * t - x * (mp.expm1(sign * t) - sign * t))

    points = [scale * step for step in (0, 1, 2, 4, 8, 16, 32)]
    if not upper and a < 5:
        points += [scale * 128, scale * 1024]
    return mp.log(x) + sign * mp.quad(lambda t: t * weight(t), points) / mp.quad(weight, points)


@DTYPES
def test_shape_derivatives(precision):
    a, x = (torch.tensor(values, dtype=precision) for values in sample_points(30, 2))
    log_p, log_q = log_gamma_tails(a, x)
    slopes = torch.stack(concentration_slopes(a, x, log_p, log_q), -1)
    bound = 1e-9 if precision == torch.float64 else 2e-5
    for concentration, place, found in zip(a.tolist(), x.tolist(), slopes.tolist(), strict=True):
        upper = place >= concentration
        with mp.workdps(30):
            shape, at = mp.mpf(concentration), mp.mpf(place)
            if at < 2:
                expected = mp.diff(lambda s, at=at: mp.log(mp.gammainc(s, 0, at, regularized=True)), shape)
                upper = False
            else:
                expected = moments_beyond(shape, at, upper) - mp.digamma(shape)
            assert abs(found[upper] / expected - 1) <= bound, (concentration, place, found, expected)


@DTYPES
@settings(max_examples=60, deadline=None)
@given(concentration=CONCENTRATIONS, share=st.floats(-1.0, 1.0))
def test_quantile_makes_the_round_trip(precision, concentration, share):
    a = torch.tensor(concentration, dtype=precision)
    noise = torch.linspace(-1, 1, 41, dtype=precision).add(share / 40).clamp(-1, 1) * LIMIT[precision]
    x, log_x = gamma_quantile_and_log(a, *tails_from_noise(noise))
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_x).all()
    assert (x > 0).all()
    assert (x.diff() >= 0).all()
    back = noise_from_tails(*log_gamma_tails(a, x))
    spacing = (torch.nextafter(x, torch.full_like(x, math.inf)) - x).double()
    slope = torch.exp((log_normal_density(noise) - log_gamma_density(a, x)).double())
    allowed = torch.maximum(BOUND[precision] * noise.abs().clamp(min=1).double(), 4 * spacing / slope)
    held = log_x > math.log(torch.finfo(precision).tiny)
    assert ((back - noise).abs().double() <= allowed)[held].all()
    with mp.workdps(30):  # where the value underflows its log still is the quantile's
        for e, y in zip(noise[~held].tolist(), log_x[~held].tolist(), strict=True):
            expected = (mp.log(mp.erfc(-mp.mpf(e) / mp.sqrt(2)) / 2) + mp.loggamma(1 + mp.mpf(a.item()))) / a.item()
            assert abs(y / expected - 1) < 1e-3 * BOUND[precision] ** 0.5


@DTYPES
def test_nothing_is_nan_or_infinite_far_out(precision):
    a = (10 ** torch.linspace(-3, 6, 37, dtype=precision)).unsqueeze(-1).requires_grad_()
    noise = torch.linspace(-2, 2, 41, dtype=precision).mul(LIMIT[precision]).requires_grad_()
    log_p, log_q = tails_from_noise(noise)
    x, log_x = gamma_quantile_and_log(a, log_p, log_q)
    for value in (x, log_x, *torch.autograd.grad(x.sum() + log_x.sum(), (a, noise))):
        assert torch.isfinite(value).all()
    x = x.detach().requires_grad_()
    for value in (*log_gamma_tails(a, x), log_gamma_density(a, x)):
        assert torch.isfinite(value).all()
        for gradient in torch.autograd.grad(value.sum(), (a, x), retain_graph=True):
            assert not torch.isnan(gradient).any()


A = [0.3, 1.0, 2.5, 9.0, 25.0, 400.0, 0.3, 1.7, 5.0, 30.0]
X = [0.1, 0.5, 1.5, 8.0, 22.0, 410.0, 1.5, 3.0, 9.0, 33.0]
E = [-2.0, -1.0, 0.3, 1.0, -1.5, 0.1, 1.2, 2.0, -3.0, 0.7]


def leaves(*values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def draw(a: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return gamma_quantile(a, *tails_from_noise(noise))


def test_derivatives_of_first_and_second_order_both_ways():
    cases = ((log_gamma_tails, X), (log_gamma_density, X), (gamma_noise_and_density, X), (draw, E))
    for function, second in cases:
        inputs = leaves(A, second)
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, inputs, atol=1e-6)


def test_vmap_and_function_transforms():
    a, x = (value.detach() for value in leaves(A, X))
    slope = torch.func.vmap(torch.func.grad(lambda a, x: log_gamma_tails(a, x)[0], (0, 1)))(a, x)
    leaf = leaves(A, X)
    expected = torch.autograd.grad(log_gamma_tails(*leaf)[0].sum(), leaf)
    for one, other in zip(slope, expected, strict=True):
        torch.testing.assert_close(one, other)
    noise = torch.tensor(E, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacfwd(draw))(a, noise)
    leaf = leaves(A, E)
    torch.testing.assert_close(jacobian, torch.autograd.grad(draw(*leaf).sum(), leaf)[0])


@pytest.mark.slow
def test_compile():
    inputs = leaves(A, E)

    def run(a, noise):
        x = draw(a, noise)
        return noise_from_tails(*log_gamma_tails(1.1 * a, x)) + log_gamma_density(a, x)

    results = [function(*inputs) for function in (torch.compile(run, fullgraph=True), run)]
    torch.testing.assert_close(*results)
    for one, other in zip(*(torch.autograd.grad(result.sum(), inputs) for result in results), strict=True):
        torch.testing.assert_close(one, other)


def test_shapes_dtypes_and_blocks():
    a, x = torch.rand(3, 1) * 5 + 0.1, torch.rand(4) * 5
    log_p, log_q = log_gamma_tails(a, x)
    assert log_p.shape == log_q.shape == (3, 4)
    assert log_gamma_density(a.half(), x.half()).dtype == torch.float32
    assert gamma_quantile(a.double(), log_p.float(), log_q.float()).dtype == torch.float64
    assert log_gamma_tails(torch.ones(0), torch.ones(0))[0].shape == (0,)
    many = torch.rand(300_000, dtype=torch.float64) * 40 + 0.1
    whole = log_gamma_tails(many, many.flip(0))[0]
    part = log_gamma_tails(many[290_000:], many.flip(0)[290_000:])[0]
    torch.testing.assert_close(whole[290_000:], part, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("function", "reference", "low", "high"),
    [
        (log_gamma_one_plus, lambda a: mp.loggamma(1 + a), 1e-8, 0.9),
        (digamma_less_log, lambda a: mp.digamma(a) - mp.log(a), 1e-3, 1e7),
        (deviance, lambda x: x - mp.log1p(x), 1e-9, 0.4),
        (lambda x: deviance(-x), lambda x: -x - mp.log1p(-x), 1e-9, 0.4),
        (
            stirling_error,
            lambda a: mp.loggamma(a) - (a - 0.5) * mp.log(a) + a - mp.log(2 * mp.pi) / 2,
            12.0,
            1e7,
        ),
    ],
    ids=["log_gamma_one_plus", "digamma_less_log", "deviance", "deviance below 0", "stirling_error"],
)
@DTYPES
def test_parts_of_the_gamma_function(function, reference, low, high, precision):
    x = torch.logspace(math.log10(low), math.log10(high), 100, dtype=precision)
    with mp.workdps(50):
        for at, found in zip(x.tolist(), function(x).tolist(), strict=True):
            assert abs(found / reference(mp.mpf(at)) - 1) < 60 * torch.finfo(precision).eps, at
