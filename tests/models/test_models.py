"""The programs that people start from: they run, their data fit their sites, their constants are the paper's."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from models import (
    autoregression,
    brownian,
    digits,
    eight_gaussians,
    eight_schools,
    funnel,
    gated_recurrent,
    hidden_markov,
    local_trend,
    lorenz,
    ornstein_uhlenbeck,
    radon,
    stochastic_volatility,
)
from tests.programs.compiled import density
from tests.programs.oracle import pyro_log_prob
from tests.programs.watch import program_parameters, run

SIMULATED = (
    "brownian",
    "ornstein_uhlenbeck",
    "lorenz",
    "funnel",
    "eight_gaussians",
    "autoregression",
    "gated_recurrent",
    "hidden_markov",
    "local_trend",
    "radon",
    "stochastic_volatility",
)
NAMES = ("digits", "eight_schools", *SIMULATED)
VARIANTS = {
    "digits": (digits.model, {}),
    "digits, three populations": (digits.model, {"populations": 3}),
    "brownian": (brownian.model, {}),
    "brownian process": (brownian.process, {"steps": 7}),
    "ornstein_uhlenbeck": (ornstein_uhlenbeck.model, {}),
    "ornstein_uhlenbeck smoothness": (ornstein_uhlenbeck.smoothness, {}),
    "ornstein_uhlenbeck process": (ornstein_uhlenbeck.process, {}),
    "lorenz": (lorenz.model, {}),
    "lorenz smoothness": (lorenz.smoothness, {}),
    "lorenz process": (lorenz.process, {}),
    "eight_schools": (eight_schools.model, {}),
    "funnel": (funnel.model, {}),
    "eight_gaussians": (eight_gaussians.model, {}),
    "eight_gaussians by dimension": (eight_gaussians.by_dimension, {"components": 9}),
    "autoregression": (autoregression.model, {}),
    "gated_recurrent": (gated_recurrent.model, {"steps": 8}),
    "hidden_markov": (hidden_markov.model, {"steps": 5}),
    "local_trend": (local_trend.model, {}),
    "radon": (radon.model, {}),
    "radon with levels": (radon.model, {"counties": 5, "count": 4, "levels": [0.3, 1.2, -0.4, 0.9]}),
    "stochastic_volatility": (stochastic_volatility.model, {}),
}


def summed_out(site):
    return site == "population" or site.startswith("z_")


@pytest.mark.parametrize("name", VARIANTS)
def test_runs_under_pyro(name, dtype):
    model, keywords = VARIANTS[name]
    found = run(model, kwargs=keywords)
    for record in found.latent.values():
        assert torch.isfinite(record.fn.log_prob(record.value)).all()
        if record.value.is_floating_point():
            assert record.value.dtype == dtype
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("name", ["digits", *SIMULATED])
def test_data_fit_the_sites(name):
    module = importlib.import_module(f"models.{name}")
    data = module.data() if name == "digits" else module.data(n=50, seed=3)
    sites = run(module.model).latent
    sites = {name: site for name, site in sites.items() if not summed_out(name)}
    assert list(data) == list(sites)
    rows = {len(values) for values in data.values()}
    assert rows == ({1797} if name == "digits" else {50})
    for site, values in data.items():
        assert values.shape[1:] == sites[site].value.shape
        log_prob = sites[site].fn.expand(torch.Size([len(values), *sites[site].fn.batch_shape])).log_prob(values)
        assert torch.isfinite(log_prob).all()


@pytest.mark.parametrize("name", SIMULATED)
def test_data_repeat_with_the_seed(name):
    module = importlib.import_module(f"models.{name}")
    first, again, other = module.data(n=8, seed=1), module.data(n=8, seed=1), module.data(n=8, seed=2)
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert not all(torch.equal(first[site], other[site]) for site in first)


def test_importing_needs_pyro_and_torch_only():
    code = "import sys; sys.modules.update(dict.fromkeys(['sklearn', 'emfc']))\n"
    code += "\n".join(f"import models.{name} as m; assert m.__doc__ and m.model and m.data" for name in NAMES)
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "floor"), [(brownian, -26.509), (ornstein_uhlenbeck, 24.076), (lorenz, -242.793)], ids=lambda v: str(v)
)
def test_processes_reach_the_entropy_of_their_data(module, floor):
    data = module.data(n=20_000, seed=11)
    log_prob = sum(_log_prob_of_process(module, data))
    error = log_prob.std() / math.sqrt(len(log_prob))
    assert abs(-log_prob.mean() - floor) < 4 * error


def _log_prob_of_process(module, data):
    """The process's log density at all rows at once: its sites, given the values before."""
    names = list(data)
    values = [data[name] for name in names]
    if module is brownian:
        yield dist.LogNormal(0.0, brownian.STEP).log_prob(values[0])
        for before, now in itertools.pairwise(values):
            yield dist.LogNormal(before.log(), brownian.STEP).log_prob(now)
    elif module is ornstein_uhlenbeck:
        yield dist.Normal(0.0, ornstein_uhlenbeck.START).log_prob(values[0])
        for before, now in itertools.pairwise(values):
            yield dist.Normal(ornstein_uhlenbeck.DECAY * before, ornstein_uhlenbeck.STEP).log_prob(now)
    else:
        yield dist.Normal(torch.zeros(3), 1.0).log_prob(values[0]).sum(-1)
        for before, now in itertools.pairwise(values):
            drift = before + lorenz.TIME_STEP * lorenz.velocity(before)
            yield dist.Normal(drift, lorenz.STEP).log_prob(now).sum(-1)


def test_eight_schools_has_the_evidence_that_it_states():
    mu = torch.linspace(-60.0, 60.0, 1201)
    log_tau = torch.linspace(-1.0, 11.0, 601)
    prior = dist.Normal(0.0, 10.0).log_prob(mu)[:, None] + dist.Normal(5.0, 1.0).log_prob(log_tau)
    spread = (torch.tensor(eight_schools.ERRORS) ** 2 + torch.exp(2 * log_tau)[:, None]).sqrt()
    y = eight_schools.data()["y"]
    likelihood = dist.Normal(mu[:, None, None], spread).log_prob(y).sum(-1)
    evidence = torch.logsumexp((prior + likelihood).flatten(), 0) + torch.log(
        (mu[1] - mu[0]) * (log_tau[1] - log_tau[0])
    )
    assert evidence.item() == pytest.approx(-36.131, abs=2e-3)


def test_eight_gaussians_has_the_entropy_that_it_states():
    x = eight_gaussians.data(n=100_000, seed=5)["x"]
    centres = eight_gaussians.ring(8, eight_gaussians.RADIUS)
    joint = dist.Normal(centres, eight_gaussians.SPREAD).log_prob(x[:, None]).sum(-1) - math.log(8)
    assert -joint.logsumexp(-1).mean().item() == pytest.approx(2.833, abs=0.02)


@pytest.mark.parametrize("populations", [1, 10])
def test_digits_start_from_training_images(populations):
    images = digits.data()["pixels"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, training = images[order[:180]], images[order[180:]]
    values = digits.start({"pixels": training}, populations, restarts=2, steps=25)
    defaults = program_parameters(digits.model, kwargs={"populations": populations})
    assert {name: value.shape for name, value in values.items()} == {n: v.shape for n, v in defaults.items()}
    assert list(values) == list(defaults)
    logits = values["logits"].reshape(populations, 64, digits.LEVELS)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(populations, 64))
    codes = torch.nn.functional.one_hot(held_out.reshape(-1, 64), digits.LEVELS).to(logits)
    joint = torch.einsum("nps,kps->nk", codes, logits) + values.get("weights", torch.ones(1)).log()
    nll = -joint.logsumexp(-1).mean() - 64 * math.log(digits.LEVELS)  # of the dequantised pixels in [0, 1]
    assert nll < (-73 if populations == 1 else -82)
    again = digits.start({"pixels": training}, populations, restarts=2, steps=25)
    assert all(torch.equal(values[name], again[name]) for name in values)


def test_digits_start_takes_flat_images():
    images = digits.data()["pixels"][:200]
    square, flat = digits.start({"pixels": images}), digits.start({"pixels": images.reshape(-1, 64)})
    assert torch.equal(square["logits"], flat["logits"])


@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_to_the_density_of_pyro(name, dtype):
    model, keywords = VARIANTS[name]
    layer = emfc.compile(model, **keywords)
    x = layer()(torch.randn(2, layer.noise_dim)).detach()
    values = layer.unpack(x)
    summed = tuple(name for name in layer.graph.sites if summed_out(name))
    expected = torch.stack(
        [
            pyro_log_prob(model, (), keywords, {site: rows[row] for site, rows in values.items()}, summed=summed)
            for row in range(2)
        ]
    )
    tolerance = 1e-8 if dtype is torch.float64 else 1e-3
    torch.testing.assert_close(density(layer, x).detach(), expected.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["digits", *SIMULATED])
def test_data_fit_the_compiled_program(name):
    module = importlib.import_module(f"models.{name}")
    layer = emfc.compile(module.model)
    x = layer.pack(module.data() if name == "digits" else module.data(n=100))
    assert x.shape[1] == layer.dim
    assert not layer.outside(x).any()
    assert torch.isfinite(density(layer, x)).all()


@pytest.mark.parametrize("populations", [1, 4])
def test_digits_layer_takes_the_starting_values(populations):
    images = digits.data()["pixels"][:300]
    values = digits.start({"pixels": images}, populations, restarts=1, steps=10)
    layer = emfc.compile(digits.model, populations)
    layer.set_values(values)
    assert layer.dim == 64
    assert layer.levels == [digits.LEVELS] * 64
    for key, value in layer.values().items():
        torch.testing.assert_close(value.detach(), values[key])
    x = layer.pack({"pixels": images[:5]})
    logits = values["logits"].reshape(populations, 64, digits.LEVELS)
    codes = torch.nn.functional.one_hot(images[:5].reshape(-1, 64), digits.LEVELS).to(logits)
    joint = torch.einsum("nps,kps->nk", codes, logits) + values.get("weights", torch.ones(1)).log()
    torch.testing.assert_close(density(layer, x).detach(), joint.logsumexp(-1), rtol=1e-5, atol=1e-4)


def test_density_of_ten_populations_of_digits_is_fast():
    layer = emfc.compile(digits.model, 10)
    x = layer.pack({"pixels": digits.data()["pixels"][:256]})
    density(layer, x)
    began = time.perf_counter()
    density(layer, x).sum().backward()
    assert time.perf_counter() - began < 5.0
