"""The programs that are refused: name -> case with the code, the line and the words of the refusal."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch

from tests.programs.case import RefusedCase

__all__ = ["REFUSED"]


def branch():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    if a > 0:
        pyro.sample("b", dist.Normal(a, 1.0))
    else:
        pyro.sample("b", dist.Normal(-a, 2.0))


def while_loop():
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    while a > 1.0:
        a = a / 2
    pyro.sample("b", dist.Normal(a, 1.0))


def conditional_expression():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a if a.abs() > 1 else torch.tensor(0.0), 1.0))


def boolean_and():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    positive = a > -1 and a < 1
    pyro.sample("b", dist.Normal(positive.to(a.dtype), 1.0))


def item():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(2 * a.item(), 1.0))


def to_float():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(float(torch.exp(a)), 1.0))


def random_range():
    n = pyro.sample("n", dist.Categorical(torch.ones(3)))
    for t in range(int(n) + 1):
        pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))


def numpy_function():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(torch.as_tensor(np.sin(a.detach())), 1.0))


def numpy_method():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    shifted = torch.from_numpy(a.detach().numpy() + 1.0)
    pyro.sample("b", dist.Normal(shifted, 1.0).to_event(1))


def to_list():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    largest = max(a.tolist())
    pyro.sample("b", dist.Normal(largest, 1.0))


def copied_tensor():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("c", dist.Normal(torch.tensor([a, b]), 1.0).to_event(1))


def list_index():
    z = pyro.sample("z", dist.Categorical(torch.ones(2)))
    locs = [-1.0, 1.0]
    pyro.sample("x", dist.Normal(locs[z], 1.0))


def boolean_mask():
    a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.sample("b", dist.Normal(a[a > 0].sum(), 1.0))


def nonzero():
    a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    positive = torch.nonzero(a > 0)
    pyro.sample("b", dist.Normal(positive.sum() * 1.0, 1.0))


def extra_noise():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    jitter = 0.1 * torch.randn(())
    pyro.sample("b", dist.Normal(a + jitter, 1.0))


def hidden_rsample():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    noise = dist.Normal(a, 1.0).rsample()
    pyro.sample("b", dist.Normal(noise, 1.0))


def dropout():
    """Makes a program around a network in training mode."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))

    def model():
        pyro.module("net", net)
        a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(net(a), 1.0).to_event(1))

    return model


def python_random():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a + random.random(), 1.0))


def changing_sites():
    """Makes a program that gains a site at every run."""
    runs = [0]

    def model():
        runs[0] += 1
        for t in range(runs[0]):
            pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))

    return model


def counted_runs():
    """Makes a program whose parameters change at every run."""
    runs = [0]

    def model():
        runs[0] += 1
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a * runs[0], 1.0))

    return model


def subsampled_plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 10, subsample_size=3):
        pyro.sample("x", dist.Normal(mu, 1.0))


def points_of_a_torus():
    a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("angle", dist.SineSkewed(dist.VonMises(a, 2.0 * torch.ones(1)).to_event(1), 0.3 * torch.ones(1)))


def matching():
    pyro.sample("x", dist.OneOneMatching(torch.zeros(3, 3)))


def split_counts():
    weights = pyro.sample("weights", dist.LogisticNormal(torch.zeros(2), 1.0))
    pyro.sample("counts", dist.Multinomial(10, weights))


def improper_prior():
    pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))


def learned_transform():
    spline = dist.transforms.Spline(2)
    pyro.module("spline", spline)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    pyro.sample("x", dist.TransformedDistribution(base, [spline]))


def coupled_labels():
    with pyro.plate("rows", 20):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
    pyro.sample("x", dist.Normal(z.sum() * 1.0, 1.0))


def labels_seen_late():
    locs = torch.tensor([-1.0, 1.0])
    z = [pyro.sample(f"z_{i}", dist.Categorical(torch.tensor([0.5, 0.5]))) for i in range(12)]
    for i in range(11):
        pyro.sample(f"x_{i}", dist.Normal(locs[z[i]] + locs[z[i + 1]], 1.0))
    for i in range(12):
        pyro.sample(f"y_{i}", dist.Normal(locs[z[i]], 1.0))


def poisson_latent():
    n = pyro.sample("n", dist.Poisson(3.0))
    pyro.sample("x", dist.Normal(n, 1.0))


def factor():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -(a**2))


def scaled():
    with poutine.scale(scale=0.5):
        pyro.sample("a", dist.Normal(0.0, 1.0))


def masked():
    with pyro.plate("rows", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.sample("a", dist.Normal(0.0, 1.0))


def raising():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    weights = torch.ones(3, 2)
    pyro.sample("b", dist.Normal(weights @ a.expand(3), 1.0))


def missing_argument(scale):
    pyro.sample("a", dist.Normal(0.0, scale))


def no_sites():
    return torch.ones(3)


def only_observed():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def duplicate_names():
    a = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 1.0))


REFUSED: dict[str, RefusedCase] = {
    "branch": RefusedCase(model=branch, code="E-DATADEP", line="if a > 0", words=("torch.where",)),
    "while_loop": RefusedCase(model=while_loop, code="E-DATADEP", line="while a > 1.0", words=("torch.where",)),
    "conditional_expression": RefusedCase(
        model=conditional_expression, code="E-DATADEP", line="a if a.abs() > 1 else", words=("torch.where",)
    ),
    "boolean_and": RefusedCase(model=boolean_and, code="E-DATADEP", line="a > -1 and a < 1"),
    "item": RefusedCase(model=item, code="E-ESCAPE", line="2 * a.item()"),
    "to_float": RefusedCase(model=to_float, code="E-ESCAPE", line="float(torch.exp(a))"),
    "random_range": RefusedCase(model=random_range, code="E-ESCAPE", line="range(int(n) + 1)"),
    "numpy_function": RefusedCase(model=numpy_function, code="E-ESCAPE", line="np.sin(a.detach())", words=("numpy",)),
    "numpy_method": RefusedCase(model=numpy_method, code="E-ESCAPE", line="a.detach().numpy()", words=("numpy",)),
    "to_list": RefusedCase(model=to_list, code="E-ESCAPE", line="max(a.tolist())"),
    "copied_tensor": RefusedCase(
        model=copied_tensor, code="E-ESCAPE", line="torch.tensor([a, b])", words=("torch.stack",)
    ),
    "list_index": RefusedCase(model=list_index, code="E-ESCAPE", line="locs[z]"),
    "boolean_mask": RefusedCase(model=boolean_mask, code="E-DYNSHAPE", line="a[a > 0]", words=("torch.where",)),
    "nonzero": RefusedCase(model=nonzero, code="E-DYNSHAPE", line="torch.nonzero(a > 0)"),
    "extra_noise": RefusedCase(model=extra_noise, code="E-IMPURE", line="torch.randn(())", words=("pyro.sample",)),
    "hidden_rsample": RefusedCase(model=hidden_rsample, code="E-IMPURE", line=".rsample()", words=("pyro.sample",)),
    "dropout": RefusedCase(model=dropout, factory=True, code="E-IMPURE", line="net(a)", words=("eval()",)),
    "python_random": RefusedCase(model=python_random, code="E-IMPURE", notes="found by running twice"),
    "changing_sites": RefusedCase(model=changing_sites, factory=True, code="E-STRUCT", words=("x_1",)),
    "counted_runs": RefusedCase(
        model=counted_runs, factory=True, code="E-IMPURE", notes="parameters that change between equal runs"
    ),
    "subsampled_plate": RefusedCase(
        model=subsampled_plate, code="E-SUBSAMPLE", words=("rows", "10", "3"), line="subsample_size=3"
    ),
    "unsupported_family": RefusedCase(
        model=points_of_a_torus, code="E-NOCDF", line="dist.SineSkewed(", words=("angle", "torus", "VonMises")
    ),
    "unsupported_matrix": RefusedCase(
        model=matching, code="E-NOCDF", line="dist.OneOneMatching", words=("arrangements", "Categorical")
    ),
    "split_counts": RefusedCase(
        model=split_counts, code="E-NOCDF", line="dist.Multinomial(10", words=("fixed sum", "Binomial")
    ),
    "improper_prior": RefusedCase(
        model=improper_prior, code="E-NOCDF", line="dist.ImproperUniform", words=("not normalised", "proper prior")
    ),
    "learned_transform": RefusedCase(
        model=learned_transform,
        code="E-NOCDF",
        line="dist.TransformedDistribution(base, [spline])",
        words=("Spline", "weights of its own", "backbone"),
    ),
    "coupled_labels": RefusedCase(
        model=coupled_labels,
        code="E-DISCRETE",
        line='pyro.sample("z"',
        words=("1048576",),
        notes="names the number of combinations, 2 ** 20",
    ),
    "labels_seen_late": RefusedCase(
        model=labels_seen_late,
        code="E-DISCRETE",
        words=("2^11 = 2048", "at a time"),
        notes="no value can be summed out before the last ones are introduced",
    ),
    "poisson_latent": RefusedCase(model=poisson_latent, code="E-DISCRETE", line="dist.Poisson(3.0)"),
    "factor": RefusedCase(model=factor, code="E-FACTOR", line='pyro.factor("penalty"', words=("penalty",)),
    "scaled": RefusedCase(model=scaled, code="E-FACTOR", line='pyro.sample("a"', words=("scale",)),
    "masked": RefusedCase(model=masked, code="E-FACTOR", line='pyro.sample("a"', words=("mask",)),
    "raising": RefusedCase(model=raising, code="E-MODEL", line="weights @ a.expand(3)", words=("RuntimeError",)),
    "missing_argument": RefusedCase(model=missing_argument, code="E-MODEL", words=("scale",)),
    "no_sites": RefusedCase(model=no_sites, code="E-STRUCT", words=("pyro.sample",)),
    "only_observed": RefusedCase(model=only_observed, code="E-STRUCT", words=("latent",)),
    "duplicate_names": RefusedCase(model=duplicate_names, code="E-STRUCT", line='pyro.sample("x"', words=("x",)),
}
