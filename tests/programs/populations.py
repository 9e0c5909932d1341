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


def labels_in_plate():
    locs = torch.tensor([-1.0, 2.0])
    with pyro.plate("rows", 4):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(locs[z], 1.0))
        pyro.sample("y", dist.Laplace(-locs[z], 0.5 + 0.5 * z))


def labels_of_parents():
    slope = pyro.param("slope", torch.tensor(1.5))
    with pyro.plate("rows", 3):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(logits=slope * a))
        x = pyro.sample("x", dist.Normal(torch.where(z == 1, a, -2.0), 0.7))
    pyro.sample("total", dist.Normal(x.sum(), 0.5))


def labels_of_vectors():
    means = torch.tensor([[0.0, 2.0], [3.0, -1.0]])
    tril = torch.tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.5, 0.0], [-0.3, 1.0]]])
    with pyro.plate("rows", 3):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.35, 0.65])))
        pyro.sample("x", dist.MultivariateNormal(means[z], scale_tril=tril[z]))
        pyro.sample("y", dist.Normal(means[z], 0.5).to_event(1))
        pyro.sample("k", dist.Categorical(logits=means[z]))


def labels_in_a_loop():
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    x = torch.zeros(())
    for t in range(4):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.tensor([0.6, 0.4])))
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x + torch.tensor([-1.0, 1.0])[z], scale[z]))


def hidden_markov():
    transition = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 3.0]))
    z = pyro.sample("z_0", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
    for t in range(4):
        if t:
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0))


def hidden_markov_states_first():
    transition = pyro.param("transition", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    states = [pyro.sample("z_0", dist.Bernoulli(0.4))]
    for t in range(1, 4):
        states.append(pyro.sample(f"z_{t}", dist.Bernoulli(transition[states[-1].long(), 1])))
    with pyro.plate("time", 4):
        pyro.sample("x", dist.Gamma(2.0 + 3.0 * torch.stack(states), 1.0))


def switching_dynamics():
    gain, level = torch.tensor([0.9, -0.5]), torch.tensor([0.0, 1.0])
    z = pyro.sample("z_0", dist.Categorical(torch.tensor([0.5, 0.5])))
    x = pyro.sample("x_0", dist.Normal(level[z], 1.0).expand([2]).to_event(1))
    for t in range(1, 4):
        z = pyro.sample(f"z_{t}", dist.Categorical(logits=torch.stack([x[0], level[z]])))
        x = pyro.sample(f"x_{t}", dist.Normal(gain[z] * x + level[z], 0.5).to_event(1))


def hidden_markov_rows():
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    with pyro.plate("series", 2):
        z = pyro.sample("z_0", dist.Categorical(torch.tensor([0.5, 0.5])))
        for t in range(3):
            if t:
                z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 2.0])[z], 1.0))


def factorial_hidden_markov():
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    a = pyro.sample("a_0", dist.Categorical(torch.tensor([0.5, 0.5])))
    b = pyro.sample("b_0", dist.Categorical(torch.tensor([0.2, 0.8])))
    for t in range(3):
        if t:
            a = pyro.sample(f"a_{t}", dist.Categorical(transition[a]))
            b = pyro.sample(f"b_{t}", dist.Categorical(transition[b]))
        pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 1.0])[a] + torch.tensor([0.0, 4.0])[b], 0.5))


def shared_and_own_labels():
    locs = torch.tensor([[-3.0, 0.0, 3.0], [-1.0, 1.0, 2.0]])
    g = pyro.sample("g", dist.Categorical(torch.tensor([0.4, 0.6])))
    with pyro.plate("rows", 3):
        z = pyro.sample("z", dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[g]))
        x = pyro.sample("x", dist.Normal(locs[g, z], 0.5))
        pyro.sample("y", dist.Normal(x * (1 + z), 1.0))


def labels_of_different_sizes():
    for t, size in enumerate((2, 3, 4)):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.ones(size) / size))
        pyro.sample(f"x_{t}", dist.Normal(1.5 * z, 1.0))


def one_row_of_labels():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    locs = torch.stack([2.0 * z, torch.zeros(()), torch.ones(())])
    pyro.sample("x", dist.Normal(locs, 1.0).to_event(1))
    b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.2, 0.6])).to_event(1))
    pyro.sample("y", dist.Normal(b[0] - b[1], 0.5))


def labels_summed_up():
    with pyro.plate("rows", 3):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])))
    pyro.sample("x", dist.Normal(z.sum(), 0.5))
    pyro.sample("y", dist.Normal(z @ torch.tensor([1.0, -1.0, 2.0]), 0.5))


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
    "labels_in_plate": Case(
        model=labels_in_plate, parents={"z": set(), "x": {"z"}, "y": {"z"}}, summed=("z",), notes="a label for each row"
    ),
    "labels_of_parents": Case(
        model=labels_of_parents,
        parents={"a": set(), "z": {"a"}, "x": {"a", "z"}, "total": {"x"}},
        summed=("z",),
        notes="the weights of each row depend on a continuous site",
    ),
    "labels_of_vectors": Case(
        model=labels_of_vectors,
        parents={"z": set(), "x": {"z"}, "y": {"z"}, "k": {"z"}},
        summed=("z",),
        notes="several elements of a row, some of them in a vector",
    ),
    "labels_in_a_loop": Case(
        model=labels_in_a_loop,
        parents={f"z_{t}": set() for t in range(4)}
        | {f"x_{t}": {f"z_{t}"} | ({f"x_{t - 1}"} if t else set()) for t in range(4)},
        summed=("z_0", "z_1", "z_2", "z_3"),
        notes="independent labels along a chain of values",
    ),
    "hidden_markov": Case(
        model=hidden_markov,
        parents={f"z_{t}": ({f"z_{t - 1}"} if t else set()) for t in range(4)}
        | {f"x_{t}": {f"z_{t}"} for t in range(4)},
        summed=("z_0", "z_1", "z_2", "z_3"),
    ),
    "hidden_markov_states_first": Case(
        model=hidden_markov_states_first,
        parents={f"z_{t}": ({f"z_{t - 1}"} if t else set()) for t in range(4)} | {"x": {"z_0", "z_1", "z_2", "z_3"}},
        summed=("z_0", "z_1", "z_2", "z_3"),
        notes="all states are drawn before what they emit",
    ),
    "switching_dynamics": Case(
        model=switching_dynamics,
        parents={f"z_{t}": ({f"x_{t - 1}", f"z_{t - 1}"} if t else set()) for t in range(4)}
        | {f"x_{t}": {f"z_{t}"} | ({f"x_{t - 1}"} if t else set()) for t in range(4)},
        summed=("z_0", "z_1", "z_2", "z_3"),
        notes="transitions depend on what was emitted",
    ),
    "hidden_markov_rows": Case(
        model=hidden_markov_rows,
        parents={f"z_{t}": ({f"z_{t - 1}"} if t else set()) for t in range(3)}
        | {f"x_{t}": {f"z_{t}"} for t in range(3)},
        summed=("z_0", "z_1", "z_2"),
        notes="independent chains in a plate",
    ),
    "factorial_hidden_markov": Case(
        model=factorial_hidden_markov,
        parents={f"{name}_{t}": ({f"{name}_{t - 1}"} if t else set()) for t in range(3) for name in "ab"}
        | {f"x_{t}": {f"a_{t}", f"b_{t}"} for t in range(3)},
        summed=("a_0", "b_0", "a_1", "b_1", "a_2", "b_2"),
    ),
    "shared_and_own_labels": Case(
        model=shared_and_own_labels,
        parents={"g": set(), "z": {"g"}, "x": {"g", "z"}, "y": {"x", "z"}},
        summed=("g", "z"),
        notes="rows fall apart once the shared label is fixed; all labels are alive between x and y",
    ),
    "labels_of_different_sizes": Case(
        model=labels_of_different_sizes,
        parents={f"z_{t}": set() for t in range(3)} | {f"x_{t}": {f"z_{t}"} for t in range(3)},
        summed=("z_0", "z_1", "z_2"),
        notes="the same code over labels with different numbers of levels",
    ),
    "one_row_of_labels": Case(
        model=one_row_of_labels,
        parents={"z": set(), "x": {"z"}, "b": set(), "y": {"b"}},
        summed=("z", "b"),
        notes="only some elements read a label",
    ),
    "labels_summed_up": Case(
        model=labels_summed_up, parents={"z": set(), "x": {"z"}, "y": {"z"}}, summed=("z",), notes="read all together"
    ),
}
