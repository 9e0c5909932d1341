"""What is cut, and what is not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.layers.planning import make_plan
from emfc.passes.classify import slice_sites
from emfc.passes.demand import output_table
from emfc.passes.nodes import ancestors, direct_parents
from emfc.passes.recurrences import SHORTEST, cut_recurrences
from emfc.passes.slices import Load
from emfc.passes.split import split
from emfc.program.trace import trace
from tests.programs.accepted import PROGRAMS
from tests.programs.recurrences import RECURRENCES, recurrence
from tests.programs.series import lorenz_scalar, lorenz_vector, random_walk


def _cut(model, *args, **kwargs):
    program = trace(model, args)
    return program, cut_recurrences(program, output_table(program), **kwargs)


@pytest.mark.parametrize("model", [random_walk, lorenz_scalar, lorenz_vector])
def test_chains_of_sites_are_not_cut(model):
    assert not _cut(model, 40)[1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_short_programs_are_not_cut(name):
    model, args, kwargs = PROGRAMS[name].build()
    program = trace(model, args, kwargs)
    assert not cut_recurrences(program, output_table(program))


def _carried(steps):
    state = torch.zeros(())
    for t in range(steps):
        x = pyro.sample(f"x_{t}", dist.Normal(state, 1.0))
        state = torch.tanh(state * 0.5 + x)


def test_only_the_state_is_cut():
    _, virtuals = _cut(_carried, 20)
    names = [virtual.name.partition("_")[0] for virtual in virtuals]
    assert names == ["tanh"] * 18  # the last state has one reader, and the one after it none


def test_short_recurrences_stay_in_the_slices():
    assert not _cut(_carried, SHORTEST + 1)[1]
    assert _cut(_carried, SHORTEST + 2)[1]
    assert _cut(_carried, 5, shortest=2)[1]


def test_elements_that_nobody_reads_are_left_out():
    _, virtuals = _cut(recurrence("parts"), 20)
    assert {virtual.shape for virtual in virtuals} == {(2,)}


def test_deep_networks_are_not_recurrences():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        weight = torch.full((3, 3), 0.1)
        for _ in range(30):
            x = torch.tanh(weight @ x)
        pyro.sample("y", dist.Normal(x, x.exp()).to_event(1))

    assert not _cut(model)[1]


def test_whole_numbers_are_cut_where_their_bound_is_known():
    _, virtuals = _cut(recurrence("counter"), 20)
    assert {virtual.dtype for virtual in virtuals} == {"float", "int"}
    _, virtuals = _cut(recurrence("latch"), 20)
    assert {virtual.dtype for virtual in virtuals} == {"bool"}

    def doubling(steps):
        count = torch.ones((), dtype=torch.int64)
        for t in range(steps):
            x = pyro.sample(f"x_{t}", dist.Normal(1.0 / count, 1.0))
            count = count + count + (x > 0).long()

    assert all(virtual.dtype != "int" for virtual in _cut(doubling, 40)[1][30:])


def test_programs_with_summed_out_sites_are_not_cut():
    def model():
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        state = torch.tensor([0.0, 1.0])[k]
        for t in range(15):
            x = pyro.sample(f"x_{t}", dist.Normal(state, 1.0))
            state = torch.tanh(state + x)

    plan = make_plan(trace(model))
    assert not plan.virtuals
    assert any("not cut" in line for line in plan.log)


@pytest.mark.parametrize("name", [*PROGRAMS, *RECURRENCES])
def test_ancestors_are_the_loads_of_whole_slices(name):
    if name in PROGRAMS:
        model, args, kwargs = PROGRAMS[name].build()
    else:
        model, args, kwargs = recurrence(name), (6,), {}
    program = trace(model, args, kwargs)
    assert ancestors(program) == direct_parents(program, slice_sites(program))


def test_parts_of_a_slice():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal((a.exp() + 1.0) * b, a.exp()))

    program = trace(model)
    held = slice_sites(program)[2]
    loads = [number for number, load in enumerate(held.loads()) if load.addresses.item() == program.sites[1].start]
    parts = split(held, loads)
    assert [source for source in parts.sources if source[0] == "load"] == [("load", loads[0])]
    assert sum(not isinstance(value, Load) for value in parts.after.values) == 1
    assert len(parts.before) == 2


def test_chains_that_only_named_values_read_are_not_cut():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        state = x
        for t in range(20):
            state = torch.tanh(state + x)
            pyro.deterministic(f"told_{t}", state)

    assert not _cut(model)[1]
