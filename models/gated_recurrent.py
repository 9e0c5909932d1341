"""A series whose next value is read from the state of a gated recurrent unit that has seen all values before.

The state starts at zero and takes in x_{t-1}; x_t ~ N(loc, scale), where loc and log scale are linear in the state. All
weights are learned. The data are noisy sines of random phase and speed, which a program that looks one step back
cannot foresee.

Source of the unit: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
translation", EMNLP 2014.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

NOISE = 0.1


def model(steps=30, hidden=8):
    """Draws one series ``x_0, x_1, ...``; every value depends on all before it."""
    generator = torch.Generator().manual_seed(0)

    def weights(name, *shape):
        return pyro.param(name, lambda: (2 * torch.rand(shape, generator=generator) - 1) / hidden**0.5)

    of_input, of_state = weights("of_input", 3 * hidden, 1), weights("of_state", 3 * hidden, hidden)
    input_bias, state_bias = weights("input_bias", 3 * hidden), weights("state_bias", 3 * hidden)
    head, head_bias = weights("head", 2, hidden), weights("head_bias", 2)
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    state = torch.zeros(1, hidden)
    for t in range(1, steps):
        state = torch.gru_cell(x.reshape(1, 1), state, of_input, of_state, input_bias, state_bias)
        loc, log_scale = torch.nn.functional.linear(state[0], head, head_bias).unbind(-1)
        x = pyro.sample(f"x_{t}", dist.Normal(loc, log_scale.exp()))
    return x


def data(n=10_000, steps=30, seed=0):
    """Noisy sines, ``{"x_0": [n], "x_1": [n], ...}``."""
    generator = torch.Generator().manual_seed(seed)
    phase, speed = 6.2832 * torch.rand(n, generator=generator), 0.2 + 0.6 * torch.rand(n, generator=generator)
    noise = torch.randn(steps, n, generator=generator)
    return {f"x_{t}": torch.sin(phase + t * speed) + NOISE * noise[t] for t in range(steps)}
