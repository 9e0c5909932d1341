"""Programs of any length whose deterministic state is carried from step to step."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

__all__ = ["RECURRENCES", "recurrence"]


def running_sum(steps):
    total = torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(0.1 * total, 1.0))
        total = total + x


def tanh_cell(steps):
    w = pyro.param("w", torch.tensor([0.5, -0.3]))
    hidden, x = torch.zeros(2), torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(hidden.sum(), 0.5))
        hidden = torch.tanh(w * hidden + x)


def garch(steps):
    omega = pyro.param("omega", torch.tensor(0.1), constraint=dist.constraints.positive)
    alpha = pyro.sample("alpha", dist.Beta(2.0, 8.0))
    beta = pyro.sample("beta", dist.Beta(8.0, 2.0))
    variance = torch.ones(())
    for t in range(steps):
        r = pyro.sample(f"r_{t}", dist.Normal(0.0, variance.sqrt()))
        variance = omega + alpha * r**2 + beta * variance


def decay(steps):
    rate = pyro.param("rate", torch.tensor(0.9), constraint=dist.constraints.unit_interval)
    scale = torch.ones(())
    for t in range(steps):
        scale = scale * rate
        pyro.sample(f"x_{t}", dist.Normal(0.0, scale + 0.1))


def backwards_decay(steps):
    """States first, then sites that read them from the last to the first."""
    rate = pyro.sample("rate", dist.Beta(9.0, 1.0))
    states = [torch.ones(())]
    for _ in range(steps):
        states.append(states[-1] * rate)
    for t in reversed(range(steps)):
        pyro.sample(f"x_{t}", dist.Normal(0.0, states[t] + 0.1))


def buffer(steps):
    held = torch.zeros(steps + 1, 2)
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(held[t, 0], 1.0))
        held[t + 1] = torch.stack([0.5 * held[t, 0] + x, torch.sin(held[t, 1] + held[t, 0])])


def every_third(steps):
    state = torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))
        state = torch.tanh(state * 0.9 + x)
        if t % 3 == 2:
            pyro.sample(f"y_{t}", dist.Normal(state, 0.1))


def lstm():
    cell, head = torch.nn.LSTMCell(1, 3), torch.nn.Linear(3, 1)

    def model(steps):
        pyro.module("cell", cell)
        pyro.module("head", head)
        hidden, memory, x = torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 1)
        for t in range(steps):
            hidden, memory = cell(x, (hidden, memory))
            x = pyro.sample(f"x_{t}", dist.Normal(head(hidden).reshape(()), 0.5)).reshape(1, 1)

    return model


def gru():
    cell, head = torch.nn.GRUCell(1, 3), torch.nn.Linear(3, 2)

    def model(steps):
        pyro.module("cell", cell)
        pyro.module("head", head)
        hidden, x = torch.zeros(1, 3), torch.zeros(1, 1)
        for t in range(steps):
            hidden = cell(x, hidden)
            loc, log_scale = head(hidden).squeeze(0).unbind()
            x = pyro.sample(f"x_{t}", dist.Normal(loc, log_scale.exp())).reshape(1, 1)

    return model


def coupled(steps):
    """Two states that read each other, one of them of another shape."""
    a, b = torch.zeros(2), torch.ones(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(a + b, 1.0).to_event(1))
        y = pyro.sample(f"y_{t}", dist.Normal(b, 0.5))
        a, b = torch.tanh(a * b + x), torch.sigmoid(a.sum() + y)


def several(steps):
    """Independent chains in one loop, of which the sites read parts."""
    states = [torch.zeros(()) for _ in range(3)]
    for t in range(steps):
        for k in range(3):
            x = pyro.sample(f"x_{t}_{k}", dist.Normal(states[k], 1.0))
            states[k] = torch.tanh(0.5 * states[k] + x)


def parts(steps):
    """A vector state whose elements are independent, of which one is never read."""
    state = torch.zeros(3)
    for t in range(steps):
        a = pyro.sample(f"a_{t}", dist.Normal(state[0], 1.0))
        b = pyro.sample(f"b_{t}", dist.Normal(state[2], 1.0))
        state = torch.sin(0.5 * state + torch.stack([a, a, b]))


def two_back(steps):
    """A state that reads the two states before."""
    first, second = torch.ones(()), torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(second, 1.0))
        first, second = second, torch.tanh(0.5 * second - 0.2 * first + x)


def counter(steps):
    """A whole number is carried beside a real one."""
    count, total = torch.zeros((), dtype=torch.int64), torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(total / (1 + count), 1.0))
        count = count + (x > 0).long()
        total = total + x.abs()


def latch(steps):
    """A Boolean and a remainder that is not bounded by any rule are carried."""
    seen, rest = torch.tensor(False), torch.zeros((), dtype=torch.int64)
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(torch.where(seen, 1.0, 0.0) + 0.1 * rest, 1.0))
        seen = seen | (x > 1)
        rest = (rest + (x < 0).long()) % 3


def branching(steps):
    """A state that flows down a binary tree."""
    states = [torch.zeros(())]
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(states[t], 1.0))
        states[t] = torch.tanh(states[t] + x)
        states += [0.5 * states[t], 0.3 * states[t]]


def observed(steps):
    """Observed sites read the state as well."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    state = torch.zeros(())
    for t in range(steps):
        state = 0.8 * state + level
        pyro.sample(f"y_{t}", dist.Normal(state, 1.0), obs=torch.tensor(0.1 * t))
    pyro.sample("end", dist.Normal(state, 1.0))


def matrix_state(steps):
    """A Kalman-like covariance that no site moves, beside a mean that they do."""
    cov, mean = torch.eye(2), torch.zeros(2)
    turn = torch.tensor([[0.9, 0.1], [-0.1, 0.9]])
    for t in range(steps):
        cov = turn @ cov @ turn.T + 0.1 * torch.eye(2)
        x = pyro.sample(f"x_{t}", dist.MultivariateNormal(mean, covariance_matrix=cov))
        mean = turn @ (0.5 * mean + 0.5 * x)


def positive(steps):
    """The logarithm of positive values is carried, which no negative value has."""
    state = torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.LogNormal(state, 0.5))
        state = torch.tanh(0.5 * state + x.log())


def decomposed(steps):
    """A matrix that grows by positive values is decomposed at every step, which raises where they are negative."""
    held = torch.eye(2)
    for t in range(steps):
        root = torch.linalg.cholesky(held)
        x = pyro.sample(f"x_{t}", dist.LogNormal(torch.zeros(2), root.diagonal().tanh()).to_event(1))
        held = 0.5 * held + torch.diag(x) + 0.1 * root @ root.T


_FUNCTIONS = (
    running_sum, tanh_cell, garch, decay, backwards_decay, buffer, every_third, coupled, several, parts, two_back,
    counter, latch, branching, observed, matrix_state, positive, decomposed,
)  # fmt: skip
_MAKERS = (lstm, gru)
RECURRENCES = (*(function.__name__ for function in _FUNCTIONS), *(maker.__name__ for maker in _MAKERS))


def recurrence(name):
    """A program of that name, to be called with the number of steps; its weights are the same at every call."""
    for maker in _MAKERS:
        if maker.__name__ == name:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return maker()
    return next(function for function in _FUNCTIONS if function.__name__ == name)
