"""Programs with learned parameters: pyro.param, pyro.module, PyroModule."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample

from tests.programs.case import Case

__all__ = ["PROGRAMS"]


def constrained_parameters():
    loc = pyro.param("loc", torch.tensor([0.3, 1.0, -1.0]))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    share = pyro.param("share", lambda: torch.tensor(0.25), constraint=constraints.unit_interval)
    tril = pyro.param("tril", torch.eye(3) + 0.2 * torch.ones(3, 3).tril(-1), constraint=constraints.lower_cholesky)
    low = pyro.param("low", torch.tensor(-0.5), constraint=constraints.interval(-1.0, 0.0))
    a = pyro.sample("a", dist.MultivariateNormal(loc, scale_tril=tril))
    b = pyro.sample("b", dist.Normal(share * (weights * a).sum(), scale))
    pyro.sample("c", dist.Uniform(low + 0 * share, share + scale))
    pyro.sample("d", dist.Laplace(pyro.param("loc")[0] * b, scale))


def shared_over_time():
    sigma = pyro.param("sigma", torch.ones(()), constraint=constraints.positive)
    x = pyro.sample("x_0", dist.Normal(pyro.param("start", torch.zeros(())), 1.0))
    for t in range(1, 5):
        sigma = pyro.param("sigma")
        x = pyro.sample(f"x_{t}", dist.Normal(x, sigma))


def parameter_per_row():
    with pyro.plate("rows", 3):
        loc = pyro.param("loc", torch.linspace(-1.0, 1.0, 3), event_dim=0)
        a = pyro.sample("a", dist.Normal(loc, 1.0))
        pyro.sample("b", dist.Normal(pyro.param("gain", torch.tensor(2.0)) * a, 0.5))


def linear_module():
    net = torch.nn.Linear(2, 3)

    def model():
        layer = pyro.module("net", net)
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(layer(a), 0.5).to_event(1))

    return model


def perceptron_module():
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2))

    def model():
        pyro.module("decoder", net)
        with pyro.plate("rows", 3):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc, log_scale = net(a).chunk(2, dim=-1)
            pyro.sample("b", dist.Normal(loc, torch.nn.functional.softplus(log_scale)).to_event(1))

    return model


class Regression(PyroModule):
    """Priors on weights, a constrained parameter, a plain parameter and a constant buffer."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(lambda module: dist.Normal(0.0, module_scale(module)).expand([1]).to_event(1))
        self.noise = PyroParam(torch.tensor(0.4), constraint=constraints.positive)
        self.shift = torch.nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))
        self.register_buffer("design", torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.3, 0.0]]))

    def forward(self):
        loc = self.linear(self.design).squeeze(-1) + self.shift
        with pyro.plate("rows", 3):
            return pyro.sample("y", dist.Normal(loc, self.noise))


def module_scale(module):
    """Half a unit, as a prior that is made from its module would have it."""
    return 0.5 * torch.ones((), dtype=next(module.buffers(), torch.ones(())).dtype)


class Dynamics(PyroModule):
    """Ordinary parameters in a module that is itself the program."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.5, -0.2], [0.1, 0.7]]))
        self.bias = torch.nn.Parameter(torch.zeros(2))
        self.head = PyroModule[torch.nn.Linear](2, 2)

    def forward(self, steps=3):
        x = pyro.sample("x_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        for t in range(1, steps):
            x = pyro.sample(f"x_{t}", dist.Normal(self.head(torch.tanh(self.weight @ x + self.bias)), 0.3).to_event(1))
        return x


class PlainModule(torch.nn.Module):
    """An nn.Module that is the program, and that registers itself."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self):
        pyro.module("plain", self)
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        return pyro.sample("b", dist.Normal(self.gain * a, 1.0))


def evaluation_mode():
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    net.eval()

    def model():
        pyro.module("net", net)
        a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(net(a), 1.0).to_event(1))

    return model


PROGRAMS: dict[str, Case] = {
    "constrained_parameters": Case(
        model=constrained_parameters,
        parents={"a": set(), "b": {"a"}, "c": set(), "d": {"b"}},
        notes="positive, simplex, unit interval, interval, lower Cholesky; one parameter is read twice",
    ),
    "shared_over_time": Case(
        model=shared_over_time, parents={"x_0": set(), **{f"x_{t}": {f"x_{t - 1}"} for t in range(1, 5)}}
    ),
    "parameter_per_row": Case(model=parameter_per_row, parents={"a": set(), "b": {"a"}}, notes="pyro.param in a plate"),
    "linear_module": Case(model=linear_module, factory=True, parents={"a": set(), "b": {"a"}}),
    "perceptron_module": Case(
        model=perceptron_module, factory=True, parents={"a": set(), "b": {"a"}}, notes="chunk, LayerNorm, softplus"
    ),
    "bayesian_regression": Case(
        model=Regression,
        factory=True,
        parents={"linear.weight": set(), "linear.bias": set(), "y": {"linear.weight", "linear.bias"}},
        notes="PyroSample, PyroParam, nn.Parameter and a buffer",
    ),
    "dynamics_module": Case(
        model=Dynamics,
        factory=True,
        kwargs={"steps": 4},
        parents={"x_0": set(), **{f"x_{t}": {f"x_{t - 1}"} for t in range(1, 4)}},
        notes="nn.Parameters of a PyroModule",
    ),
    "plain_module": Case(model=PlainModule, factory=True, parents={"a": set(), "b": {"a"}}),
    "evaluation_mode": Case(
        model=evaluation_mode, factory=True, parents={"a": set(), "b": {"a"}}, notes="dropout that is switched off"
    ),
}
