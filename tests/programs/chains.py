"""Programs whose sites follow one another: affine chains of many kinds, loops, levels."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

__all__ = ["AFFINE", "LOOPS", "Program"]

Program = Callable[[], object]


def _normal(name, loc, scale=0.5):
    return pyro.sample(name, dist.Normal(loc, scale))


def drifting_walk(steps=40):
    x = _normal("x_0", 0.0, 2.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", x + 0.1)


def scaled_walk(steps=40):
    sigma = pyro.param("sigma", torch.tensor(0.3), constraint=constraints.positive)
    x = _normal("x_0", 0.0, 2.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", x, sigma * (1 + t / 10))


def ornstein_uhlenbeck(steps=40):
    rate = pyro.param("rate", torch.tensor(0.7), constraint=constraints.positive)
    mean = pyro.sample("mean", dist.StudentT(5.0, 0.0, 1.0))
    x = _normal("x_0", mean, 1.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", x + rate * (mean - x) * 0.1, 0.3)


def learned_by_all(steps=40):
    coefficient = pyro.sample("coefficient", dist.Normal(0.5, 0.2))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.2))
    x = _normal("x_0", 0.0, sigma)
    for t in range(1, steps):
        x = _normal(f"x_{t}", coefficient * x, sigma)


def changing_coefficients(steps=40):
    x = _normal("x_0", 0.0)
    for t in range(1, steps):
        coefficient = pyro.sample(f"a_{t}", dist.Normal(0.5, 0.5))
        x = _normal(f"x_{t}", coefficient * x - 0.1 * t)


def second_order(steps=40):
    weights = pyro.param("weights", torch.tensor([0.5, 0.3]))
    history = [_normal("x_0", 0.0), _normal("x_1", 0.0)]
    for t in range(2, steps):
        history.append(_normal(f"x_{t}", weights[0] * history[-1] + weights[1] * history[-2]))


def seasonal(steps=50):
    history = [_normal(f"x_{t}", 0.0) for t in range(5)]
    for t in range(5, steps):
        history.append(_normal(f"x_{t}", 0.4 * history[-1] + 0.5 * history[-5]))


def windows(steps=40):
    weights = pyro.param("weights", torch.tensor([0.2, -0.3, 0.6]))
    history = [_normal(f"x_{t}", 0.0) for t in range(3)]
    for t in range(3, steps):
        history.append(_normal(f"x_{t}", (weights * torch.stack(history[-3:])).sum() - 0.2))


def regression(steps=40):
    data = torch.linspace(-1.0, 1.0, steps)
    slope = _normal("slope", 0.0)
    x = _normal("x_0", 0.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", 0.9 * x - slope * data[t] + 1.0)


def local_trend(steps=40):
    level, trend = _normal("level_0", 0.0), _normal("trend_0", 0.0)
    for t in range(1, steps):
        level = _normal(f"level_{t}", level + trend)
        trend = _normal(f"trend_{t}", trend, 0.1)
        _normal(f"y_{t}", level, 0.2)


def local_trend_vector(steps=40):
    transition = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(1, steps):
        state = pyro.sample(f"s_{t}", dist.Normal(transition @ state, torch.tensor([0.3, 0.1])).to_event(1))


def vector_levels(steps=40):
    rates = pyro.param("rates", torch.tensor([0.9, 0.5, -0.3]))
    x = pyro.sample("x_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(rates * x + 0.1, 0.5).to_event(1))


def plated_walks(steps=40):
    with pyro.plate("rows", 4):
        x = _normal("x_0", torch.zeros(4))
    for t in range(1, steps):
        with pyro.plate(f"rows_{t}", 4):
            x = _normal(f"x_{t}", x)


def vector_autoregression(steps=40):
    transition = pyro.param("transition", torch.tensor([[0.5, 0.2, 0.1], [0.0, 0.4, 0.1], [0.3, -0.2, 0.6]]))
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    for t in range(1, steps):
        tril = torch.tensor([[0.3, 0.0, 0.0], [0.1, 0.4, 0.0], [0.0, 0.2, 0.5]])
        x = pyro.sample(f"x_{t}", dist.MultivariateNormal(transition @ x + 0.1, scale_tril=tril))


def vector_of_second_order(steps=40):
    near, far = torch.tensor([[0.5, 0.1], [0.0, 0.4]]), torch.tensor([[0.1, 0.0], [0.2, 0.3]])
    history = [pyro.sample(f"x_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1)) for t in range(2)]
    for t in range(2, steps):
        loc = near @ history[-1] + far @ history[-2]
        history.append(pyro.sample(f"x_{t}", dist.Normal(loc, 0.5).to_event(1)))


def matrix_states(steps=20):
    left = torch.tensor([[0.5, 0.2], [-0.1, 0.8]])
    x = pyro.sample("x_0", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(left @ x, 0.5).to_event(2))


def side_by_side(steps=30):
    states = [_normal(f"x_0_{place}", 0.0) for place in range(3)]
    for t in range(1, steps):
        states = [_normal(f"x_{t}_{place}", 0.8 * state) for place, state in enumerate(states)]


def of_different_lengths():
    for place, steps in enumerate((20, 7, 33)):
        x = _normal(f"x_{place}_0", 0.0)
        for t in range(1, steps):
            x = _normal(f"x_{place}_{t}", x)


def two_steps_back(steps=30):
    history = [_normal("x_0", 0.0), _normal("x_1", 0.0)]
    for t in range(2, steps):
        history.append(_normal(f"x_{t}", history[-2] / 2))


def chosen_by_data(steps=30):
    on = torch.arange(steps) % 3 == 0
    other = _normal("other", 0.0)
    x = _normal("x_0", 0.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", torch.where(on[t], x, -0.5 * x) + other)


def sometimes_further_back(steps=30):
    other = _normal("other", 0.0)
    history = [_normal("x_0", 0.0), _normal("x_1", 0.0)]
    for t in range(2, steps):
        history.append(_normal(f"x_{t}", 0.6 * history[-1] + 0.3 * (history[-2] if t % 3 else other)))


def windows_with_others(steps=30):
    weights, other = pyro.param("weights", torch.tensor([0.5, -0.4])), _normal("other", 0.0)
    history = [_normal("x_0", 0.0), _normal("x_1", 0.0)]
    for t in range(2, steps):
        before = history[-2] if t % 4 else other
        history.append(_normal(f"x_{t}", torch.dot(weights, torch.stack([history[-1], before]))))


def heavy_tails(steps=30):
    x = pyro.sample("x_0", dist.StudentT(3.0, 0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.StudentT(3.0, 0.9 * x, 0.5))


def laplace_walk(steps=30):
    x = pyro.sample("x_0", dist.Laplace(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Laplace(x, 0.5))


def unstable(steps=30):
    x = _normal("x_0", 0.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", 1.5 * x)


def volatility(steps=30):
    h = _normal("h_0", 0.0)
    for t in range(1, steps):
        h = _normal(f"h_{t}", 0.95 * h, 0.2)
        _normal(f"r_{t}", 0.0, torch.exp(h / 2))


AFFINE: dict[str, Program] = {
    held.__name__: held
    for held in (
        drifting_walk, scaled_walk, ornstein_uhlenbeck, learned_by_all, changing_coefficients, second_order, seasonal,
        windows, regression, local_trend, local_trend_vector, vector_levels, plated_walks, vector_autoregression,
        vector_of_second_order, matrix_states, side_by_side, of_different_lengths, two_steps_back, chosen_by_data,
        sometimes_further_back, windows_with_others, heavy_tails, laplace_walk, unstable, volatility,
    )
}  # fmt: skip


def lorenz(steps=20, dt=0.02):
    x, y, z = (_normal(f"{name}_0", 0.0) for name in "xyz")
    for t in range(1, steps):
        dx, dy, dz = 10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z
        x, y, z = _normal(f"x_{t}", x + dt * dx), _normal(f"y_{t}", y + dt * dy), _normal(f"z_{t}", z + dt * dz)


def lorenz_vector(steps=20, dt=0.02):
    rate = pyro.param("rate", torch.tensor(10.0))
    s = pyro.sample("s_0", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    for t in range(1, steps):
        v = torch.stack([rate * (s[1] - s[0]), s[0] * (28.0 - s[2]) - s[1], s[0] * s[1] - 8.0 / 3.0 * s[2]])
        s = pyro.sample(f"s_{t}", dist.Normal(s + dt * v, 0.1).to_event(1))


def pendulum(steps=20):
    angle, speed = _normal("angle_0", 0.0), _normal("speed_0", 0.0)
    for t in range(1, steps):
        angle = _normal(f"angle_{t}", angle + 0.1 * speed)
        speed = _normal(f"speed_{t}", speed - torch.sin(angle))


def heteroscedastic(steps=20):
    x = _normal("x_0", 0.0)
    for t in range(1, steps):
        x = _normal(f"x_{t}", 0.1 * t, torch.sqrt(0.2 + 0.5 * x**2))


def exchanging(steps=20):
    x, y = _normal("x_0", 0.0), _normal("y_0", 0.0)
    for t in range(1, steps):
        x, y = _normal(f"x_{t}", 0.5 * x + 0.2 * y), _normal(f"y_{t}", 0.9 * y - 0.3 * x)


def gamma_chain(steps=15):
    x = pyro.sample("x_0", dist.Gamma(2.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Gamma(2.0 + torch.sqrt(x), 1.0 + 0.1 * t))


def vector_in_loops(steps=15):
    x = pyro.sample("x_0", dist.Dirichlet(torch.ones(3)))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Dirichlet(1.0 + 5.0 * x))


def tree(depth=5):
    level = [_normal("root", 0.0)]
    for d in range(1, depth):
        level = [_normal(f"n_{d}_{place}", torch.tanh(level[place // 2])) for place in range(2**d)]


def affine_tree(depth=5):
    level = [_normal("root", 0.0)]
    for d in range(1, depth):
        level = [_normal(f"n_{d}_{place}", level[place // 2]) for place in range(2**d)]


def grid(rows=5, columns=6):
    held = {}
    for i in range(rows):
        for j in range(columns):
            up = held[i - 1, j] if i else torch.tensor(0.3)
            left = held[i, j - 1] if j else torch.tensor(-0.3)
            held[i, j] = _normal(f"x_{i}_{j}", torch.sin(up) + 0.5 * left, torch.exp(0.1 * up))


def everything_before(steps=8):
    history = [_normal("x_0", 0.0)]
    for t in range(1, steps):
        history.append(_normal(f"x_{t}", torch.stack(history).mean()))


def varying_lags(steps=20):
    history = [_normal("x_0", 0.0), _normal("x_1", 0.0)]
    for t in range(2, steps):
        history.append(_normal(f"x_{t}", 0.7 * history[-1 - t % 2]))


def several_systems(steps=12):
    states = [_normal(f"x_0_{place}", 0.0) for place in range(4)]
    rates = pyro.param("rates", torch.tensor([0.1, 0.5, 1.0, 2.0]))
    for t in range(1, steps):
        states = [_normal(f"x_{t}_{p}", rates[p] * torch.sin(s), torch.exp(0.1 * s)) for p, s in enumerate(states)]


LOOPS: dict[str, Program] = {
    held.__name__: held
    for held in (
        lorenz, lorenz_vector, pendulum, heteroscedastic, exchanging, gamma_chain, vector_in_loops, tree, affine_tree,
        grid, everything_before, varying_lags, several_systems,
    )
}  # fmt: skip
