"""Slices hold what a site's parameters depend on and nothing else."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from emfc.passes.classify import classify, slice_sites
from emfc.passes.slices import Gather, Load, Step
from emfc.program.trace import trace


def _slice(model, site):
    program = trace(model)
    index = [held.name for held in program.sites].index(site)
    return program, slice_sites(program)[index]


def _reads(program, held):
    """Site elements that a slice loads, as (site, element)."""
    read = set()
    for load in held.loads():
        for address in load.addresses.reshape(-1):
            for site in program.sites:
                if not site.observed and site.start <= address < site.start + site.size:
                    read.add((site.name, int(address - site.start)))
    return read


def test_pointwise_instructions_are_narrowed_to_the_needed_elements():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        w = torch.tanh(z * 2)
        pyro.sample("y", dist.Normal(w[2], 1.0))

    program, held = _slice(model, "y")
    assert _reads(program, held) == {("z", 2)}
    assert [value.shapes for value in held.values if isinstance(value, Step)] == [((1,),), ((1,),)]


def test_moves_cost_no_instruction():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        buffer = torch.zeros(3, 2)
        buffer[1] = torch.stack([b, a]).flip(0)
        pyro.sample("y", dist.Normal(buffer.T.reshape(-1)[4], 1.0))

    program, held = _slice(model, "y")
    assert not program.instructions
    assert _reads(program, held) == {("b", 0)}


def test_a_prefix_sum_reads_the_prefix():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.cumsum(0)[2], 1.0))

    program, held = _slice(model, "y")
    assert _reads(program, held) == {("z", 0), ("z", 1), ("z", 2)}


def test_values_of_different_origin_are_gathered():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.stack([a.exp(), b, torch.tensor(3.0)]), 1.0).to_event(1))

    program, held = _slice(model, "y")
    assert any(isinstance(value, Gather) for value in held.values)
    assert _reads(program, held) == {("a", 0), ("b", 0)}


def test_expanded_parameters_are_loaded_once():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 1000):
            pyro.sample("y", dist.Normal(0.0, scale))

    _, held = _slice(model, "y")
    assert all(value.addresses.size == 1 for value in held.values if isinstance(value, Load))


def _classes(model, *args, merge=True):
    program = trace(model, args)
    return sorted(len(held.sites) for held in classify(program, slice_sites(program), merge=merge))


def _walk(steps):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.1))


def _fading_walk(steps):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(x * 0.9**t + t, 1.0 / t))


def test_steps_of_a_loop_are_one_class():
    assert _classes(_walk, 20) == [1, 19]


def test_steps_that_differ_in_numbers_alone_are_one_class():
    assert _classes(_fading_walk, 20) == [1, 19]


def test_unmerged_sites_stay_apart():
    assert _classes(_walk, 5, merge=False) == [1] * 5


def test_sites_of_other_families_or_shapes_are_other_classes():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Laplace(0.0, 1.0))
        pyro.sample("c", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("d", dist.Normal(1.0, 2.0))

    assert _classes(model) == [1, 1, 2]
