"""Compiling takes time in proportion to the length of a program."""

from __future__ import annotations

import time

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc.layers.planning import make_plan
from emfc.program.trace import trace
from tests.programs.recurrences import recurrence

SLACK = 2.0  # for a busy machine


def _chain(sites):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, sites):
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.1))


def _tree(sites):
    held = [pyro.sample("x_0", dist.Normal(0.0, 1.0))]
    for t in range(1, sites):
        held.append(pyro.sample(f"x_{t}", dist.Normal(0.9 * held[(t - 1) // 2] + 0.1, 0.1)))


def _seconds(model, steps):
    begin = time.process_time()
    emfc.compile(model, steps)
    return time.process_time() - begin


@pytest.mark.parametrize("name", ["chain", "tree", "gru", "garch"])
def test_ten_times_as_long_takes_ten_times_the_time(name):
    model = {"chain": _chain, "tree": _tree}.get(name) or recurrence(name)
    emfc.compile(model, 10)
    short = min(_seconds(model, 40) for _ in range(3))
    assert _seconds(model, 400) <= 12 * SLACK * short


def test_work_per_site_does_not_grow():
    """Slices, counted: the same instructions for every site of a chain and every step of a recurrence."""
    for model in (_chain, _tree, recurrence("gru")):
        counts = []
        for steps in (50, 100):
            plan = make_plan(trace(model, (steps,)))
            kernels = (*plan.kernels, *plan.virtual_kernels)
            counts.append(sum(len(kernel.held.slice.values) * len(kernel.held.sites) for kernel in kernels))
        assert counts[1] <= 2.1 * counts[0]


def test_parsing_does_not_look_for_parents():
    graph = emfc.parse(recurrence("gru"), 30)
    assert graph.sites["x_3"].family == "Normal"
    assert graph.dim == 30
    assert "parent_indices" not in vars(graph)
    assert graph.sites["x_29"].parents == tuple(f"x_{t}" for t in range(29))
    assert "parent_indices" in vars(graph)


def test_recurrences_of_thousands_of_steps():
    torch.set_default_dtype(torch.float64)
    layer = emfc.compile(recurrence("garch"), 2000)
    assert len(layer.plan.virtual_kernels) == 2
    noise = torch.randn(2, layer.noise_dim, generator=torch.Generator().manual_seed(0))
    x, ladj = layer().call_and_ladj(noise)
    again, inverse = layer().inverse_and_ladj(x)
    torch.testing.assert_close(again, noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(inverse, -ladj, rtol=1e-8, atol=1e-6)
