"""Truncated distributions far out in a tail and beside their ends, as distributions, and folded ones."""

from __future__ import annotations

import math

import mpmath as mp
import pyro
import pyro.distributions as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch.distributions import constraints

from emfc.distributions import Truncated
from emfc.transforms import UnsupportedFamilyError, from_normal, scalar_family
from tests.transforms.cases import BOUND, CASES, DTYPES, LIMIT, SCALAR
from tests.transforms.test_mixtures import errors

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
FAR = [(20.0, None), (30.0, 31.0), (-40.0, -39.0), (None, -25.0), (0.0, 1e-3), (-300.0, 5.0), (1.0, 1.0 + 1e-6)]
REFUSED = {  # chains with kinks, whole distributions as steps, and a support whose kind depends on a parameter
    "leaky relu of laplace",
    "signed power of normal",
    "distribution function of normal",
    "normal with the tails of laplace",
    "generalized pareto",
    "generalized pareto with an upper end",
}
FOLDED = {  # families of the whole real line without a kink in their chain
    "normal",
    "laplace",
    "logistic",
    "cauchy",
    "mixture of normals",
    "mixture of laplaces",
    "mixture of logistics",
    "mixture of cauchys",
    "decreasing affine of laplace",
    "masked normal",
    "student-t",
    "student-t of few and many degrees of freedom",
    "uniform through a logit",
    "uniform through two logarithms",
    "inverse softplus of exponential",
    "logarithm of exponential",
    "gumbel",
    "asymmetric laplace",
    "soft asymmetric laplace",
    "soft laplace",
    "skew logistic",
    "logit relaxed bernoulli",
    "mixture of gumbels",
    "stable",
    "totally skewed stable",
}
CONTINUOUS = [name for name in SCALAR if not CASES[name].discrete]


def tail(x):
    return mp.erfc(x / mp.sqrt(2)) / 2


def fraction(x, low, high):
    """Lower and upper tail of the truncated standard normal, by the side on which nothing cancels."""
    low, high = (-mp.inf if low is None else mp.mpf(low)), (mp.inf if high is None else mp.mpf(high))
    sign = 1 if low + (0 if high == mp.inf else high) >= 0 or low > 0 else -1
    if low == -mp.inf:
        sign = -1
    near, at, far = tail(sign * low), tail(sign * x), tail(sign * high)
    total = abs(near - far)
    return abs(near - at) / total, abs(at - far) / total


@pytest.mark.parametrize(("low", "high"), FAR)
@BOTH
def test_far_intervals(low, high, precision):
    ends = [None if end is None else torch.tensor(end, dtype=precision, requires_grad=True) for end in (low, high)]
    loc, scale = (torch.tensor(v, dtype=precision, requires_grad=True) for v in (0.0, 1.0))
    transform = from_normal(Truncated(td.Normal(loc, scale), *ends))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 201, dtype=precision)
    with torch.no_grad():
        assert (errors(transform, noise) <= 1).all()
        values = transform(noise)
        assert (values.diff() >= 0).all()
        assert transform.codomain.check(values).all()
    rounded = [None if end is None else end.item() for end in ends]
    for e in (-2.0, -0.4, 0.0, 1.1, 2.0):
        e = torch.tensor(e, dtype=precision)
        x, ladj = transform.call_and_ladj(e)
        with mp.workdps(500):
            parts = fraction(mp.mpf(x.item()), *rounded)
            small, part = (tail(abs(mp.mpf(e.item()))), parts[0] if e < 0 else parts[1])
            slope = mp.exp(-(mp.mpf(e.item()) ** 2) / 2) / mp.sqrt(2 * mp.pi) / small
            error = float(abs(mp.log(part / small)) / slope)
        coarse = 4 * abs(x.item()) * torch.finfo(precision).eps * math.exp(-ladj.item())
        assert error <= max(BOUND[precision] * max(1, abs(e.item())), coarse)
    leaves = [loc, scale, *(end for end in ends if end is not None)]
    for direction in (transform, transform.inv):
        y, ladj = direction.call_and_ladj(1.4 * noise if direction is transform else values)
        for gradient in torch.autograd.grad(y.sum() + ladj.sum(), leaves, retain_graph=True):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("e", [-20.0, -3.0, 0.5, 15.0])
def test_gradients_far_out(e):
    """Of a draw and of its noise with respect to both ends, by mpmath."""
    low, high = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (30.0, 30.5))
    transform = from_normal(Truncated(td.Normal(torch.zeros((), dtype=torch.float64), 1.0), low, high))
    x = transform(torch.tensor(e, dtype=torch.float64))
    found = torch.autograd.grad(x, (low, high))
    with mp.workdps(900):
        exact = [mp.mpf(30), mp.mpf("30.5")]
        small = tail(abs(mp.mpf(e)))
        lower = small if e < 0 else 1 - small

        def solve(ends):
            survival = tail(ends[0]) - lower * (tail(ends[0]) - tail(ends[1]))
            return mp.findroot(lambda t: mp.log(tail(t)) - mp.log(survival), mp.mpf(x.item()) + mp.mpf("1e-9"))

        base = solve(exact)
        density = [mp.npdf(t) for t in (exact[0], exact[1], base)]
        expected = [density[0] * (1 - lower) / density[2], density[1] * lower / density[2]]
    for one, other in zip(found, expected, strict=True):
        assert abs(one.item() - float(other)) <= 1e-9 * max(float(other), 1e-3)


@pytest.mark.parametrize("low", [30.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("width", [None, 0.7])
@pytest.mark.parametrize("side", [1, -1])
@BOTH
def test_densities_beyond_a_far_end(low, width, side, precision):
    """By the distance from the end, which the unconstrained coordinate keeps, and the gradients of the density."""
    leaves = [torch.tensor(v, dtype=precision, requires_grad=True) for v in (0.0, 1.0, side * low)]
    loc, scale, end = leaves
    far = None if width is None else end.detach() + side * torch.tensor(width / low, dtype=precision)
    gap = math.inf if far is None else abs(far.item() - end.item())
    assert gap > 0 or precision == torch.float32
    if gap == 0:
        return
    ends = (end, far) if side > 0 else (far, end)
    family = scalar_family(Truncated(td.Normal(loc, scale), *ends, validate_args=False))
    noise = torch.tensor([-3.0, -0.5, 0.0, 2.0, 5.0], dtype=precision)
    position, log_prob = family.draw(noise)
    distances = (position.below if side > 0 else position.above).detach()
    found, again = family.noise(position)
    torch.testing.assert_close(found, noise, rtol=0, atol=BOUND[precision] * 5)
    torch.testing.assert_close(again, log_prob, rtol=1e-5 if precision == torch.float32 else 1e-13, atol=1e-6)
    fixed = family.log_density(position._replace(value=position.value.detach()))
    with mp.workdps(60):
        a = mp.mpf(low)
        hazard = mp.npdf(a) / tail(a)
        whole = mp.mpf(1) if width is None else 1 - tail(a + gap) / tail(a)
        for e, d, density in zip(noise.tolist(), distances.tolist(), fixed.tolist(), strict=True):
            ratio = tail(a + d) / tail(a)
            assert abs(density - float(-d * (a + mp.mpf(d) / 2) + mp.log(hazard / whole))) <= (
                32 * torch.finfo(precision).eps * max(1, abs(density))
            )
            inner = float((1 - ratio) / whole)
            assert abs(inner - float(tail(-side * mp.mpf(e)))) <= 1e3 * torch.finfo(precision).eps
    moved = torch.autograd.grad(position.value.sum() + log_prob.sum(), leaves)
    assert all(bool(torch.isfinite(gradient)) for gradient in moved)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_family_truncates(name):
    """Between two of its quantiles, above one and below one; or it is refused with a reason."""
    dist = CASES[name].dist(torch.float64)
    program = from_normal(dist)
    low, high = (program(torch.tensor(e, dtype=torch.float64).expand(dist.batch_shape)) for e in (-1.1, 0.9))
    noise = torch.linspace(-20, 20, 41, dtype=torch.float64).reshape(-1, *[1] * len(dist.batch_shape))
    if name in REFUSED:
        with pytest.raises(ValueError, match=r"(?i)trunc"):
            Truncated(dist, low, high, validate_args=False)
        return
    both = Truncated(dist, low, high, validate_args=False)
    for cut in (both, Truncated(dist, low=low, validate_args=False), Truncated(dist, high=high, validate_args=False)):
        assert (errors(from_normal(cut), noise) <= 1).all()
    if "stable" in name:  # whose density Pyro has by a coarse quadrature
        return
    x = from_normal(both)(noise[15:26])
    expected = dist.log_prob(x) - (torch.special.ndtr(torch.tensor(0.9)) - torch.special.ndtr(torch.tensor(-1.1))).log()
    torch.testing.assert_close(both.log_prob(x), expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.floats(-35, 35), st.floats(-12, 2), st.sampled_from(DTYPES), st.sampled_from([td.Normal, td.Laplace]))
def test_any_interval(low, log_width, precision, family):
    low = torch.tensor(low, dtype=precision)
    high = torch.maximum(low + 10**log_width, torch.nextafter(low, torch.full_like(low, 100)))
    high = low + (high - low).clamp(min=1e3 * torch.finfo(precision).eps * low.abs())
    leaves = [v.detach().requires_grad_() for v in (torch.zeros_like(low), torch.ones_like(low), low, high)]
    transform = from_normal(Truncated(family(*leaves[:2]), *leaves[2:]))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 31, dtype=precision)
    with torch.no_grad():
        assert (errors(transform, noise) <= 1.5).all()
    value, ladj = transform.call_and_ladj(noise)
    for gradient in torch.autograd.grad(value.sum() + ladj.sum(), leaves):
        assert torch.isfinite(gradient).all()


def test_it_is_a_distribution():
    base = pd.Normal(torch.zeros(3), torch.ones(3))
    dist = Truncated(base, low=-1.0, high=torch.tensor([[1.0], [2.0]]))
    assert dist.batch_shape == (2, 3)
    assert dist.event_shape == ()
    assert dist.has_rsample
    assert isinstance(dist.support, constraints.interval)
    assert isinstance(Truncated(base, low=0.5).support, constraints.greater_than)
    assert isinstance(Truncated(base, high=0.5).support, constraints.less_than)
    wide = dist.expand([4, 2, 3])
    assert wide.batch_shape == wide.sample().shape == (4, 2, 3)
    draws = wide.sample((50,))
    assert dist.support.check(draws).all()
    torch.testing.assert_close(wide.log_prob(draws), dist.log_prob(draws))
    unchecked = Truncated(base, low=-1.0, high=2.0, validate_args=False)
    assert (unchecked.log_prob(torch.tensor([-1.5, 5.0, 3.0])) == -math.inf).all()
    torch.testing.assert_close(dist.icdf(dist.cdf(draws)), draws)
    assert dist.cdf(torch.tensor(-7.0)).max() == 0
    assert dist.cdf(torch.tensor(7.0)).min() == 1
    assert scalar_family(dist).batch_shape == (2, 3)
    low = torch.tensor(0.2, requires_grad=True)
    Truncated(base, low=low).rsample((5,)).sum().backward()
    assert low.grad > 0


def test_in_a_pyro_program():
    def program():
        with pyro.plate("rows", 5):
            return pyro.sample("x", Truncated(pd.Normal(0.0, 1.0), low=2.0))

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == (5,)
    assert (trace.nodes["x"]["value"] > 2).all()


def test_ends_beyond_the_base_have_no_say():
    dist = Truncated(td.Exponential(1.0), low=-3.0, high=2.0)
    assert dist.support.lower_bound == 0
    x = torch.tensor([0.1, 1.9])
    torch.testing.assert_close(dist.log_prob(x), -x - math.log(-math.expm1(-2)))
    whole = Truncated(td.Uniform(0.0, 1.0), low=-1.0, high=2.0)
    torch.testing.assert_close(from_normal(whole)(torch.tensor(0.3)), torch.special.ndtr(torch.tensor(0.3)))


def test_wrong_arguments_are_refused():
    base = td.Normal(0.0, 1.0)
    with pytest.raises(ValueError, match="low < high"):
        Truncated(base, 1.0, 1.0, validate_args=True)
    with pytest.raises(ValueError, match="support between"):
        Truncated(td.Uniform(0.0, 1.0), low=2.0, high=3.0, validate_args=True)
    with pytest.raises(ValueError, match="finite"):
        Truncated(base, low=-math.inf, validate_args=True)
    with pytest.raises(ValueError, match="univariate transform"):
        Truncated(td.MultivariateNormal(torch.zeros(2), torch.eye(2)), low=0.0)
    with pytest.raises(ValueError, match="truncated"):
        Truncated(td.Categorical(torch.ones(3)), low=0.5)
    with pytest.raises(ValueError, match="TransformedDistribution"):
        Truncated(td.TransformedDistribution(base, [pd.transforms.LeakyReLUTransform()]), low=0.5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_real_family_folds_and_no_other(name):
    dist = CASES[name].dist(torch.float64)
    folded = pd.FoldedDistribution(dist, validate_args=False)
    if name not in FOLDED:
        with pytest.raises(UnsupportedFamilyError, match="FoldedDistribution"):
            from_normal(folded)
        return
    transform = from_normal(folded)
    noise = torch.linspace(-20, 20, 41, dtype=torch.float64).reshape(-1, *[1] * len(dist.batch_shape))
    assert (errors(transform, noise) <= 1).all()
    if "stable" in name:  # whose density Pyro has by a coarse quadrature
        return
    x = transform(noise[15:26])
    torch.testing.assert_close(transform.family.log_prob(x), folded.log_prob(x), rtol=1e-9, atol=1e-9)


def test_folding_a_symmetric_family_is_its_half():
    noise = torch.linspace(-25, 25, 51, dtype=torch.float64)
    scale = torch.tensor(1.7, dtype=torch.float64)
    folded = from_normal(pd.FoldedDistribution(td.Normal(0 * scale, scale)))
    half = from_normal(td.HalfNormal(scale))
    for one, other in zip(folded.call_and_ladj(noise), half.call_and_ladj(noise), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_does_not_fold_is_refused():
    for base in (td.Exponential(1.0), td.Categorical(torch.ones(3)), td.Uniform(-1.0, 1.0)):
        with pytest.raises(UnsupportedFamilyError, match="FoldedDistribution"):
            from_normal(pd.FoldedDistribution(base))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "folded"])
def test_compiled_programs_agree(kind):
    def build(loc, scale, low):
        base = td.Normal(loc, scale, validate_args=False)
        if kind == "folded":
            return pd.FoldedDistribution(base, validate_args=False)
        return Truncated(base, low=low, validate_args=False)

    def run(noise, *parameters):
        transform = from_normal(build(*parameters))
        x, ladj = transform.call_and_ladj(noise)
        return (x, ladj, *transform.inv.call_and_ladj(1.01 * x))

    parameters = [torch.tensor([0.3, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([-0.5, 0.2])]
    noise = torch.linspace(-3, 3, 7).unsqueeze(-1)
    leaves = [part.requires_grad_() for part in (noise, *parameters)]
    results = [function(*leaves) for function in (torch.compile(run), run)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(sum(part.sum() for part in parts), leaves, allow_unused=True) for parts in results]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def _between_angles(m, k, low, high):
    """Probability of an angle up to a factor, by quadrature over pieces that are short beside the peaks."""
    pieces = [low + (high - low) * mp.mpf(part) / 16 for part in range(17)]
    return mp.quad(lambda turn: mp.exp(k * (mp.cos(turn - m) - mp.cos(high - m))), pieces)


@pytest.mark.parametrize(("loc", "concentration"), [(3.1, 8.0), (3.1, 20.0), (2.5, 20.0), (-2.5, 30.0), (0.3, 5.0)])
@BOTH
def test_angles_between_cuts_where_little_of_the_circle_lies(loc, concentration, precision):
    """Neither tail of the base is small there, so that their difference would tell nothing."""
    m, k = torch.tensor(loc, dtype=precision), torch.tensor(concentration, dtype=precision)
    transform = from_normal(Truncated(td.VonMises(m, k), low=-1.0, high=1.0))
    noise = torch.tensor([-4.0, -1.0, -0.3, 0.5, 2.0], dtype=precision)
    value, ladj = transform.call_and_ladj(noise)
    m, k = mp.mpf(m.item()), mp.mpf(k.item())
    for e, x, slope in zip(noise.tolist(), value.tolist(), ladj.tolist(), strict=True):
        below, above = _between_angles(m, k, mp.mpf(-1), mp.mpf(x)), _between_angles(m, k, mp.mpf(x), mp.mpf(1))
        scale = mp.exp(k * (mp.cos(mp.mpf(x) - m) - mp.cos(1 - m)))
        share = below * scale / (below * scale + above)
        rounding = 4 * torch.finfo(precision).eps * abs(x) * math.exp(-slope)
        assert abs(mp.ncdf(e) - share) <= mp.npdf(e) * (BOUND[precision] * max(1, abs(e)) + rounding)
    torch.testing.assert_close(ladj, torch.log(_slopes(transform, noise)), rtol=1e-3, atol=1e-3)


def _slopes(transform, noise):
    leaf = noise.clone().requires_grad_()
    return torch.autograd.grad(transform.call_and_ladj(leaf)[0].sum(), leaf)[0]


@pytest.mark.parametrize("apart", [6.0, 8.0, 12.0])
def test_a_chain_between_far_populations_is_cut_as_its_base_is(apart):
    weights = td.Categorical(logits=torch.zeros(2, dtype=torch.float64))
    loc = torch.tensor([-apart, apart], dtype=torch.float64)
    mixture = td.MixtureSameFamily(weights, td.Normal(loc, torch.ones(2, dtype=torch.float64)))
    ends = torch.tensor([0.5, 2.0], dtype=torch.float64)
    chain = td.TransformedDistribution(mixture, [td.ExpTransform()])
    falling = td.TransformedDistribution(mixture, [td.AffineTransform(0.0, -1.0), td.ExpTransform()])
    noise = torch.linspace(-8, 8, 9, dtype=torch.float64)
    plain = from_normal(Truncated(mixture, *ends.log())).call_and_ladj(noise)
    for dist, sign in ((chain, 1), (falling, -1)):
        value, ladj = from_normal(Truncated(dist, *ends)).call_and_ladj(sign * noise)
        torch.testing.assert_close(value, torch.exp(sign * plain[0]), rtol=1e-11, atol=0)
        torch.testing.assert_close(ladj, plain[1] + sign * plain[0], rtol=1e-8, atol=1e-8)
