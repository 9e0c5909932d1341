"""Vector and matrix families: densities over many shapes, extreme parameters, gates, and what is refused."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
import pytest
import torch
from torch import distributions as td

from emfc.distributions.random_walk import GaussianRandomWalk
from emfc.special.normal import log_normal_density
from emfc.testing.subject import unvalidated
from emfc.transforms import MultivariateNormalTransform, UnsupportedFamilyError, from_normal, gated
from emfc.transforms.matrices import WishartFactor
from emfc.transforms.registry import nearest_families, scalar_family
from emfc.transforms.vectors import LowRankNormalTransform, MultivariateStudentTTransform
from tests.transforms.cases import CASES

DOUBLE = torch.float64


def numbers(*values):
    return torch.tensor(values, dtype=DOUBLE)


def factors(*batch, side):
    torch.manual_seed(side)
    lower = torch.randn(*batch, side, side, dtype=DOUBLE).tril(-1)
    return lower + torch.diag_embed(0.3 + torch.rand(*batch, side, dtype=DOUBLE))


def weights_and(component):
    logits = torch.linspace(-1, 1, component.batch_shape[-1], dtype=DOUBLE)
    return td.MixtureSameFamily(td.Categorical(logits=logits.expand(component.batch_shape)), component)


def makers():
    torch.manual_seed(3)
    loc = 2 * torch.randn(2, 5, 4, dtype=DOUBLE)
    scale = torch.rand(2, 5, 4, dtype=DOUBLE) + 0.1
    logits = torch.randn(2, 5, dtype=DOUBLE)
    return {
        "dirichlet": td.Dirichlet(numbers(0.7, 2.0, 3.0, 0.5)),
        "dirichlets": td.Dirichlet(torch.rand(3, 20, dtype=DOUBLE) * 3 + 0.2),
        "independent dirichlets": td.Independent(td.Dirichlet(torch.rand(3, 4, dtype=DOUBLE) + 1), 1),
        "expanded dirichlet": td.Dirichlet(numbers(0.7, 2.0, 3.0)).expand([2, 3]),
        "logisticnormal": td.LogisticNormal(loc[0], scale[0]).expand([2, 5]),
        "lkj factor of 2": td.LKJCholesky(2, numbers(0.6, 1.0, 5.0)),
        "lkj factor of 5": td.LKJCholesky(5, numbers(0.6, 1.0, 5.0)),
        "lkj factor, number": td.LKJCholesky(3, torch.tensor(1.0, dtype=DOUBLE)).expand([2]),
        "lkj": pd.LKJ(4, numbers(1.5, 1.0, 5.0)),
        "deprecated lkj factor": _quiet(lambda: pd.LKJCorrCholesky(3, numbers(2.0))),
        "wishart": td.Wishart(numbers(6.2, 40.0), scale_tril=factors(2, side=3)),
        "wishart by covariance": td.Wishart(torch.tensor(6.0, dtype=DOUBLE), factors(side=3) @ factors(side=3).mT),
        "student vectors": pd.MultivariateStudentT(numbers(0.8, 4.0, 1e4), loc[0, 0], factors(3, side=4)),
        "expanded student vector": pd.MultivariateStudentT(3.0, loc[0, 0], factors(side=4)).expand([2, 3]),
        "low rank": td.LowRankMultivariateNormal(loc[0, 0], torch.randn(3, 4, 2, dtype=DOUBLE), scale[0, 0]),
        "long low rank": td.LowRankMultivariateNormal(
            torch.randn(300, dtype=DOUBLE), torch.randn(3, 300, 4, dtype=DOUBLE), torch.rand(300, dtype=DOUBLE) + 0.01
        ),
        "omt": pd.OMTMultivariateNormal(loc[0, 0], factors(side=4)),
        "avf": pd.AVFMultivariateNormal(loc[0, 0], factors(side=4), torch.ones(2, 1, 4, dtype=DOUBLE)),
        "diagonal normals": pd.MixtureOfDiagNormals(loc, scale, logits),
        "one batch of diagonal normals": pd.MixtureOfDiagNormals(loc[0], scale[0], logits[0]).expand([3]),
        "diagonal normals, shared": pd.MixtureOfDiagNormalsSharedCovariance(loc, scale[:, 0], logits),
        "mixture of laplace vectors": weights_and(td.Independent(td.Laplace(loc, scale[0, :, :1]), 1)),
        "mixture of uneven parameters": weights_and(td.Independent(td.Cauchy(loc, scale[0, 0]), 1)),
        "mixture of positive vectors": weights_and(td.Independent(td.LogNormal(loc, scale), 1)),
        "mixture of multivariate normals": weights_and(td.MultivariateNormal(loc, scale_tril=factors(2, 5, side=4))),
        "random walks": GaussianRandomWalk(numbers(0.1, 3.0), 6).expand([4, 2]),
    }


def _quiet(make):
    with pytest.warns(FutureWarning):
        return make()


@pytest.mark.parametrize("name", makers())
def test_density_round_trip_and_shapes(name):
    dist = makers()[name]
    transform = from_normal(dist)
    shape = dist.batch_shape + dist.event_shape
    noise = torch.randn(50, *transform.inverse_shape(shape), dtype=DOUBLE)
    value, ladj = transform.call_and_ladj(noise)
    assert value.shape == (50, *shape) == transform.forward_shape(noise.shape)
    assert ladj.shape == (50, *dist.batch_shape)
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-7, atol=1e-7)
    own = (inverse_ladj + log_normal_density(noise).flatten(-transform.domain.event_dim).sum(-1)).flatten()
    torch.testing.assert_close(own, dist.log_prob(value).flatten(), rtol=1e-7, atol=1e-7)


def test_gaussian_scale_mixture():
    dist = pd.GaussianScaleMixture(numbers(0.3, 1.0, 2.0), numbers(0.5, 0.0, -1.0), numbers(0.1, 1.0, 4.0))
    noise = torch.randn(100, 3, dtype=DOUBLE)
    value, ladj = from_normal(dist).call_and_ladj(noise)
    expected = torch.stack([dist.log_prob(row) for row in value])
    torch.testing.assert_close(log_normal_density(noise).sum(-1) - ladj, expected)
    torch.testing.assert_close(from_normal(dist).inv(value), noise)


# ---------------------------------------------------------------- simplices


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("concentration", [1e-2, 0.3, 1.0, 1e2, 1e5])
@pytest.mark.parametrize("size", [2, 3, 40])
def test_dirichlet_of_extreme_concentration(dtype, concentration, size):
    parameter = torch.full((size,), concentration, dtype=dtype, requires_grad=True)
    transform = from_normal(td.Dirichlet(parameter))
    limit = 8.0 if dtype == torch.float32 else 25.0
    noise = (
        torch.cat((torch.randn(50, size - 1), limit * (2 * torch.rand(50, size - 1) - 1))).to(dtype).requires_grad_()
    )
    value, ladj = transform.call_and_ladj(noise)
    assert (value > 0).all()
    assert ((value.sum(-1) - 1).abs() <= 8 * torch.finfo(dtype).eps).all()
    leaf = value.detach().requires_grad_()
    back, inverse_ladj = transform.inv.call_and_ladj(leaf)
    for result in (ladj, back, inverse_ladj):
        assert torch.isfinite(result).all()
    for output, argument in ((value.sum() + ladj.sum(), noise), (back.sum() + inverse_ladj.sum(), leaf)):
        for gradient in torch.autograd.grad(output, (argument, parameter), retain_graph=True):
            assert not torch.isnan(gradient).any()
    representable = (value > 1e4 * torch.finfo(dtype).tiny).all(-1)
    slope = torch.func.vmap(torch.func.jacrev(lambda e: transform.call_and_ladj(e)[0].log()))(noise.detach())
    spread = slope.diagonal(dim1=-2, dim2=-1).abs()  # how far a unit of noise moves the log of a part
    allowed = (2e-4 if dtype == torch.float32 else 1e-9) * noise.abs().clamp(min=1)
    allowed = torch.maximum(allowed, 16 * torch.finfo(dtype).eps / spread)
    wrong = ((back - noise).abs() > allowed)[representable]
    assert not wrong.any()
    if concentration >= 0.3:
        assert representable[:50].all()


def test_dirichlet_of_a_thousand():
    parameter = torch.rand(1000, dtype=DOUBLE) * 5 + 0.05
    transform = from_normal(td.Dirichlet(parameter))
    noise = torch.randn(5, 999, dtype=DOUBLE)
    value, ladj = transform.call_and_ladj(noise)
    torch.testing.assert_close(transform.inv(value), noise, rtol=1e-9, atol=1e-9)
    expected = td.Dirichlet(parameter).log_prob(value)
    torch.testing.assert_close(log_normal_density(noise).sum(-1) - ladj, expected, rtol=1e-11, atol=0)


def test_dirichlet_tails_are_those_of_betas():
    """Each z_k = x_k / (x_k + ... + x_K) has the Beta distribution function of its noise, by mpmath."""
    concentration = [0.7, 3.0, 1.5, 2.0]
    noise = numbers([-24.0, 3.0, -2.0], [1.0, -20.0, 15.0], [8.0, 5.0, 24.0])
    value = from_normal(td.Dirichlet(numbers(*concentration)))(noise)
    with mp.workdps(250):
        for row in range(3):
            parts = [mp.mpf(part.item()) for part in value[row]]
            for place in range(3):
                rest = mp.fsum(parts[place + 1 :])
                z, a, b = parts[place] / (parts[place] + rest), concentration[place], sum(concentration[place + 1 :])
                e = noise[row, place].item()
                tail = mp.betainc(a, b, 0, z, regularized=True) if e < 0 else mp.betainc(a, b, z, 1, regularized=True)
                small = mp.erfc(abs(mp.mpf(e)) / mp.sqrt(2)) / 2
                slope = mp.exp(-(mp.mpf(e) ** 2) / 2) / mp.sqrt(2 * mp.pi) / small
                assert abs(mp.log(tail / small)) / slope < 1e-9 * max(1, abs(e))


# ---------------------------------------------------------------- correlations


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("concentration", [0.05, 1.0, 1e3])
@pytest.mark.parametrize("side", [2, 4, 12])
def test_lkj_of_extreme_concentration(dtype, concentration, side):
    parameter = torch.tensor(concentration, dtype=dtype, requires_grad=True)
    limit = 8.0 if dtype == torch.float32 else 25.0
    for make in (td.LKJCholesky, pd.LKJ):
        transform = from_normal(make(side, parameter))
        noise = (limit * (2 * torch.rand(50, side * (side - 1) // 2) - 1)).to(dtype).requires_grad_()
        value, ladj = transform.call_and_ladj(noise)
        assert transform.codomain.check(value.detach()).all()
        leaf = value.detach().requires_grad_()
        back, inverse_ladj = transform.inv.call_and_ladj(leaf)
        for result in (ladj, back, inverse_ladj):
            assert torch.isfinite(result).all()
        for output, argument in ((value.sum() + ladj.sum(), noise), (back.sum() + inverse_ladj.sum(), leaf)):
            for gradient in torch.autograd.grad(output, (argument, parameter), retain_graph=True):
                assert not torch.isnan(gradient).any()


def test_uniform_correlation_matrices():
    """With concentration 1 and d = 2 the correlation is uniform on (-1, 1)."""
    noise = torch.linspace(-6, 6, 25, dtype=DOUBLE).unsqueeze(-1)
    value = from_normal(pd.LKJ(2, torch.ones((), dtype=DOUBLE)))(noise)
    torch.testing.assert_close(value[:, 1, 0], 2 * torch.special.ndtr(noise[:, 0]) - 1)


@pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
def test_every_correlation_has_the_same_beta_distribution(concentration):
    """That of (1 + r) / 2 is Beta(eta - 1 + d / 2, the same), in every row; torch's own sampler misses it."""
    torch.manual_seed(0)
    count, side = 4000, 5
    matrix = from_normal(pd.LKJ(side, torch.tensor(concentration, dtype=DOUBLE)))(
        torch.randn(count, side * (side - 1) // 2, dtype=DOUBLE)
    )
    rows, columns = torch.tril_indices(side, side, -1)
    shape = torch.tensor(concentration - 1 + side / 2, dtype=DOUBLE)
    noise = from_normal(td.Beta(shape, shape)).inv(0.5 + 0.5 * matrix[:, rows, columns])
    ordered = torch.special.ndtr(noise.sort(0).values)
    steps = torch.arange(1, count + 1, dtype=DOUBLE).unsqueeze(-1) / count
    distance = torch.maximum((ordered - steps).abs(), (ordered - steps + 1 / count).abs()).amax(0)
    assert (distance * math.sqrt(count) < 2.0).all()


# ---------------------------------------------------------------- Wishart and Student


def element_by_element(core, noise):
    """Both directions by the conditionals alone, beside those of whole vectors."""
    value, slopes = core.call_elements(noise)
    back, inverse_slopes = core.inverse_elements(value)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(inverse_slopes, -slopes)
    for place in range(core.size):
        transform = core.conditional(place, value[..., :place])
        one, slope = transform.call_and_ladj(noise[..., place])
        torch.testing.assert_close(one, value[..., place])
        torch.testing.assert_close(slope, slopes[..., place])
        torch.testing.assert_close(transform.inv(value[..., place]), noise[..., place])


def test_conditionals_are_those_of_the_whole():
    noise = torch.randn(7, 2, 6, dtype=DOUBLE)
    element_by_element(WishartFactor(numbers(4.5, 30.0), factors(2, side=3)), noise)
    loc = torch.randn(6, dtype=DOUBLE)
    element_by_element(MultivariateStudentTTransform(numbers(0.7, 9.0), loc, factors(2, side=6)), noise)
    for name in ("diagonal normals", "mixture of multivariate normals"):
        element_by_element(from_normal(makers()[name]), noise[..., :4])
    element_by_element(from_normal(makers()["mixture of positive vectors"]).core, noise[..., :4])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("degrees", [0.5, 3.0, 1e4])
def test_student_vectors_of_extreme_degrees(dtype, degrees):
    parameter = torch.tensor(degrees, dtype=dtype, requires_grad=True)
    transform = from_normal(pd.MultivariateStudentT(parameter, torch.zeros(3, dtype=dtype), torch.eye(3, dtype=dtype)))
    limit = 8.0 if dtype == torch.float32 else 25.0
    grid = torch.linspace(-limit, limit, 9, dtype=dtype)
    noise = torch.cartesian_prod(grid, grid, grid).requires_grad_()
    value, ladj = transform.call_and_ladj(noise)
    assert torch.isfinite(value).all()
    assert torch.isfinite(ladj).all()
    leaf = value.detach().requires_grad_()
    back, inverse_ladj = transform.inv.call_and_ladj(leaf)
    for output, argument in ((value.sum() + ladj.sum(), noise), (back.sum() + inverse_ladj.sum(), leaf)):
        for gradient in torch.autograd.grad(output, (argument, parameter), retain_graph=True):
            assert not torch.isnan(gradient).any()
    bound = 2e-4 if dtype == torch.float32 else 1e-9
    near = value.detach().abs().amax(-1) < 0.01 * torch.finfo(dtype).max ** 0.9
    wrong = ((back - noise).abs() > bound * noise.abs().clamp(min=1))[near]
    assert not wrong.any()
    if degrees > 1:
        assert near.all()


# ---------------------------------------------------------------- normal vectors


@pytest.mark.parametrize("variance", [1.0, 1e-6])
def test_long_low_rank_factor_agrees_with_mpmath(variance):
    torch.manual_seed(0)
    size, rank = 24, 2
    factor, diagonal = torch.randn(size, rank, dtype=DOUBLE), variance * (0.1 + torch.rand(size, dtype=DOUBLE))
    transform = LowRankNormalTransform(torch.zeros(size, dtype=DOUBLE), factor, diagonal)
    with mp.workdps(50):
        product = mp.matrix(factor.tolist()) * mp.matrix(factor.tolist()).T + mp.diag(diagonal.tolist())
        exact = torch.tensor(mp.cholesky(product).apply(float).tolist(), dtype=DOUBLE)
    error = (transform.scale_tril - exact).abs() / exact.diagonal().unsqueeze(-1)
    assert error.max() < 1e-13 / variance
    noise = torch.randn(50, size, dtype=DOUBLE)
    value, ladj = transform.call_and_ladj(noise)
    torch.testing.assert_close(value, noise @ exact.mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(transform.inv(value), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ladj, exact.diagonal().log().sum().expand(50), rtol=1e-9, atol=1e-9)


def test_low_rank_takes_the_cheaper_way():
    def make(size, rank):
        return from_normal(td.LowRankMultivariateNormal(torch.zeros(size), torch.ones(size, rank), torch.ones(size)))

    assert isinstance(make(10, 2), MultivariateNormalTransform)
    assert isinstance(make(300, 20), MultivariateNormalTransform)
    assert isinstance(make(300, 4), LowRankNormalTransform)


@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
def test_gates_of_linear_maps(gate):
    size = 30
    low_rank = LowRankNormalTransform(
        torch.randn(size, dtype=DOUBLE), torch.randn(size, 2, dtype=DOUBLE), torch.rand(size, dtype=DOUBLE) + 0.1
    )
    for transform in (low_rank, from_normal(GaussianRandomWalk(numbers(0.3, 1.0), size))):
        noise = torch.randn(5, 2, size, dtype=DOUBLE)
        opened = gated(transform, torch.tensor(gate, dtype=DOUBLE))
        expected = gate * transform(noise) + (1 - gate) * noise
        value, ladj = opened.call_and_ladj(noise)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(opened.inv(value), noise)
        jacobian = torch.func.jacrev(opened)(noise[0, 0]).reshape(-1, size, size)[0]
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], ladj[0, 0])


@pytest.mark.parametrize("family", [pd.NanMaskedNormal, pd.NanMaskedMultivariateNormal])
def test_missing_data_are_refused(family):
    vector = family is pd.NanMaskedMultivariateNormal
    dist = family(torch.zeros(2), torch.eye(2)) if vector else family(torch.zeros(2), torch.ones(2))
    for make in (from_normal, scalar_family):
        with pytest.raises(UnsupportedFamilyError, match="missing data"):
            make(dist)
    assert not any("NanMasked" in name for name in nearest_families(family, 100))


def test_mixtures_without_conditionals_are_refused():
    uniform = td.Independent(td.Uniform(torch.zeros(2, 3), torch.ones(2, 3)), 1)
    discrete = td.Independent(td.Bernoulli(0.5 * torch.ones(2, 3)), 1)
    for component in (uniform, td.Dirichlet(torch.ones(2, 3)), discrete):
        with pytest.raises(UnsupportedFamilyError, match="MultivariateNormal"):
            from_normal(td.MixtureSameFamily(td.Categorical(torch.ones(2)), component))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_mixtures_of_distant_and_unlikely_vectors(dtype):
    loc = torch.tensor([[0.0, 0.0, 0.0], [1e3, -1e3, 1e3], [5.0, 0.0, -5.0]], dtype=dtype)
    weights = torch.tensor([1 - 1e-3, 1e-3, 1e-12], dtype=dtype)
    component = td.Independent(td.Normal(loc, torch.tensor(0.7, dtype=dtype)), 1)
    transform = from_normal(td.MixtureSameFamily(td.Categorical(weights), component))
    limit = 8.0 if dtype == torch.float32 else 25.0
    noise = (limit * (2 * torch.rand(300, 3) - 1)).to(dtype)
    value, ladj = transform.call_and_ladj(noise)
    assert torch.isfinite(value).all()
    assert torch.isfinite(ladj).all()
    back = transform.inv(value)
    rounding = 8 * torch.finfo(dtype).eps * value.abs() / 0.7
    allowed = torch.maximum((2e-4 if dtype == torch.float32 else 1e-9) * noise.abs().clamp(min=1), rounding)
    smooth = ladj.abs() < 100  # between components a unit of noise moves the value by hundreds
    assert ((back - noise).abs() <= allowed)[smooth].all()
    assert smooth.sum() > 100


# ---------------------------------------------------------------- points


@pytest.mark.parametrize("event_dim", [0, 1, 2])
def test_delta_passes_its_value_without_noise(event_dim):
    point = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    dist = pd.Delta(point, event_dim=event_dim)
    transform = from_normal(dist)
    batch = dist.batch_shape
    assert transform.inverse_shape((4, *point.shape)) == (4, *batch, 0)
    assert transform.forward_shape((4, *batch, 0)) == (4, *point.shape)
    assert transform.domain.event_dim == 1
    assert transform.codomain.event_dim == event_dim
    value, ladj = transform.call_and_ladj(torch.zeros(4, *batch, 0, dtype=DOUBLE))
    assert torch.equal(value, point.expand(4, 3, 2))
    assert torch.equal(ladj, torch.zeros(4, *batch, dtype=DOUBLE))
    assert torch.equal(torch.autograd.grad(value.sum(), point)[0], torch.full_like(point, 4))
    for moved, expected in ((value, 0.0), (torch.nextafter(value, 2 * value), 0.0), (value * (1 + 1e-12), -math.inf)):
        noise, ladj = transform.inv.call_and_ladj(moved)
        assert noise.shape == (4, *batch, 0)
        assert torch.equal(ladj, torch.full((4, *batch), expected, dtype=DOUBLE))
    opened = gated(transform, torch.tensor(0.5, dtype=DOUBLE))
    assert torch.equal(opened(torch.zeros(*batch, 0, dtype=DOUBLE)), point)
    assert transform.unconstrained()(torch.zeros(*batch, 0, dtype=DOUBLE)).shape == (*batch, 0)


def test_delta_of_zero_and_of_another_event():
    transform = from_normal(pd.Delta(torch.zeros(2), event_dim=1))
    assert transform.inv.call_and_ladj(torch.zeros(2))[1] == 0
    assert transform.inv.call_and_ladj(torch.tensor([0.0, 1e-30]))[1] == -math.inf
    assert transform.inv.call_and_ladj(torch.tensor([math.inf, math.nan]))[1] == -math.inf


def test_delta_with_a_density_is_refused():
    with pytest.raises(UnsupportedFamilyError, match="not normalised"):
        from_normal(pd.Delta(torch.zeros(2), log_density=torch.ones(2)))


def test_delta_maps():
    points, values = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)

    def run(point, value):
        transform = from_normal(pd.Delta(point, event_dim=1, validate_args=False))
        return (*transform.call_and_ladj(value[:0]), *transform.inv.call_and_ladj(value))

    value, ladj, noise, inverse_ladj = torch.func.vmap(run)(points, values)
    assert torch.equal(value, points)
    assert torch.equal(ladj, torch.zeros(4, dtype=DOUBLE))
    assert noise.shape == (4, 0)
    assert (inverse_ladj == -math.inf).all()


# ---------------------------------------------------------------- random walks


def test_random_walk_is_a_multivariate_normal():
    walk = GaussianRandomWalk(numbers(0.5, 2.0), 5)
    times = torch.arange(1.0, 6.0, dtype=DOUBLE)
    covariance = torch.minimum(times, times.unsqueeze(-1)) * walk.scale[:, None, None] ** 2
    normal = td.MultivariateNormal(torch.zeros(5, dtype=DOUBLE), covariance)
    value = torch.randn(7, 2, 5, dtype=DOUBLE)
    torch.testing.assert_close(walk.log_prob(value), normal.log_prob(value))
    torch.testing.assert_close(walk.variance, normal.variance)
    assert torch.equal(walk.mean, normal.mean)
    torch.manual_seed(0)
    sample = walk.rsample((20000,))
    assert sample.shape == (20000, 2, 5)
    torch.testing.assert_close(torch.cov(sample[:, 0].mT), covariance[0], rtol=0.06, atol=0.02)
    noise = torch.randn(3, 2, 5, dtype=DOUBLE)
    expected = from_normal(normal).call_and_ladj(noise)
    for one, other in zip(from_normal(walk).call_and_ladj(noise), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_random_walk_checks_its_arguments():
    assert GaussianRandomWalk(2, 3).shape() == (3,)
    for wrong in (0, 2.0):
        with pytest.raises(ValueError, match="number of steps"):
            GaussianRandomWalk(1.0, wrong)
    with pytest.raises(ValueError, match="scale"):
        GaussianRandomWalk(-1.0, 3, validate_args=True)


# ---------------------------------------------------------------- compilers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dirichlet", "lkj", "multivariate student", "mixture of diagonal normals"])
def test_compiles(name):
    case = CASES[name]
    noise = 0.5 * torch.randn(3, *case.noise_shape(), dtype=DOUBLE)
    leaves = [t.requires_grad_() for t in (noise, *case.tensors(DOUBLE))]

    def run(noise, *parameters):
        transform = from_normal(case.build(*parameters))
        value, ladj = transform.call_and_ladj(noise)
        return (value, ladj, *transform.inv.call_and_ladj(value))

    with unvalidated():
        expected, results = run(*leaves), torch.compile(run)(*leaves)
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    gradients = [torch.autograd.grad(parts[0].sum() + parts[1].sum(), leaves) for parts in (results, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", [(), (4,)])
@pytest.mark.parametrize("given", ["covariance_matrix", "scale_tril", "precision_matrix"])
def test_mixtures_of_normal_vectors_with_one_covariance(given, weights):
    loc = torch.tensor([[0.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    matrix = {given: torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64)}
    vectors = td.MultivariateNormal(loc.expand(*weights, 2, 2), **matrix)
    dist = td.MixtureSameFamily(td.Categorical(logits=torch.randn(*weights, 2, dtype=torch.float64)), vectors)
    transform, noise = from_normal(dist), torch.randn(4, 2, dtype=torch.float64)
    value, ladj = transform.call_and_ladj(noise)
    back, other = transform.inverse_and_ladj(value)
    torch.testing.assert_close(back, noise, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other, -ladj, rtol=1e-12, atol=1e-12)
    density = -0.5 * noise.square().sum(-1) - math.log(2 * math.pi) - ladj
    torch.testing.assert_close(density, dist.log_prob(value), rtol=1e-12, atol=1e-12)
