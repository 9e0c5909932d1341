"""Digests: equal for one program read twice, different for whatever could change what compiles."""

from __future__ import annotations

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc.program.digest import digest


def walk(steps=5, start=0.3, factor=1.0, name="x", family=dist.Normal, prior=0.1):
    scale = pyro.param("scale", torch.tensor(prior), constraint=dist.constraints.positive)
    x = pyro.sample(f"{name}_0", dist.Normal(0.0, start))
    for t in range(1, steps):
        x = pyro.sample(f"{name}_{t}", family(x * factor, scale))


def of(**options):
    return digest(emfc.parse(walk, **options).program)


def test_reading_twice_gives_one_digest():
    assert of() == of()
    assert len(of()) == 64


@pytest.mark.parametrize(
    "change",
    [{"steps": 6}, {"start": 0.4}, {"factor": 2.0}, {"name": "y"}, {"family": dist.Laplace}, {"prior": 0.2}],
    ids=lambda change: next(iter(change)),
)
def test_any_change_shows(change):
    assert of(**change) != of()


def test_a_single_number_and_a_single_address_show():
    program = emfc.parse(walk).program
    other = dataclasses.replace(program, prototype=program.prototype + 1e-12)
    assert digest(other) != digest(program)
    site = program.sites[-1]
    turned = dataclasses.replace(site, location="elsewhere.py:3")
    assert digest(dataclasses.replace(program, sites=(*program.sites[:-1], turned))) != digest(program)
