"""Families whose spread is small beside their distance from the support's end."""

from __future__ import annotations

import pyro.distributions as pd
import pytest
import torch
from torch import distributions as td

from emfc.distributions import Truncated
from emfc.transforms import from_normal, gated
from tests.transforms.cases import DTYPES, LIMIT, round_trip_error

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])


def mixture(family, first, second):
    return td.MixtureSameFamily(td.Categorical(torch.ones_like(first)), family(first, second), validate_args=False)


# The logarithms of LogNormal(10, 1e-3) and of Weibull(1e4, 1e3) are too coarse in float32 for the families themselves.
LAWS = {
    "gammas": lambda t: mixture(td.Gamma, t([1.0, 1e5]), t([1.0, 1.0])),
    "narrow gammas": lambda t: mixture(td.Gamma, t([1.0, 1e6]), t([1.0, 1.0])),
    "lognormals": lambda t: mixture(td.LogNormal, t([0.0, 10.0]), t([1.0, 1e-2])),
    "weibulls": lambda t: mixture(td.Weibull, t([1.0, 1e4]), t([1.0, 1e2])),
    "truncated": lambda t: Truncated(td.Normal(t(1e4), t(1.0)), low=t(0.0)),
    "truncated, 1e6": lambda t: Truncated(td.Normal(t(1e6), t(1.0)), low=t(0.0)),
    "truncated above": lambda t: Truncated(td.Normal(t(-1e4), t(1.0)), high=t(0.0)),
    "folded normal": lambda t: pd.FoldedDistribution(td.Normal(t(1e4), t(1.0))),
    "folded student": lambda t: pd.FoldedDistribution(td.StudentT(t(30.0), t(1e4), t(1.0))),
}
NARROWEST = {
    "lognormals": lambda t: mixture(td.LogNormal, t([0.0, 10.0]), t([1.0, 1e-3])),
    "weibulls": lambda t: mixture(td.Weibull, t([1.0, 1e4]), t([1.0, 1e3])),
}


def check(law, precision, gate=None):
    transform = from_normal(law(lambda value: torch.tensor(value, dtype=precision)))
    transform = transform if gate is None else gated(transform, torch.tensor(gate, dtype=precision))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 161, dtype=precision)
    value, error, allowed = round_trip_error(transform, noise)
    assert transform.codomain.check(value).all()
    assert (error <= allowed).all(), (error / allowed).max()
    assert (value.diff() >= 0).all()
    ladj = transform.call_and_ladj(noise)[1] + transform.inv.call_and_ladj(value)[1]
    step = torch.maximum(noise.abs(), torch.tensor(1.0, dtype=precision)) * allowed  # density at e and beside it
    assert (ladj.abs() <= 2 * step + 1e-3).all()


@BOTH
@pytest.mark.parametrize("gate", [None, 1.0])
@pytest.mark.parametrize("name", LAWS)
def test_round_trip(name, gate, precision):
    check(LAWS[name], precision, gate)


@pytest.mark.parametrize("name", NARROWEST)
def test_round_trip_of_the_narrowest(name):
    check(NARROWEST[name], torch.float64)


@BOTH
def test_an_open_gate_is_the_family_itself(precision):
    family = from_normal(td.Gamma(torch.tensor(1e6, dtype=precision), torch.tensor(1.0, dtype=precision)))
    gate = torch.tensor([1.0, 0.5], dtype=precision, requires_grad=True)
    opened, noise = gated(family, gate), torch.linspace(-8, 8, 33, dtype=precision).unsqueeze(-1)
    value = opened(noise)
    assert torch.equal(value[:, 0], family(noise)[:, 0])
    assert torch.equal(opened.inv(value.detach())[:, 0], family.inv(value.detach())[:, 0])
    for result in (value, *opened.inv.call_and_ladj(value.detach())):
        (gradient,) = torch.autograd.grad(result.sum(), gate, retain_graph=True)
        assert gradient.isfinite().all()
    outside = opened.inv.call_and_ladj(torch.full((2,), -1.0, dtype=precision))
    assert torch.isneginf(outside[1]).all()
    assert not torch.autograd.grad(outside[0].sum(), gate)[0].isnan().any()
