"""Which discrete sites are summed out, and how many populations that makes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc import CompileError
from emfc.passes.classify import slice_sites
from emfc.passes.marginalise import marginalise, parents
from emfc.program.trace import trace


def _populations(model):
    program = trace(model)
    return program, marginalise(program, parents(program, slice_sites(program)))


def test_a_leaf_is_not_summed_out():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Categorical(logits=torch.stack([a, a * 2])))

    _, found = _populations(model)
    assert found.sites == ()
    assert found.readers == ()


def test_joint_values_are_enumerated_in_order():
    def model():
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + b, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    program, found = _populations(model)
    assert [program.sites[index].name for index in found.sites] == ["z", "b"]
    assert [program.sites[index].name for index in found.readers] == ["x"]
    assert found.configurations.tolist() == [[z, b] for z in range(3) for b in range(2)]


def test_only_an_observed_reader_still_sums_out():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    program, found = _populations(model)
    assert [program.sites[index].name for index in found.sites] == ["z"]


@pytest.mark.parametrize(("count", "size"), [(11, "2^11 = 2048"), (60, "2^60")])
def test_a_large_enumeration_is_refused_with_its_size(count, size):
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5).expand([count]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0))

    with pytest.raises(CompileError) as caught:
        _populations(model)
    assert caught.value.code == "E-DISCRETE"
    assert size in str(caught.value)
