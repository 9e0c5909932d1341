"""Random programs that carry states of several shapes from step to step."""

from __future__ import annotations

import random

import pyro
import pyro.distributions as dist
import torch

__all__ = ["random_recurrence"]

_SHAPES = ((), (2,), (3,), (2, 3))
_UNARY = (torch.tanh, torch.sin, torch.sigmoid, lambda a: 0.5 * a, lambda a: -(1 + a.square()).sqrt(), lambda a: 1 - a)
_BINARY = (
    lambda a, b: 0.4 * a + 0.5 * b,
    lambda a, b: torch.tanh(a * b),
    lambda a, b: torch.where(a > b, a, 0.3 * b),
    lambda a, b: torch.maximum(a, b) * 0.7,
)


def _fit(value, shape):
    """A value brought into a shape by sums, parts and repetition."""
    if value.shape == shape:
        return value
    if value.ndim > len(shape):
        return _fit(value[0] if value.shape[0] % 2 else value.mean(0), shape)
    if value.ndim == len(shape):
        return _fit(value.sum(0), shape)
    return value.expand(shape) if not value.ndim else torch.tanh(value.sum()).expand(shape)


def random_recurrence(seed):
    """A program, to be called with the number of steps; the same for the same seed."""
    choose = random.Random(seed)
    shapes = [choose.choice(_SHAPES) for _ in range(choose.randint(1, 3))]
    site_shapes = [choose.choice(_SHAPES) for _ in range(choose.randint(1, 2))]
    weight = choose.random() < 0.5

    def expression(own):
        sources = [choose.randrange(len(shapes) + len(site_shapes)) for _ in range(choose.randint(1, 3))]
        if choose.random() < 0.8:
            sources[0] = own
        return sources, [choose.randrange(len(_UNARY)) for _ in sources], choose.randrange(len(_BINARY))

    updates = [expression(own) for own in range(len(shapes))]
    locations = [(choose.randrange(len(shapes)), choose.randrange(len(_UNARY))) for _ in site_shapes]
    every = [choose.choice((1, 1, 2)) for _ in site_shapes]
    matrix = torch.tensor([[0.5, 0.2, 0.0], [-0.3, 0.4, 0.1], [0.0, 0.0, 0.6]])

    def evaluate(held, shape, code):
        sources, unary, binary = code
        values = [_UNARY[u](_fit(held[source], shape)) for source, u in zip(sources, unary, strict=True)]
        result = values[0]
        for value in values[1:]:
            result = _BINARY[binary](result, value)
        return result @ matrix.to(result) if weight and shape and shape[-1] == 3 else result

    def model(steps):
        scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
        states = [torch.zeros(shape) for shape in shapes]
        read = [torch.zeros(shape) for shape in site_shapes]
        for t in range(steps):
            for k, (state, unary) in enumerate(locations):
                if t % every[k] == 0:
                    loc = _UNARY[unary](_fit(states[state], site_shapes[k]))
                    read[k] = pyro.sample(f"x_{t}_{k}", dist.Normal(loc, scale).to_event(len(site_shapes[k])))
            states = [evaluate([*states, *read], shape, code) for shape, code in zip(shapes, updates, strict=True)]

    return model
