"""Programs of scalar sites: families, callables, and edges that must not be there."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import torch

from tests.programs.case import Case

__all__ = ["PROGRAMS"]


def single_normal():
    return pyro.sample("x", dist.Normal(1.0, 2.0))


def one_of_each_family():
    pyro.sample("normal", dist.Normal(-1.0, 0.5))
    pyro.sample("log_normal", dist.LogNormal(0.2, 0.7))
    pyro.sample("half_normal", dist.HalfNormal(2.0))
    pyro.sample("uniform", dist.Uniform(-1.0, 3.0))
    pyro.sample("exponential", dist.Exponential(0.5))
    pyro.sample("laplace", dist.Laplace(1.0, 0.3))
    pyro.sample("logistic", dist.Logistic(-2.0, 1.5))
    pyro.sample("cauchy", dist.Cauchy(0.0, 0.8))
    pyro.sample("half_cauchy", dist.HalfCauchy(1.2))


def chain_of_families():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    loc = pyro.sample("loc", dist.Laplace(0.5, scale))
    rate = pyro.sample("rate", dist.HalfNormal(scale + 0.5))
    y = pyro.sample("y", dist.Logistic(loc, 0.5 + scale))
    w = pyro.sample("w", dist.Exponential(0.2 + rate))
    c = pyro.sample("c", dist.Cauchy(torch.sin(y) - w, scale))
    pyro.sample("h", dist.HalfCauchy(torch.exp(-0.5 * torch.tanh(c))))


def uniform_between_parents():
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    width = pyro.sample("width", dist.Exponential(1.0))
    x = pyro.sample("x", dist.Uniform(low - 0.1, low + width + 0.1))
    pyro.sample("y", dist.Normal(x, 0.5))


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinates", 4):
        pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))


def regression(slope, *, intercept=0.0, noise=1.0):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(intercept + slope * x, noise))


class Collider:
    """An object that is called."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def __call__(self, weight):
        a = self.draw("a")
        b = self.draw("b")
        return pyro.sample("c", dist.Normal(a - weight * b, self.noise))

    def draw(self, name):
        return pyro.sample(name, dist.Normal(0.0, 1.0))


def closure_over_data():
    """Makes a program over tensors that it closes over."""
    levels = torch.tensor([0.5, -1.0, 2.0])
    spread = torch.tensor([1.0, 0.2, 0.7])

    def model():
        a = pyro.sample("a", dist.Normal(levels[0], spread[0]))
        for i in range(1, 3):
            pyro.sample(f"b_{i}", dist.Normal(levels[i] * a, spread[i]))

    return model


def gaussian_tree():
    leaves = [pyro.sample(f"leaf_{i}", dist.Normal(0.0, 0.2)) for i in range(4)]
    level, depth = leaves, 0
    while len(level) > 1:
        level = [
            pyro.sample(f"node_{depth}_{i}", dist.Normal(torch.tanh(left) - torch.tanh(right), 0.15))
            for i, (left, right) in enumerate(zip(level[::2], level[1::2], strict=True))
        ]
        depth += 1


def mixed_dtypes():
    weights = torch.tensor([1, -2, 3])  # integers
    offset = torch.tensor(0.25, dtype=torch.float32)
    table = torch.arange(3, dtype=torch.int32)
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a * weights[1] + offset, 2))
    c = pyro.sample("c", dist.Normal(a + table[2] * b, torch.tensor(1)))
    flag = a > 0  # a Boolean result that stays a tensor
    pyro.sample("d", dist.Normal(flag * c, 1 + flag.to(c.dtype)))


def unused_site():
    pyro.sample("nuisance", dist.Laplace(0.0, 1.0))
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a, 1.0))


def memory_makes_no_edge():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    c = pyro.sample("c", dist.Normal(0.0, 1.0))
    pyro.sample("of_stack", dist.Normal(torch.stack([a, b, c])[1], 1.0))
    pyro.sample("of_cat", dist.Normal(torch.cat([a[None], b[None], c[None]])[2:].sum(), 1.0))
    pyro.sample("of_zeros_like", dist.Normal(torch.zeros_like(a), 1.0))
    pyro.sample("of_new_tensor", dist.Normal(a.new_tensor(3.0), 1.0))
    pyro.sample("of_new_zeros", dist.Normal(a.new_zeros(()) + b, torch.ones_like(c)))
    pyro.sample("of_shape", dist.Normal(float(a.dim()), 1.0))
    buffer = torch.zeros(3)
    buffer[0] = a
    buffer[1] = b
    buffer[0] = c  # the old value is gone
    pyro.sample("of_overwritten", dist.Normal(buffer[0], 1.0))
    first, second, _ = torch.stack([a, b, c]).unbind()
    pyro.sample("of_unbind", dist.Normal(first + 0 * 2.0, second.exp()))


def zero_makes_no_edge():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("times_zero", dist.Normal(a * 0 + b, 1.0))
    pyro.sample("difference", dist.Normal(torch.where(torch.tensor(True), b, a), 1.0))


def prefix_sums():
    e = [pyro.sample(f"e_{t}", dist.Normal(0.0, 1.0)) for t in range(4)]
    path = torch.cumsum(torch.stack(e), 0)
    for t in range(4):
        pyro.sample(f"y_{t}", dist.Normal(path[t], 0.5))


def sparse_matrix():
    e = torch.stack([pyro.sample(f"e_{t}", dist.Normal(0.0, 1.0)) for t in range(4)])
    band = torch.eye(4) - 0.5 * torch.diag(torch.ones(3), -1)
    loc = band @ e
    for t in range(4):
        pyro.sample(f"y_{t}", dist.Normal(loc[t], 0.5))
    lower = torch.tril(torch.ones(4, 4))
    pyro.sample("sums", dist.Normal(lower @ e, 1.0).to_event(1))


PROGRAMS: dict[str, Case] = {
    "single_normal": Case(model=single_normal, parents={"x": set()}, notes="one scalar site"),
    "one_of_each_family": Case(
        model=one_of_each_family,
        parents={
            name: set()
            for name in (
                "normal",
                "log_normal",
                "half_normal",
                "uniform",
                "exponential",
                "laplace",
                "logistic",
                "cauchy",
                "half_cauchy",
            )
        },
    ),
    "chain_of_families": Case(
        model=chain_of_families,
        parents={
            "scale": set(),
            "loc": {"scale"},
            "rate": {"scale"},
            "y": {"loc", "scale"},
            "w": {"rate"},
            "c": {"y", "w", "scale"},
            "h": {"c"},
        },
        notes="every family takes its parameters from parents",
    ),
    "uniform_between_parents": Case(
        model=uniform_between_parents,
        parents={"low": set(), "width": set(), "x": {"low", "width"}, "y": {"x"}},
        notes="the support depends on other sites, so there is no fixed constraint map",
    ),
    "funnel": Case(model=funnel, parents={"v": set(), "x": {"v"}}),
    "lambda": Case(
        model=lambda: pyro.sample("b", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)) / 2, 1.0)),
        parents={"a": set(), "b": {"a"}},
        notes="a lambda; the inner call comes first",
    ),
    "keywords": Case(
        model=regression,
        args=(0.5,),
        kwargs={"intercept": -1.0, "noise": torch.tensor(0.3)},
        parents={"x": set(), "y": {"x"}},
        notes="a positional argument and keywords, one of them a tensor",
    ),
    "partial": Case(
        model=functools.partial(regression, noise=2.0),
        kwargs={"slope": 3.0},
        parents={"x": set(), "y": {"x"}},
        notes="functools.partial",
    ),
    "callable_object": Case(
        model=Collider(0.5), args=(2.0,), parents={"a": set(), "b": set(), "c": {"a", "b"}}, notes="an object"
    ),
    "bound_method": Case(
        model=Collider(0.5).__call__, args=(1.0,), parents={"a": set(), "b": set(), "c": {"a", "b"}}, notes="a method"
    ),
    "closure_over_data": Case(
        model=closure_over_data, factory=True, parents={"a": set(), "b_1": {"a"}, "b_2": {"a"}}, notes="a closure"
    ),
    "gaussian_tree": Case(
        model=gaussian_tree,
        parents={
            **{f"leaf_{i}": set() for i in range(4)},
            "node_0_0": {"leaf_0", "leaf_1"},
            "node_0_1": {"leaf_2", "leaf_3"},
            "node_1_0": {"node_0_0", "node_0_1"},
        },
        notes="a while loop over things that are not random is fine",
    ),
    "mixed_dtypes": Case(
        model=mixed_dtypes,
        parents={"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}},
        notes="integer and float32 constants, Boolean intermediate results",
    ),
    "unused_site": Case(model=unused_site, parents={"nuisance": set(), "a": set(), "b": {"a"}}),
    "memory_makes_no_edge": Case(
        model=memory_makes_no_edge,
        parents={
            "a": set(),
            "b": set(),
            "c": set(),
            "of_stack": {"b"},
            "of_cat": {"c"},
            "of_zeros_like": set(),
            "of_new_tensor": set(),
            "of_new_zeros": {"b"},
            "of_shape": set(),
            "of_overwritten": {"c"},
            "of_unbind": {"a", "b"},
        },
        notes="values that share memory or a shape with a site, and depend on nothing of it",
    ),
    "zero_makes_no_edge": Case(
        model=zero_makes_no_edge,
        parents={"a": set(), "b": set(), "times_zero": {"b"}, "difference": {"b"}},
        notes="a product with zero, a selection by a constant",
    ),
    "prefix_sums": Case(
        model=prefix_sums,
        parents={
            **{f"e_{t}": set() for t in range(4)},
            **{f"y_{t}": {f"e_{s}" for s in range(t + 1)} for t in range(4)},
        },
        notes="cumsum depends on the prefix only",
    ),
    "sparse_matrix": Case(
        model=sparse_matrix,
        parents={
            **{f"e_{t}": set() for t in range(4)},
            **{f"y_{t}": {f"e_{s}" for s in (t - 1, t) if s >= 0} for t in range(4)},
            "sums": {f"e_{t}" for t in range(4)},
        },
        notes="a product with a constant matrix depends where the matrix is not zero",
    ),
}
