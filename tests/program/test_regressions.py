"""Programs that were once compiled to wrong numbers, or crashed: each equals Pyro or is refused."""

from __future__ import annotations

import copy
import pickle
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import emfc
from tests.programs.compiled import density
from tests.programs.oracle import pyro_log_prob

N = dist.Normal


@pytest.fixture(autouse=True)
def _float64(_clean_state):
    torch.set_default_dtype(torch.float64)


def equals_pyro(model, *, summed=()):
    layer = emfc.compile(model)
    x = layer()(torch.randn(3, layer.dim, generator=torch.Generator().manual_seed(1))).detach()
    values = layer.unpack(x)
    expected = [
        pyro_log_prob(model, values={site: rows[row].clone() for site, rows in values.items()}, summed=summed)
        for row in range(len(x))
    ]
    torch.testing.assert_close(density(layer, x), torch.stack(expected), rtol=1e-8, atol=1e-8)
    return layer


def summed_beside_a_leaf():
    weights = torch.tensor([0.3, 0.7])
    z = pyro.sample("z", dist.Categorical(weights))
    pyro.sample("y", dist.Categorical(weights))
    z2 = pyro.sample("z2", dist.Categorical(weights))
    pyro.sample("x", N(torch.tensor([-1.0, 2.0])[z] + torch.tensor([0.0, 3.0])[z2], 1.0))


def test_a_summed_site_shares_no_class_with_a_leaf():
    equals_pyro(summed_beside_a_leaf, summed=("z", "z2"))


REDUCTIONS = {
    "mean": lambda x: x.mean(0),
    "amax": lambda x: x.amax(),
    "amin": lambda x: x.amin(),
    "variance": lambda x: x.var(0, correction=0),
    "sum": lambda x: x.sum(0),
    "logsumexp": lambda x: torch.logsumexp(x, 0),
    "last": lambda x: x.mean(-1),
    "prefix": lambda x: x.cumsum(0),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_numbers_are_reduced_row_by_row(name):
    def model():
        x = pyro.sample("x", N(0.0, 1.0))
        pyro.sample("y", N(REDUCTIONS[name](x), 1 + torch.sigmoid(REDUCTIONS[name](x))))

    layer = equals_pyro(model)
    assert layer()(torch.zeros(0, layer.dim)).shape == (0, layer.dim)


EXPANDED = {
    "location": lambda a: dist.MultivariateNormal(a.expand(2), torch.eye(2)),
    "logits": lambda a: dist.Categorical(logits=a.expand(3)),
    "mixture": lambda a: dist.MixtureSameFamily(dist.Categorical(logits=a.expand(3)), N(a.expand(3), torch.ones(3))),
}


@pytest.mark.parametrize("name", EXPANDED)
def test_expanded_events_keep_their_size(name):
    def model():
        a = pyro.sample("a", N(0.0, 1.0))
        pyro.sample("b", EXPANDED[name](a))

    equals_pyro(model)


def test_a_population_of_expanded_vectors_samples():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("b", dist.MultivariateNormal(z.expand(2, 2), torch.eye(2)))

    equals_pyro(model, summed=("z",))


IDIOMS = {
    "masked fill by a tensor": lambda x: x.masked_fill(x > 0, x[0]),
    "one number of a mask": lambda x: _stored(x),
    "mean in another dtype": lambda x: x + torch.mean(torch.arange(3), dtype=torch.float64),
    "batch normalisation in evaluation mode": lambda x: nn.BatchNorm1d(3).double().eval()(x[None])[0],
    "deep copy": copy.deepcopy,
    "store of itself": lambda x: _broadcast(x),
}


def _stored(x):
    z = x.clone()
    z[x > 0] = 0.5
    return z


def _broadcast(x):
    z = x.clone()
    z[:2] = z[1:].clone()
    return z


@pytest.mark.parametrize("name", IDIOMS)
def test_idioms_equal_pyro(name):
    def model():
        x = pyro.sample("x", N(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", N(IDIOMS[name](x), 1.0).to_event(1))

    equals_pyro(model)


CHOICES = {
    "index select": lambda z, table: table.index_select(0, z)[0],
    "one hot": lambda z, table: F.one_hot(z, 3).to(table.dtype) @ table,
    "index beside a list": lambda z, table: torch.stack([table, table])[:, z, torch.tensor([1, 0])][0],
    "index beside dots": lambda z, table: table[None][..., z, :][0],
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_population_chooses_by(name):
    table = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])

    def model():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", N(CHOICES[name](z, table), 1.0).to_event(1))

    equals_pyro(model, summed=("z",))


class Normal(dist.Normal):
    """A user's class that shares a family's name."""

    def log_prob(self, value):
        return super().log_prob(value) - 1


def chosen_simplex():
    z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
    pyro.sample("x", dist.LogisticNormal(torch.tensor([[0.0, 1.0], [1.0, 0.0]])[z], torch.ones(2)))


def stacked():
    parts = dist.transforms.StackTransform([dist.transforms.ExpTransform(), dist.transforms.TanhTransform()], -1)
    pyro.sample("x", dist.TransformedDistribution(N(torch.zeros(2), 1.0), [parts]))


def narrowed():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.4995, 0.4995, 0.001])))
    pyro.sample("y", N((1 - z.to(torch.uint8)).double(), 1.0))


def into_a_boolean():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.4995, 0.4995, 0.001])))
    buffer = torch.zeros(2, dtype=torch.bool)
    buffer[0] = z
    pyro.sample("y", N(buffer.long().sum(), 1.0))


def hidden_infinity():
    import random

    x = pyro.sample("x", N(0.0, 1.0))
    logits = torch.stack([torch.tensor(-torch.inf), x * random.random(), torch.tensor(0.0)])
    pyro.sample("k", dist.Categorical(logits=logits))


LINEAR = nn.Linear(2, 2).double()


def named_too_late():
    net = LINEAR
    x = pyro.sample("x", N(torch.zeros(2), 1.0).to_event(1))
    h = net(x)
    pyro.module("net", net)
    pyro.sample("y", N(h, 1.0).to_event(1))


def training_mode():
    x = pyro.sample("x", N(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", N(nn.BatchNorm1d(3).double()(torch.stack([x, 2 * x]))[0], 1.0).to_event(1))


REFUSED = {
    "a user's class named like a family": (lambda: pyro.sample("x", Normal(0.0, 1.0)), "E-NOCDF"),
    "a vector that a summed-out site chooses": (chosen_simplex, "E-NOCDF"),
    "an unnormalised point": (lambda: pyro.sample("x", dist.Delta(torch.zeros(()), 1.0)), "E-NOCDF"),
    "transforms side by side": (stacked, "E-NOCDF"),
    "scale zero": (lambda: pyro.sample("x", N(0.0, 0.0)), "E-MODEL"),
    "scale negative": (lambda: pyro.sample("x", dist.Laplace(0.0, -1.0)), "E-MODEL"),
    "location not a number": (lambda: pyro.sample("x", N(float("nan"), 1.0)), "E-MODEL"),
    "no elements": (lambda: pyro.sample("x", N(torch.zeros(0), 1.0).to_event(1)), "E-STRUCT"),
    "narrow integers": (narrowed, "E-OPERATION"),
    "a boolean buffer": (into_a_boolean, "E-OPERATION"),
    "noise beside an infinity": (hidden_infinity, "E-IMPURE"),
    "weights named too late": (named_too_late, "E-STRUCT"),
    "statistics in training": (training_mode, "E-OPERATION"),
    "exit": (lambda: sys.exit(3), "E-MODEL"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused(name):
    model, code = REFUSED[name]
    with pytest.raises(emfc.CompileError) as caught:
        emfc.compile(model)
    assert caught.value.code == code, str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_two_parameters_of_one_storage_are_two():
    storage = torch.tensor([0.5, 1.0, 2.0, 3.0])
    module = nn.Module()
    module.a, module.b = nn.Parameter(storage[:2]), nn.Parameter(storage[2:])

    def model():
        pyro.module("m", module)
        x = pyro.sample("x", N(module.a, 1.0).to_event(1))
        pyro.sample("y", N(x * module.b, 1.0).to_event(1))

    assert set(emfc.compile(model).values()) == {"m$$$a", "m$$$b"}


def test_layers_work_after_function_transforms_and_inference_mode():
    with torch.inference_mode():
        layer = emfc.compile(summed_beside_a_leaf)
        examples = layer()(torch.randn(4, layer.dim))
        layer().log_prob(examples)
    noise = torch.randn(layer.dim)
    torch.func.jacfwd(lambda held: layer()(held))(noise)
    other = copy.deepcopy(layer)
    examples = other()(noise).detach().requires_grad_()
    other().log_prob(examples).backward()
    assert examples.grad.isfinite().all()


def test_a_discrete_site_of_one_level_has_gates():
    flow = emfc.EmbeddedModelFlow(lambda: pyro.sample("k", dist.Categorical(torch.ones(1))), backbone=None, gate="site")
    assert flow().log_prob(flow().sample((3,))).isfinite().all()


def test_packing_refuses_what_no_site_can_hold():
    layer = emfc.compile(lambda: pyro.sample("k", dist.Categorical(torch.ones(2))))
    with pytest.raises(emfc.UserError, match="from 0 to 1"):
        layer.pack({"k": torch.tensor([5])})
    with pytest.raises(emfc.UserError, match="no number"):
        emfc.compile(lambda: pyro.sample("x", N(0.0, 1.0))).pack({"x": torch.tensor([float("nan")])})


def test_no_rows_and_other_dtypes_through_learned_layers():
    flow = emfc.EmbeddedModelFlow(lambda: pyro.sample("x", N(torch.zeros(3), 1.0).to_event(1)), hidden_features=(8,))
    assert flow().log_prob(torch.zeros(0, 3)).shape == (0,)
    assert flow().log_prob(torch.zeros(2, 3, dtype=torch.float32)).shape == (2,)


def test_what_cannot_be_run_on_several_examples_is_refused():
    def model():
        x = pyro.sample("x", N(torch.zeros(2), 1.0).to_event(1))
        matrix = torch.eye(2) * (1 + x.exp()).sum() * torch.ones(3, 1, 1)
        solved = torch.linalg.solve(matrix, torch.eye(2))
        pyro.sample("y", N(solved, 1.0).to_event(3))

    with pytest.raises(emfc.CompileError, match="several examples at once") as caught:
        emfc.compile(model)
    assert caught.value.code == "E-VERIFY"


def test_constants_of_another_precision():
    def model():
        scale = torch.as_tensor(np.array([0.1, 0.2]))  # float64 in a float32 program
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Gamma(torch.tensor(2.1, dtype=torch.float64), x.exp().sum()))

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        layer = emfc.compile(model)
        value, ladj = layer().call_and_ladj(torch.randn(5, 3))
    finally:
        torch.set_default_dtype(before)
    assert value.dtype == ladj.dtype == torch.float32
    assert ladj.isfinite().all()


def test_observed_sites_may_have_any_family():
    def model():
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        pyro.sample("counts", dist.Multinomial(5, w), obs=torch.tensor([1.0, 2.0, 2.0]))
        pyro.sample("kind", dist.OneHotCategorical(w), obs=torch.tensor([1.0, 0.0, 0.0]))
        noise = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        chain = dist.GaussianHMM(noise, torch.eye(2), noise, torch.eye(2), noise, duration=3)
        pyro.sample("chain", chain, obs=torch.zeros(3, 2))
        either = dist.MaskedMixture(torch.tensor([True, False]), N(w[:2], 1.0), dist.Laplace(torch.zeros(2), 1.0))
        pyro.sample("either", either.to_event(1), obs=torch.zeros(2))

    layer = emfc.compile(model)
    assert layer.dim == 3
    assert layer.graph.sites["counts"].parents == ("w",)
    assert layer.graph.sites["kind"].parents == ("w",)
