"""A search for modes that a fit has missed."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc


def two_modes(y: torch.Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.Normal(m.abs(), 0.1), obs=y)


def one_mode(y: torch.Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.StudentT(4.0, m, s), obs=y)


def small_mode(y: torch.Tensor) -> None:
    """A second mode of next to no mass: 12 nats lower."""
    m = pyro.sample("m", dist.Normal(4.0, 1.6))
    pyro.sample("y", dist.Normal(m.abs(), 0.1), obs=y)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_missed_mode_is_told(seed):
    posterior = emfc.infer(two_modes, torch.tensor(4.0), steps=200, seed=seed)
    found = posterior.missed_mode
    assert found is not None
    assert abs(float(found["m"]) + float(posterior.draws.mean())) < 0.2
    assert posterior.khat < 0.5
    assert posterior.verdict.startswith("not to be trusted: there is another mode near m = ")
    assert "another mode" in str(posterior.summary())


@pytest.mark.parametrize("model", [one_mode, small_mode])
def test_one_mode_is_enough(model):
    y = torch.tensor([0.3, -1.0, 2.0, 0.4]) if model is one_mode else torch.tensor(4.0)
    posterior = emfc.infer(model, y, steps=200)
    assert posterior.missed_mode is None
    assert not posterior.verdict.startswith("not to be trusted: there is another mode")
