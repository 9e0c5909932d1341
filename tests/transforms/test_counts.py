"""Unbounded counts, dequantised, at rates that the table of families leaves out."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

from emfc.special.counts import negative_binomial_level, poisson_level
from emfc.special.normal import tails_from_noise
from emfc.transforms import CDFTransform, CountFamily, UnsupportedFamilyError, from_normal, scalar_family
from tests.transforms.cases import DTYPES, LIMIT, round_trip_error

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])


def make(kind: str, size: float, share: float, precision: torch.dtype) -> td.Distribution:
    """A count of about this size; `share` is its second parameter."""
    size, share = (torch.tensor(value, dtype=precision) for value in (size, share))
    if kind == "poisson":
        return td.Poisson(size)
    if kind == "geometric":
        return td.Geometric(1 / (1 + size))
    if kind == "negative binomial":
        return td.NegativeBinomial(size, share)
    if kind == "gamma-poisson":
        return pd.GammaPoisson(size, share)
    return pd.ZeroInflatedPoisson(size, gate=share)


KINDS = ["poisson", "geometric", "zero-inflated", "negative binomial", "gamma-poisson"]


@pytest.mark.parametrize("kind", KINDS)
@BOTH
@settings(max_examples=25, deadline=None)
@given(power=st.floats(-6.0, 6.0), share=st.floats(0.001, 0.99))
def test_any_count_makes_the_round_trip(kind, precision, power, share):
    if kind in ("negative binomial", "gamma-poisson"):
        power = max(min(power, 4.0), -1.0)
    transform = from_normal(make(kind, 10.0**power, share, precision))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 201, dtype=precision)
    value, error, allowed = round_trip_error(transform, noise)
    assert torch.isfinite(value).all()
    assert (value > 0).all()
    assert (value.diff() >= 0).all()
    assert (error <= allowed).all(), (error / allowed).max()


@pytest.mark.parametrize("rate", [1e-6, 0.3, 5.0, 300.0, 1e6])
def test_poisson_against_mpmath(rate):
    transform = from_normal(td.Poisson(torch.tensor(rate, dtype=torch.float64)))
    for e in (-20.0, -3.0, -0.2, 0.9, 5.0, 22.0):
        x, ladj = (part.item() for part in transform.call_and_ladj(torch.tensor(e, dtype=torch.float64)))
        k = math.floor(x)
        with mp.workdps(200):
            r, at = mp.mpf(rate), mp.mpf(x)
            mass = mp.exp(k * mp.log(r) - r - mp.loggamma(k + 1))
            below = mp.gammainc(k, r, mp.inf, regularized=True) if k else mp.mpf(0)
            above = mp.gammainc(k + 1, 0, r, regularized=True)
            tail = below + (at - k) * mass if e < 0 else above + (k + 1 - at) * mass
            small = mp.erfc(abs(mp.mpf(e)) / mp.sqrt(2)) / 2
            hazard = mp.exp(-(mp.mpf(e) ** 2) / 2) / mp.sqrt(2 * mp.pi) / small
            rounding = 4 * math.ulp(x) * math.exp(min(-ladj, 700))
            assert abs(mp.log(tail / small)) / hazard <= max(1e-9 * abs(e), rounding, 1e-9)


def test_levels_are_those_of_scipy():
    noise = torch.linspace(-6, 6, 241, dtype=torch.float64)
    p, q = torch.special.ndtr(noise).numpy(), torch.special.ndtr(-noise).numpy()
    tails = tails_from_noise(noise)

    def expected(dist):
        # scipy's quantile is the smallest k with P(K <= k) at least p; p falls on no step here
        return torch.from_numpy(dist.ppf(p)).where(noise < 0, torch.from_numpy(dist.isf(q)))

    for rate in (0.01, 0.7, 12.0, 4e4):
        level = poisson_level(torch.tensor(rate, dtype=torch.float64), *tails)
        torch.testing.assert_close(level, expected(scipy.stats.poisson(rate)))
    for count, success in ((0.4, 0.3), (3.0, 0.9), (50.0, 0.02)):
        parameters = torch.tensor([count, success, 1 - success], dtype=torch.float64)
        level = negative_binomial_level(*parameters, *tails)
        torch.testing.assert_close(level, expected(scipy.stats.nbinom(count, 1 - success)))


@BOTH
def test_nothing_is_nan_at_extreme_parameters(precision):
    rate = (10 ** torch.linspace(-6, 6, 13, dtype=precision)).unsqueeze(-1).requires_grad_()
    gate = torch.tensor([0.0, 1e-6, 0.5, 0.999999], dtype=precision).reshape(-1, 1, 1).requires_grad_()
    noise = (2 * LIMIT[precision] * torch.linspace(-1, 1, 61, dtype=precision)).requires_grad_()
    rates, gates = torch.broadcast_tensors(rate, gate)
    dists = {
        "poisson": (td.Poisson(rate), (rate,)),
        "geometric": (td.Geometric(1 / (1 + rate)), (rate,)),
        "inflated": (pd.ZeroInflatedPoisson(rates, gate=gates), (rate, gate)),
        "inflated geometric": (pd.ZeroInflatedDistribution(pd.Geometric(1 / (1 + rates)), gate=gates), (rate, gate)),
    }
    for name, (dist, parameters) in dists.items():
        transform = from_normal(dist)
        value, ladj = transform.call_and_ladj(noise)
        assert torch.isfinite(value).all(), name
        assert torch.isfinite(ladj).all(), name
        gradients = torch.autograd.grad(value.sum() + ladj.sum(), (noise, *parameters), retain_graph=True)
        data = value.detach().requires_grad_()
        back, ladj = transform.inv.call_and_ladj(data)
        assert torch.isfinite(back).all(), name
        gradients += torch.autograd.grad(back.sum() + ladj.sum(), (data, *parameters), retain_graph=True)
        assert not any(torch.isnan(gradient).any() for gradient in gradients), name


def test_certain_outcomes():
    geometric = from_normal(td.Geometric(torch.tensor([1.0, 0.5])))
    value, ladj = geometric.call_and_ladj(torch.linspace(-5, 5, 11).unsqueeze(-1))
    assert (value[:, 0] < 1).all()
    torch.testing.assert_close(value[:, 0], torch.special.ndtr(torch.linspace(-5, 5, 11)), rtol=1e-5, atol=1e-6)
    assert not torch.isnan(ladj).any()
    nothing = from_normal(td.Poisson(torch.tensor(0.0)))(torch.tensor([-3.0, 0.0, 3.0]))
    torch.testing.assert_close(nothing, torch.special.ndtr(torch.tensor([-3.0, 0.0, 3.0])), rtol=1e-5, atol=1e-6)
    always = pd.ZeroInflatedPoisson(torch.tensor(50.0), gate=torch.tensor(1.0))
    assert (from_normal(always)(torch.linspace(-5, 5, 11)) < 1).all()


def test_log_odds_and_chances_give_the_same():
    logits, noise = torch.tensor([-4.0, 0.3, 5.0]), torch.linspace(-6, 6, 25).unsqueeze(-1)
    chances = torch.sigmoid(logits)
    for one, other in (
        (td.Geometric(logits=logits), td.Geometric(chances)),
        (td.NegativeBinomial(logits.exp(), logits=-logits), td.NegativeBinomial(logits.exp(), 1 - chances)),
    ):
        torch.testing.assert_close(from_normal(one)(noise), from_normal(other)(noise), rtol=1e-8, atol=1e-8)
    rare = from_normal(td.Geometric(logits=torch.tensor(60.0)))  # whose chance of failure is nothing beside 1
    torch.testing.assert_close(rare(torch.tensor(20.0)), torch.tensor(3.0), rtol=0, atol=1.0)


def test_zero_inflation_of_other_families():
    gate = torch.tensor([0.2, 0.9])
    table = scalar_family(pd.ZeroInflatedDistribution(pd.Binomial(3, torch.tensor([0.5, 0.1])), gate=gate))
    assert not isinstance(table, CountFamily)
    nested = pd.ZeroInflatedNegativeBinomial(torch.tensor([3.0, 0.5]), probs=torch.tensor([0.6, 0.2]), gate=gate)
    for dist in (nested, nested.expand([4, 2]), pd.ZeroInflatedDistribution(pd.Poisson(gate), gate_logits=gate)):
        x = torch.arange(6.0).reshape(-1, *[1] * len(dist.batch_shape)) + 0.25
        torch.testing.assert_close(
            scalar_family(dist).log_prob(x), dist.log_prob(x.floor()).expand(6, *dist.batch_shape)
        )
    with pytest.raises(UnsupportedFamilyError, match="ZeroInflatedPoisson"):
        from_normal(pd.ZeroInflatedDistribution(pd.Normal(0.0, torch.ones(2)), gate=gate))


def test_integers_are_levels():
    transform = from_normal(td.Poisson(torch.tensor(2.0)))
    assert isinstance(transform, CDFTransform)
    assert transform.discrete
    x = torch.arange(12.0)
    noise, ladj = transform.inv.call_and_ladj(x)
    torch.testing.assert_close(ladj + td.Normal(0.0, 1.0).log_prob(noise), td.Poisson(2.0).log_prob(x))
    below = torch.cat((torch.zeros(1), td.Poisson(2.0).log_prob(x[:-1]).exp().cumsum(0)))
    torch.testing.assert_close(torch.special.ndtr(noise[1:]), below[1:])
    leaf = x[1:].clone().requires_grad_()
    slope = torch.autograd.grad(transform.inv(leaf).sum(), leaf)[0]
    torch.testing.assert_close(slope.log(), ladj[1:])


@pytest.mark.parametrize(
    "build",
    [lambda: td.Geometric(logits=torch.tensor(20.0)), lambda: td.NegativeBinomial(3.0, logits=torch.tensor(20.0))],
    ids=["geometric", "negative binomial"],
)
def test_what_was_read_before_changes_nothing(build):
    fresh, read = build(), build()
    _ = read.mean, read.probs, read.logits  # torch stores what it derives, which saturates
    noise = torch.tensor([-6.0, 0.0, 6.0])
    assert torch.equal(from_normal(fresh)(noise), from_normal(read)(noise))
