"""Mixtures: far components, tiny weights, gaps, every family as a component, and every way of solving them."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Size, Tensor
from torch import distributions as td

from emfc.transforms import CDFTransform, from_normal, mixture_family, scalar_family
from emfc.transforms import mixture as mixture_module
from emfc.transforms.components import map_parameters, parameters_of
from emfc.transforms.mixture import ContinuousMixture
from tests.transforms.cases import BOUND, CASES, DTYPES, LIMIT, SCALAR
from tests.transforms.tables.basic import _cauchy, _laplace, _logistic, _mixture, _normal

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])
FAMILIES = {td.Normal: _normal, td.Laplace: _laplace, td.Cauchy: _cauchy, pd.Logistic: _logistic}
FAR = {
    "tiny weight": ([0.0, 0.0, math.log(1e-12)], [-1e3, 0.0, 1e3], [1.0, 1e-2, 1.0]),
    "scales by a million": ([0.0, -1.0, 0.5], [0.0, 0.0, 0.5], [1e3, 1.0, 1e-3]),
    "far equals": ([0.0, 0.0], [0.0, 1e3], [1.0, 1.0]),
    "one": ([0.3], [5.0], [2.0]),
}


def mixture_of(family, log_weights, *parameters):
    return mixture_family(log_weights, scalar_family(family(*parameters, validate_args=False)))


def errors(transform, noise):
    """Error of the round trip beside what is permitted."""
    value, ladj = transform.call_and_ladj(noise)
    assert torch.isfinite(value).all()
    assert not torch.isnan(ladj).any()
    back = transform.inv(value)
    ulp = torch.nextafter(value.abs(), torch.full_like(value, math.inf)) - value.abs()
    allowed = torch.maximum(BOUND[noise.dtype] * noise.abs().clamp(min=1), 4 * ulp * torch.exp(-ladj.double()))
    return (back - noise).abs() / allowed


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@BOTH
def test_far_components(name, family, precision):
    parts = [torch.tensor(part, dtype=precision, requires_grad=True) for part in FAR[name]]
    transform = CDFTransform(mixture_of(family, *parts))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 201, dtype=precision)
    with torch.no_grad():
        assert (errors(transform, noise) <= 1).all()
        value, ladj = transform.call_and_ladj(noise)
        assert (value.diff() >= 0).all()
    for e in (-0.9, -0.3, 0.05, 0.6):
        e = torch.tensor(e * LIMIT[precision], dtype=precision)
        x, ladj = transform.call_and_ladj(e)
        with mp.workdps(400):
            tails = _mixture(FAMILIES[family])(mp.mpf(x.item()), *(part.detach().tolist() for part in parts))
            tail = tails[0] if e < 0 else tails[1]
            small = mp.erfc(abs(mp.mpf(float(e))) / mp.sqrt(2)) / 2
            slope = mp.exp(-(mp.mpf(float(e)) ** 2) / 2) / mp.sqrt(2 * mp.pi) / small
            error = float(abs(mp.log(tail / small)) / slope)
        coarse = 4 * abs(x.item()) * torch.finfo(precision).eps * math.exp(min(-ladj.item(), 80))
        assert error <= max(BOUND[precision] * max(1, abs(float(e))), coarse)
    wide = 1.4 * noise
    for direction in (transform, transform.inv):
        y, ladj = direction.call_and_ladj(wide if direction is transform else transform(wide).detach())
        for gradient in torch.autograd.grad(y.sum() + ladj.sum(), parts, retain_graph=True):
            assert not torch.isnan(gradient).any()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_gradients_of_draws_are_those_of_the_implicit_function(family):
    """dx = -dF / f with mpmath's F and f, in both tails."""
    parts = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in ([0.0, -3.0], [-4.0, 3.0], [1.0, 0.1])]
    transform = CDFTransform(mixture_of(family, *parts))
    for e in (-12.0, -1.0, 0.4, 2.0, 7.0):
        x = transform(torch.tensor(e, dtype=torch.float64))
        found = torch.autograd.grad(x, parts, retain_graph=True)
        with mp.workdps(120):
            step = mp.mpf(10) ** -30

            def tail(at, *changed, side=0 if e < 0 else 1):
                return _mixture(FAMILIES[family])(at, *changed)[side]

            numbers = [[mp.mpf(v) for v in part.tolist()] for part in parts]
            at = mp.mpf(x.item())
            slope = (tail(at + step, *numbers) - tail(at - step, *numbers)) / (2 * step)
            for which, gradient in enumerate(found):
                for place in range(2):
                    ends = []
                    for sign in (1, -1):
                        moved = [list(part) for part in numbers]
                        moved[which][place] += sign * step
                        ends.append(tail(at, *moved))
                    expected = float(-(ends[0] - ends[1]) / (2 * step) / slope)
                    assert abs(float(gradient[place]) - expected) <= 1e-8 * abs(expected) + 1e-14


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-28, 0), st.floats(-1e3, 1e3), st.floats(-2, 3)), min_size=1, max_size=6),
    st.sampled_from(list(FAMILIES)),
    st.sampled_from(DTYPES),
)
def test_extreme_mixtures(parts, family, precision):
    log_weights, loc, size = torch.tensor(parts, dtype=precision).T
    leaves = [part.detach().requires_grad_() for part in (log_weights, loc, 10**size)]
    transform = CDFTransform(mixture_of(family, *leaves))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 31, dtype=precision)
    with torch.no_grad():
        assert (errors(transform, noise) <= 1.5).all()
        assert (transform(noise).diff() >= 0).all()
    value, ladj = transform.call_and_ladj(2 * noise)
    for gradient in torch.autograd.grad(value.sum() + ladj.sum(), leaves):
        assert not torch.isnan(gradient).any()


@pytest.mark.parametrize("name", [name for name in SCALAR if not CASES[name].discrete])
def test_every_family_is_a_component(name):
    """As a mixture of its three batch elements; and its elements alone are those of the whole."""
    dist = CASES[name].dist(torch.float64)
    family = scalar_family(dist)
    weights = torch.tensor([0.0, -1.0, 0.5], dtype=torch.float64)
    noise = torch.linspace(-20, 20, 41, dtype=torch.float64)
    assert (errors(CDFTransform(mixture_family(weights, family)), noise) <= 1).all()
    if parameters_of(family) is not None:
        turned = map_parameters(family, lambda t: t.reshape(-1, 1) if t.dim() else t, Size((3, 1)))
        x = from_normal(dist)(torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(-1))
        torch.testing.assert_close(turned.log_prob(x.mT).mT, family.log_prob(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(turned.log_cdf(x.mT).mT, family.log_cdf(x), rtol=1e-12, atol=0)


def three(*shape: int, precision: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        torch.randn(*shape, 4, dtype=precision),
        5 * torch.randn(*shape, 4, dtype=precision),
        torch.rand(*shape, 4, dtype=precision) + 0.1,
    ]


@pytest.mark.parametrize("family", [td.Normal, td.Gumbel])
@pytest.mark.parametrize("shapes", [((), (9000,)), ((3,), (5000, 3)), ((2, 1), (2, 7)), ((60,), (60,)), ((3,), (4, 1))])
def test_all_layouts_agree(family, shapes, monkeypatch):
    """Shared mixtures by a table, rows of mixtures, one mixture for each element, and all at once."""
    batch, shape = shapes
    transform = CDFTransform(mixture_of(family, *three(*batch)))
    noise = torch.randn(*shape, dtype=torch.float64) * 3
    value, ladj = transform.call_and_ladj(noise)
    monkeypatch.setattr(mixture_module, "parameters_of", lambda family: None)
    other, expected = transform.call_and_ladj(noise)
    assert value.shape == other.shape == torch.broadcast_shapes(shape, batch)
    torch.testing.assert_close(value, other, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ladj, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", [td.Normal, td.Gumbel])
@pytest.mark.parametrize("shared", ["loc", "scale", "both"])
def test_components_that_share_a_parameter(family, shared):
    """As a program's populations do, whose parameters may have size one along the components."""
    log_weights, loc, scale = three(5)
    plain = [loc[:, :1] if shared != "scale" else loc, scale[:, :1] if shared != "loc" else scale]
    single = family(torch.zeros(()), torch.ones(()), validate_args=False)
    held = scalar_family(single)
    held.loc, held.scale, held.batch_shape = *plain, torch.Size((5, 4))
    noise = 3 * torch.randn(5, dtype=torch.float64)
    value, ladj = CDFTransform(mixture_family(log_weights, held)).call_and_ladj(noise)
    whole = mixture_of(family, log_weights, *(part.expand(5, 4) for part in plain))
    expected = CDFTransform(whole).call_and_ladj(noise)
    torch.testing.assert_close(value, expected[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ladj, expected[1], rtol=1e-9, atol=1e-9)


def test_a_table_and_noise_beyond_it():
    transform = CDFTransform(mixture_of(td.Normal, *three()))
    noise = torch.cat((torch.randn(9000, dtype=torch.float64), torch.tensor([-30.0, 25.0, 300.0, -math.inf, math.inf])))
    assert torch.isfinite(transform(noise)).all()
    assert (errors(transform, noise[:-2]) <= 1).all()
    assert transform(torch.tensor(math.nan, dtype=torch.float64)).isnan()
    torch.testing.assert_close(transform(torch.full((9000,), 0.7)), transform(torch.tensor(0.7)).expand(9000))


def test_many_components():
    parts = [p.requires_grad_() for p in (4 * torch.randn(200), 10 * torch.randn(200), torch.rand(200) + 0.01)]
    transform = CDFTransform(mixture_of(td.Normal, *parts))
    noise = torch.linspace(-25, 25, 301)
    assert (errors(transform, noise) <= 1).all()
    gradients = torch.autograd.grad(transform(noise).sum(), parts)
    torch.testing.assert_close(gradients[1].sum(), torch.tensor(301.0))  # a shift of all moves every draw


def test_blocks_are_the_whole(monkeypatch):
    """Large evaluations in blocks, computed anew for derivatives, give the same numbers and gradients."""
    parts = [p.requires_grad_() for p in three(3)]
    x = torch.randn(50, 3).requires_grad_()
    results = []
    for limit in (2**18, 16):
        for name in ("_WHOLE", "_RECORDED", "_PLAIN"):
            monkeypatch.setattr(mixture_module, name, limit)
        family = mixture_of(td.Normal, *parts)
        noise, ladj = CDFTransform(family).inv.call_and_ladj(x)
        gradients = torch.autograd.grad(noise.sum() + (ladj * ladj).sum(), [x, *parts])
        with torch.no_grad():
            plain = CDFTransform(mixture_of(td.Normal, *parts)).inv.call_and_ladj(x)
        results.append((noise, ladj, *gradients, *plain))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_in_a_gap_the_left_end_is_taken():
    low, high = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    transform = CDFTransform(mixture_of(td.Uniform, torch.zeros(2), low, high))
    value, ladj = transform.call_and_ladj(torch.tensor([-1e-9, 0.0, 1e-9]))
    torch.testing.assert_close(value, torch.tensor([1.0, 1.0, 2.0]), rtol=0, atol=1e-8)
    assert torch.isfinite(ladj).all()
    far = CDFTransform(mixture_of(td.Normal, torch.zeros(2), torch.tensor([0.0, 1e3]), torch.ones(2)))
    assert 5 < far(torch.tensor(0.0)) < 40


def test_components_that_begin_together_have_their_own_gradients():
    low = torch.zeros(3, requires_grad=True)
    family = mixture_of(td.Uniform, torch.zeros(3), low, torch.tensor([1.0, 2.0, 3.0]))
    x = torch.tensor(0.5)
    (found,) = torch.autograd.grad(family.log_cdf(x), low)
    expected = torch.tensor([-0.5 / 1, -1.5 / 4, -2.5 / 9]) / 3 / family.log_cdf(x).exp()
    torch.testing.assert_close(found, expected)


def test_values_beside_an_inner_end_near_0_are_exact():
    """Where the density jumps up at 0, values are finer than distances from the low end at -1."""
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([-0.5, 1.0])
    transform = CDFTransform(mixture_of(td.Uniform, torch.tensor([-20.0, 0.0]), low, high))
    noise = transform.inv(torch.tensor([1e-12, 1e-9, 1e-3]))
    torch.testing.assert_close(transform(noise), torch.tensor([1e-12, 1e-9, 1e-3]), rtol=1e-5, atol=0)


def test_nothing_and_one():
    transform = CDFTransform(mixture_of(td.Normal, *three()))
    assert transform(torch.empty(0, 3)).shape == (0, 3)
    assert transform(torch.tensor(0.3)).shape == ()
    with pytest.raises(ValueError, match="component"):
        mixture_family(torch.zeros(()), scalar_family(td.Normal(0.0, 1.0)))
    assert isinstance(transform.family, ContinuousMixture)


def test_function_transforms_stop_when_all_are_done(monkeypatch):
    """vmap and forward-mode derivatives give the numbers of the plain solve, in as few steps."""
    parts = three()
    calls = []
    evaluate = ContinuousMixture.evaluate
    monkeypatch.setattr(ContinuousMixture, "evaluate", lambda self, at: calls.append(1) or evaluate(self, at))

    def draw(noise, *values):
        return CDFTransform(mixture_of(td.Normal, *values))(noise)

    noise = torch.linspace(-3, 3, 12)
    mapped = torch.func.vmap(lambda e: draw(e, *parts))(noise.reshape(4, 3))
    assert len(calls) < 30
    torch.testing.assert_close(mapped.reshape(-1), draw(noise, *parts), rtol=1e-10, atol=1e-10)
    _, tangent = torch.func.jvp(lambda loc: draw(noise, parts[0], loc, parts[2]), (parts[1],), (torch.ones(4),))
    torch.testing.assert_close(tangent, torch.ones(12))


def test_float32_stays_float32():
    family = mixture_of(td.Normal, *three(precision=torch.float32))
    assert CDFTransform(family)(torch.randn(9000)[:5].float()).dtype == torch.float32
    assert CDFTransform(family)(torch.randn(9000, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.slow
@BOTH
def test_a_large_mixture_in_little_memory(precision):
    """K = 200 on 1e6 elements allocates no tensor of elements times components."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = [0]

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            parts = result if isinstance(result, (tuple, list)) else (result,)
            largest[0] = max(largest[0], *(p.numel() for p in parts if isinstance(p, Tensor)), 0)
            return result

    parts = [torch.randn(200, dtype=precision), torch.randn(200, dtype=precision), torch.rand(200, dtype=precision) + 1]
    transform = CDFTransform(mixture_of(td.Normal, *parts))
    with Largest(), torch.no_grad():
        value, _ = transform.call_and_ladj(torch.randn(10**6, dtype=precision))
        transform.inv.call_and_ladj(value)
    assert largest[0] <= 2 * 10**6


def test_one_mixture_of_rank_two_for_many_draws():
    """As a program's populations are laid out, beyond the size of a block."""
    inner = td.MixtureSameFamily(
        td.Categorical(logits=torch.zeros(1, 1, 2, 2, dtype=torch.float64)),
        td.Normal(torch.tensor([-2.0, 2.0], dtype=torch.float64).expand(1, 1, 2, 2), 1.0),
    )
    family = mixture_family(torch.zeros(1, 1, 2, dtype=torch.float64).log_softmax(-1), scalar_family(inner))
    noise = torch.randn(20_000, 1, dtype=torch.float64)
    value = CDFTransform(family).call_and_ladj(noise)[0]
    torch.testing.assert_close(value[:9], CDFTransform(family).call_and_ladj(noise[:9])[0])
