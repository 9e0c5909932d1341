"""Programs of families beyond location and scale: shapes, bounds, counts, angles, vectors and matrices."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms

from emfc.distributions import GaussianRandomWalk, Truncated
from tests.programs.case import Case

__all__ = ["PROGRAMS"]


def gamma_hierarchy():
    shape = pyro.sample("shape", dist.Gamma(3.0, 2.0))
    rate = pyro.sample("rate", dist.InverseGamma(4.0, 3.0))
    with pyro.plate("units", 3):
        level = pyro.sample("level", dist.Gamma(shape + 0.5, rate))
        pyro.sample("count", dist.Poisson(level))
    pyro.sample("spread", dist.Chi2(1.0 + shape))


def learned_shapes():
    concentration = pyro.param("concentration", torch.tensor([0.7, 2.5]), constraint=constraints.positive)
    rate = pyro.param("rate", torch.tensor(1.5), constraint=constraints.positive)
    x = pyro.sample("x", dist.Gamma(concentration, rate).to_event(1))
    a, b = pyro.param("ends", torch.tensor([2.0, 3.0]), constraint=constraints.positive)
    pyro.sample("y", dist.Beta(a + x[0], b))


def beta_hierarchy():
    mean = pyro.sample("mean", dist.Beta(2.0, 3.0))
    size = pyro.sample("size", dist.Exponential(0.2))
    with pyro.plate("groups", 4):
        share = pyro.sample("share", dist.Beta(mean * (size + 1.0), (1.0 - mean) * (size + 1.0)))
        pyro.sample("wins", dist.Binomial(6, share))
    pyro.sample("odd", dist.Kumaraswamy(1.0 + mean, 2.0))


def robust_regression():
    slope = pyro.sample("slope", dist.StudentT(3.0, 0.0, 1.0))
    freedom = pyro.sample("freedom", dist.Gamma(4.0, 0.5))
    x = torch.linspace(-1.0, 1.0, 5)
    pyro.sample("y", dist.StudentT(1.0 + freedom, slope * x, 0.5).to_event(1))


def dirichlet_chain():
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.5, 2.0, 0.8])))
    with pyro.plate("rows", 2):
        row = pyro.sample("row", dist.Dirichlet(5.0 * weights + 0.3))
    pyro.sample("kind", dist.Categorical(weights))
    pyro.sample("x", dist.Normal(row[1, 2] - row[0, 0], 0.3))


def drifting_shares():
    shares = pyro.sample("shares_0", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    for t in range(1, 4):
        level = pyro.sample(f"level_{t}", dist.Normal(shares[0], 0.1))
        shares = pyro.sample(f"shares_{t}", dist.Dirichlet(20.0 * shares + 0.5 + 0.1 * torch.tanh(level)))


def mixtures_of_vectors():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    weights = dist.Categorical(logits=torch.stack([a, -a]))
    tril = torch.tensor([[[1.0, 0.0], [0.5, 0.7]], [[0.6, 0.0], [-0.2, 1.0]]])
    loc = torch.stack([a * torch.ones(2), torch.tensor([2.0, -1.0])])
    x = pyro.sample("x", dist.MixtureSameFamily(weights, dist.MultivariateNormal(loc, scale_tril=tril)))
    with pyro.plate("rows", 2):
        parts = dist.Laplace(torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.0]]) + x[0], 0.5).to_event(1)
        pyro.sample(
            "y", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])).expand([2]), parts.expand([2, 2]))
        )


def learned_topics():
    concentration = pyro.param("concentration", torch.tensor([1.2, 0.9, 2.0]), constraint=constraints.positive)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.2))
    with pyro.plate("documents", 3):
        topic = pyro.sample("topic", dist.Dirichlet(concentration * scale))
        pyro.sample("length", dist.Normal(topic @ torch.tensor([1.0, 2.0, 4.0]), 0.5))


def weights_in_a_mixture():
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([4.0, 3.0, 5.0])))
    rate = pyro.sample("rate", dist.Gamma(4.0, 2.0))
    shapes = torch.tensor([1.0, 4.0, 9.0])
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Gamma(shapes, rate)))
    pyro.sample(
        "y",
        dist.MixtureSameFamily(
            dist.Categorical(weights[:2]), dist.StudentT(torch.tensor([2.0, 5.0]), torch.tensor([-1.0, 2.0]), rate)
        ),
    )


def correlated_effects():
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))
    with pyro.plate("rows", 2):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=(scale + 0.1)[:, None] * factor))


def correlation_matrix():
    eta = pyro.sample("eta", dist.Exponential(1.0))
    matrix = pyro.sample("matrix", dist.LKJ(3, 1.0 + eta))
    pyro.sample("x", dist.Normal(matrix[0, 1] - matrix[1, 2], 0.5))


def random_precision():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), covariance_matrix=0.3 * scale * torch.eye(2)))
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.tril(precision)))


def angles():
    heading = pyro.sample("heading", dist.VonMises(torch.tensor(0.3), torch.tensor(2.0)))
    for t in range(3):
        heading = pyro.sample(f"turn_{t}", dist.VonMises(torch.sin(heading), torch.tensor(3.0)))
    pyro.sample("place", dist.Normal(torch.cos(heading), 0.2))


def folded():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.FoldedDistribution(dist.Normal(a, 0.7)))
    pyro.sample("c", dist.FoldedDistribution(dist.StudentT(3.0, a, 0.5 + b)))


def truncated():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    above = pyro.sample("above", Truncated(dist.Normal(a, 1.0), low=0.5))
    pyro.sample("between", Truncated(dist.Gamma(2.0, torch.exp(0.3 * a)), low=0.5, high=2.0 + above))
    with pyro.plate("rows", 2):
        pyro.sample("below", Truncated(dist.Laplace(a, 1.0), high=torch.tensor([1.0, 4.0])))


def truncated_shapes():
    z = pyro.sample("z", dist.Gamma(3.0, 1.0))
    share = pyro.param("share", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("half", Truncated(dist.StudentT(1.0 + z, 0.0, 1.0), low=0.0))
    pyro.sample("above", Truncated(dist.Gamma(2.0, 1.0), low=z))
    pyro.sample("flat", Truncated(dist.Uniform(0.0, 0.5 + z), high=0.4))
    pyro.sample("learned", Truncated(dist.Beta(share, 1.0), high=0.5))
    pyro.sample("folded", Truncated(dist.FoldedDistribution(dist.Normal(z, 1.0)), low=0.2, high=1.0 + z))
    cut = Truncated(dist.StudentT(1.0 + z, torch.tensor([0.0, 2.0]), 1.0), low=-1.0)
    pyro.sample("mixed", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), cut))


def random_walks():
    step = pyro.sample("step", dist.LogNormal(-1.0, 0.3))
    path = pyro.sample("path", GaussianRandomWalk(step, 5))
    with pyro.plate("rows", 2):
        pyro.sample("paths", GaussianRandomWalk(0.1 + path[-1] ** 2, 3))


def counts():
    rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
    chance = pyro.sample("chance", dist.Beta(3.0, 2.0))
    pyro.sample("poisson", dist.Poisson(rate))
    pyro.sample("geometric", dist.Geometric(0.2 + 0.6 * chance))
    pyro.sample("failures", dist.NegativeBinomial(2.0 + rate, 0.8 * chance))
    pyro.sample("gamma_poisson", dist.GammaPoisson(2.0, rate + 0.5))
    pyro.sample("inflated", dist.ZeroInflatedPoisson(rate + 0.2, gate=chance))
    pyro.sample("beta_binomial", dist.BetaBinomial(1.0 + rate, torch.tensor(2.0), 5))
    pyro.sample("rating", dist.OrderedLogistic(rate - 2.0, torch.tensor([-1.0, 0.0, 1.5])))


def closed_forms():
    a = pyro.sample("a", dist.Gumbel(0.0, 1.0))
    pyro.sample("weibull", dist.Weibull(torch.exp(0.2 * a), 1.5))
    pyro.sample("pareto", dist.Pareto(1.0, 3.0 + torch.tanh(a)))
    pyro.sample("skewed", dist.AsymmetricLaplace(a, 1.0, torch.exp(0.1 * a)))
    pyro.sample("soft", dist.SoftLaplace(a, 0.5))
    pyro.sample("excess", dist.GeneralizedPareto(a, 1.0, torch.tensor(0.3)))
    pyro.sample("ratio", dist.FisherSnedecor(4.0, 5.0 + torch.tanh(a)))
    pyro.sample("relaxed", dist.RelaxedBernoulli(torch.tensor(0.7), logits=a))
    pyro.sample("interval", dist.AffineBeta(2.0, 3.0, torch.tensor(-1.0), torch.exp(0.1 * a)))


def vectors():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    tril = torch.tensor([[1.0, 0.0], [0.4, 0.7]])
    t = pyro.sample("t", dist.MultivariateStudentT(5.0, torch.stack([a, -a]), tril))
    pyro.sample(
        "low_rank",
        dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1) * a, torch.exp(torch.cat([t, a[None]]))),
    )
    pyro.sample("shares", dist.LogisticNormal(torch.stack([a, a * 0.5]), torch.ones(2)))


def bijections():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    steps = [transforms.TanhTransform(), transforms.AffineTransform(2.0, torch.exp(0.1 * a))]
    pyro.sample("bounded", dist.TransformedDistribution(dist.Laplace(a, 1.0), steps))
    pyro.sample("elu", dist.TransformedDistribution(dist.Normal(a, 1.0), [transforms.ELUTransform()]))
    pyro.sample("leaky", dist.TransformedDistribution(dist.Normal(a, 1.0), [transforms.LeakyReLUTransform()]))
    pyro.sample("soft", dist.TransformedDistribution(dist.Logistic(a, 1.0), [transforms.SoftplusTransform()]))


def vector_bijections():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    base = dist.Normal(a * torch.ones(3), 0.5)
    ordered = pyro.sample("ordered", dist.TransformedDistribution(base, [transforms.OrderedTransform()]))
    tril = torch.tensor([[1.0, 0.0], [-0.5, 0.8]])
    pyro.sample(
        "affine",
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 1.0), [transforms.LowerCholeskyAffine(ordered[:2], torch.exp(0.2 * a) * tril)]
        ),
    )
    pyro.sample(
        "permuted",
        dist.TransformedDistribution(
            dist.MultivariateNormal(torch.zeros(2), scale_tril=tril),
            [transforms.Permute(torch.tensor([1, 0])), transforms.AffineTransform(a, 2.0)],
        ),
    )


def changing_shapes():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    base = dist.Normal(a * torch.ones(3), 0.5)
    pyro.sample("simplex", dist.TransformedDistribution(base, [transforms.StickBreakingTransform()]))
    pyro.sample("factor", dist.TransformedDistribution(base, [transforms.CorrCholeskyTransform()]))


def computed_values():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    double = pyro.sample("double", dist.Delta(2.0 * a))
    pair = pyro.sample("pair", dist.Delta(torch.stack([a, double]), event_dim=1))
    pyro.sample("x", dist.Normal(pair.sum(), 1.0))


def populations_of_families():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    x = pyro.sample("x", dist.Gamma(torch.tensor([1.0, 5.0])[z], torch.tensor([2.0, 1.0])[z]))
    pyro.sample("y", dist.Beta(torch.tensor([0.8, 4.0])[z], 1.0 + x))
    pyro.sample("t", dist.StudentT(torch.tensor([2.0, 7.0])[z], x, 0.5))
    pyro.sample("angle", dist.VonMises(torch.tensor([-1.0, 2.0])[z], torch.tensor(1.5)))
    pyro.sample("folded", dist.FoldedDistribution(dist.Normal(torch.tensor([0.0, 2.0])[z], 1.0)))
    pyro.sample("count", dist.Poisson(torch.tensor([0.5, 4.0])[z]))


def _none(*names):
    return {name: set() for name in names}


def _of(parents, *names):
    return {name: set(parents) for name in names}


PROGRAMS: dict[str, Case] = {
    "gamma_hierarchy": Case(
        model=gamma_hierarchy,
        parents={**_none("shape", "rate"), "level": {"shape", "rate"}, "count": {"level"}, "spread": {"shape"}},
    ),
    "learned_shapes": Case(model=learned_shapes, parents={"x": set(), "y": {"x"}}),
    "beta_hierarchy": Case(
        model=beta_hierarchy,
        parents={**_none("mean", "size"), "share": {"mean", "size"}, "wins": {"share"}, "odd": {"mean"}},
    ),
    "robust_regression": Case(
        model=robust_regression, parents={**_none("slope", "freedom"), "y": {"slope", "freedom"}}
    ),
    "dirichlet_chain": Case(
        model=dirichlet_chain, parents={"weights": set(), "row": {"weights"}, "kind": {"weights"}, "x": {"row"}}
    ),
    "drifting_shares": Case(
        model=drifting_shares,
        parents={
            "shares_0": set(),
            **{f"level_{t}": {f"shares_{t - 1}"} for t in range(1, 4)},
            **{f"shares_{t}": {f"shares_{t - 1}", f"level_{t}"} for t in range(1, 4)},
        },
        notes="equal steps of fewer noises than values",
    ),
    "mixtures_of_vectors": Case(model=mixtures_of_vectors, parents={"a": set(), "x": {"a"}, "y": {"x"}}),
    "learned_topics": Case(model=learned_topics, parents={"scale": set(), "topic": {"scale"}, "length": {"topic"}}),
    "weights_in_a_mixture": Case(
        model=weights_in_a_mixture,
        parents={**_none("weights", "rate"), "x": {"weights", "rate"}, "y": {"weights", "rate"}},
        notes="the weights of a mixture are a site",
    ),
    "correlated_effects": Case(
        model=correlated_effects, parents={**_none("factor", "scale"), "x": {"factor", "scale"}}
    ),
    "correlation_matrix": Case(model=correlation_matrix, parents={"eta": set(), "matrix": {"eta"}, "x": {"matrix"}}),
    "random_precision": Case(
        model=random_precision, parents={"scale": set(), "precision": {"scale"}, "x": {"precision"}}
    ),
    "angles": Case(
        model=angles,
        parents={
            "heading": set(),
            "turn_0": {"heading"},
            "turn_1": {"turn_0"},
            "turn_2": {"turn_1"},
            "place": {"turn_2"},
        },
    ),
    "folded": Case(model=folded, parents={"a": set(), "b": {"a"}, "c": {"a", "b"}}),
    "truncated": Case(model=truncated, parents={"a": set(), "above": {"a"}, "between": {"a", "above"}, "below": {"a"}}),
    "truncated_shapes": Case(
        model=truncated_shapes,
        parents={"z": set(), "learned": set(), **_of({"z"}, "half", "above", "flat", "folded", "mixed")},
        notes="bases with special functions, which belong to the layer and not to the program",
    ),
    "random_walks": Case(model=random_walks, parents={"step": set(), "path": {"step"}, "paths": {"path"}}),
    "counts": Case(
        model=counts,
        parents={
            **_none("rate", "chance"),
            "poisson": {"rate"},
            "geometric": {"chance"},
            "failures": {"rate", "chance"},
            "gamma_poisson": {"rate"},
            "inflated": {"rate", "chance"},
            "beta_binomial": {"rate"},
            "rating": {"rate"},
        },
    ),
    "closed_forms": Case(
        model=closed_forms,
        parents={
            "a": set(),
            **_of({"a"}, "weibull", "pareto", "skewed", "soft", "excess", "ratio", "relaxed", "interval"),
        },
    ),
    "vectors": Case(model=vectors, parents={"a": set(), "t": {"a"}, "low_rank": {"a", "t"}, "shares": {"a"}}),
    "bijections": Case(
        model=bijections,
        parents={
            "a": set(),
            **_of({"a"}, "bounded", "elu", "leaky", "soft"),
        },
    ),
    "vector_bijections": Case(
        model=vector_bijections,
        parents={"a": set(), **_of({"a"}, "ordered", "permuted"), "affine": {"a", "ordered"}},
        notes="vectors whose elements a transform mixes",
    ),
    "changing_shapes": Case(
        model=changing_shapes,
        parents={"a": set(), **_of({"a"}, "simplex", "factor")},
        notes="transforms whose values have another shape than what they take",
    ),
    "computed_values": Case(
        model=computed_values,
        parents={"a": set(), "double": {"a"}, "pair": {"a", "double"}, "x": {"pair"}},
        notes="sites with no noise",
    ),
    "populations_of_families": Case(
        model=populations_of_families,
        parents={
            "z": set(),
            "x": {"z"},
            "y": {"x", "z"},
            "t": {"x", "z"},
            **_of({"z"}, "angle", "folded", "count"),
        },
        summed=("z",),
        notes="univariate families of all kinds as mixtures",
    ),
}
