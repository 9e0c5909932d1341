"""Posterior predictive draws: the compiled program and Pyro's own runs of the model agree."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import emfc
from emfc.inference.predictive import _by_pyro
from tests.inference import posterior_programs as programs


def bernoulli(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=w[0] + w[1] * torch.arange(float(len(y)))), obs=y)


def categorical(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)


def walk(y: Tensor) -> None:
    step = pyro.sample("step", dist.HalfNormal(1.0))
    before = torch.zeros(())
    for t in range(len(y)):
        before = pyro.sample(f"y_{t}", dist.Normal(before, step), obs=y[t])


def data_before_a_latent_site(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    first = pyro.sample("y_0", dist.Normal(a, 1.0), obs=y[0])
    b = pyro.sample("b", dist.Normal(first, 1.0))
    pyro.sample("y_1", dist.Normal(b, 1.0), obs=y[1])


def masked(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=torch.arange(len(y)) < 2), pyro.poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


CASES = {
    "normal": (programs.normal, [0.3, 1.0, 2.0]),
    "counts": (programs.counts, [1.0, 0.0, 4.0]),
    "bernoulli": (bernoulli, [1.0, 0.0, 1.0, 1.0]),
    "categorical": (categorical, [0, 1, 2, 2]),
    "walk": (walk, [0.1, 0.4, 0.2]),
    "data before a latent site": (data_before_a_latent_site, [1.0, 3.0]),
    "mixture": (programs.mixture, [-2.0, 2.0, 1.7]),
    "improper": (programs.improper, [0.1, 1.0, -1.2, 0.3, 0.6, -0.2, 0.4, 1.4]),
    "parameters": (programs.scaled, [0.1, 1.0, -1.0]),
    "mask and scale": (masked, [0.1, 1.0, 8.0]),
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_draws_are_those_of_pyro(name: str) -> None:
    model, values = CASES[name]
    y = torch.tensor(values)
    posterior = emfc.infer(model, y, backbone="meanfield", steps=150, draws=1000)
    drawn = posterior.predictive(4000, seed=1)
    assert list(drawn) == list(posterior.data)
    compiled = posterior.joint is not None and not posterior.joint.data_first
    assert compiled == (name != "data before a latent site")
    rows = posterior.chosen(600, 2) if posterior.trusted else torch.arange(600)
    theirs = _by_pyro(posterior, posterior.draws[rows], seed=3)
    for site, value in drawn.items():
        assert value.shape == (4000, *posterior.data[site].shape)
        assert value.dtype == theirs[site].dtype
        ours, other = value.double(), theirs[site].double()
        error = (ours.var(0) / 1000 + other.var(0) / 300).sqrt() + 1e-6
        assert bool(((ours.mean(0) - other.mean(0)).abs() < 5 * error).all())
        for probability in (0.2, 0.8):
            share = (other <= ours.quantile(probability, 0)).double().mean(0)
            if ours.unique().numel() > 50:
                assert bool(((share - probability).abs() < 0.09).all())


def test_predictive_of_a_known_posterior() -> None:
    y = torch.tensor([0.3, 1.0, 2.0, 0.6])
    posterior = emfc.infer(programs.normal, y, steps=300)
    mean, sd, _ = programs.normal_answer(y)
    drawn = posterior.predictive(20_000)["y"]
    assert torch.allclose(drawn.mean(0), torch.tensor(mean), atol=0.04)
    assert torch.allclose(drawn.std(0), torch.tensor((sd**2 + programs.NOISE**2) ** 0.5), rtol=0.03)
    assert abs(float(torch.corrcoef(drawn.T)[0, 1]) - sd**2 / (sd**2 + programs.NOISE**2)) < 0.03
    assert torch.equal(posterior.predictive(5, seed=7)["y"], posterior.predictive(5, seed=7)["y"])
