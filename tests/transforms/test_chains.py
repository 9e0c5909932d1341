"""Distributions through transforms: every transform of torch and Pyro, with its weights, or a refusal."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
import pyro.distributions.transforms as pt
import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
    StackTransform,
    TanhTransform,
    Transform,
    identity_transform,
)

from emfc.transforms import CDFTransform, NormalAffine, UnsupportedFamilyError, from_normal, gated, scalar_family
from emfc.transforms.base import sum_rightmost

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@pytest.fixture(autouse=True)
def _unvalidated():
    """Values as they come: some of Pyro's transforms tell a smaller support than they have."""
    before = td.Distribution._validate_args
    td.Distribution.set_default_validate_args(False)
    yield
    td.Distribution.set_default_validate_args(before)


def tails_of_noise(e):
    return mp.erfc(-mp.mpf(e) / mp.sqrt(2)) / 2, mp.erfc(mp.mpf(e) / mp.sqrt(2)) / 2


def softplus(x):
    return mp.log1p(mp.exp(x))


ELEMENTWISE = {
    "logit of uniform": (lambda: td.Uniform(0.0, 1.0), [SigmoidTransform().inv], lambda p, q: mp.log(p) - mp.log(q)),
    "logit of uniform by tensors": (
        lambda: td.Uniform(torch.zeros(()), torch.ones(())),
        [SigmoidTransform().inv],
        lambda p, q: mp.log(p) - mp.log(q),
    ),
    "inverse tanh of uniform": (
        lambda: td.Uniform(-1.0, 1.0),
        [TanhTransform().inv],
        lambda p, q: (mp.log(p) - mp.log(q)) / 2,
    ),
    "three steps to a Kumaraswamy": (
        lambda: td.Uniform(torch.zeros(()), torch.ones(())),
        [PowerTransform(torch.tensor(0.5)), AffineTransform(1.0, -1.0), PowerTransform(torch.tensor(2.0))],
        lambda p, q: (-mp.expm1(mp.log(q) / 2)) ** 2,
    ),
    "elu of logistic": (
        lambda: pd.Logistic(0.0, 1.0),
        [pt.ELUTransform()],
        lambda p, q: mp.log(p / q) if p > q else p / q - 1,
    ),
    "inverse elu of exponential": (
        lambda: td.Exponential(1.0),
        [AffineTransform(-1.0, 1.0), pt.ELUTransform().inv],
        lambda p, q: -mp.log(q) - 1 if mp.log(q) < -1 else mp.log(-mp.log1p(-p)),
    ),
    "leaky relu of laplace": (
        lambda: td.Laplace(0.0, 1.0),
        [pt.LeakyReLUTransform()],
        lambda p, q: mp.log(2 * p) / 100 if p < q else -mp.log(2 * q),
    ),
    "decreasing softplus of logistic": (
        lambda: pd.Logistic(0.0, 1.0),
        [AffineTransform(0.0, -1.0), SoftplusTransform()],
        lambda p, q: -mp.log1p(-p),
    ),
    "logistic through its own distribution function": (
        lambda: pd.Logistic(0.0, 1.0),
        [CumulativeDistributionTransform(pd.Logistic(0.0, 1.0))],
        lambda p, q: p,
    ),
    "uniform to laplace": (
        lambda: td.Uniform(0.0, 1.0),
        [CumulativeDistributionTransform(td.Laplace(0.0, 1.0)).inv],
        lambda p, q: mp.log(2 * p) if p < q else -mp.log(2 * q),
    ),
    "inverse softplus of exponential": (
        lambda: td.Exponential(1.0),
        [SoftplusTransform().inv],
        lambda p, q: mp.log(mp.expm1(-mp.log1p(-p) if p < q else -mp.log(q))),
    ),
    "signed power of laplace": (
        lambda: td.Laplace(0.0, 1.0),
        [pt.PositivePowerTransform(torch.tensor(3.0))],
        lambda p, q: mp.log(2 * p) ** 3 if p < q else (-mp.log(2 * q)) ** 3,
    ),
    "part of an exponential": (lambda: td.Uniform(0.0, 1.0), [ExpTransform()], lambda p, q: mp.exp(p)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_chains_keep_both_tails(name):
    """Draws agree with mpmath to rounding far out, density with autograd, and the way back is within the bounds."""
    build, chain, quantile = ELEMENTWISE[name]
    transform = from_normal(td.TransformedDistribution(build(), chain))
    noise = torch.tensor([-24.0, -9.0, -3.0, -0.5, 0.5, 3.0, 9.0, 24.0], requires_grad=True)
    value, ladj = transform.call_and_ladj(noise)
    with mp.workdps(400):
        expected = [quantile(*tails_of_noise(e)) for e in noise.tolist()]
        for e, x, reference in zip(noise.tolist(), value.tolist(), expected, strict=True):
            assert abs(x - reference) <= (4 + e * e) * 1e-15 * abs(reference), (x, reference)  # as a tail does
    (slope,) = torch.autograd.grad(value.sum(), noise)
    torch.testing.assert_close(ladj, slope.log(), rtol=1e-8, atol=1e-8)
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    ulp = torch.nextafter(value.abs(), torch.tensor(math.inf)) - value.abs()
    allowed = torch.maximum(1e-9 * noise.abs(), 4 * ulp * torch.exp(-ladj))
    assert ((back - noise).abs() <= allowed).all()
    torch.testing.assert_close(inverse_ladj[2:6], -ladj[2:6], rtol=1e-8, atol=1e-8)
    opened = gated(transform, torch.tensor(0.5))
    torch.testing.assert_close(opened.inv(opened(noise[2:6])), noise[2:6], rtol=1e-8, atol=1e-8)


def test_what_lies_outside_the_image_has_no_density():
    transform = from_normal(td.TransformedDistribution(td.Uniform(0.0, 1.0), [ExpTransform()]))
    noise, ladj = transform.inv.call_and_ladj(torch.tensor([0.5, 1.5, 2.8, -1.0]))
    assert torch.isfinite(noise).all()
    assert torch.isinf(ladj).tolist() == [True, False, True, True]
    family = scalar_family(td.TransformedDistribution(td.Exponential(1.0), [ExpTransform()]))
    torch.testing.assert_close(family.log_prob(torch.tensor([0.5, 2.0])), torch.tensor([-math.inf, -2 * math.log(2)]))


@pytest.mark.parametrize(
    "chain",
    [[ExpTransform().inv], [SigmoidTransform().inv], [SoftplusTransform().inv], [PowerTransform(torch.tensor(2.0))]],
    ids=lambda chain: repr(chain[0]),
)
def test_a_chain_that_does_not_fit_is_refused(chain):
    with pytest.raises(UnsupportedFamilyError, match="before it has others"):
        from_normal(td.TransformedDistribution(td.Normal(0.0, 1.0), chain))


def test_affine_steps_of_a_normal_stay_a_normal():
    dist = td.TransformedDistribution(td.Normal(1.0, 2.0), [AffineTransform(3.0, -0.5), AffineTransform(1.0, 4.0)])
    transform = from_normal(dist)
    assert isinstance(transform, NormalAffine)
    x = torch.linspace(-5, 5, 5)
    noise, ladj = transform.inv.call_and_ladj(x)
    torch.testing.assert_close(-0.5 * noise**2 - HALF_LOG_TWO_PI + ladj, dist.log_prob(x))


class _Own(td.TransformedDistribution):
    """A subclass whose density is that of its chain."""

    def __init__(self, scale):
        super().__init__(td.Laplace(torch.zeros_like(scale), scale), [ExpTransform()])


class _Tempered(_Own):
    def log_prob(self, value):
        return 0.5 * super().log_prob(value)


def test_subclasses():
    scale = torch.tensor([0.5, 2.0])
    dist = _Own(scale)
    noise, ladj = from_normal(dist).inv.call_and_ladj(torch.tensor([0.3, 4.0]))
    torch.testing.assert_close(-0.5 * noise**2 - HALF_LOG_TWO_PI + ladj, dist.log_prob(torch.tensor([0.3, 4.0])))
    assert isinstance(CDFTransform(scalar_family(dist))(noise), torch.Tensor)
    for make in (from_normal, scalar_family):
        with pytest.raises(UnsupportedFamilyError, match="density of its own"):
            make(_Tempered(scale))


class _Cube(Transform):
    """A user's transform that says nothing about its sign."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x):
        return x + x**3

    def _inverse(self, y):
        half = 0.5 * y
        root = (half**2 + 1 / 27).sqrt()
        return torch.sign(half + root) * (half + root).abs() ** (1 / 3) - (root - half).abs() ** (1 / 3) * torch.sign(
            root - half
        )

    def log_abs_det_jacobian(self, x, y):
        return torch.log1p(3 * x**2)


def test_a_transform_of_unknown_sign():
    dist = td.TransformedDistribution(td.Laplace(0.5, 2.0), [_Cube()])
    transform = from_normal(dist)
    x = torch.linspace(-3, 3, 7)
    noise, ladj = transform.inv.call_and_ladj(x)
    torch.testing.assert_close(-0.5 * noise**2 - HALF_LOG_TWO_PI + ladj, dist.log_prob(x))
    torch.testing.assert_close(transform(noise), x)
    with pytest.raises(UnsupportedFamilyError, match="sign"):
        scalar_family(dist)


def base(size):
    return td.Independent(td.Normal(torch.linspace(-0.5, 0.7, size), torch.linspace(0.5, 1.3, size)), 1)


LEARNED = {
    "affine coupling": lambda: pt.affine_coupling(4, [8]),
    "affine autoregressive": lambda: pt.affine_autoregressive(4, [12]),
    "stable affine autoregressive": lambda: pt.affine_autoregressive(4, [12], stable=True),
    "spline": lambda: pt.spline(4, count_bins=5),
    "quadratic spline": lambda: pt.Spline(4, count_bins=5, order="quadratic"),
    "spline coupling": lambda: pt.spline_coupling(4, hidden_dims=[8], count_bins=4),
    "spline autoregressive": lambda: pt.spline_autoregressive(4, hidden_dims=[12], count_bins=4),
    "householder": lambda: pt.householder(4, count_transforms=2),
    "matrix exponential": lambda: pt.MatrixExponential(4, iterations=20),
    "batch normalisation": lambda: pt.BatchNorm(4).eval(),
    "several": lambda: ComposeTransform(
        [
            pt.affine_coupling(4, [8]),
            pt.permute(4),
            pt.spline(4, count_bins=5),
            pt.householder(4),
            pt.batchnorm(4).eval(),
        ]
    ),
}


def weights_of(transform):
    parts = transform.parts if isinstance(transform, ComposeTransform) else [transform]
    return [weight for part in parts if isinstance(part, torch.nn.Module) for weight in part.parameters()]


@pytest.mark.parametrize("name", LEARNED)
def test_learned_transforms(name):
    """Density and log-Jacobian are right, and both ways carry gradients to the transform's own weights."""
    torch.manual_seed(5)
    learned = LEARNED[name]()
    dist = td.TransformedDistribution(base(4), [learned])
    transform = from_normal(dist)
    noise = 0.8 * torch.randn(6, 4)
    value, ladj = transform.call_and_ladj(noise)
    value = value.detach()
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-5, atol=1e-5)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda e: transform.call_and_ladj(e)[0], row) for row in noise]
    )
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], ladj, rtol=1e-6, atol=1e-6)
    density = (-0.5 * back**2 - HALF_LOG_TWO_PI).sum(-1) + inverse_ladj
    torch.testing.assert_close(density, dist.log_prob(value.clone()), rtol=1e-6, atol=1e-6)

    def score(forward):
        result, step = (transform if forward else transform.inv).call_and_ladj(noise if forward else value)
        return result.square().sum() + (step * torch.arange(6)).sum()

    weights = weights_of(learned)
    for forward in (True, False):
        gradients = torch.autograd.grad(score(forward), weights, allow_unused=True)
        used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        assert used
        weight, gradient = max(used, key=lambda pair: pair[1].abs().max())
        place = gradient.abs().argmax()
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
                ends.append(float(score(forward)))
                weight.view(-1)[place] -= step
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs(float(gradient.view(-1)[place]) - expected) <= 1e-4 * max(1, abs(expected))


def test_weights_that_changed_are_seen_at_the_same_values():
    """Pyro's transforms keep their last pair; the noise of values must not be that of old weights."""
    torch.manual_seed(1)
    learned = pt.affine_coupling(4, [8])
    transform = from_normal(td.TransformedDistribution(base(4), [learned]))
    value = torch.randn(3, 4)
    before = transform.inv(value)
    with torch.no_grad():
        for weight in learned.parameters():
            weight.add_(0.3)
    after = transform.inv(value)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(transform(after), value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pt.planar(4),
        lambda: pt.radial(4),
        lambda: pt.sylvester(4),
        lambda: pt.polynomial(4, [8]),
        lambda: pt.neural_autoregressive(4, [12]),
        lambda: pt.BlockAutoregressive(4),
    ],
)
def test_without_an_inverse_there_are_draws_but_no_noise(make):
    transform = from_normal(td.TransformedDistribution(base(4), [make()]))
    noise = torch.randn(4)
    value, ladj = transform.call_and_ladj(noise)
    jacobian = torch.autograd.functional.jacobian(lambda e: transform.call_and_ladj(e)[0], noise)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], ladj.squeeze(), rtol=1e-6, atol=1e-6)
    with pytest.raises(UnsupportedFamilyError, match="has no inverse"):
        transform.inv(value.detach().clone())


def test_what_is_no_fixed_bijection_is_refused():
    with pytest.raises(UnsupportedFamilyError, match="eval"):
        from_normal(td.TransformedDistribution(base(4), [pt.BatchNorm(4)]))
    with pytest.raises(UnsupportedFamilyError, match="bijection"):
        from_normal(td.TransformedDistribution(base(4), [pt.Normalize()]))
    with pytest.raises(UnsupportedFamilyError, match="CatTransform"):
        from_normal(td.TransformedDistribution(base(2), [StackTransform([ExpTransform(), SigmoidTransform()], dim=-1)]))
    with pytest.raises(UnsupportedFamilyError, match="discrete"):
        from_normal(td.TransformedDistribution(td.Categorical(torch.ones(3)), [AffineTransform(0.0, 2.0)]))


@pytest.mark.parametrize(
    ("size", "make"),
    [
        ((4,), lambda: pt.Permute(torch.tensor([2, 0, 3, 1]))),
        ((2, 3), lambda: pt.Permute(torch.tensor([1, 0]), dim=-2)),
        ((4,), lambda: pt.HaarTransform(flip=True)),
        ((5,), lambda: pt.DiscreteCosineTransform(smooth=0.5)),
        ((3,), lambda: pt.LowerCholeskyAffine(torch.ones(3), torch.tensor([[1.0, 0, 0], [2, 0.5, 0], [0, 1, 3]]))),
        ((4,), lambda: pt.OrderedTransform()),
        ((3, 2, 2), lambda: pt.GeneralizedChannelPermute(3)),
        ((4,), lambda: CatTransform([ExpTransform(), identity_transform], dim=-1, lengths=[1, 3])),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else "transform",
)
def test_transforms_of_vectors_and_images(size, make):
    torch.manual_seed(2)
    count = math.prod(size)
    dist = td.TransformedDistribution(
        td.Independent(td.Normal(torch.randn(size), torch.rand(size) + 0.5), len(size)), [make()]
    )
    transform = from_normal(dist)
    noise = torch.randn(5, *size)
    value, ladj = transform.call_and_ladj(noise)
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(inverse_ladj, -ladj)
    jacobian = torch.autograd.functional.jacobian(lambda e: transform(e).flatten(), noise[0]).reshape(count, count)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], ladj[0])
    density = sum_rightmost(-0.5 * back**2 - HALF_LOG_TWO_PI, len(size)) + inverse_ladj
    torch.testing.assert_close(density, dist.log_prob(value))


def test_vectors_outside_the_support():
    """A vector that is not ordered: no density, finite noise, and gradients of the others untouched."""
    loc = torch.zeros(3, requires_grad=True)
    base_dist = td.Independent(td.Normal(loc, 1.0), 1)
    transform = from_normal(td.TransformedDistribution(base_dist, [pt.OrderedTransform()]))
    value = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 3.0], [0.0, math.inf, 3.0]])
    noise, ladj = transform.inv.call_and_ladj(value)
    assert torch.isfinite(noise).all()
    assert torch.isinf(ladj).tolist() == [False, True, True]
    (gradient,) = torch.autograd.grad(noise.sum() + ladj[0], loc)
    assert torch.isfinite(gradient).all()
    for size in (None, (5,)):
        inside = value[:1] if size is None else value[:1].expand(5, 3)
        assert torch.isfinite(transform.inv(inside)).all()
