"""The gamma distribution and its relatives at concentrations that the table of families leaves out."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

from emfc.transforms import Gamma, InverseGamma, from_normal, scalar_family
from tests.transforms.cases import BOUND, DTYPES, LIMIT, round_trip_error

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
FAMILIES = pytest.mark.parametrize("family", [pd.Gamma, pd.InverseGamma], ids=["gamma", "inverse gamma"])


def test_which_distributions_are_gammas():
    one = torch.tensor(1.5)
    for dist in (td.Gamma(one, one), pd.Gamma(one, one), td.Chi2(one), pd.Chi2(one), pd.Gamma(one, one).expand([3])):
        assert isinstance(scalar_family(dist), Gamma)
    for dist in (td.InverseGamma(one, one), pd.InverseGamma(one, one)):
        assert isinstance(from_normal(dist).family, InverseGamma)


@FAMILIES
@BOTH
@settings(max_examples=60, deadline=None)
@given(power=st.floats(-3.0, 6.0), rate=st.floats(-4.0, 4.0))
def test_any_parameters_make_the_round_trip(family, precision, power, rate):
    dist = family(*(torch.tensor(10.0**value, dtype=precision) for value in (power, rate)))
    transform = from_normal(dist)
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 101, dtype=precision)
    value, error, allowed = round_trip_error(transform, noise)
    info = torch.finfo(precision)
    assert ((value > 0) & (value <= info.max)).all()
    assert (value.diff() >= 0).all()
    # A value that under- or overflows can't tell its noise; that of the range's end is the nearest.
    held = (value > info.tiny * 10.0**4) & (value < info.max / 10.0**5)
    assert (error <= allowed)[held].all()
    assert (transform.inv(value).diff() >= -2 * BOUND[precision] * LIMIT[precision]).all()


@FAMILIES
@BOTH
def test_nothing_is_nan_at_extreme_parameters(family, precision):
    concentration = (10 ** torch.linspace(-3, 6, 19, dtype=precision)).reshape(-1, 1, 1).requires_grad_()
    rate = torch.tensor([1e-3, 1.0, 1e3], dtype=precision).unsqueeze(-1).requires_grad_()
    noise = (2 * LIMIT[precision] * torch.linspace(-1, 1, 81, dtype=precision)).requires_grad_()
    transform = from_normal(family(concentration, rate))
    value, ladj = transform.call_and_ladj(noise)
    assert torch.isfinite(value).all()
    assert torch.isfinite(ladj).all()
    score = value.clamp(max=torch.finfo(precision).max ** 0.5).sum() + ladj.sum()  # the sum itself must not overflow
    for gradient in torch.autograd.grad(score, (concentration, rate, noise)):
        assert not torch.isnan(gradient).any()
    data = value.detach().requires_grad_()
    noise, ladj = transform.inv.call_and_ladj(data)
    assert torch.isfinite(noise).all()
    assert torch.isfinite(ladj).all()
    for gradient in torch.autograd.grad(noise.sum() + ladj.sum(), (concentration, rate, data)):
        assert not torch.isnan(gradient).any()


@pytest.mark.parametrize("concentration", [1e-3, 0.05, 0.5, 3.0, 19.0, 21.0, 800.0, 3e5])
@pytest.mark.parametrize("e", [-3.0, 0.4, 4.0])
def test_derivative_of_a_draw_by_its_concentration(concentration, e):
    for precision, bound in ((torch.float64, 1e-8), (torch.float32, 3e-4)):
        a = torch.tensor(concentration, dtype=precision, requires_grad=True)
        x = from_normal(td.Gamma(a, torch.ones((), dtype=precision)))(torch.tensor(e, dtype=precision))
        if x < torch.finfo(precision).tiny:
            continue
        (found,) = torch.autograd.grad(x, a)
        with mp.workdps(60):
            at, shape = mp.mpf(x.item()), mp.mpf(a.item())
            step = shape * mp.mpf(10) ** -15
            ends = [mp.gammainc(shape + sign * step, 0, at, regularized=True) for sign in (1, -1)]
            density = mp.exp((shape - 1) * mp.log(at) - at - mp.loggamma(shape))
            expected = -(ends[0] - ends[1]) / (2 * step) / density
        assert float(abs(found.item() / expected - 1)) <= bound


def test_densities_are_those_of_torch_where_torch_is_exact():
    concentration = torch.tensor([0.01, 0.7, 3.0, 40.0, 900.0], dtype=torch.float64)
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64).unsqueeze(-1)
    for dist in (td.Gamma(concentration, 2.0), pd.InverseGamma(concentration, torch.full_like(concentration, 2.0))):
        transform = from_normal(dist)
        value = transform(noise)
        held = (value > 1e-100) & (value < 1e100)
        found = scalar_family(dist).log_prob(value)
        torch.testing.assert_close(found[held], dist.log_prob(value)[held], rtol=1e-11, atol=1e-9)


def test_single_precision_holds_at_a_large_concentration():
    """The log density cancels nothing: its error is that of the value's own rounding."""
    narrow, exact = (td.Gamma(*torch.tensor([1e6, 1.0], dtype=dtype)) for dtype in DTYPES)
    x = from_normal(narrow)(torch.linspace(-4, 4, 33, dtype=torch.float32))
    expected = exact.log_prob(x.double())
    torch.testing.assert_close(scalar_family(narrow).log_prob(x).double(), expected, rtol=2e-6, atol=2e-6)
    assert (narrow.log_prob(x) - expected).abs().max() > 0.01  # which torch's own is not


def test_outside_the_support():
    for dist in (td.Gamma(torch.tensor(2.0), torch.tensor(1.0)), pd.InverseGamma(torch.tensor(2.0), torch.tensor(1.0))):
        noise, ladj = from_normal(dist).inv.call_and_ladj(torch.tensor([-1.0, 0.0, math.inf, -math.inf]))
        assert torch.isfinite(noise).all()
        assert (ladj[[0, 2, 3]] == -math.inf).all()
