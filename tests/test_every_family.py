"""Every class of ``pyro.distributions`` either obeys the laws through the compiler or is refused with its reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch.distributions import Distribution

import emfc
from emfc.layers import StructuredLayer
from emfc.program.refused_families import REFUSED_FAMILIES
from emfc.program.serialize import program_from_document, program_to_document
from emfc.transforms import UnsupportedFamilyError, from_normal

T = torch.tensor
CLASSES = {
    name: found
    for name in dir(dist)
    if isinstance(found := getattr(dist, name), type) and issubclass(found, Distribution)
}
TRIL = [[1.2, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 0.9]]

# One distribution of each family whose sites compile, with batches or events where the family has them.
WORKS: dict[str, Callable[[], Distribution]] = {
    "AVFMultivariateNormal": lambda: dist.AVFMultivariateNormal(torch.ones(3), T(TRIL), 0.1 * torch.ones(2, 1, 3)),
    "AffineBeta": lambda: dist.AffineBeta(T([2.0, 0.7]), T(3.0), T(-1.0), T([2.0, 5.0])),
    "AsymmetricLaplace": lambda: dist.AsymmetricLaplace(T([0.5, -1.0]), 0.8, T([1.5, 0.6])),
    "Bernoulli": lambda: dist.Bernoulli(T([0.2, 0.7])),
    "Beta": lambda: dist.Beta(T([2.0, 0.7]), T([3.0, 4.0])),
    "BetaBinomial": lambda: dist.BetaBinomial(T([2.0, 0.7]), T([3.0, 4.0]), 6),
    "Binomial": lambda: dist.Binomial(5, T([0.3, 0.6])),
    "Categorical": lambda: dist.Categorical(T([0.2, 0.5, 0.3])),
    "Cauchy": lambda: dist.Cauchy(T([0.0, 2.0]), 0.7),
    "Chi2": lambda: dist.Chi2(T([3.0, 7.5])),
    "ContinuousBernoulli": lambda: dist.ContinuousBernoulli(T([0.2, 0.7])),
    "Delta": lambda: dist.Delta(T([0.5, -2.0]), event_dim=1),
    "Dirichlet": lambda: dist.Dirichlet(T([[1.5, 0.7, 2.0], [4.0, 3.0, 1.0]])),
    "ExpandedDistribution": lambda: dist.ExpandedDistribution(dist.Normal(0.5, 2.0), torch.Size((3,))),
    "Exponential": lambda: dist.Exponential(T([0.5, 2.0])),
    "ExtendedBinomial": lambda: dist.ExtendedBinomial(5, T([0.3, 0.6])),
    "ExtendedBetaBinomial": lambda: dist.ExtendedBetaBinomial(T([2.0, 0.7]), T([3.0, 4.0]), T(6)),
    "FisherSnedecor": lambda: dist.FisherSnedecor(T([4.0, 9.0]), T([5.0, 7.0])),
    "FoldedDistribution": lambda: dist.FoldedDistribution(dist.Normal(T([0.5, -2.0]), 1.0)),
    "Gamma": lambda: dist.Gamma(T([0.6, 5.0]), T([1.0, 2.0])),
    "GammaPoisson": lambda: dist.GammaPoisson(T([2.0, 5.0]), T([1.0, 2.0])),
    "GaussianScaleMixture": lambda: dist.GaussianScaleMixture(T([1.0, 2.0]), T([0.3, -0.2]), T([0.5, 1.5])),
    "GeneralizedPareto": lambda: dist.GeneralizedPareto(T([0.0, 1.0]), T(1.0), T([0.3, -0.2])),
    "Geometric": lambda: dist.Geometric(T([0.3, 0.6])),
    "Gumbel": lambda: dist.Gumbel(T([0.0, 1.0]), T([1.0, 0.5])),
    "HalfCauchy": lambda: dist.HalfCauchy(T([1.0, 0.5])),
    "HalfNormal": lambda: dist.HalfNormal(T([1.0, 0.5])),
    "Independent": lambda: dist.Independent(dist.Laplace(T([0.0, 1.0]), 1.0), 1),
    "InverseGamma": lambda: dist.InverseGamma(T([3.0, 5.0]), T([1.0, 2.0])),
    "Kumaraswamy": lambda: dist.Kumaraswamy(T([2.0, 0.7]), T([3.0, 1.5])),
    "LKJ": lambda: dist.LKJ(3, T(1.5)),
    "LKJCholesky": lambda: dist.LKJCholesky(3, T([0.8, 2.0])),
    "LKJCorrCholesky": lambda: dist.LKJCorrCholesky(3, T(1.5)),
    "Laplace": lambda: dist.Laplace(T([0.0, 1.0]), T([1.0, 0.5])),
    "LogNormal": lambda: dist.LogNormal(T([0.0, 1.0]), T([1.0, 0.5])),
    "Logistic": lambda: dist.Logistic(T([0.0, 1.0]), T([1.0, 0.5])),
    "LogisticNormal": lambda: dist.LogisticNormal(T([[0.0, 1.0], [2.0, -1.0]]), T([1.0, 0.5])),
    "LowRankMultivariateNormal": lambda: dist.LowRankMultivariateNormal(
        torch.ones(3), T([[1.0], [0.5], [-1.0]]), T([1.0, 0.5, 0.2])
    ),
    "MaskedDistribution": lambda: dist.MaskedDistribution(dist.Normal(T([0.0, 1.0]), 1.0), True),
    "MixtureOfDiagNormals": lambda: dist.MixtureOfDiagNormals(
        T([[0.0, 1.0, 2.0], [3.0, -1.0, 0.0]]), T([[1.0, 0.5, 1.0], [0.7, 1.0, 2.0]]), T([0.3, -0.2])
    ),
    "MixtureOfDiagNormalsSharedCovariance": lambda: dist.MixtureOfDiagNormalsSharedCovariance(
        T([[0.0, 1.0, 2.0], [3.0, -1.0, 0.0]]), T([1.0, 0.5, 1.0]), T([0.3, -0.2])
    ),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(T([[0.2, 0.8], [0.6, 0.4]])), dist.Logistic(T([[-2.0, 1.0], [0.0, 5.0]]), T([1.0, 0.5]))
    ),
    "MultivariateNormal": lambda: dist.MultivariateNormal(torch.ones(2, 3), scale_tril=T(TRIL)),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(T([4.0, 9.0]), torch.ones(3), T(TRIL)),
    "NegativeBinomial": lambda: dist.NegativeBinomial(T([2.0, 5.0]), T([0.3, 0.6])),
    "Normal": lambda: dist.Normal(T([0.0, 1.0]), T([1.0, 0.5])),
    "OMTMultivariateNormal": lambda: dist.OMTMultivariateNormal(torch.ones(3), T(TRIL)),
    "OrderedLogistic": lambda: dist.OrderedLogistic(T([0.3, -1.0]), T([-1.0, 0.0, 2.0])),
    "Pareto": lambda: dist.Pareto(T([1.0, 2.0]), T([3.0, 1.5])),
    "Poisson": lambda: dist.Poisson(T([0.7, 6.0])),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(T(0.7), probs=T([0.3, 0.8])),
    "SkewLogistic": lambda: dist.SkewLogistic(T([0.0, 1.0]), T([1.0, 0.5]), T([0.6, 1.7])),
    "SoftAsymmetricLaplace": lambda: dist.SoftAsymmetricLaplace(T([0.0, 1.0]), T(0.8), T([0.6, 1.7]), T(0.5)),
    "SoftLaplace": lambda: dist.SoftLaplace(T([0.0, 1.0]), T([1.0, 0.5])),
    "Stable": lambda: dist.Stable(T([1.5, 1.8]), T([0.3, -0.5]), T(1.0), T([0.0, 1.0])),
    "StableWithLogProb": lambda: dist.StableWithLogProb(T([1.5, 1.8]), T([0.3, -0.5]), T(1.0), T([0.0, 1.0])),
    "StudentT": lambda: dist.StudentT(T([2.0, 9.0]), T([0.0, 1.0]), T([1.0, 0.5])),
    "TransformedDistribution": lambda: dist.TransformedDistribution(
        dist.Normal(T([0.0, 1.0]), 1.0), [transforms.SigmoidTransform(), transforms.AffineTransform(T(1.0), T(-2.0))]
    ),
    "Uniform": lambda: dist.Uniform(T([0.0, 1.0]), T([1.0, 5.0])),
    "VonMises": lambda: dist.VonMises(T([0.3, -2.0]), T([2.0, 0.5])),
    "Weibull": lambda: dist.Weibull(T([1.0, 2.0]), T([0.7, 3.0])),
    "Wishart": lambda: dist.Wishart(T(5.0), scale_tril=T(TRIL)),
    "ZeroInflatedDistribution": lambda: dist.ZeroInflatedDistribution(dist.Poisson(T([0.7, 6.0])), gate=T([0.2, 0.4])),
    "ZeroInflatedNegativeBinomial": lambda: dist.ZeroInflatedNegativeBinomial(
        T([2.0, 5.0]), probs=T([0.3, 0.6]), gate=T([0.2, 0.4])
    ),
    "ZeroInflatedPoisson": lambda: dist.ZeroInflatedPoisson(T([0.7, 6.0]), gate=T([0.2, 0.4])),
}
# One distribution of each family whose sites are refused, and a word of the reason.
REFUSED: dict[str, tuple[Callable[[], Distribution], str]] = {
    "CoalescentTimes": (lambda: dist.CoalescentTimes(torch.zeros(3)), "ordered times"),
    "CoalescentTimesWithRate": (lambda: dist.CoalescentTimesWithRate(torch.zeros(3), torch.ones(4)), "ordered times"),
    "DirichletMultinomial": (lambda: dist.DirichletMultinomial(torch.ones(3), 5), "fixed sum"),
    "DiscreteHMM": (
        lambda: dist.DiscreteHMM(
            torch.zeros(2), torch.zeros(2, 2), dist.Normal(T([0.0, 1.0]), T([1.0, 1.0])), duration=3
        ),
        "hidden states",
    ),
    "Empirical": (lambda: dist.Empirical(T([0.0, 1.0, 5.0]), torch.zeros(3)), "samples"),
    "GammaGaussianHMM": (
        lambda: dist.GammaGaussianHMM(
            dist.Gamma(T(2.0), T(2.0)), _gaussian(2), torch.eye(2), _gaussian(2), torch.eye(2), _gaussian(2), duration=3
        ),
        "hidden states",
    ),
    "GaussianHMM": (
        lambda: dist.GaussianHMM(_gaussian(2), torch.eye(2), _gaussian(2), torch.eye(2), _gaussian(2), duration=3),
        "hidden states",
    ),
    "GaussianMRF": (lambda: dist.GaussianMRF(_gaussian(2), _gaussian(4), _gaussian(3)), "normalisation"),
    "GroupedNormalNormal": (
        lambda: dist.GroupedNormalNormal(T([0.0, 0.0]), T([1.0, 1.0]), T(1.0), T([0, 1, 1])),
        "group effects",
    ),
    "ImproperUniform": (
        lambda: dist.ImproperUniform(dist.constraints.real, torch.Size(()), torch.Size(())),
        "not normalised",
    ),
    "IndependentHMM": (
        lambda: dist.IndependentHMM(
            dist.GaussianHMM(
                _gaussian(1, 2), torch.eye(1), _gaussian(1, 2, 1), torch.eye(1), _gaussian(1, 2, 1), duration=3
            )
        ),
        "hidden states",
    ),
    "LinearHMM": (
        lambda: dist.LinearHMM(
            _gaussian(2),
            torch.eye(2),
            _gaussian(2),
            torch.eye(2),
            dist.StudentT(3.0, 0.0, torch.ones(2)).to_event(1),
            duration=3,
        ),
        "hidden states",
    ),
    "LogNormalNegativeBinomial": (lambda: dist.LogNormalNegativeBinomial(T(2.0), T(0.3), T(0.5)), "quadrature"),
    "MaskedMixture": (
        lambda: dist.MaskedMixture(
            T([True, False]), dist.Normal(torch.zeros(2), 1.0), dist.Laplace(torch.ones(2), 1.0)
        ),
        "two families",
    ),
    "Multinomial": (lambda: dist.Multinomial(5, torch.ones(3) / 3), "fixed sum"),
    "NanMaskedMultivariateNormal": (
        lambda: dist.NanMaskedMultivariateNormal(torch.ones(3), scale_tril=T(TRIL)),
        "missing",
    ),
    "NanMaskedNormal": (lambda: dist.NanMaskedNormal(T([0.0, 1.0]), 1.0), "missing"),
    "OneHotCategorical": (lambda: dist.OneHotCategorical(torch.ones(3) / 3), "corners"),
    "OneHotCategoricalStraightThrough": (
        lambda: dist.OneHotCategoricalStraightThrough(torch.ones(3) / 3),
        "rounds its draws",
    ),
    "OneOneMatching": (lambda: dist.OneOneMatching(torch.zeros(3, 3)), "arrangements"),
    "OneTwoMatching": (lambda: dist.OneTwoMatching(torch.zeros(4, 2)), "arrangements"),
    "ProjectedNormal": (lambda: dist.ProjectedNormal(torch.ones(2)), "sphere"),
    "Rejector": (
        lambda: dist.Rejector(dist.Exponential(1.0), lambda x: -x, T(0.0)),
        "acceptance",
    ),
    "RelaxedBernoulliStraightThrough": (
        lambda: dist.RelaxedBernoulliStraightThrough(T(0.7), probs=T(0.3)),
        "rounds its draws",
    ),
    "RelaxedOneHotCategorical": (lambda: dist.RelaxedOneHotCategorical(T(0.7), torch.ones(3) / 3), "bijection"),
    "RelaxedOneHotCategoricalStraightThrough": (
        lambda: dist.RelaxedOneHotCategoricalStraightThrough(T(0.7), torch.ones(3) / 3),
        "rounds its draws",
    ),
    "SineBivariateVonMises": (
        lambda: dist.SineBivariateVonMises(T(0.0), T(0.0), T(2.0), T(1.0), T(0.5)),
        "torus",
    ),
    "SineSkewed": (
        lambda: dist.SineSkewed(dist.VonMises(T([0.0]), T([1.0])).to_event(1), T([0.3])),
        "torus",
    ),
    "SpanningTree": (lambda: dist.SpanningTree(torch.zeros(3)), "arrangements"),
    "TruncatedPolyaGamma": (lambda: dist.TruncatedPolyaGamma(torch.ones(2)), "alternating series"),
    "Unit": (lambda: dist.Unit(T(0.0)), "no value"),
    "VonMises3D": (lambda: dist.VonMises3D(T([1.0, 0.0, 0.0])), "sphere"),
}
# Classes that no site has by itself.
BASES = {
    "ExponentialFamily": "a base class without a law of its own",
    "TorchDistribution": "a base class without a law of its own",
}
# The density of these in Pyro is an integral over few points.
ROUGH = {"Stable", "StableWithLogProb"}
# torch draws the rows of LKJCholesky from other Betas than its density has: these are drawn here.
DRAWS = {
    "LKJ": lambda: (factor := _onion(3, T([1.5]))[:, 0]) @ factor.mT,
    "LKJCholesky": lambda: _onion(3, T([0.8, 2.0])),
    "LKJCorrCholesky": lambda: _onion(3, T([1.5]))[:, 0],
}
# Families whose density in Pyro takes one value at a time.
ONE_BY_ONE = {"GaussianScaleMixture"}


def _gaussian(size: int, *batch: int) -> Distribution:
    return dist.MultivariateNormal(torch.zeros(*batch, size), torch.eye(size))


def _onion(size: int, eta: torch.Tensor) -> torch.Tensor:
    """Cholesky factors of LKJ correlation matrices: row by row a direction and the square of a length.

    Source: Lewandowski, Kurowicka and Joe, Generating random correlation matrices based on vines and extended onion
    method, 2009, section 3.2.
    """
    factor = torch.zeros(2000, len(eta), size, size)
    factor[..., 0, 0] = 1
    for row in range(1, size):
        direction = torch.nn.functional.normalize(torch.randn(2000, len(eta), row), dim=-1)
        square = dist.Beta(T(row / 2), eta + (size - 1 - row) / 2).sample((2000,))
        factor[..., row, :row] = square.sqrt().unsqueeze(-1) * direction
        factor[..., row, row] = (1 - square).sqrt()
    return factor


def _one_site(make: Callable[[], Distribution]) -> Callable[[], None]:
    def program() -> None:
        pyro.sample("x", make())

    return program


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest, _quiet):
    torch.set_default_dtype(request.param)
    return request.param


@pytest.fixture(autouse=True)
def _quiet(_clean_state):
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_every_class_is_in_exactly_one_table():
    tables = [set(WORKS), set(REFUSED), set(BASES)]
    named = set().union(*tables)
    assert set(CLASSES) == named, f"sort into a table: {sorted(set(CLASSES) ^ named)}"
    assert sum(map(len, tables)) == len(named)
    assert set(REFUSED_FAMILIES) == set(REFUSED)


@pytest.mark.parametrize("name", BASES)
def test_bases_have_no_law(name):
    with pytest.raises(UnsupportedFamilyError):
        from_normal(CLASSES[name](validate_args=False))


@pytest.mark.parametrize("name", WORKS)
def test_a_site_of_the_family_obeys_the_laws(name, dtype):
    made = WORKS[name]()
    assert type(made) is CLASSES[name]
    layer = emfc.compile(_one_site(WORKS[name]))
    single = dtype is torch.float32
    torch.manual_seed(0)
    noise = torch.randn(200, layer.noise_dim).clamp(-3, 3)  # beyond, values beside an end are rounded
    with torch.no_grad():
        x, ladj = layer().call_and_ladj(noise)
        again, inverse = layer().inv.call_and_ladj(x)
        log_prob = layer().log_prob(x)
    assert not layer.outside(x).any()
    torch.testing.assert_close(again, noise, rtol=0, atol=5e-3 if single else 1e-7)
    torch.testing.assert_close(inverse, -ladj, rtol=0, atol=2e-2 if single else 1e-7)
    value = layer.unpack(x)["x"].to(dtype)
    known = WORKS["StableWithLogProb"]() if name == "Stable" else made
    rows = name in ONE_BY_ONE
    expected = torch.stack([known.log_prob(row) for row in value]) if rows else known.log_prob(value)
    expected = expected.reshape(len(x), -1).sum(-1)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=2e-2 if single else 1e-3 if name in ROUGH else 1e-7)
    draws = DRAWS[name]() if name in DRAWS else made.sample((2000,))
    packed = layer.pack({"x": draws})
    assert layer().log_prob(packed).isfinite().float().mean() > (0.99 if single else 0.999)
    _same_law(layer()(torch.randn(4000, layer.noise_dim)).detach(), packed)


def _same_law(actual, expected):
    """Kolmogorov and Smirnov's distances of all elements, at a level of one in a hundred thousand for the whole."""
    for one, other in zip(actual.T.round(decimals=5), expected.T.round(decimals=5), strict=True):
        grid = torch.cat([one, other]).sort().values
        below = [torch.searchsorted(held.sort().values, grid, right=True) / len(held) for held in (one, other)]
        size = len(one) * len(other) / (len(one) + len(other))
        level = torch.tensor(1e-5 / actual.shape[1])
        assert (below[0] - below[1]).abs().max() < torch.sqrt(-0.5 * torch.log(level / 2) / size) + 1e-3


@pytest.mark.parametrize("name", WORKS)
def test_the_log_jacobian_is_that_of_automatic_differentiation(name):
    layer = emfc.compile(_one_site(WORKS[name]))
    constraint_map, transform = layer.constraint_map(), layer()
    if not layer.noise_dim:  # nothing is random
        assert transform.call_and_ladj(torch.zeros(0))[1] == 0
        return
    torch.manual_seed(1)
    for noise in torch.randn(3, layer.noise_dim):
        x, ladj = transform.call_and_ladj(noise)
        _, stretch = constraint_map.inv.call_and_ladj(x)
        jacobian = torch.autograd.functional.jacobian(lambda e: constraint_map.inv(transform(e)), noise)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj + stretch, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WORKS)
def test_the_stored_program_is_the_same(name):
    layer = emfc.compile(_one_site(WORKS[name]))
    stored = StructuredLayer(program_from_document(*program_to_document(layer.program)))
    x = layer()(torch.randn(5, layer.noise_dim)).detach()
    torch.testing.assert_close(stored().log_prob(x), layer().log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_the_family_is_refused_with_its_reason(name):
    make, word = REFUSED[name]
    made = make()
    assert type(made) is CLASSES[name]
    with pytest.raises(emfc.CompileError) as caught:
        emfc.compile(_one_site(make))
    error = caught.value
    assert error.code == "E-NOCDF", str(error)
    assert name in error.reason
    assert word in error.reason
    assert error.advice
    assert error.site == "x"
    with pytest.raises(UnsupportedFamilyError):
        from_normal(made)
