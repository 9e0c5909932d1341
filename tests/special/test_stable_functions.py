"""Stable laws against series, integrals and closed forms, and over extreme parameters."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pyro.distributions as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.normal import log_normal_density, noise_from_tails
from emfc.special.stable import (
    log_stable_density,
    log_stable_tails,
    log_stable_tails_and_density,
    stable_draw,
    stable_quantile,
)
from emfc.transforms import UnsupportedFamilyError, from_normal, scalar_family
from tests.special.stable_oracle import stable_tails, zolotarev_tail

DTYPES = {torch.float32: 8.0, torch.float64: 25.0}
BOTH = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
PLACES = [
    (1.7, 0.3, (0.0, 0.5, 9.0, -30.0, 1e20, -1e80)),
    (1.99, -0.5, (0.1, -3.0, 7.0, 30.0)),
    (1.3, -0.6, (0.2, 2.0, -4.0, 1e9)),
    (0.8, 0.5, (0.0, -0.01, 1.0, 1e3, -1e150)),
    (0.6, -0.95, (0.1, 0.9, 3.0, -1e7)),
    (0.3, 0.2, (-0.5, 2.0, 1e60)),
    (0.12, 0.9, (0.3, -1e5, 1e200)),
    (1.5, -1.0, (0.0, 2.0, 12.0, 25.0, -20.0)),
    (0.7, -1.0, (0.0, 1.5, 1.8, -1.9)),
    (1.2, -1.0, (3.0, 6.5, -5.0)),
    (1.8, 1.0, (0.2, 5.0, -6.0)),
]
FLAT = [(stability, skew, z) for stability, skew, points in PLACES for z in points]


def tensors(dtype, *values):
    return [torch.tensor(value, dtype=dtype) for value in values]


def column(index, dtype):
    return torch.tensor([row[index] for row in FLAT], dtype=dtype)


@BOTH
def test_tails_agree_with_series(dtype):
    stability, skew, z = (column(index, dtype) for index in range(3))
    z = z.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    found = torch.stack(log_stable_tails(stability, skew, z))
    for place in range(len(FLAT)):
        if abs(FLAT[place][2]) > 1e37 and dtype == torch.float32:
            continue
        exact = [float(mp.log(tail)) for tail in stable_tails(*(part[place].item() for part in (z, stability, skew)))]
        for log_tail, truth in zip(found[:, place].tolist(), exact, strict=True):
            # Rounding of the distance from the point where light tails end moves these by some multiple.
            slack = 2e3 if FLAT[place][1] == -1 else 60
            assert abs(log_tail - truth) <= slack * torch.finfo(dtype).eps * max(1, abs(truth)), FLAT[place]


@pytest.mark.parametrize(("stability", "skew", "x"), [(1.0, 0.5, 1.0), (1 - 1e-7, -0.9, 0.2), (1.04, 0.95, 3.0)])
def test_tails_near_stability_one_agree_with_zolotarevs_integral(stability, skew, x):
    _, log_q = log_stable_tails(*tensors(torch.float64, stability, skew, x))
    assert log_q.item() == pytest.approx(float(mp.log(zolotarev_tail(x, stability, skew))), abs=1e-13)


def test_the_laws_are_continuous_at_stability_one():
    skew, z = torch.meshgrid(*tensors(torch.float64, [-1.0, -0.4, 0.9], [-4.0, 0.0, 0.7, 3.0]), indexing="ij")
    at = torch.stack(log_stable_tails_and_density(torch.ones_like(z), skew, z))
    for step in (1e-13, -1e-13, 2**-52, -(2**-53)):
        beside = torch.stack(log_stable_tails_and_density(torch.ones_like(z) + step, skew, z))
        torch.testing.assert_close(beside, at, rtol=2e-12, atol=2e-12)


@BOTH
def test_closed_forms(dtype):
    tolerance = {"rtol": 30 * torch.finfo(dtype).eps, "atol": 30 * torch.finfo(dtype).eps}
    z = torch.linspace(-12, 12, 49, dtype=dtype)
    one = torch.ones_like(z)
    for stability, skew, law in (
        (2.0, 0.3, torch.distributions.Normal(0 * z, math.sqrt(2) * one)),
        (1.0, 0.0, torch.distributions.Cauchy(0 * z, one)),
    ):
        log_p, log_q, density = log_stable_tails_and_density(stability * one, skew * one, z)
        exact = scalar_family(law)
        torch.testing.assert_close(log_p, exact.log_cdf(z), **tolerance)
        torch.testing.assert_close(log_q, exact.log_sf(z), **tolerance)
        torch.testing.assert_close(density, law.log_prob(z), **tolerance)
    # Levy's law, whose end is at -1 in the continuous coordinate
    distance = torch.logspace(-2, 6, 33, dtype=dtype)
    x = distance - 1
    distance = x + 1
    _, log_q, density = log_stable_tails_and_density(0.5 * torch.ones_like(x), torch.ones_like(x), x)
    slack = 1e-5 if dtype == torch.float32 else 1e-12  # the distance is rounded like x
    for row, (d, q, f) in enumerate(zip(distance.tolist(), log_q.tolist(), density.tolist(), strict=True)):
        assert q == pytest.approx(float(mp.log(mp.erf(mp.sqrt(1 / (2 * mp.mpf(d)))))), rel=slack, abs=slack), row
        assert f == pytest.approx(-0.5 / d - 1.5 * math.log(d) - 0.5 * math.log(2 * math.pi), rel=1e-4, abs=slack), row


def test_the_mirrored_law_has_the_opposite_skew():
    stability, skew, z = (column(index, torch.float64) for index in range(3))
    log_p, log_q, density = log_stable_tails_and_density(stability, skew, z)
    other_q, other_p, other = log_stable_tails_and_density(stability, -skew, -z)
    for one, two in ((log_p, other_p), (log_q, other_q), (density, other)):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("stability", "skew", "z"),
    [(1.7, 0.3, 1.5), (1.95, -0.7, 6.0), (1.3, -0.6, -2.0), (0.8, 0.5, 4.0), (0.6, -0.95, 0.8), (0.3, 0.2, 30.0)],
)
def test_derivatives_agree_with_series(stability, skew, z):
    inputs = [value.requires_grad_() for value in tensors(torch.float64, stability, skew, z)]
    log_p, log_q, density = log_stable_tails_and_density(*inputs)
    step = mp.mpf(10) ** -9

    def log_upper(*moves):
        return mp.log(stable_tails(mp.mpf(z) + moves[2], mp.mpf(stability) + moves[0], mp.mpf(skew) + moves[1])[1])

    def slope(place, *at):
        ends = [log_upper(*((at[k] if at else 0) + sign * step * (k == place) for k in range(3))) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step)

    def log_density(*at):
        return log_upper(*at) + mp.log(-slope(2, *at))

    wide = mp.mpf(10) ** -5
    with mp.workdps(40):
        for place, found in enumerate(torch.autograd.grad(log_q, inputs, retain_graph=True)):
            assert found.item() == pytest.approx(float(slope(place)), rel=1e-11, abs=1e-11)
        assert density.item() == pytest.approx(float(log_density(0, 0, 0)), rel=1e-12, abs=1e-12)
        for place, found in enumerate(torch.autograd.grad(density, inputs)):
            ends = [log_density(*(sign * wide * (k == place) for k in range(3))) for sign in (1, -1)]
            assert found.item() == pytest.approx(float((ends[0] - ends[1]) / (2 * wide)), rel=1e-7, abs=1e-8)
    torch.testing.assert_close(torch.exp(log_p) + torch.exp(log_q), torch.ones((), dtype=torch.float64))


_EXPONENT = st.floats(-14, -0.3)
_STABILITY = st.one_of(
    st.floats(0.1, 2.0), st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0]), _EXPONENT.map(lambda k: 2 - 10**k),
    _EXPONENT.map(lambda k: 1 - 10**k), _EXPONENT.map(lambda k: 1 + 10**k),
)  # fmt: skip
_SKEW = st.one_of(
    st.floats(-1.0, 1.0), st.sampled_from([-1.0, 0.0, 1.0]), _EXPONENT.map(lambda k: 1 - 10**k),
    _EXPONENT.map(lambda k: 10**k - 1),
)  # fmt: skip


@BOTH
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_draws_and_their_noise(data, dtype):
    laws = data.draw(st.lists(st.tuples(_STABILITY, _SKEW), min_size=4, max_size=4))
    limit = DTYPES[dtype]
    parts = data.draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
    stability, skew = (torch.tensor([law[k] for law in laws], dtype=dtype).unsqueeze(-1) for k in (0, 1))
    stability, skew = stability.clamp(0.1, 2).requires_grad_(), skew.clamp(-1, 1).requires_grad_()
    noise = (torch.tensor(parts, dtype=dtype) * limit).requires_grad_()
    z, density = stable_draw(stability, skew, noise)
    assert torch.isfinite(z).all()
    gradients = torch.autograd.grad(density.sum() + z.clamp(-1e3, 1e3).sum(), (stability, skew, noise))
    place = z.detach().requires_grad_()
    log_p, log_q, log_prob = log_stable_tails_and_density(stability, skew, place)
    back = noise_from_tails(log_p, log_q)
    gradients += torch.autograd.grad(back.sum() + log_prob.sum(), (stability, skew, place))
    assert all(torch.isfinite(part).all() for part in (density, log_p, log_q, log_prob, back, *gradients))
    # Next to the end of a law the position is rounded more coarsely than the noise; elsewhere the noise comes back.
    info = torch.finfo(dtype)
    end = -skew * torch.tan(0.5 * math.pi * torch.where(stability < 1, stability, 0))
    at_end = (z - end).abs() <= 64 * info.eps * end.abs()
    beside = [noise_from_tails(*log_stable_tails(stability, skew, z + k * 4 * info.eps * z.abs())) for k in (-1, 1)]
    rounding = (beside[1] - beside[0]).abs()
    permitted = (2e-4 if dtype == torch.float32 else 1e-9) * noise.abs().clamp(min=1)
    near = (back - noise).abs() <= torch.maximum(permitted, 4 * rounding)
    assert (near | at_end | (z.abs() >= info.max)).all()


@BOTH
def test_tails_are_finite_and_ordered_wherever_one_looks(dtype):
    largest = torch.finfo(dtype).max
    sizes = torch.logspace(-30, math.log10(largest) - 0.4, 60, dtype=dtype)
    z = torch.cat([-sizes.flip(0), torch.zeros(1, dtype=dtype), sizes, torch.tensor([largest], dtype=dtype)])
    stability = torch.tensor([0.1, 0.4, 0.9, 1.0, 1.0001, 1.5, 1.9999, 2.0], dtype=dtype).reshape(-1, 1, 1)
    skew = torch.tensor([-1.0, -1 + 2e-7, -0.5, 0.0, 1.0], dtype=dtype).reshape(-1, 1)
    inputs = [part.clone().requires_grad_() for part in (stability, skew, z)]
    log_p, log_q = log_stable_tails(*inputs)
    for log_tail, order in ((log_p, 1), (log_q, -1)):
        assert torch.isfinite(log_tail).all()
        steps = order * log_tail.diff(dim=-1)
        assert (steps >= -1e3 * torch.finfo(dtype).eps * log_tail[..., 1:].abs().clamp(min=1)).all()
        for gradient in torch.autograd.grad(log_tail.sum(), inputs, retain_graph=True):
            assert not torch.isnan(gradient).any()
    density = log_stable_density(stability, skew, z)
    assert not torch.isnan(density).any()
    end = torch.tan(0.5 * math.pi * torch.where(stability < 1, stability, 0))
    outside = (stability < 1) & (skew.abs() == 1) & (-skew * z > end)
    assert torch.equal(density == -math.inf, outside)


@BOTH
def test_quantile_takes_the_smaller_tail(dtype):
    stability, skew = tensors(dtype, [1.7, 0.9], [0.3, -0.8])
    log_p = torch.tensor([[-0.1], [-30.0]], dtype=dtype)
    log_q = torch.log(-torch.expm1(log_p))
    z = stable_quantile(stability, skew, log_p, log_q)
    for found, expected in zip(log_stable_tails(stability, skew, z), (log_p, log_q), strict=True):
        slack = 1e-4 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(found, expected.expand(2, 2), rtol=slack, atol=slack)


def test_derivatives_of_draws_are_those_of_differences():
    stability, skew, noise = tensors(torch.float64, [1.6, 0.9, 1.0], [0.4, -0.8, 0.5], [1.3, -2.0, 0.4])
    inputs = [part.requires_grad_() for part in (stability, skew, noise)]
    assert torch.autograd.gradcheck(stable_draw, inputs, atol=1e-6, check_forward_ad=True)
    z, density = stable_draw(*inputs)
    expected = log_normal_density(noise) - density
    torch.testing.assert_close(torch.autograd.grad(z.sum(), noise)[0].log(), expected)


def test_second_derivatives_are_refused():
    inputs = [part.requires_grad_() for part in tensors(torch.float64, 1.5, 0.2, 0.7)]
    density = log_stable_density(*inputs)
    (slope,) = torch.autograd.grad(density, inputs[2], create_graph=True)
    with pytest.raises(NotImplementedError, match="first order"):
        torch.autograd.grad(slope, inputs[2])


@pytest.mark.parametrize("stability", [0.8, 1.0, 1.4])
def test_the_other_coordinates_are_shifted(stability):
    parts = dict(
        zip(("stability", "skew", "scale", "loc"), tensors(torch.float64, stability, 0.5, 2.0, -1.0), strict=True)
    )
    noise = torch.linspace(-6, 6, 13, dtype=torch.float64)
    one, other = (from_normal(pd.Stable(**parts, coords=coords)) for coords in ("S0", "S"))
    shift = 0 if stability == 1 else 2 * 0.5 * math.tan(math.pi * stability / 2)
    torch.testing.assert_close(other(noise), one(noise) + shift, rtol=1e-13, atol=1e-13)
    value = other(noise)
    torch.testing.assert_close(other.inv(value), noise, rtol=1e-10, atol=1e-10)
    # The characteristic function of either coordinate has a closed form.
    density = torch.exp(scalar_family(pd.Stable(**parts, coords="S")).log_prob(value))
    assert torch.isfinite(density).all()
    levels = torch.special.ndtri((torch.arange(3000, dtype=torch.float64) + 0.5) / 3000)
    argument = 0.4
    mean = torch.exp(1j * argument * other(levels)).mean()
    size = (2 * argument) ** stability
    angle = 0.5 * (math.tan(math.pi * stability / 2) if stability != 1 else -2 / math.pi * math.log(2 * argument))
    exact = np.exp(-size * (1 - 1j * angle) - 1j * argument)
    assert abs(mean.item() - exact) < 2e-3


def test_low_stability_is_refused():
    with pytest.raises(UnsupportedFamilyError, match=r"stability below 0\.1"):
        from_normal(pd.Stable(torch.tensor([1.5, 0.05]), torch.tensor(0.0)))


@pytest.mark.slow
def test_compile():
    inputs = [part.requires_grad_() for part in tensors(torch.float64, [1.6, 0.9], [0.4, -0.8], [1.3, -2.0])]

    def run(stability, skew, noise):
        z, density = stable_draw(stability, skew, noise)
        return z + density, log_stable_tails(stability, skew, 2 * z)

    expected, found = run(*inputs), torch.compile(run, fullgraph=True)(*inputs)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(part[0].sum() + part[1][0].sum(), inputs) for part in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0])
