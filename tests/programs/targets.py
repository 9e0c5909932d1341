"""Models with data, as variational targets: name -> model and arguments."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch.distributions import constraints

from tests.programs.case import _Program as Program

__all__ = ["DISCRETE", "FAMILIES", "IMPROPER", "SUMMED", "TARGETS"]

Y = torch.tensor([0.3, -1.2, 2.5, 0.1])
X = torch.tensor([[1.0, 0.5], [1.0, -0.5], [1.0, 2.0], [1.0, -1.0]])
COUNTS = torch.tensor([0, 3, 1, 7])
FLAGS = torch.tensor([True, False, True, True])


def plain(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.StudentT(4.0, mean, scale), obs=y)


def latent_factor():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -(a**2))
    pyro.sample("b", dist.Normal(a, 1.0))


def constant_factor():
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", torch.tensor(-3.5))


def factor_in_plates(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", 2, dim=-1), pyro.plate("rows", len(y), dim=-2):
        b = pyro.sample("b", dist.Gamma(2.0, 1.0))
        pyro.factor("penalty", -a.exp() * b * y[:, None])


def factor_of_a_vector():
    """A factor of more elements than its plates have."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.factor("penalty", -(a**2))


def factor_scaled_and_masked(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.scale(scale=0.25), poutine.mask(mask=FLAGS):
        pyro.factor("penalty", -((a - y) ** 2))


def factors_in_a_loop(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    for i in range(len(y)):
        pyro.factor(f"f_{i}", -((a - y[i]) ** 2) / (i + 1))


def scaled_by_a_number(y):
    with poutine.scale(scale=0.5):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=3.0), pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a, 1.5), obs=y)


def scaled_by_a_tensor(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.scale(scale=torch.tensor([1.0, 0.0, 2.5, 0.1])):
        pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Laplace(a, 1.5), obs=y)


def scaled_vectors_by_a_tensor(y):
    """A scale for each batch, above events of two independent numbers."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=torch.tensor([1.0, 2.0])):
        pyro.sample("y", dist.Normal(a * torch.ones(2, 2), 1.0).to_event(1), obs=y.reshape(2, 2))


def scaled_twice(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0), poutine.scale(scale=0.5), poutine.scale(scale=torch.tensor(0.3)):
        pyro.sample("y", dist.Normal(a, 1.5).expand([len(y)]).to_event(1), obs=y)


def scaled_by_a_latent(y):
    a = pyro.sample("a", dist.Gamma(1.0, 1.0))
    with poutine.scale(scale=a):
        pyro.sample("y", dist.Normal(a, 1.5).expand([len(y)]).to_event(1), obs=y)


def masked_by_false(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=False):
        pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(a, 1.5).expand([len(y)]).to_event(1), obs=y)


def masked_by_tensors(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with (
        pyro.plate("rows", len(y)),
        poutine.mask(mask=FLAGS),
        poutine.mask(mask=torch.tensor([True, True, False, True])),
    ):
        pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(a, 1.5), obs=y)


def masked_distribution(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.5).expand([len(y)]).mask(FLAGS).to_event(1), obs=y)
    with pyro.plate("rows", len(y)):
        pyro.sample("z", dist.Normal(a, 1.5).mask(FLAGS).mask(True), obs=y)
        pyro.sample("w", dist.Normal(a, 1.5).expand([len(y), 2]).to_event(1).mask(FLAGS), obs=torch.stack([y, -y], -1))


def masked_events(y):
    """Masks inside and outside of several event dimensions."""
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    inner = torch.tensor([True, False, True])
    held = dist.Normal(a, 1.0).expand([2, 4, 3]).mask(inner).to_event(1).mask(FLAGS).to_event(1)
    with poutine.mask(mask=torch.tensor([True, False])), pyro.plate("pairs", 2):
        pyro.sample("y", held, obs=y[:, None] * torch.arange(3) + torch.zeros(2, 4, 3))


def missing(y):
    """No numbers where the mask is off, also in what the distribution reads."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=~y.isnan()):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)
        pyro.sample("positive", dist.LogNormal(mean, scale), obs=y.abs())
        pyro.sample("gamma", dist.Gamma(mean.exp(), scale), obs=y.abs())
        pyro.sample("t", dist.StudentT(3.0, mean, scale), obs=y)


def missing_events(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pair = torch.stack([y, y], -1)
        pyro.sample("y", dist.MultivariateNormal(mean, torch.eye(2)).mask(~y.isnan()), obs=pair)
        pyro.sample("z", dist.Normal(mean, 1.0).mask(~pair.isnan()).to_event(1), obs=pair)


def missing_counts(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate).mask(~y.isnan()), obs=y.abs().round())


def imputed(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        held = pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=FLAGS)
        pyro.sample("z", dist.Normal(held, 1.0), obs=2 * y)


def broadcast_data(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("one", dist.Normal(a, 1.5), obs=y[1])
        pyro.sample("row", dist.Normal(a, 1.5), obs=y)
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
        pyro.sample("outer_row", dist.Normal(a, 1.5), obs=y)
    pyro.sample("wide", dist.Normal(a, 1.5), obs=y)
    pyro.sample("vector", dist.Normal(a, 1.5).expand([4]).to_event(1), obs=torch.stack([y, y + 1]))


def python_number():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.5), obs=torch.as_tensor(1.5))
    pyro.sample("n", dist.Poisson(a.exp()), obs=torch.tensor(3))


def computed_observation(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pyro.sample("residual", dist.Normal(0.0, s).expand([4]).to_event(1), obs=y - a)
    with pyro.plate("rows", 4), poutine.mask(mask=FLAGS):
        pyro.sample("rest", dist.Laplace(a, 1.0), obs=s * y)


def observed_parent(y, n):
    """Data that later sites read through what pyro.sample returns, as numbers and as indices."""
    table = pyro.sample("table", dist.Normal(torch.arange(8.0), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        held = pyro.sample("y", dist.Normal(1.0, 2.0), obs=y)
        level = pyro.sample("level", dist.Categorical(torch.ones(8)), obs=n)
        latent = pyro.sample("latent", dist.Normal(held, 1.0))
        pyro.sample("z", dist.Normal(latent * held + table[level], 1.0), obs=y + 1)


def autoregression(y):
    c = pyro.sample("c", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    before = pyro.sample("y_0", dist.Normal(c, s), obs=y[0])
    for t in range(1, len(y)):
        before = pyro.sample(f"y_{t}", dist.Normal(0.5 * before + c, s), obs=y[t])


def garch(y):
    omega = pyro.sample("omega", dist.Gamma(2.0, 1.0))
    alpha = pyro.sample("alpha", dist.Uniform(0.0, 1.0))
    beta = pyro.sample("beta", dist.Uniform(0.0, 1 - alpha))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    variance = torch.tensor(1.0)
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(mean, variance.sqrt()), obs=y[t])
        variance = omega + alpha * (y[t] - mean) ** 2 + beta * variance


def regression(x, y, flags):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ w, s), obs=y)
        pyro.sample("flags", dist.Bernoulli(logits=x @ w), obs=flags.to(y.dtype))


def nested_plates(y):
    groups = pyro.plate("groups", 2, dim=-2)
    rows = pyro.plate("rows", 4, dim=-1)
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with groups:
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
    with rows:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with groups, rows:
        pyro.sample("y", dist.Normal(effect, scale), obs=torch.stack([y, -y]))


def sequential_plates(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(y)):
        b = pyro.sample(f"b_{i}", dist.Normal(mean, 1.0))
        for j in pyro.plate(f"columns_{i}", 2):
            pyro.sample(f"y_{i}_{j}", dist.Normal(b, 1.0 + j), obs=y[i] + j)


def grouped(y, groups):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[groups], 1.0), obs=y)


def with_parameters(y):
    scale = pyro.param("scale", torch.tensor(1.5), constraint=constraints.positive)
    shift = pyro.param("shift", torch.zeros(4))
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.Normal(a + shift, scale), obs=y)
    pyro.factor("penalty", -(shift**2).sum() * a)


def other_dtypes(x, n, flags):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x.float())
        pyro.sample("n", dist.Poisson(a.exp()), obs=n.int())
        pyro.sample("flags", dist.Bernoulli(logits=a), obs=flags.to(x.dtype))
        pyro.sample("d", dist.Normal(x.double().to(a.dtype) * a, 1.0), obs=n.to(a.dtype))


def far_out(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("rows", 4):
        pyro.sample("normal", dist.Normal(a, s), obs=1e6 * y)
        pyro.sample("t", dist.StudentT(3.0, a, s), obs=1e9 * y)
        pyro.sample("logistic", dist.Logistic(a, s), obs=1e4 * y)
        pyro.sample("gamma", dist.Gamma(s, s), obs=1e6 * y.abs())
        pyro.sample("gumbel", dist.Gumbel(a, 1.0), obs=50 * y)


def several_of_everything(y):
    """Sites of one family, latent, given, improper, scaled and masked."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(0.0, 1.0), obs=y[0])
    c = pyro.sample("c", dist.ImproperUniform(constraints.real, (), ()))
    with poutine.scale(scale=0.5):
        pyro.sample("d", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.25):
        pyro.sample("d_2", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=torch.tensor(False)):
        pyro.sample("e", dist.Normal(0.0, 1.0))
    pyro.sample("f", dist.Normal(0.0, 1.0), obs=a * c)
    pyro.sample("g", dist.Poisson(2.0), obs=torch.tensor(4.0))


def zero_rows(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)
    pyro.sample("none", dist.Normal(a, 1.0).expand([0]).to_event(1), obs=y[:0])


def matrices(y):
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", 4):
        pyro.sample(
            "y", dist.MultivariateNormal(loc, scale_tril=scale[:, None] * factor), obs=y[:, None] + torch.arange(3)
        )


TARGETS: dict[str, Program] = {
    "plain": Program(plain, (Y,)),
    "latent_factor": Program(latent_factor),
    "constant_factor": Program(constant_factor),
    "factor_in_plates": Program(factor_in_plates, (Y,)),
    "factor_of_a_vector": Program(factor_of_a_vector),
    "factor_scaled_and_masked": Program(factor_scaled_and_masked, (Y,)),
    "factors_in_a_loop": Program(factors_in_a_loop, (Y,)),
    "scaled_by_a_number": Program(scaled_by_a_number, (Y,)),
    "scaled_by_a_tensor": Program(scaled_by_a_tensor, (Y,)),
    "scaled_vectors_by_a_tensor": Program(scaled_vectors_by_a_tensor, (Y,)),
    "scaled_twice": Program(scaled_twice, (Y,)),
    "scaled_by_a_latent": Program(scaled_by_a_latent, (Y,)),
    "masked_by_false": Program(masked_by_false, (Y,)),
    "masked_by_tensors": Program(masked_by_tensors, (Y,)),
    "masked_distribution": Program(masked_distribution, (Y,)),
    "masked_events": Program(masked_events, (Y,)),
    "missing": Program(missing, (torch.tensor([0.3, torch.nan, 2.5, torch.nan]),)),
    "missing_events": Program(missing_events, (torch.tensor([0.3, torch.nan, 2.5, torch.nan]),)),
    "missing_counts": Program(missing_counts, (torch.tensor([0.3, torch.nan, 2.5, torch.nan]),)),
    "imputed": Program(imputed, (Y,)),
    "broadcast_data": Program(broadcast_data, (Y,)),
    "python_number": Program(python_number),
    "computed_observation": Program(computed_observation, (Y,)),
    "observed_parent": Program(observed_parent, (Y, COUNTS)),
    "autoregression": Program(autoregression, (Y,)),
    "garch": Program(garch, (Y,)),
    "regression": Program(regression, (X, Y, FLAGS)),
    "nested_plates": Program(nested_plates, (Y,)),
    "sequential_plates": Program(sequential_plates, (Y,)),
    "grouped": Program(grouped, (Y, torch.tensor([2, 0, 2, 1]))),
    "with_parameters": Program(with_parameters, (Y,)),
    "other_dtypes": Program(other_dtypes, (Y, COUNTS, FLAGS)),
    "far_out": Program(far_out, (Y,)),
    "several_of_everything": Program(several_of_everything, (Y,)),
    "zero_rows": Program(zero_rows, (Y,)),
    "matrices": Program(matrices, (Y,)),
}


def _observed(make: Any, value: torch.Tensor) -> Program:
    """A model with one observed site, whose distribution is made from two numbers and one in (0, 1)."""

    def model(value):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Gamma(2.0, 1.0))
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("y", make(a, b, p), obs=value)

    return Program(model, (value,))


ONE_HOT = torch.eye(3)[torch.tensor([0, 2])]
SPREAD = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])


def _three(a, b, p):
    return torch.stack([a, b, 2 * p])


DISCRETE: dict[str, Program] = {
    name: _observed(make, value)
    for name, (make, value) in {
        "Bernoulli": (lambda a, b, p: dist.Bernoulli(p), torch.tensor([0.0, 1.0])),
        "Bernoulli, logits": (lambda a, b, p: dist.Bernoulli(logits=a), torch.tensor([0.0, 1.0])),
        "Bernoulli, bool": (lambda a, b, p: dist.Bernoulli(logits=a), torch.tensor([True, False]).double()),
        "Binomial": (lambda a, b, p: dist.Binomial(torch.tensor([3.0, 7.0]), p), torch.tensor([1.0, 7.0])),
        "Categorical": (lambda a, b, p: dist.Categorical(logits=_three(a, b, p)), torch.tensor([0, 2])),
        "Categorical, probs": (lambda a, b, p: dist.Categorical(_three(b, b, p).abs()), torch.tensor([0, 2])),
        "Geometric": (lambda a, b, p: dist.Geometric(p), torch.tensor([0.0, 4.0])),
        "Poisson": (lambda a, b, p: dist.Poisson(b), torch.tensor([0.0, 4.0])),
        "Poisson, whole": (lambda a, b, p: dist.Poisson(b), torch.tensor([0, 4])),
        "NegativeBinomial": (lambda a, b, p: dist.NegativeBinomial(b, p), torch.tensor([0.0, 4.0])),
        "GammaPoisson": (lambda a, b, p: dist.GammaPoisson(b, p), torch.tensor([0.0, 4.0])),
        "BetaBinomial": (lambda a, b, p: dist.BetaBinomial(b, p, 7), torch.tensor([0.0, 4.0])),
        "ExtendedBinomial": (lambda a, b, p: dist.ExtendedBinomial(torch.tensor([5, 7]), p), torch.tensor([0.0, 4.0])),
        "ExtendedBetaBinomial": (
            lambda a, b, p: dist.ExtendedBetaBinomial(b, p, torch.tensor([5, 7])),
            torch.tensor([0.0, 4.0]),
        ),
        "ZeroInflatedPoisson": (lambda a, b, p: dist.ZeroInflatedPoisson(b, gate=p), torch.tensor([0.0, 4.0])),
        "ZeroInflatedNegativeBinomial": (
            lambda a, b, p: dist.ZeroInflatedNegativeBinomial(b, logits=a, gate=p),
            torch.tensor([0.0, 4.0]),
        ),
        "ZeroInflatedDistribution": (
            lambda a, b, p: dist.ZeroInflatedDistribution(dist.Binomial(9, p), gate_logits=a),
            torch.tensor([0.0, 4.0]),
        ),
        "Multinomial": (lambda a, b, p: dist.Multinomial(3, _three(b, b, p)), SPREAD),
        "Multinomial, logits": (lambda a, b, p: dist.Multinomial(3, logits=_three(a, b, p)), SPREAD),
        "DirichletMultinomial": (lambda a, b, p: dist.DirichletMultinomial(_three(b, b, p), 3), SPREAD),
        "OneHotCategorical": (lambda a, b, p: dist.OneHotCategorical(logits=_three(a, b, p)), ONE_HOT),
        "OneHotCategoricalStraightThrough": (
            lambda a, b, p: dist.OneHotCategoricalStraightThrough(logits=_three(a, b, p)),
            ONE_HOT,
        ),
        "OrderedLogistic": (
            lambda a, b, p: dist.OrderedLogistic(a, torch.stack([a - 1, a + b])),
            torch.tensor([0, 2]),
        ),
        "LogNormalNegativeBinomial": (
            lambda a, b, p: dist.LogNormalNegativeBinomial(
                total_count=5 + b, logits=a, multiplicative_noise_scale=p, num_quad_points=8
            ),
            torch.tensor([0.0, 4.0]),
        ),
        "Delta": (lambda a, b, p: dist.Delta(torch.tensor(1.0), log_density=a), torch.tensor([1.0, 1.0])),
        "MixtureSameFamily": (
            lambda a, b, p: dist.MixtureSameFamily(
                dist.Categorical(logits=_three(a, b, p)), dist.Poisson(torch.stack([b, 2 * b, 3 * p]))
            ),
            torch.tensor([0.0, 4.0]),
        ),
    }.items()
}

HMM_INIT, HMM_STEP = torch.tensor([0.3, -0.2]), torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log()

FAMILIES: dict[str, Program] = {
    name: _observed(make, value)
    for name, (make, value) in {
        "NanMaskedNormal": (lambda a, b, p: dist.NanMaskedNormal(a, b), torch.tensor([0.3, torch.nan])),
        "NanMaskedMultivariateNormal": (
            lambda a, b, p: dist.NanMaskedMultivariateNormal(torch.stack([a, a]), torch.eye(2) * b),
            torch.tensor([[0.3, torch.nan], [0.1, 0.2]]),
        ),
        "ProjectedNormal": (
            lambda a, b, p: dist.ProjectedNormal(torch.stack([a, b])),
            torch.tensor([[0.6, 0.8], [0.0, 1.0]]),
        ),
        "RelaxedOneHotCategorical": (
            lambda a, b, p: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=_three(a, b, p)),
            torch.tensor([0.2, 0.3, 0.5]),
        ),
        "RelaxedBernoulliStraightThrough": (
            lambda a, b, p: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.7), logits=a),
            torch.tensor([0.2, 0.7]),
        ),
        "MaskedMixture": (
            lambda a, b, p: dist.MaskedMixture(
                torch.tensor([True, False]), dist.Normal(a, b).expand([2]), dist.Normal(p, 1.0).expand([2])
            ),
            torch.tensor([0.2, 0.7]),
        ),
        "VonMises3D": (
            lambda a, b, p: dist.VonMises3D(torch.stack([a, b, p])),
            torch.tensor([0.6, 0.0, 0.8]),
        ),
        "VonMises": (lambda a, b, p: dist.VonMises(a, b), torch.tensor([0.6, -2.0])),
        "SineBivariateVonMises": (
            lambda a, b, p: dist.SineBivariateVonMises(a, a, b, b, correlation=0.1 * p),
            torch.tensor([[0.6, -2.0]]),
        ),
        "SineSkewed": (
            lambda a, b, p: dist.SineSkewed(dist.VonMises(a, b).expand([1]).to_event(1), p.reshape(1)),
            torch.tensor([[0.6], [-2.0]]),
        ),
        "CoalescentTimes": (
            lambda a, b, p: dist.CoalescentTimes(torch.tensor([0.0, 0.0, 0.0]), b),
            torch.tensor([-2.0, -1.0]),
        ),
        "GaussianHMM": (
            lambda a, b, p: dist.GaussianHMM(
                dist.Normal(a, b).expand([1]).to_event(1),
                torch.eye(1),
                dist.Normal(torch.zeros(3, 1), 1.0).to_event(1),
                torch.eye(1),
                dist.Normal(torch.zeros(3, 1), b).to_event(1),
            ),
            torch.tensor([[0.6], [-2.0], [0.1]]),
        ),
        "DiscreteHMM": (
            lambda a, b, p: dist.DiscreteHMM(HMM_INIT, HMM_STEP, dist.Normal(torch.stack([a, b]), 1.0), duration=3),
            torch.tensor([0.6, -2.0, 0.1]),
        ),
        "LinearHMM": (
            lambda a, b, p: dist.LinearHMM(
                dist.Normal(a, b).expand([1]).to_event(1),
                torch.eye(1),
                dist.Normal(torch.zeros(3, 1), 1.0).to_event(1),
                torch.eye(1),
                dist.Normal(torch.zeros(3, 1), b).to_event(1),
            ),
            torch.tensor([[0.6], [-2.0], [0.1]]),
        ),
        "Empirical": (
            lambda a, b, p: dist.Empirical(torch.tensor([0.0, 1.0]), torch.stack([a, b])),
            torch.tensor(1.0),
        ),
        "Logistic": (lambda a, b, p: dist.Logistic(a, b), torch.tensor([0.2, 0.7])),
        "SkewLogistic": (lambda a, b, p: dist.SkewLogistic(a, b, 1 + p), torch.tensor([0.2, 0.7])),
        "Stable": (lambda a, b, p: dist.StableWithLogProb(1.5, 0.1, b, a), torch.tensor([0.2, 0.7])),
        "AsymmetricLaplace": (lambda a, b, p: dist.AsymmetricLaplace(a, b, 1 + p), torch.tensor([0.2, 0.7])),
        "TruncatedPolyaGamma": (lambda a, b, p: dist.TruncatedPolyaGamma(torch.tensor(1.0)), torch.tensor(0.3)),
        "Unit": (lambda a, b, p: dist.Unit(-a * b), torch.zeros(0)),
        "GroupedNormalNormal": (
            lambda a, b, p: dist.GroupedNormalNormal(
                a.expand(2), b.expand(2), (1 + p).expand(3), torch.tensor([0, 1, 1])
            ),
            torch.tensor([0.6, -2.0, 0.1]),
        ),
        "OneOneMatching": (
            lambda a, b, p: dist.OneOneMatching(torch.stack([torch.stack([a, b]), torch.stack([b, p])])),
            torch.tensor([1, 0]),
        ),
        "LKJCholesky": (
            lambda a, b, p: dist.LKJCholesky(2, b),
            torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        ),
        "Wishart": (
            lambda a, b, p: dist.Wishart(torch.tensor(3.0), torch.eye(2) * b),
            torch.tensor([[1.0, 0.1], [0.1, 2.0]]),
        ),
        "Dirichlet": (lambda a, b, p: dist.Dirichlet(_three(b, b, p)), torch.tensor([0.2, 0.3, 0.5])),
        "Transformed": (
            lambda a, b, p: dist.TransformedDistribution(dist.Normal(a, b), [torch.distributions.ExpTransform()]),
            torch.tensor([0.2, 0.7]),
        ),
        "Mixture": (
            lambda a, b, p: dist.MixtureSameFamily(
                dist.Categorical(logits=_three(a, b, p)), dist.Normal(torch.stack([a, b, p]), 1.0)
            ),
            torch.tensor([0.2, 4.0]),
        ),
        "LowRank": (
            lambda a, b, p: dist.LowRankMultivariateNormal(
                torch.stack([a, b]), torch.ones(2, 1), torch.stack([b, p]).abs()
            ),
            torch.tensor([0.2, 4.0]),
        ),
        "on the edge, Gamma": (lambda a, b, p: dist.Gamma(1.0, b), torch.tensor([0.0, 4.0])),
        "on the edge, Exponential": (lambda a, b, p: dist.Exponential(b), torch.tensor([0.0, 4.0])),
        "on the edge, HalfNormal": (lambda a, b, p: dist.HalfNormal(b), torch.tensor([0.0, 4.0])),
        "on the edge, HalfCauchy": (lambda a, b, p: dist.HalfCauchy(b), torch.tensor([0.0, 4.0])),
        "on the edge, Uniform": (lambda a, b, p: dist.Uniform(-1.0, 4 + 0 * a), torch.tensor([-1.0, 0.5])),
        "on the edge, Beta": (lambda a, b, p: dist.Beta(1.0, 1.0 + b), torch.tensor([0.0, 0.5])),
        "on the edge, Weibull": (lambda a, b, p: dist.Weibull(b, 1.0 + 0 * b), torch.tensor([0.1, 4.0])),
        "on the edge, Pareto": (lambda a, b, p: dist.Pareto(2.0, b), torch.tensor([2.0, 4.0])),
    }.items()
}


def _improper(constraint: Any, event: tuple[int, ...], *, batch: tuple[int, ...] = (), expand: bool = False) -> Program:
    def model():
        held = dist.ImproperUniform(constraint, () if expand else batch, event)
        z = pyro.sample("z", held.expand(batch) if expand else held)
        b = pyro.sample("b", dist.Normal(z.sum(), 1.0))
        pyro.sample("y", dist.Normal(b, 2.0), obs=(z**2).sum())

    return Program(model)


def moving_interval(y):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.ImproperUniform(constraints.interval(0.0, a), (), ()))
    w = pyro.sample("w", dist.ImproperUniform(constraints.greater_than(a), (), ()))
    v = pyro.sample("v", dist.ImproperUniform(constraints.less_than(z), (), ()))
    pyro.sample("y", dist.Normal(z + w + v, 1.0), obs=y[0])


def flat_in_plates(y):
    with pyro.plate("columns", 2, dim=-2), pyro.plate("rows", 4, dim=-1):
        scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)
    with pyro.plate("vectors", 3):
        simplex = pyro.sample("simplex", dist.ImproperUniform(constraints.simplex, (), (3,)))
        pyro.sample("one_hot", dist.OneHotCategorical(simplex), obs=torch.eye(3))
    flat = pyro.sample("flat", dist.ImproperUniform(constraints.real, (2, 3), ()).to_event(1).mask(True).to_event(1))
    pyro.factor("pull", -(flat**2).sum())


IMPROPER: dict[str, Program] = {
    "real": _improper(constraints.real, ()),
    "real, a batch": _improper(constraints.real, (), batch=(3,)),
    "real, expanded": _improper(constraints.real, (), batch=(3,), expand=True),
    "real_vector": _improper(constraints.real_vector, (3,)),
    "independent": _improper(constraints.independent(constraints.positive, 1), (3,)),
    "positive": _improper(constraints.positive, ()),
    "nonnegative": _improper(constraints.nonnegative, ()),
    "greater_than": _improper(constraints.greater_than(2.0), ()),
    "less_than": _improper(constraints.less_than(2.0), (), batch=(2,)),
    "unit_interval": _improper(constraints.unit_interval, ()),
    "interval": _improper(constraints.interval(-1.0, 3.0), ()),
    "interval of tensors": _improper(
        constraints.interval(torch.tensor(-1.0), torch.tensor([3.0, 4.0])), (), batch=(2,)
    ),
    "half_open_interval": _improper(constraints.half_open_interval(0.0, 2.0), ()),
    "simplex": _improper(constraints.simplex, (4,)),
    "ordered_vector": _improper(dist.constraints.ordered_vector, (4,)),
    "positive_ordered_vector": _improper(dist.constraints.positive_ordered_vector, (4,)),
    "lower_cholesky": _improper(constraints.lower_cholesky, (3, 3)),
    "softplus_positive": _improper(dist.constraints.softplus_positive, ()),
    "softplus_lower_cholesky": _improper(dist.constraints.softplus_lower_cholesky, (3, 3)),
    "unit_lower_cholesky": _improper(dist.constraints.unit_lower_cholesky, (3, 3)),
    "corr_cholesky": _improper(constraints.corr_cholesky, (3, 3)),
    "corr_matrix": _improper(dist.constraints.corr_matrix, (3, 3)),
    "positive_definite": _improper(constraints.positive_definite, (2, 2)),
    "sphere": _improper(dist.constraints.sphere, (3,)),
    "a bound that moves": Program(moving_interval, (Y,)),
    "in plates": Program(flat_in_plates, (Y,)),
}


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def vector_mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2, 2), 3.0).to_event(2))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.MultivariateNormal(locs[z], torch.eye(2)), obs=torch.stack([y, -y], -1))


def diagonal_mixture(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2, 2), 3.0).to_event(2))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[z.long()], 1.0).to_event(1), obs=torch.stack([y, -y], -1))


def counted_mixture(n):
    rates = pyro.sample("rates", dist.Gamma(torch.ones(2), 0.2).to_event(1))
    with pyro.plate("rows", len(n)):
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("n", dist.Poisson(rates[z.long()]), obs=n)
        pyro.sample("m", dist.Multinomial(3, logits=torch.stack([z, rates[0] * z, 0 * z], -1)), obs=SPREAD[:1])


def simplex_mixture(y):
    """Emissions on a simplex, and a site that does not read the label."""
    rates = pyro.sample("rates", dist.Gamma(torch.ones(2), 0.2).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        shares = torch.stack([y.abs(), y.abs() + 1, 1 + 0 * y], -1)
        pyro.sample(
            "s",
            dist.Dirichlet(rates[z][:, None].expand(-1, 3) if z.ndim == 1 else rates[z][..., None].expand(*z.shape, 3)),
            obs=shares / shares.sum(-1, keepdim=True),
        )
        pyro.sample("y", dist.Normal(rates[0], 1.0), obs=y)


def masked_mixture(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        with poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def factor_of_a_label(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.factor("fit", -((y - locs[z]) ** 2))


def residuals_of_a_label(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("residual", dist.Laplace(0.0, 1.0), obs=y - locs[z])


def hidden_markov(y):
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    z = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(locs[z], 1.0), obs=y[t])


def hidden_markov_counts(n):
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    rates = pyro.sample("rates", dist.Gamma(torch.ones(2), 0.2).to_event(1))
    z = 0
    for t in pyro.markov(range(len(n))):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"n_{t}", dist.Poisson(rates[z]), obs=n[t])


def latent_below_a_label(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        x = pyro.sample("x", dist.Normal(z.to(y.dtype), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0 + z), obs=y)


def change_point(y):
    rates = pyro.sample("rates", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    k = pyro.sample("k", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"})
    with pyro.plate("rows", len(y)):
        later = torch.arange(len(y)) > k
        pyro.sample("y", dist.Normal(torch.where(later, rates[1], rates[0]), 1.0), obs=y)


SUMMED: dict[str, Program] = {
    "mixture": Program(mixture, (Y,)),
    "vector_mixture": Program(vector_mixture, (Y,)),
    "diagonal_mixture": Program(diagonal_mixture, (Y,)),
    "counted_mixture": Program(counted_mixture, (COUNTS,)),
    "simplex_mixture": Program(simplex_mixture, (Y,)),
    "masked_mixture": Program(masked_mixture, (torch.tensor([0.3, torch.nan, 2.5, torch.nan]),)),
    "factor_of_a_label": Program(factor_of_a_label, (Y,)),
    "residuals_of_a_label": Program(residuals_of_a_label, (Y,)),
    "hidden_markov": Program(hidden_markov, (Y,)),
    "hidden_markov_counts": Program(hidden_markov_counts, (COUNTS,)),
    "latent_below_a_label": Program(latent_below_a_label, (Y,)),
    "change_point": Program(change_point, (Y,)),
}
