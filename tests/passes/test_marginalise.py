"""Which discrete sites are summed out, what each element reads of them, and in which order they go."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc import CompileError
from emfc.passes.classify import classify, slice_sites
from emfc.passes.eliminate import eliminate
from emfc.passes.marginalise import marginalise
from emfc.passes.pipeline import run_passes
from emfc.passes.slots import assign_slots
from emfc.program.trace import trace
from tests.programs.accepted import PROGRAMS


def _populations(model):
    program = trace(model)
    return program, marginalise(program, list(run_passes(program, ()).parents))


def _eliminated(model):
    program, populations = _populations(model)
    classes = classify(program, slice_sites(program), summed=populations.sites)
    kept = {n: held for n, held in enumerate(classes) if not program.sites[held.sites[0]].observed}
    names = {n: program.sites[held.sites[0]].name for n, held in kept.items()}
    return {name: n for n, name in names.items()}, eliminate(program, populations, kept)


def test_a_leaf_is_not_summed_out():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Categorical(logits=torch.stack([a, a * 2])))

    _, found = _populations(model)
    assert found.sites == ()
    assert found.readers == ()


def test_sites_levels_and_readers():
    def model():
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.5, 0.3])).to_event(1))
        pyro.sample("x", dist.Normal(z + b, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    program, found = _populations(model)
    assert [program.sites[index].name for index in found.sites] == ["z", "b"]
    assert [program.sites[index].name for index in found.readers] == ["x"]
    assert found.levels == (3, 2, 2)
    assert found.addresses.tolist() == [program.site_base, program.site_base + 1, program.site_base + 2]


def test_only_an_observed_reader_still_sums_out():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    program, found = _populations(model)
    assert [program.sites[index].name for index in found.sites] == ["z"]
    assert _eliminated(model)[1].bundles == ()


def test_an_infinite_latent_is_refused():
    def model():
        n = pyro.sample("n", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(n, 1.0))

    with pytest.raises(CompileError, match="Poisson"):
        _populations(model)


def test_slots_are_all_combinations_of_what_is_read_together():
    def model():
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + b, 1.0))

    names, found = _eliminated(model)
    assert found.slots[names["x"]].table().tolist() == [[z, b] for z in range(3) for b in range(2)]


WAYS = {
    "by index": lambda z: torch.tensor([-1.0, 1.0])[z],
    "of a table": lambda z: torch.arange(12.0).reshape(2, 6)[z, torch.arange(6)],
    "columns of a table": lambda z: torch.arange(12.0).reshape(6, 2).gather(1, z[:, None])[:, 0],
    "by arithmetic": lambda z: 2.0 * z - 1,
    "by cases": lambda z: torch.where(z == 1, 2.0, -2.0),
    "one-hot": lambda z: torch.nn.functional.one_hot(z, 2).to(torch.get_default_dtype()) @ torch.tensor([-1.0, 1.0]),
    "embedded": lambda z: torch.nn.functional.embedding(z, torch.tensor([[1.0, 2.0], [3.0, -1.0]])).sum(-1),
    "stacked": lambda z: torch.stack([torch.tensor([-1.0, 1.0])[z[i]] for i in range(6)]),
    "softmax of rows": lambda z: torch.softmax(torch.stack([1.0 * z, 2.0 - z], -1), -1)[:, 0],
    "selected": lambda z: torch.index_select(torch.tensor([-1.0, 1.0]), 0, z),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_row_reads_its_own_label(way):
    def model():
        with pyro.plate("rows", 6):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(WAYS[way](z), 1.0))

    names, found = _eliminated(model)
    scopes = found.scopes[names["x"]]
    assert [[scopes.latents[0, number] for number in element] for element in scopes.elements] == [[i] for i in range(6)]
    assert found.slots[names["x"]].sizes == (2,)
    (bundle,) = found.bundles
    assert bundle.positions.tolist() == [list(range(6))] * 2


TOGETHER = {
    "sum": (lambda z: z.sum() * torch.ones(3), [[0, 1, 2]] * 3),
    "running sum": (lambda z: torch.cumsum(1.0 * z, 0), [[0, 1, 2]] * 3),
    "pairs": (lambda z: z + z.roll(1), [[0, 2], [0, 1], [1, 2]]),
    "first": (lambda z: torch.stack([1.0 * z[0], torch.zeros(()), z[2] * 3.0]), [[0], [], [2]]),
    "rows of sums": (lambda z: (z[:, None] * torch.ones(3, 2)).sum(1), [[0], [1], [2]]),
    "matrix": (lambda z: torch.ones(3, 3) @ (1.0 * z), [[0, 1, 2]] * 3),
}


@pytest.mark.parametrize("how", TOGETHER)
def test_what_elements_read_together(how):
    read, expected = TOGETHER[how]

    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5, 0.4, 0.3])).to_event(1))
        pyro.sample("x", dist.Normal(read(z), 1.0).to_event(1))

    names, found = _eliminated(model)
    scopes = found.scopes[names["x"]]
    assert [sorted(scopes.latents[0, list(element)].tolist()) for element in scopes.elements] == expected
    slots = assign_slots(scopes)
    for element in scopes.elements:
        assert len({slots.places[number] for number in element}) == len(element)


def test_a_scope_is_that_of_a_whole_vector():
    def model():
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            loc = torch.stack([1.0 * z, torch.zeros(3)], -1)
            pyro.sample("x", dist.MultivariateNormal(loc, torch.eye(2)))

    names, found = _eliminated(model)
    scopes = found.scopes[names["x"]]
    assert [scopes.latents[0, element[0]] for element in scopes.elements] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("steps", [3, 40])
def test_a_chain_keeps_two_states(steps):
    def model():
        transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        z = pyro.sample("z_0", dist.Categorical(torch.tensor([0.5, 0.5])))
        for t in range(steps):
            if t:
                z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 1.0])[z], 1.0))

    _, found = _eliminated(model)
    (bundle,) = found.bundles
    assert bundle.conditioned == ()
    assert found.largest == 4
    (part,) = bundle.parts
    assert [op.kind for op in part[:5]] == ["introduce", "observe", "introduce", "eliminate", "observe"]
    assert found.describe() == f"4 populations, in chains of up to {steps}"


def _shared(rows, *, late):
    def model():
        table = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
        g = pyro.sample("g", dist.Categorical(torch.tensor([0.4, 0.6])))
        with pyro.plate("rows", rows):
            z = pyro.sample("z", dist.Categorical(table[g]))
            x = pyro.sample("x", dist.Normal(1.0 * z, 0.5))
            if late:
                pyro.sample("y", dist.Normal(x * (1 + z) + g, 1.0))

    return model


@pytest.mark.parametrize("late", [False, True])
def test_rows_fall_apart_once_what_they_share_is_fixed(late):
    _, found = _eliminated(_shared(50, late=late))
    (bundle,) = found.bundles
    assert bundle.conditioned == (2,)
    assert found.largest == 6
    assert len({tuple(op._replace(event=-1) for op in part) for part in bundle.parts}) == 2  # g's own choice, the rows


def test_a_choice_for_all_is_conditioned_on_or_alive():
    def model():
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(torch.tensor([0.0, 1.0, 2.0])[z], 1.0).expand([50]).to_event(1))

    _, found = _eliminated(model)
    assert found.largest == 3
    assert found.describe() == "3 populations"


@pytest.mark.parametrize(("count", "size"), [(11, "2^11 = 2048"), (60, "2^60")])
def test_a_large_enumeration_is_refused_with_its_size(count, size):
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5).expand([count]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0))

    with pytest.raises(CompileError) as caught:
        _eliminated(model)
    assert caught.value.code == "E-DISCRETE"
    assert caught.value.site == "z"
    assert size in str(caught.value)


@pytest.mark.parametrize("name", [name for name, case in PROGRAMS.items() if case.summed])
def test_every_element_is_seen_once(name):
    model, args, kwargs = PROGRAMS[name].build()
    plan = emfc.compile(model, *args, **kwargs).plan
    seen: dict[int, list[int]] = {}
    for bundle in plan.elimination.bundles:
        assert math.prod(bundle.conditioned) <= bundle.largest <= 1024
        introduced = [op.event for part in bundle.parts for op in part if op.kind == "introduce"]
        assert sorted([*introduced, *bundle.observed]) == list(range(len(bundle.kernels)))
        for kernel, positions in zip(bundle.kernels, bundle.positions.tolist(), strict=True):
            seen.setdefault(kernel, []).extend(positions)
    for kernel in plan.mixtures:
        assert sorted(seen[kernel.number]) == list(range(kernel.own.size))
    for kernel in plan.latents:
        found = seen.get(kernel.number, [])
        assert len(set(found)) == len(found)
