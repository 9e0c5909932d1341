"""Programs with plates, events, observations and wrapped distributions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import AffineTransform, ExpTransform, SigmoidTransform

from tests.programs.case import Case

__all__ = ["PROGRAMS"]

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def vectorised_plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.3))
    with pyro.plate("rows", 5):
        x = pyro.sample("x", dist.Normal(mu, sigma))
        pyro.sample("y", dist.Laplace(x**2, 0.5))


def nested_plates():
    with pyro.plate("columns", 3):
        column = pyro.sample("column", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            cell = pyro.sample("cell", dist.Normal(column, 0.5))
    with pyro.plate("rows_alone", 2):
        pyro.sample("row", dist.Normal(cell.mean(-1), 1.0))


def plate_in_loop():
    for group in range(2):
        level = pyro.sample(f"level_{group}", dist.Normal(float(group), 1.0))
        with pyro.plate(f"members_{group}", 3):
            pyro.sample(f"member_{group}", dist.Normal(level, 0.3))


def events():
    loc = torch.linspace(-1.0, 1.0, 4)
    a = pyro.sample("a", dist.Normal(loc, 1.0).to_event(1))
    with pyro.plate("rows", 2):
        b = pyro.sample("b", dist.Normal(a, 0.5).to_event(1))
    pyro.sample("c", dist.Laplace(b.sum(0) * a, 1.0).to_event(1))


def broadcasting():
    a = pyro.sample("a", dist.Normal(torch.zeros(3, 1), torch.tensor([1.0, 2.0])).to_event(2))
    pyro.sample("b", dist.Normal(a, torch.ones(2)).to_event(2))
    pyro.sample("c", dist.Normal(0.0, a.exp().sum(-1)).to_event(1))


def wrappers():
    a = pyro.sample("a", dist.Independent(dist.Normal(torch.zeros(3), 1.0), 1))
    pyro.sample("b", dist.Normal(a[0], 1.0).expand([2]).to_event(1))
    pyro.sample("c", dist.Normal(a[1], 1.0).expand([2]).mask(True).to_event(1))
    shift = pyro.sample("shift", dist.TransformedDistribution(dist.Normal(0.0, 1.0), AffineTransform(a[2], 2.0)))
    pyro.sample("share", dist.TransformedDistribution(dist.Normal(shift, 0.5), [SigmoidTransform()]))
    pyro.sample(
        "positive",
        dist.TransformedDistribution(
            dist.Laplace(torch.zeros(2), 1.0).to_event(1), [AffineTransform(0.5, -0.3), ExpTransform()]
        ),
    )
    pyro.sample("bounded", dist.TransformedDistribution(dist.Uniform(0.0, 1.0), AffineTransform(shift, -2.0)))


def multivariate():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])
    covariance = factor @ factor.T
    b = pyro.sample("b", dist.MultivariateNormal(a * torch.ones(3), scale_tril=factor))
    c = pyro.sample("c", dist.MultivariateNormal(b, covariance_matrix=covariance * torch.exp(0.2 * a)))
    pyro.sample("d", dist.MultivariateNormal(torch.zeros(3), precision_matrix=covariance + torch.diag(c**2)))
    with pyro.plate("rows", 2):
        pyro.sample("e", dist.MultivariateNormal(b, scale_tril=factor))


def eight_schools_centred(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_non_centred(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    log_tau = pyro.sample("log_tau", dist.Normal(5.0, 1.0))
    with pyro.plate("schools", 8):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + torch.exp(log_tau) * raw)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def radon():
    """Makes a small program of homes within counties."""
    county = torch.tensor([0, 0, 1, 2, 2, 2, 3, 1])
    floor = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    level = torch.tensor([1.2, 0.8, 1.4, 0.3, 0.9, 1.1, 0.1, 0.7])

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("counties", 4):
            effect = pyro.sample("effect", dist.Normal(mean, spread))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("homes", 8):
            pyro.sample("level", dist.Normal(effect[county] + slope * floor, noise), obs=level)

    return model


def group_indices():
    group = torch.tensor([2, 0, 1, 0])
    effects = torch.stack([pyro.sample(f"effect_{g}", dist.Normal(0.0, 1.0)) for g in range(3)])
    for row in range(4):
        pyro.sample(f"y_{row}", dist.Normal(effects[group[row]], 0.5))
    pyro.sample("all", dist.Normal(effects[group][[1, 3]], 1.0).to_event(1))


def discrete_leaves():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("flag", dist.Bernoulli(logits=a))
    pyro.sample("coin", dist.Bernoulli(0.3))
    pyro.sample("kind", dist.Categorical(logits=torch.stack([a, -a, torch.zeros_like(a)])))
    pyro.sample("count", dist.Binomial(5, logits=0.5 * a))
    with pyro.plate("rows", 3):
        pyro.sample("answers", dist.Bernoulli(torch.sigmoid(a + torch.arange(3.0))))
        pyro.sample("tallies", dist.Binomial(torch.tensor([2.0, 4.0, 3.0]), 0.4))


SCHOOLS = {"mu": set(), "tau": set(), "theta": {"mu", "tau"}, "y": {"theta"}}
PROGRAMS: dict[str, Case] = {
    "vectorised_plate": Case(
        model=vectorised_plate, parents={"mu": set(), "sigma": set(), "x": {"mu", "sigma"}, "y": {"x"}}
    ),
    "nested_plates": Case(
        model=nested_plates, parents={"column": set(), "cell": {"column"}, "row": {"cell"}}, notes="dims -1 and -2"
    ),
    "plate_in_loop": Case(
        model=plate_in_loop,
        parents={"level_0": set(), "member_0": {"level_0"}, "level_1": set(), "member_1": {"level_1"}},
    ),
    "events": Case(model=events, parents={"a": set(), "b": {"a"}, "c": {"a", "b"}}, notes="to_event in a plate"),
    "broadcasting": Case(model=broadcasting, parents={"a": set(), "b": {"a"}, "c": {"a"}}, notes="two event dims"),
    "wrappers": Case(
        model=wrappers,
        parents={
            "a": set(),
            "b": {"a"},
            "c": {"a"},
            "shift": {"a"},
            "share": {"shift"},
            "positive": set(),
            "bounded": {"shift"},
        },
        notes="Independent, expand, mask(True), transforms that grow and fall",
    ),
    "multivariate": Case(
        model=multivariate,
        parents={"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"c"}, "e": {"b"}},
        notes="each parametrisation, with parents in location and covariance",
    ),
    "eight_schools_centred": Case(
        model=eight_schools_centred, args=(ERRORS, EFFECTS), parents=SCHOOLS, observed=("y",), notes="obs="
    ),
    "eight_schools_non_centred": Case(
        model=eight_schools_non_centred,
        args=(ERRORS,),
        kwargs={"y": EFFECTS},
        parents={"mu": set(), "log_tau": set(), "raw": set(), "y": {"mu", "log_tau", "raw"}},
        observed=("y",),
        notes="pyro.deterministic between",
    ),
    "radon": Case(
        model=radon,
        factory=True,
        parents={
            "mean": set(),
            "spread": set(),
            "slope": set(),
            "effect": {"mean", "spread"},
            "noise": set(),
            "level": {"effect", "slope", "noise"},
        },
        observed=("level",),
        notes="indexing by a constant vector",
    ),
    "group_indices": Case(
        model=group_indices,
        parents={
            **{f"effect_{g}": set() for g in range(3)},
            **{f"y_{row}": {f"effect_{g}"} for row, g in enumerate((2, 0, 1, 0))},
            "all": {"effect_0"},
        },
        notes="constant indices pick single elements",
    ),
    "discrete_leaves": Case(
        model=discrete_leaves,
        parents={
            "a": set(),
            "flag": {"a"},
            "coin": set(),
            "kind": {"a"},
            "count": {"a"},
            "answers": {"a"},
            "tallies": set(),
        },
        notes="discrete sites without children enter dequantised",
    ),
}
