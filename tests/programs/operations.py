"""Programs whose parameters are computed by many kinds of tensor operations."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch.nn import functional

from tests.programs.case import Case

__all__ = ["PROGRAMS"]


def _normal(name, loc, scale=0.5):
    return pyro.sample(name, dist.Normal(loc, scale).to_event(loc.dim()))


def linear_algebra():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    m = pyro.sample("m", dist.Normal(torch.zeros(3, 3), 0.3).to_event(2))
    _normal("matmul", m @ a)
    _normal("einsum", torch.einsum("ij,j,k->ik", m, a, torch.tensor([1.0, 2.0])))
    covariance = m @ m.mT + torch.eye(3)
    tril = torch.linalg.cholesky(covariance)
    _normal("cholesky", tril[1:, :2])
    _normal("solve", torch.linalg.solve_triangular(tril, a[:, None], upper=False)[:, 0])
    _normal("logdet", torch.logdet(covariance).reshape(1))
    _normal("outer", torch.outer(a[:2], a[1:]))


def reductions():
    a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    _normal("cumsum", torch.cumsum(a, 0))
    _normal("softmax", torch.softmax(a, -1))
    _normal("logsumexp", torch.logsumexp(a[:2], 0).reshape(1))
    _normal("moments", torch.stack([a.mean(), a.var(), a.prod(), a.norm()]))
    _normal("extremes", torch.stack([a.max(), a.min()]))
    _normal("sorted", a.sort().values)


def movement():
    a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    _normal("flip", a.flip(0)[:2])
    _normal("roll", torch.roll(a, 1)[1:])
    _normal("gather", a.gather(0, torch.tensor([3, 3, 0])))
    _normal("where", torch.where(torch.tensor([True, False, True, False]), a, 2.0))
    _normal("clamp", a.clamp(-0.5, 0.5))
    _normal("tril", torch.tril(b @ b.mT))
    _normal("permute", b.permute(1, 0).reshape(-1)[1::2])
    _normal("pad", functional.pad(a, (1, 0))[:2])
    _normal("unfold", a.unfold(0, 2, 1).sum(-1))
    _normal("index_add", torch.zeros(2).index_add(0, torch.tensor([0, 1, 0, 1]), a))


def one_hot():
    codes = functional.one_hot(torch.tensor([1, 0, 1]), 3)
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    _normal("b", codes.to(a.dtype) @ a)


def nonlinearities():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    b = a.abs() + 0.1
    _normal("powers", torch.stack([a[0] ** 2, b[1].sqrt(), b[2] ** -0.5, torch.pow(2.0, a[0])]))
    _normal("activations", torch.stack([torch.sigmoid(a[0]), functional.gelu(a[1]), functional.leaky_relu(a[2])]))
    _normal("waves", torch.sin(math.pi * a) + torch.atan2(a, b))
    _normal("special", torch.stack([torch.erf(a[0]), torch.lgamma(b[1]), torch.expm1(a[2]), torch.log1p(b[0])]))
    _normal("select", torch.where(a > 0, a, -0.1 * a.exp()))
    pyro.sample("scale", dist.LogNormal(torch.maximum(a[0], a[1]), functional.softplus(a[2])))


def elementwise_edges():
    a = [pyro.sample(f"a_{i}", dist.Normal(0.0, 1.0)) for i in range(4)]
    vector = torch.stack(a)
    pyro.sample("flip", dist.Normal(vector.flip(0)[0], 1.0))
    pyro.sample("roll", dist.Normal(vector.roll(1)[0], 1.0))
    pyro.sample("block", dist.Normal(torch.tril(vector.reshape(2, 2))[0].sum(), 1.0))
    pyro.sample("where", dist.Normal(torch.where(torch.arange(4) < 2, vector, 0.0).sum(), 1.0))
    pyro.sample("sum", dist.Normal(vector[1:3].sum(), 1.0))
    pyro.sample("diff", dist.Normal(vector.diff()[2], 1.0))
    pyro.sample("product", dist.Normal((vector * vector.roll(2))[0], 1.0))
    pyro.sample("expand", dist.Normal(vector[3].expand(2, 2), 1.0).to_event(2))


def gaussian_process():
    inputs = torch.linspace(0.0, 1.0, 5)
    length = pyro.sample("length", dist.LogNormal(-1.0, 0.3))
    distance = (inputs[:, None] - inputs) ** 2
    covariance = torch.exp(-0.5 * distance / length**2) + 1e-2 * torch.eye(5)
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(5), covariance_matrix=covariance))
    pyro.sample("y", dist.Normal(f, 0.1).to_event(1))


def vmap_inside():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    weights = torch.tensor([[1.0, 0.5], [0.2, -1.0], [0.0, 2.0]])
    loc = torch.vmap(lambda x, w: torch.tanh(x) * w)(a, weights)
    _normal("b", loc)


def func_grad_inside():
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    force = torch.func.grad(lambda q: (0.25 * q**4 - q[0] * q[1]).sum())(a)
    _normal("b", a - 0.1 * force)


def autograd_inside():
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with torch.enable_grad():
        q = a if a.requires_grad else a.detach().requires_grad_()
        energy = (0.25 * q**4).sum() - q[0] * q[1]
        (force,) = torch.autograd.grad(energy, q, create_graph=True)
    _normal("b", a - 0.1 * force)


def control_flow_on_constants(depth=3, use_tail=True):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    table = {"gain": 0.5, "loc": torch.tensor(1.0)}
    i = 0
    while i < depth:
        x = torch.tanh(x) + table["gain"] * i if i % 2 else torch.sin(x)
        i += 1
    if table["loc"] > 0 and use_tail:  # a branch on a constant
        pyro.sample("tail", dist.Cauchy(x, 1.0))
    steps = int(table["loc"]) + 1
    for k in range(steps):
        pyro.sample(f"leaf_{k}", dist.Normal(x * k, 1.0 + k))


PROGRAMS: dict[str, Case] = {
    "linear_algebra": Case(
        model=linear_algebra,
        parents={
            "a": set(),
            "m": set(),
            "matmul": {"a", "m"},
            "einsum": {"a", "m"},
            "cholesky": {"m"},
            "solve": {"a", "m"},
            "logdet": {"m"},
            "outer": {"a"},
        },
    ),
    "reductions": Case(
        model=reductions,
        parents={
            "a": set(),
            **{name: {"a"} for name in ("cumsum", "softmax", "logsumexp", "moments", "extremes", "sorted")},
        },
    ),
    "movement": Case(
        model=movement,
        parents={
            "a": set(),
            "b": set(),
            **{name: {"a"} for name in ("flip", "roll", "gather", "where", "clamp")},
            "tril": {"b"},
            "permute": {"b"},
            **{name: {"a"} for name in ("pad", "unfold", "index_add")},
        },
        notes="values that are only moved, by constant indices",
    ),
    "one_hot": Case(
        model=one_hot, parents={"a": set(), "b": {"a"}}, make_fx=False, notes="one_hot reads its constant input"
    ),
    "nonlinearities": Case(
        model=nonlinearities,
        parents={
            "a": set(),
            **{name: {"a"} for name in ("powers", "activations", "waves", "special", "select", "scale")},
        },
    ),
    "elementwise_edges": Case(
        model=elementwise_edges,
        parents={
            **{f"a_{i}": set() for i in range(4)},
            "flip": {"a_3"},
            "roll": {"a_3"},
            "block": {"a_0"},
            "where": {"a_0", "a_1"},
            "sum": {"a_1", "a_2"},
            "diff": {"a_2", "a_3"},
            "product": {"a_0", "a_2"},
            "expand": {"a_3"},
        },
        notes="edges are exact per element through movement and sums",
    ),
    "gaussian_process": Case(
        model=gaussian_process,
        parents={"length": set(), "f": {"length"}, "y": {"f"}},
        notes="the covariance is built from a random length scale",
    ),
    "vmap_inside": Case(model=vmap_inside, parents={"a": set(), "b": {"a"}}),
    "func_grad_inside": Case(model=func_grad_inside, parents={"a": set(), "b": {"a"}}),
    "autograd_inside": Case(model=autograd_inside, parents={"a": set(), "b": {"a"}}, make_fx=False),
    "control_flow_on_constants": Case(
        model=control_flow_on_constants,
        kwargs={"depth": 2},
        parents={"x": set(), "tail": {"x"}, "leaf_0": set(), "leaf_1": {"x"}},
        notes="branches, loops and int() of things that are not random; a factor that is zero",
    ),
}
