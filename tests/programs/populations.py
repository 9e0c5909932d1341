"""Programs with mixtures, and with a discrete latent that is summed out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from tests.programs.case import Case

__all__ = ["PROGRAMS"]


def mixture_site():
    logits = torch.tensor([0.5, -0.2, 0.1])
    components = dist.Normal(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 0.3]))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))


def mixture_of_parents():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    weights = dist.Categorical(logits=torch.stack([a, torch.zeros_like(a)]))
    x = pyro.sample("x", dist.MixtureSameFamily(weights, dist.Logistic(torch.stack([b, -b]), torch.ones(2))))
    components = dist.Laplace(torch.tensor([-1.0, 1.0]), torch.exp(0.3 * x) * torch.ones(2))
    pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), components))


def mixture_per_dimension():
    with pyro.plate("dimensions", 2):
        logits = pyro.param("logits", torch.zeros(2, 4))
        locs = pyro.param("locs", torch.linspace(-4.0, 4.0, 4).expand(2, 4).clone())
        scales = pyro.param("scales", torch.ones(2, 4), constraint=constraints.positive)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, scales)))


def scalar_populations():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    locs, scales = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 0.3])
    pyro.sample("x", dist.Normal(locs[z], scales[z]))


def two_sites_one_population():
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    z = pyro.sample("z", dist.Categorical(weights))
    a = pyro.sample("a", dist.Normal(pyro.param("locs", torch.tensor([-1.0, 2.0]))[z], 0.5))
    pyro.sample("b", dist.Laplace(torch.tensor([1.0, -1.0])[z] * a, 0.7))


def bernoulli_where():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    x = pyro.sample("x", dist.Normal(torch.where(z == 1, 2.0, -2.0), 1.0))
    pyro.sample("y", dist.LogNormal(0.3 * x, 0.2 + 0.5 * z))


def arithmetic_of_population():
    z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
    level = 1.5 * z.float().to(torch.get_default_dtype()) - 1.0
    x = pyro.sample("x", dist.Normal(level, 0.4))
    pyro.sample("y", dist.Uniform(-2.0, torch.exp(0.2 * level)))
    pyro.sample("w", dist.Normal(x, 1.0))


def population_of_vectors():
    means = torch.tensor([[0.0, 2.0, -1.0], [3.0, -1.0, 0.5]])
    tril = torch.tensor(
        [[[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.1, 0.2, 0.6]], [[0.5, 0.0, 0.0], [-0.3, 1.0, 0.0], [0.0, 0.4, 0.7]]]
    )
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.35, 0.65])))
    pyro.sample("x", dist.MultivariateNormal(means[z], scale_tril=tril[z]))


def gaussians_on_a_ring():
    angles = torch.arange(8.0) * (torch.pi / 4)
    centres = 4.0 * torch.stack([angles.cos(), angles.sin()], -1)
    z = pyro.sample("z", dist.Categorical(torch.ones(8) / 8))
    pyro.sample("x", dist.Normal(centres[z], 0.5).to_event(1))


def digit_populations():
    weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
    levels = torch.sin(torch.arange(3 * 6 * 5.0)).reshape(3, 6, 5)
    logits = pyro.param("logits", levels)
    z = pyro.sample("z", dist.Categorical(weights))
    pyro.sample("pixels", dist.Categorical(logits=logits[z]).to_event(1))


def mixed_children():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
    with pyro.plate("rows", 3):
        pyro.sample("flags", dist.Bernoulli(torch.tensor([[0.1, 0.2, 0.9], [0.8, 0.5, 0.3]])[z]))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[z], 0.5))
    pyro.sample("count", dist.Binomial(4, torch.tensor([0.2, 0.7])[z]))
    pyro.sample("apart", dist.Exponential(2.0))


def population_chain():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
    gain, noise = torch.tensor([0.9, -0.5])[z], torch.tensor([0.3, 0.6])[z]
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, 5):
        x = pyro.sample(f"x_{t}", dist.Normal(gain * x, noise))


def late_population():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Categorical(logits=torch.stack([2 * a, torch.zeros_like(a)])))
    x = pyro.sample("x", dist.Normal(torch.tensor([-1.5, 1.5])[z], 0.5))
    pyro.sample("y", dist.Normal(x + a, 1.0))


def vectorised_table():
    offsets = torch.arange(4)
    table = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 1.0, -1.0, -3.0]])
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.6)))
    pyro.sample("x", dist.Normal(table[z.long(), offsets], 0.5 + 0.5 * z).to_event(1))


def two_populations():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    x = pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[z], 0.5))
    w = pyro.sample("w", dist.Bernoulli(logits=x))
    pyro.sample("y", dist.Normal(torch.tensor([0.0, 3.0])[w.long()], 1.0))


def mixture_in_population():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    weights = dist.Categorical(torch.where(z == 1, torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])))
    pyro.sample("x", dist.MixtureSameFamily(weights, dist.Normal(torch.tensor([-2.0, 2.0]), torch.ones(2))))


def observed_child_of_nothing():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[z], 0.5))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(0.4))


def _chain(name, parents, first, count):
    return {f"{name}_{t}": (first if t == 0 else parents | {f"{name}_{t - 1}"}) for t in range(count)}


PROGRAMS: dict[str, Case] = {
    "mixture_site": Case(model=mixture_site, parents={"x": set()}),
    "mixture_of_parents": Case(
        model=mixture_of_parents,
        parents={"a": set(), "b": set(), "x": {"a", "b"}, "y": {"x"}},
        notes="parents in the weights, the locations and the scales",
    ),
    "mixture_per_dimension": Case(model=mixture_per_dimension, parents={"x": set()}),
    "scalar_populations": Case(model=scalar_populations, parents={"z": set(), "x": {"z"}}, summed=("z",)),
    "two_sites_one_population": Case(
        model=two_sites_one_population, parents={"z": set(), "a": {"z"}, "b": {"a", "z"}}, summed=("z",)
    ),
    "bernoulli_where": Case(
        model=bernoulli_where, parents={"z": set(), "x": {"z"}, "y": {"x", "z"}}, summed=("z",), notes="torch.where"
    ),
    "arithmetic_of_population": Case(
        model=arithmetic_of_population,
        parents={"z": set(), "x": {"z"}, "y": {"z"}, "w": {"x"}},
        summed=("z",),
        notes="the support of y depends on the population",
    ),
    "population_of_vectors": Case(model=population_of_vectors, parents={"z": set(), "x": {"z"}}, summed=("z",)),
    "gaussians_on_a_ring": Case(model=gaussians_on_a_ring, parents={"z": set(), "x": {"z"}}, summed=("z",)),
    "digit_populations": Case(model=digit_populations, parents={"z": set(), "pixels": {"z"}}, summed=("z",)),
    "mixed_children": Case(
        model=mixed_children,
        parents={"z": set(), "flags": {"z"}, "x": {"z"}, "count": {"z"}, "apart": set()},
        summed=("z",),
        notes="discrete and continuous children, and a site apart",
    ),
    "population_chain": Case(
        model=population_chain, parents={"z": set(), **_chain("x", {"z"}, set(), 5)}, summed=("z",)
    ),
    "late_population": Case(
        model=late_population,
        parents={"a": set(), "z": {"a"}, "x": {"z"}, "y": {"a", "x"}},
        summed=("z",),
        notes="the weights depend on a continuous site",
    ),
    "vectorised_table": Case(model=vectorised_table, parents={"z": set(), "x": {"z"}}, summed=("z",)),
    "two_populations": Case(
        model=two_populations,
        parents={"z": set(), "x": {"z"}, "w": {"x"}, "y": {"w"}},
        summed=("z", "w"),
        notes="two discrete latents, the second one below the first",
    ),
    "mixture_in_population": Case(model=mixture_in_population, parents={"z": set(), "x": {"z"}}, summed=("z",)),
    "population_beside_data": Case(
        model=observed_child_of_nothing,
        parents={"z": set(), "x": {"z"}, "b": set(), "y": {"b"}},
        summed=("z",),
        observed=("y",),
    ),
}
