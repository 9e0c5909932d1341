"""Programs over time: loops, buffers, recurrences."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch

from tests.programs.case import Case

__all__ = ["PROGRAMS"]


def random_walk(steps=6):
    x = pyro.sample("x_0", dist.Normal(0.0, 0.1))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 0.1))


def geometric_walk():
    x = pyro.sample("x_0", dist.LogNormal(0.0, 0.1))
    for t in range(1, 5):
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), 0.1))


def buffer_walk():
    x = torch.zeros(5)
    x[0] = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, 5):
        x[t] = pyro.sample(f"x_{t}", dist.Normal(0.8 * x[t - 1], 0.5))
    pyro.sample("end", dist.Normal(x.sum(), 1.0))


def second_order():
    sigma = pyro.param("sigma", torch.tensor(0.5), constraint=dist.constraints.positive)
    history = [pyro.sample("x_0", dist.Normal(0.0, 1.0)), pyro.sample("x_1", dist.Normal(0.0, 1.0))]
    for t in range(2, 6):
        window = torch.stack(history)[-2:]
        history.append(pyro.sample(f"x_{t}", dist.Normal(2 * window[1] - window[0], sigma)))


def sequential_plate():
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", 4):
        pyro.sample(f"y_{i}", dist.Normal(level * (i + 1), 0.5 + i))


def markov_loop():
    state = pyro.sample("s_0", dist.Normal(0.0, 1.0))
    for t in pyro.markov(range(1, 4)):
        state = pyro.sample(f"s_{t}", dist.Normal(torch.sin(state), 0.3))
        pyro.sample(f"o_{t}", dist.Laplace(state, 0.2))


def hidden_recurrence():
    w = pyro.param("w", torch.tensor([0.5, -0.3]))
    hidden = torch.zeros(2)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, 5):
        hidden = torch.tanh(w * hidden + x)
        x = pyro.sample(f"x_{t}", dist.Normal(hidden.sum(), 0.5))


def gru():
    cell = torch.nn.GRUCell(1, 3)
    head = torch.nn.Linear(3, 2)

    def model():
        pyro.module("cell", cell)
        pyro.module("head", head)
        hidden, x = torch.zeros(1, 3), torch.zeros(1, 1)
        for t in range(4):
            hidden = cell(x, hidden)
            loc, log_scale = head(hidden).squeeze(0).unbind()
            x = pyro.sample(f"x_{t}", dist.Normal(loc, log_scale.exp())).reshape(1, 1)

    return model


def lorenz_scalar(steps=4, dt=0.02):
    x, y, z = (pyro.sample(f"{name}_0", dist.Normal(0.0, 1.0)) for name in "xyz")
    for t in range(1, steps):
        dx, dy, dz = 10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z
        x = pyro.sample(f"x_{t}", dist.Normal(x + dt * dx, 0.0141))
        y = pyro.sample(f"y_{t}", dist.Normal(y + dt * dy, 0.0141))
        z = pyro.sample(f"z_{t}", dist.Normal(z + dt * dz, 0.0141))


def lorenz_vector(steps=5, dt=0.02):
    def velocity(s):
        return torch.stack([10.0 * (s[1] - s[0]), s[0] * (28.0 - s[2]) - s[1], s[0] * s[1] - 8.0 / 3.0 * s[2]])

    state = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(state + dt * velocity(state), 0.1).to_event(1))


def conditioned_walk():
    def model(obs_noise):
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, 4):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(x, obs_noise))

    data = {"y_1": torch.tensor(0.3), "y_2": torch.tensor(-0.5), "y_3": torch.tensor(1.2)}
    return poutine.condition(model, data=data)


def vector_autoregression():
    transition = torch.tensor([[0.5, 0.2, 0.0], [0.0, 0.4, 0.1], [0.0, 0.0, 0.9]])
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    for t in range(1, 4):
        x = pyro.sample(f"x_{t}", dist.MultivariateNormal(transition @ x, scale_tril=0.3 * torch.eye(3)))


def stochastic_volatility():
    h = pyro.sample("h_0", dist.Normal(0.0, 1.0))
    for t in range(1, 5):
        h = pyro.sample(f"h_{t}", dist.Normal(0.95 * h, 0.2))
        pyro.sample(f"r_{t}", dist.Normal(0.0, torch.exp(h / 2)))


PROGRAMS: dict[str, Case] = {
    "random_walk": Case(
        model=random_walk,
        parents={"x_0": set(), **{f"x_{t}": {f"x_{t - 1}"} for t in range(1, 6)}},
        notes="a chain in a Python loop, names by f-strings",
    ),
    "geometric_walk": Case(
        model=geometric_walk, parents={"x_0": set(), **{f"x_{t}": {f"x_{t - 1}"} for t in range(1, 5)}}
    ),
    "buffer_walk": Case(
        model=buffer_walk,
        parents={
            "x_0": set(),
            **{f"x_{t}": {f"x_{t - 1}"} for t in range(1, 5)},
            "end": {f"x_{t}" for t in range(5)},
        },
        notes="states stored in place in one buffer",
    ),
    "second_order": Case(
        model=second_order,
        parents={"x_0": set(), "x_1": set(), **{f"x_{t}": {f"x_{t - 1}", f"x_{t - 2}"} for t in range(2, 6)}},
        notes="smoothness with a learned noise; a sliding window over a list",
    ),
    "sequential_plate": Case(
        model=sequential_plate,
        parents={"level": set(), **{f"y_{i}": {"level"} for i in range(4)}},
        notes="the plate's index is a Python number",
    ),
    "markov_loop": Case(
        model=markov_loop,
        parents={
            "s_0": set(),
            **{key: value for t in range(1, 4) for key, value in ((f"s_{t}", {f"s_{t - 1}"}), (f"o_{t}", {f"s_{t}"}))},
        },
    ),
    "hidden_recurrence": Case(
        model=hidden_recurrence,
        parents={f"x_{t}": {f"x_{s}" for s in range(t)} for t in range(5)},
        notes="a deterministic state feeds the next step",
    ),
    "gru": Case(
        model=gru,
        factory=True,
        parents={f"x_{t}": {f"x_{s}" for s in range(t)} for t in range(4)},
        notes="a recurrent network over the sites before",
    ),
    "lorenz_scalar": Case(
        model=lorenz_scalar,
        parents={
            **{f"{name}_0": set() for name in "xyz"},
            **{
                f"{name}_{t}": {f"{parent}_{t - 1}" for parent in ("xy" if name == "x" else "xyz")}
                for t in range(1, 4)
                for name in "xyz"
            },
        },
    ),
    "lorenz_vector": Case(
        model=lorenz_vector, parents={"s_0": set(), **{f"s_{t}": {f"s_{t - 1}"} for t in range(1, 5)}}
    ),
    "conditioned_walk": Case(
        model=conditioned_walk,
        factory=True,
        args=(0.7,),
        parents={
            "x_0": set(),
            **{key: value for t in range(1, 4) for key, value in ((f"x_{t}", {f"x_{t - 1}"}), (f"y_{t}", {f"x_{t}"}))},
        },
        observed=("y_1", "y_2", "y_3"),
        notes="poutine.condition around the model",
    ),
    "vector_autoregression": Case(
        model=vector_autoregression,
        parents={"x_0": set(), **{f"x_{t}": {f"x_{t - 1}"} for t in range(1, 4)}},
        notes="multivariate steps",
    ),
    "stochastic_volatility": Case(
        model=stochastic_volatility,
        parents={
            "h_0": set(),
            **{key: value for t in range(1, 5) for key, value in ((f"h_{t}", {f"h_{t - 1}"}), (f"r_{t}", {f"h_{t}"}))},
        },
    ),
}
