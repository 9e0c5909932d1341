"""Registry, refusals, wrappers, mixtures, dequantised families and constraint maps."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch.distributions import constraints

from emfc.transforms import (
    CDFTransform,
    NormalTransform,
    ScalarFamily,
    UnsupportedFamilyError,
    family_of,
    from_normal,
    mixture_family,
    scalar_family,
    unconstrained_map,
)
from emfc.transforms.discrete import lookup
from emfc.transforms.registry import nearest_families


@pytest.fixture(autouse=True)
def _double():
    """The numbers expected here are those of float64; the laws are tested in both dtypes elsewhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_a_new_family_is_one_class_and_one_line():
    class Triangle(td.Distribution):
        arg_constraints: ClassVar = {}
        support = constraints.nonnegative

    @family_of(Triangle)
    class TriangleFamily(ScalarFamily):
        support = constraints.unit_interval
        batch_shape = torch.Size()

        def __init__(self, dist):
            self.dist = dist

        def evaluate(self, at):
            from emfc.transforms import Evaluation

            below = at.value if at.below is None else at.below
            above = 1 - at.value if at.above is None else at.above
            return Evaluation((2 * below).log(), 2 * below.log(), above.log() + torch.log1p(below))

        def quantile(self, log_p, log_q):
            return torch.exp(0.5 * log_p)

    transform = from_normal(Triangle(validate_args=False))
    noise = torch.linspace(-5, 5, 21, dtype=torch.float64)
    torch.testing.assert_close(transform.inv(transform(noise)), noise, rtol=1e-8, atol=1e-8)
    assert isinstance(scalar_family(Triangle(validate_args=False)), TriangleFamily)


@pytest.mark.parametrize(
    ("dist", "names"),
    [
        (td.Multinomial(3, torch.ones(2)), "Binomial"),
        (pd.TruncatedPolyaGamma(torch.ones(())), "Gamma"),
        (td.TransformedDistribution(td.Normal(0.0, 1.0), [td.AbsTransform()]), "ExpTransform"),
        (pd.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])), "unmasked"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_unsupported_families_are_refused_by_name(dist, names):
    with pytest.raises(UnsupportedFamilyError, match=names):
        from_normal(dist)


def test_a_vector_is_no_scalar_family():
    with pytest.raises(UnsupportedFamilyError):
        scalar_family(td.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(UnsupportedFamilyError):
        scalar_family(
            td.TransformedDistribution(td.Independent(td.Normal(torch.zeros(2), 1.0), 1), [td.ExpTransform()])
        )
    assert "StudentT" in nearest_families(td.StudentT, 3)


def test_pyro_and_torch_wrappers(dtype, device):
    base = pd.Normal(torch.zeros(3, dtype=dtype, device=device), 2.0)
    for dist in (base.to_event(1), base.expand([4, 3]), base.mask(True).to_event(1), td.Independent(base, 1)):
        transform = from_normal(dist)
        assert isinstance(transform, NormalTransform)
        noise = torch.randn(*dist.batch_shape, *dist.event_shape, dtype=dtype, device=device)
        value, ladj = transform.call_and_ladj(noise)
        assert ladj.shape == dist.batch_shape
        torch.testing.assert_close(transform.inv(value), noise)
    component = pd.torch_distribution.ExpandedDistribution(pd.Normal(0.0, 1.0), torch.Size([3]))
    mixed = mixture_family(torch.zeros(3), scalar_family(component.mask(True)))
    assert mixed.batch_shape == ()
    table = pd.torch_distribution.ExpandedDistribution(pd.Categorical(torch.ones(4)), torch.Size([3]))
    torch.testing.assert_close(
        mixture_family(torch.randn(3), scalar_family(table)).log_prob(torch.tensor(2.5)), torch.tensor(0.25).log()
    )


@pytest.mark.parametrize("scale", [-2.0, [-2.0], [3.0, -2.0]], ids=["number", "tensor", "mixed"])
@pytest.mark.parametrize("family", [td.Exponential, td.Uniform, td.Cauchy])
def test_affine_of_a_bounded_family(scale, family):
    base = family(1.5) if family is td.Exponential else family(1.0, 2.0)
    scale = scale if isinstance(scale, float) else torch.tensor(scale)
    dist = td.TransformedDistribution(base, [td.AffineTransform(1.0, scale)], validate_args=False)
    transform = from_normal(dist)
    noise = torch.linspace(-6, 6, 25).unsqueeze(-1)
    value, ladj = transform.call_and_ladj(noise)
    assert (value.diff(dim=0) > 0).all(), "a transform by distribution functions increases"
    torch.testing.assert_close(transform.inv(value), noise.expand_as(value), rtol=1e-6, atol=1e-6)
    density = -0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - ladj
    torch.testing.assert_close(density, dist.log_prob(value).expand_as(density), rtol=1e-6, atol=1e-6)


def test_mixture_of_transformed_components():
    loc = torch.tensor([0.0, 1.0])
    component = td.TransformedDistribution(td.Normal(loc, 1.0), [td.AffineTransform(0.0, -1.0), td.ExpTransform()])
    transform = CDFTransform(mixture_family(torch.zeros(2), scalar_family(component)))
    noise = torch.linspace(-5, 5, 11)
    value, ladj = transform.call_and_ladj(noise)
    reference = td.MixtureSameFamily(td.Categorical(torch.ones(2)), component).log_prob(value)
    torch.testing.assert_close(-0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - ladj, reference)
    torch.testing.assert_close(transform.inv(value), noise)


def test_mixture_of_different_intervals():
    component = td.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0]))
    family = mixture_family(torch.zeros(2), scalar_family(component))
    x = torch.tensor([-1.0, 0.5, 1.5, 3.0, 6.0])
    expected = torch.tensor([-math.inf, math.log(0.5), -math.inf, math.log(0.5 / 3), -math.inf])
    torch.testing.assert_close(family.log_prob(x), expected)
    noise = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    transform = CDFTransform(family)
    torch.testing.assert_close(transform.inv(transform(noise)), noise)


def test_mixture_without_a_component_dimension_is_refused():
    with pytest.raises(ValueError, match="last dimension"):
        mixture_family(torch.zeros(()), scalar_family(td.Normal(0.0, 1.0)))


def test_zero_weight_component_has_no_say():
    log_weights = torch.tensor([0.0, -math.inf], requires_grad=True)
    family = mixture_family(log_weights, scalar_family(td.Normal(torch.tensor([0.0, 50.0]), 1.0)))
    x = CDFTransform(family)(torch.tensor([-3.0, 0.0, 3.0]))
    torch.testing.assert_close(x, torch.tensor([-3.0, 0.0, 3.0]), rtol=1e-9, atol=1e-9)
    assert not torch.isnan(torch.autograd.grad(x.sum() + family.log_prob(x).sum(), log_weights)[0]).any()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-6, 0), st.floats(-50, 50), st.floats(-4, 3)), min_size=1, max_size=6),
    st.sampled_from([td.Normal, td.Laplace, td.Cauchy, pd.Logistic]),
)
def test_any_mixture_makes_the_round_trip(parts, family):
    log_weights, loc, log_scale = torch.tensor(parts, dtype=torch.float64).T
    transform = CDFTransform(mixture_family(log_weights, scalar_family(family(loc, log_scale.exp()))))
    noise = torch.linspace(-25, 25, 101, dtype=torch.float64)
    value, ladj = transform.call_and_ladj(noise)
    ulp = torch.nextafter(value.abs(), torch.tensor(math.inf, dtype=torch.float64)) - value.abs()
    allowed = torch.maximum(1e-9 * noise.abs().clamp(min=1), 4 * ulp * torch.exp(-ladj))
    assert ((transform.inv(value) - noise).abs() <= allowed).all()
    assert (value.diff() >= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20))
def test_any_table_makes_the_round_trip(logits):
    transform = from_normal(td.Categorical(logits=torch.tensor(logits, dtype=torch.float64)))
    noise = torch.linspace(-25, 25, 101, dtype=torch.float64)
    value, ladj = transform.call_and_ladj(noise)
    ulp = torch.nextafter(value, torch.tensor(math.inf, dtype=torch.float64)) - value
    allowed = torch.maximum(1e-9 * noise.abs().clamp(min=1), 4 * ulp * torch.exp(-ladj))
    assert ((transform.inv(value) - noise).abs() <= allowed).all()


def test_density_of_a_table_does_not_expand_it():
    """The density looks up what it needs: no tensor of [batch, elements, components, levels] appears."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = [0]

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            parts = result if isinstance(result, (tuple, list)) else (result,)
            largest[0] = max(largest[0], *(p.numel() for p in parts if isinstance(p, torch.Tensor)), 0)
            return result

    batch, elements, components, levels = 32, 8, 5, 17
    tables = torch.randn(elements, components, levels, requires_grad=True)
    log_weights = torch.randn(batch, elements, components, requires_grad=True)
    x = torch.rand(batch, elements) * levels
    with Largest():
        family = mixture_family(log_weights, scalar_family(td.Categorical(logits=tables, validate_args=False)))
        noise, ladj = CDFTransform(family).inv.call_and_ladj(x)
        (noise.sum() + ladj.sum()).backward()
    assert largest[0] <= batch * elements * components * 3


def test_lookup_of_batched_and_plain_tables():
    table = torch.randn(3, 4, 5, 2)
    level = torch.randint(0, 5, (6, 3, 4))
    expected = torch.stack([table[i, j, level[:, i, j]] for i in range(3) for j in range(4)], 1).reshape(6, 3, 4, 2)
    torch.testing.assert_close(lookup(table, level), expected)


def test_levels_at_their_ends():
    transform = from_normal(td.Categorical(probs=torch.tensor([0.2, 0.5, 0.3])))
    noise, ladj = transform.inv.call_and_ladj(torch.tensor([0.0, 1.0, 2.0, 3.0, -1e-9]))
    assert torch.isfinite(noise).all()
    torch.testing.assert_close(torch.special.ndtr(noise[1:3]), torch.tensor([0.2, 0.7]))
    assert torch.isinf(ladj).tolist() == [False, False, False, True, True]


def test_impossible_level_has_no_density():
    logits = torch.tensor([0.0, -math.inf, 0.0])
    transform = from_normal(td.Categorical(logits=logits, validate_args=False))
    noise, ladj = transform.inv.call_and_ladj(torch.tensor([0.5, 1.5, 2.5]))
    assert torch.isfinite(noise).all()
    assert torch.isinf(ladj).tolist() == [False, True, False]
    assert not ((transform(torch.randn(1000)).floor()) == 1).any()


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.real,
        constraints.positive,
        constraints.nonnegative,
        constraints.greater_than(torch.tensor([1.0, -2.0])),
        constraints.less_than(torch.tensor([1.0, -2.0])),
        constraints.unit_interval,
        constraints.interval(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])),
        constraints.half_open_interval(0, 17),
        constraints.independent(constraints.positive, 1),
        constraints.real_vector,
    ],
    ids=str,
)
def test_constraint_maps(constraint):
    transform = unconstrained_map(constraint)
    x = torch.tensor([[-4.0, 0.3], [0.0, 5.0]])
    y, ladj = transform.call_and_ladj(x)
    assert constraint.check(y).all()
    back, inverse_ladj = transform.inv.call_and_ladj(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj)
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad(transform(leaf).sum(), leaf)[0].log()
    torch.testing.assert_close(ladj, slope.sum(-1) if constraint.event_dim else slope)
    extreme = transform(torch.tensor([[-1e4, 1e4]]).expand(2, 2))
    assert torch.isfinite(extreme).all()
    assert constraint.check(extreme).all()
    outside = transform.inv.call_and_ladj(torch.full((2, 2), math.inf))
    assert (outside[1] == -math.inf).all()
    assert torch.isfinite(outside[0]).all()


def test_a_support_without_a_map_is_refused():
    for constraint in (constraints.square, constraints.nonnegative_integer, constraints.symmetric):
        with pytest.raises(UnsupportedFamilyError, match="no constraint map"):
            unconstrained_map(constraint)


def test_transforms_work_in_torch_distributions():
    base = td.Normal(torch.zeros(3), torch.ones(3))
    flow = td.TransformedDistribution(base, [from_normal(td.Laplace(torch.zeros(3), 2.0))], validate_args=False)
    x = flow.rsample((5,))
    torch.testing.assert_close(flow.log_prob(x), td.Laplace(0.0, 2.0).log_prob(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda one: td.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda one: pd.MultivariateStudentT(3 * one, torch.zeros(2), torch.eye(2)),
        lambda one: td.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)),
        lambda one: td.Dirichlet(torch.ones(3)),
        lambda one: td.LKJCholesky(3, one),
        lambda one: td.Beta(2 * one, 3 * one),
        lambda one: td.Gamma(2 * one, one),
    ],
)
def test_noise_of_another_precision_than_the_parameters(build):
    dist = build(torch.ones((), dtype=torch.float32))
    transform = from_normal(dist)
    noise = torch.randn(4, *transform.inverse_shape(dist.batch_shape + dist.event_shape), dtype=torch.float64)
    value, _ = transform.call_and_ladj(noise)
    back, _ = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, rtol=1e-3, atol=1e-3)
