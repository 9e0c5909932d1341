"""The step size of a sampler ends where chains accept as often as was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from emfc.inference.hmc import _DualAveraging


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
