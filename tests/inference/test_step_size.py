"""The step size of a sampler ends where chains accept as often as was asked for."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.compiler import compile_target
from emfc.inference.hmc import _DualAveraging, _windows, run_nuts
from emfc.inference.variational import VariationalFlow


def _acceptance(step: float, noise: float) -> float:
    """Of a trajectory in many dimensions, whose error of the energy is normal, N(m, 2 m) with m like the step's fourth
    power (Beskos et al. 2013).
    """
    mean = step**4
    return min(1.0, math.exp(-(mean + math.sqrt(2 * mean) * noise)))


def _expected(step: float) -> float:
    """Mean of `_acceptance` over the noise."""
    return math.erfc(step**2 / 2)


@pytest.mark.parametrize("target", [0.65, 0.8, 0.85, 0.95])
@pytest.mark.parametrize("start", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [50, 200])
def test_chains_accept_as_often_as_asked(target, start, steps):
    found = []
    for seed in range(40):
        noise = torch.randn(steps, generator=torch.Generator().manual_seed(seed)).tolist()
        average, step = _DualAveraging(start, target), start
        for held in noise:
            step = average.update(_acceptance(step, held))
        found.append(_expected(average.mean))
    assert sum(found) / len(found) == pytest.approx(target, abs=0.05)


@pytest.mark.parametrize("steps", [1, 20, 50, 75, 100, 149, 150, 200, 500, 2000])
def test_a_step_size_has_time_to_settle_after_the_last_mass_matrix(steps):
    ends = _windows(steps)
    assert ends == sorted(set(ends))
    assert not ends or (ends[0] > 0 and steps - ends[-1] >= 50)


@pytest.mark.parametrize("warmup", [25, 60, 120])
def test_short_warm_ups_settle(warmup, float64):
    """A probability, and parts of a whole, whose noise is nearly normal."""

    def model(y):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        parts = pyro.sample("parts", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(share + parts[0], 1.0), obs=y)

    data = torch.linspace(-1.0, 2.0, 20)
    log_joint = compile_target(model, data)
    flow = VariationalFlow.from_target(log_joint.target, backbone="meanfield")
    chains = run_nuts(flow, log_joint, warmup=warmup, samples=60, chains=2, seed=0)
    assert chains.acceptance == pytest.approx(0.85, abs=0.15)
    assert chains.divergences == 0
