"""Cost of a guide's step on the compiled log joint, beside the same guide through Pyro's handlers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from emfc import EMFGuide
from models import lorenz_bridge

pytestmark = pytest.mark.benchmark

PARTICLES = 32


def seconds_of(step: Callable[[], Any], runs: int) -> float:
    """Median processor time of one call, after two that warm up."""
    for _ in range(2):
        step()
    taken = []
    for _ in range(runs):
        began = time.process_time()
        step()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def ratio_of(model: Any, arguments: dict[str, Any], runs: int) -> float:
    """How much a step on the compiled log joint costs, as a share of a step of Pyro's SVI, which runs the model once
    for each particle; with its particles in a plate it is only told.
    """
    guide = EMFGuide(model).setup(**arguments)
    log_joint = guide.log_joint(**arguments)
    optimiser = torch.optim.Adam(guide.flow.parameters(), lr=1e-4)

    def compiled() -> None:
        value, log_q = guide.flow.rsample_and_log_prob((PARTICLES,))
        loss = (log_q - log_joint(value)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    ours = seconds_of(compiled, 5 * runs)
    print(f"\n  compiled {1e3 * ours:.2f} ms", end="")
    ratios = {}
    for vectorised in (True, False):
        elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=vectorised)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), elbo)
        theirs = seconds_of(lambda svi=svi: svi.step(**arguments), 5 * runs if vectorised else runs)  # type: ignore[misc]
        ratios[vectorised] = ours / theirs
        told = "vectorised" if vectorised else "one run a particle"
        print(f"; Pyro, {told}: {1e3 * theirs:.2f} ms, ratio {ratios[vectorised]:.3f}", end="")
    return ratios[False]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def radon(county: torch.Tensor, known: torch.Tensor, log_radon: torch.Tensor) -> None:
    """Radon in houses, partly pooled by county, in plates that Pyro vectorises."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("counties", 85):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
    with pyro.plate("houses", len(county)):
        level = (known * weight).sum(-1) + effect[..., county]
        pyro.sample("log_radon", dist.Normal(level, noise), obs=log_radon)


def radon_data() -> dict[str, torch.Tensor]:
    """As many houses and counties as in Minnesota."""
    county = torch.cat([torch.arange(85), torch.randint(85, (834,))]).sort().values
    return {"county": county, "known": torch.randn(919, 3), "log_radon": torch.randn(919)}


def density_ratio(model: Any, arguments: dict[str, Any], runs: int) -> float:
    """How much the compiled log joint costs with its gradient, as a share of Pyro's vectorised trace of the model."""
    guide = EMFGuide(model).setup(**arguments)
    log_joint = guide.log_joint(**arguments)
    value = guide.flow.sample((PARTICLES,)).requires_grad_()

    def compiled() -> None:
        torch.autograd.grad(log_joint(value).sum(), value)

    def handlers() -> None:
        sites = guide._values(value[:, None])
        with pyro.plate("particles", PARTICLES, dim=-2):
            trace = poutine.trace(poutine.condition(model, dict(sites))).get_trace(**arguments)
        torch.autograd.grad(trace.log_prob_sum(), value)

    ours, theirs = seconds_of(compiled, 5 * runs), seconds_of(handlers, 5 * runs)
    print(
        f"\n  log joint {1e3 * ours:.2f} ms, Pyro's handlers {1e3 * theirs:.2f} ms, ratio {ours / theirs:.3f}", end=""
    )
    return ours / theirs


def test_the_density_of_radon() -> None:
    """At most a half of Pyro's trace with the particles in a plate."""
    assert density_ratio(radon, radon_data(), 10) <= 1 / 2


def test_a_step_on_radon() -> None:
    """85 counties and 919 houses in plates: at most a third."""
    assert ratio_of(radon, radon_data(), 3) <= 1 / 3


def test_a_step_on_the_lorenz_loop() -> None:
    """30 steps of three numbers, site by site: at most a twentieth."""
    assert ratio_of(lorenz_bridge.model, lorenz_bridge.data(), 3) <= 1 / 20
