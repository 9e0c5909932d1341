"""Families with closed forms: extreme parameters, parameters of unequal shapes, points where a formula changes."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch.distributions.continuous_bernoulli import ContinuousBernoulli
from torch.distributions.generalized_pareto import GeneralizedPareto
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from emfc.transforms import CDFTransform, UnsupportedFamilyError, from_normal, gated, mixture_family, scalar_family
from tests.transforms.cases import BOUND, DTYPES, LIMIT, round_trip_error

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])


def logs(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive numbers of all these orders of magnitude."""
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


PLACES = st.floats(-1e3, 1e3)
EXTREME = {
    "gumbel": (td.Gumbel, (PLACES, logs(-3, 3))),
    "weibull": (td.Weibull, (logs(-3, 3), logs(-2, 2))),
    "pareto": (td.Pareto, (logs(-3, 3), logs(-1, 3))),
    "generalized pareto": (GeneralizedPareto, (PLACES, logs(-3, 3), st.floats(-3, 3))),
    "asymmetric laplace": (pd.AsymmetricLaplace, (PLACES, logs(-3, 3), logs(-3, 3))),
    "soft laplace": (pd.SoftLaplace, (PLACES, logs(-3, 3))),
    "soft asymmetric laplace": (pd.SoftAsymmetricLaplace, (PLACES, logs(-3, 3), logs(-2, 2), logs(-2, 2))),
    "skew logistic": (pd.SkewLogistic, (PLACES, logs(-3, 3), logs(-3, 3))),
    "kumaraswamy": (td.Kumaraswamy, (logs(-2, 3), logs(-2, 3))),
    "continuous bernoulli": (lambda v: ContinuousBernoulli(logits=v), (st.floats(-500, 500),)),
    "logit relaxed bernoulli": (
        lambda t, v: LogitRelaxedBernoulli(t, logits=v),
        (logs(-3, 3), st.floats(-50, 50)),
    ),
    "relaxed bernoulli": (lambda t, v: td.RelaxedBernoulli(t, logits=v), (logs(-1, 2), st.floats(-50, 50))),
    "von mises": (td.VonMises, (st.floats(-10, 10), logs(-3, 6))),
}


@pytest.mark.parametrize("name", EXTREME)
@BOTH
def test_extreme_parameters(name, precision):
    """Round trips within the bounds, draws inside the support, and no gradient that is not a number."""
    build, strategies = EXTREME[name]

    @settings(max_examples=7, deadline=None, database=None, derandomize=True)
    @given(st.tuples(*strategies))
    def check(values):
        parameters = [torch.tensor(value, dtype=precision).requires_grad_() for value in values]
        transform = from_normal(build(*parameters))
        noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 51, dtype=precision)
        value, error, allowed = round_trip_error(transform, noise)
        assert torch.isfinite(value).all()
        assert transform.codomain.check(value).all()
        assert (value.diff() >= 0).all()
        numbers = value.abs() < torch.finfo(precision).max ** 0.98  # not beyond the largest
        assert (error <= allowed)[numbers].all(), (error / allowed)[numbers].max()
        wide = (2 * noise).requires_grad_()
        value, ladj = transform.call_and_ladj(wide)
        back, inverse_ladj = transform.inv.call_and_ladj(value)
        assert torch.isfinite(value).all()
        assert torch.isfinite(back).all()
        gradients = torch.autograd.grad(ladj.sum() + inverse_ladj.sum() + back.sum(), [wide, *parameters])
        assert not any(torch.isnan(gradient).any() for gradient in gradients)

    check()


@pytest.mark.parametrize(
    "build",
    [
        td.Gumbel,
        lambda a, b: td.Weibull(a, b),
        lambda a, b: td.Pareto(a, b),
        lambda a, b: td.Kumaraswamy(a, b),
        lambda a, b: GeneralizedPareto(a, b, 0.3),
        lambda a, b: pd.AsymmetricLaplace(a, b, 2.0),
        lambda a, b: pd.SoftAsymmetricLaplace(a, b),
        lambda a, b: pd.SkewLogistic(a, 1.0, b),
        lambda a, b: pd.SoftLaplace(a, b),
        lambda a, b: td.VonMises(a, b),
    ],
)
def test_parameters_of_unequal_shapes(build):
    first, second = torch.tensor([0.5, 1.5, 2.5]), torch.tensor([[0.7], [1.3]])
    whole = build(*torch.broadcast_tensors(first, second))
    noise = torch.linspace(-3, 3, 7).reshape(7, 1, 1)
    expected = from_normal(whole).call_and_ladj(noise)
    dists = [build(first, second)]
    if not isinstance(whole, pd.SoftAsymmetricLaplace):  # which Pyro itself cannot expand
        dists.append(build(first, second).expand(torch.Size([2, 3])))
    for dist in dists:
        for one, other in zip(from_normal(dist).call_and_ladj(noise), expected, strict=True):
            torch.testing.assert_close(one, other)
    scalar = build(0.5, 0.7)  # numbers instead of tensors
    value, _ = from_normal(scalar).call_and_ladj(noise)
    torch.testing.assert_close(value[:, 0, 0].double(), expected[0][:, 0, 0], rtol=1e-5, atol=1e-5)


def test_relaxed_bernoulli_of_probabilities():
    probs = torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    by_probs = from_normal(td.RelaxedBernoulli(torch.tensor(0.7), probs=probs))
    by_logits = from_normal(td.RelaxedBernoulli(torch.tensor([0.7]), logits=probs.detach().logit()))
    noise = torch.randn(5, 3)
    torch.testing.assert_close(by_probs(noise), by_logits(noise))
    assert torch.isfinite(torch.autograd.grad(by_probs(noise).sum(), probs)[0]).all()
    mixed = CDFTransform(
        mixture_family(torch.zeros(3), scalar_family(td.RelaxedBernoulli(torch.tensor(0.7), probs=probs)))
    )
    torch.testing.assert_close(mixed.inv(mixed(noise)), noise, rtol=1e-7, atol=1e-7)


def test_what_is_relaxed_in_its_gradient_only_is_refused():
    dist = pd.RelaxedBernoulliStraightThrough(torch.tensor(0.7), probs=torch.tensor(0.3))
    for make in (from_normal, scalar_family):
        with pytest.raises(UnsupportedFamilyError, match="Bernoulli"):
            make(dist)


@pytest.mark.parametrize("logits", [0.0, 1e-12, -1e-6, 0.3, -0.9999999, 1.0000001, 40.0, -700.0])
def test_continuous_bernoulli_at_any_log_odds(logits):
    """Values, and the derivative by the log odds, where the series gives way to the closed form."""
    parameter = torch.tensor(logits, requires_grad=True)
    transform = from_normal(ContinuousBernoulli(logits=parameter))
    noise = torch.tensor([-12.0, -1.0, 0.0, 0.4, 9.0])
    value, _ = transform.call_and_ladj(noise)

    def quantile(e, n):
        p, q = mp.erfc(-e / mp.sqrt(2)) / 2, mp.erfc(e / mp.sqrt(2)) / 2
        return mp.log(q + p * mp.exp(n)) / n

    with mp.workdps(150):
        for k, e in enumerate(noise.tolist()):
            n = mp.mpf(logits) + mp.mpf(10) ** -40
            expected = float(quantile(mp.mpf(e), n))
            slope = float(mp.diff(lambda n, e=e: quantile(mp.mpf(e), n), n, h=mp.mpf(10) ** -45))
            assert abs(value[k].item() - expected) <= 1e-13 * abs(expected) + 1e-300
            (gradient,) = torch.autograd.grad(value[k], parameter, retain_graph=True)
            assert abs(gradient.item() - slope) <= 1e-9 * abs(slope) + 1e-14


@pytest.mark.parametrize("concentration", [0.0, 1e-12, -1e-9, 1e-4, -1e-3, -1.0, 0.5, -2.0])
def test_generalized_pareto_at_any_concentration(concentration):
    parameter = torch.tensor(concentration, requires_grad=True)
    transform = from_normal(GeneralizedPareto(torch.tensor(1.0), torch.tensor(2.0), parameter))
    noise = torch.tensor([-12.0, -1.0, 0.0, 0.4, 3.0])
    value, _ = transform.call_and_ladj(noise)

    def quantile(e, k):
        hazard = -mp.log(mp.erfc(e / mp.sqrt(2)) / 2)
        return 1 + 2 * mp.expm1(k * hazard) / k

    with mp.workdps(150):
        for place, e in enumerate(noise.tolist()):
            k = mp.mpf(concentration) + mp.mpf(10) ** -40
            assert abs(value[place].item() - float(quantile(mp.mpf(e), k))) <= 2e-15 * abs(value[place].item())
            slope = float(mp.diff(lambda k, e=e: quantile(mp.mpf(e), k), k, h=mp.mpf(10) ** -45))
            (gradient,) = torch.autograd.grad(value[place], parameter, retain_graph=True)
            assert abs(gradient.item() - slope) <= 1e-9 * abs(slope) + 1e-14


def test_generalized_pareto_of_both_kinds_at_once():
    """A support that ends for some elements and not for others, its gate, and a mixture over both."""
    dist = GeneralizedPareto(torch.zeros(4), torch.ones(4), torch.tensor([-0.5, 0.0, 0.5, -2.0]))
    transform = from_normal(dist)
    value = transform(torch.full((4,), 20.0))
    assert transform.codomain.check(value).all()
    assert (
        not transform.codomain.check(torch.tensor([2.1, 1e9, 1e9, 0.6]))
        .logical_xor(torch.tensor([False, True, True, False]))
        .any()
    )
    opened = gated(transform, torch.tensor(0.5))
    noise = torch.linspace(-4, 4, 9).unsqueeze(-1)
    torch.testing.assert_close(opened.inv(opened(noise)), noise.expand(9, 4), rtol=1e-7, atol=1e-7)
    mixed = CDFTransform(mixture_family(torch.zeros(4), scalar_family(dist)))
    torch.testing.assert_close(mixed.inv(mixed(noise)), noise, rtol=1e-7, atol=1e-7)
    low = CDFTransform(mixture_family(torch.zeros(2), scalar_family(GeneralizedPareto(0.0, 1.0, -torch.ones(2)))))
    assert low.inv.call_and_ladj(torch.tensor([1.5, -0.1]))[1].tolist() == [-math.inf] * 2


def test_a_mixture_over_different_lower_ends():
    family = mixture_family(torch.zeros(2), scalar_family(td.Pareto(torch.tensor([1.0, 3.0]), 2.0)))
    x = torch.tensor([0.5, 2.0, 4.0])
    density = [0.0, 0.5 * 2 / 8, 0.5 * 2 / 64 + 0.5 * 2 * 9 / 64]
    torch.testing.assert_close(family.log_prob(x).exp(), torch.tensor(density))
    transform = CDFTransform(family)
    noise = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(transform.inv(transform(noise)), noise, rtol=1e-8, atol=1e-8)


def test_nearly_subnormal_values_are_told_apart():
    """A round trip through numbers that have lost digits, within those that they have left."""
    transform = from_normal(td.Weibull(torch.tensor(1.0), torch.tensor(0.44)))
    noise = torch.linspace(-25, -24, 41)
    value, error, allowed = round_trip_error(transform, noise)
    assert ((value > 0) & (value < 2.3e-308)).any()
    assert (error <= allowed).all()


@BOTH
def test_gradients_by_asymmetry_agree_with_mpmath(precision):
    """The quantile that is solved carries the derivatives of the implicit function."""
    values = [0.3, 1.2, 0.4, 0.7]
    parameters = [torch.tensor(v, dtype=precision).requires_grad_() for v in values]
    noise = torch.tensor([-4.0, -0.3, 1.0, 5.0], dtype=precision)
    value, _ = from_normal(pd.SoftAsymmetricLaplace(*parameters)).call_and_ladj(noise)

    def tail(x, loc, scale, a, s):
        z = (x - loc) / scale
        u, right = z / s, 1 / a
        below = a * mp.exp(s**2 / (2 * a**2) + z / a) * mp.ncdf(-u - s / a)
        above = right * mp.exp(s**2 / (2 * right**2) - z / right) * mp.ncdf(u - s / right)
        return mp.ncdf(u) + (below - above) / (a + right)

    with mp.workdps(50):
        exact = [mp.mpf(p.item()) for p in parameters]
        for k, x in enumerate(value.tolist()):
            gradients = torch.autograd.grad(value[k], parameters, retain_graph=True)
            density = mp.diff(lambda x: tail(x, *exact), x)
            for place, gradient in enumerate(gradients):
                direction = tuple(int(place == other) for other in range(4))
                slope = float(-mp.diff(lambda *p, x=x: tail(mp.mpf(x), *p), exact, direction) / density)
                assert abs(gradient.item() - slope) <= (1e-9 if precision == torch.float64 else 2e-4) * max(
                    1, abs(slope)
                )
    assert BOUND[precision] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [td.Laplace, td.Gumbel, pd.Logistic, td.Uniform, td.VonMises], ids=lambda b: b.__name__
)
def test_compiled_in_one_piece(build):
    """Both directions are one graph, also where no gradient is wanted."""
    torch._dynamo.reset()  # the function below is the same code for every family
    parameters = [torch.tensor([-0.3, 0.4]), torch.tensor([0.8, 2.0])]
    transform = from_normal(build(*parameters))
    noise = torch.linspace(-3, 3, 8).reshape(4, 2)

    def run(e):
        value, ladj = transform.call_and_ladj(e)
        return value, ladj, *transform.inv.call_and_ladj(0.99 * value)

    compiled = torch.compile(run, fullgraph=True)
    for one, other in zip(compiled(noise), run(noise), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    leaf = noise.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(sum(part.sum() for part in function(leaf)), leaf)[0] for function in (compiled, run)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
