"""Affine chains: the recurrence solver, and what is seen to be affine."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc.layers.affine import linear
from emfc.layers.latents import Gates
from emfc.layers.scan import factor, solve
from tests.programs.chains import AFFINE, LOOPS

TWO_CLASSES = ("chosen_by_data", "sometimes_further_back")  # chains whose steps are not all the same code
PARTLY_AFFINE = ("grid", "varying_lags")
SHAPES = {  # batch, paths, series, length, order, size
    "short": (3, 2, 1, 7, 1, 1),
    "one number": (3, 1, 2, 100, 1, 1),
    "two back": (2, 2, 1, 75, 2, 1),
    "vectors": (2, 1, 1, 90, 1, 3),
    "vectors, two back": (2, 1, 1, 333, 2, 2),
    "one step": (2, 1, 1, 1, 1, 1),
    "seasonal": (2, 1, 1, 40, 12, 1),
    "shorter than its order": (2, 1, 1, 3, 5, 1),
    "long": (1, 1, 1, 2000, 1, 1),
}


def _step_by_step(coefficients, offsets):
    held = coefficients.expand(*offsets.shape[:-1], *coefficients.shape[-3:])
    values = []
    for t in range(offsets.shape[-2]):
        value = offsets[..., t, :]
        for lag in range(1, min(t, held.shape[-3]) + 1):
            value = value + (held[..., t, lag - 1, :, :] @ values[t - lag].unsqueeze(-1)).squeeze(-1)
        values.append(value)
    return torch.stack(values, -2)


@pytest.mark.parametrize("by", ["nothing", "batch", "steps", "batch and steps", "paths"])
@pytest.mark.parametrize("name", SHAPES)
def test_blocks_equal_step_by_step(name, by):
    batch, paths, series, length, order, size = SHAPES[name]
    lead = (batch if "batch" in by else 1, paths if by == "paths" else 1, 1, length if "steps" in by else 1)
    coefficients = torch.randn(*lead, order, size, size) / (2 * (order * size) ** 0.5)
    offsets = torch.randn(batch, paths, series, length, size)
    both = [coefficients.requires_grad_(), offsets.requires_grad_()]
    weights = torch.randn_like(offsets)
    actual = solve(factor(coefficients, length, batch * paths * series), offsets)
    expected = _step_by_step(coefficients, offsets)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    moved = [torch.autograd.grad(held, both, weights, allow_unused=True) for held in (actual, expected)]
    torch.testing.assert_close(moved[0][1], moved[1][1], rtol=1e-9, atol=1e-9)
    if length > 1:
        torch.testing.assert_close(moved[0][0], moved[1][0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coefficient", [0.0, 1e-30, 0.3, -0.9, 0.999, 1.0, 1.001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ten_thousand_steps(coefficient, dtype):
    offsets = torch.randn(2, 1, 1, 10_000, 1, dtype=torch.float64)
    held = torch.full((1, 1, 1, 1, 1, 1, 1), coefficient, dtype=dtype)
    actual = solve(factor(held, 10_000, 2), offsets.to(dtype)).squeeze()
    value, expected = torch.zeros(2, dtype=torch.float64), []
    for offset in offsets.squeeze().unbind(-1):
        value = held.double().squeeze() * value + offset
        expected.append(value)
    stacked = torch.stack(expected, -1)
    scale = stacked.abs().cummax(-1).values
    assert ((actual - stacked).abs() / scale).max() < (1e-12 if dtype is torch.float64 else 1e-4)


@pytest.mark.parametrize("name", ["drifting_walk", "ornstein_uhlenbeck", "second_order", "local_trend", "unstable"])
def test_long_chains_equal_the_loop(name):
    if name == "unstable":
        steps = 300
        layer = emfc.compile(_unstable, steps)
    else:
        steps = 600
        layer = emfc.compile(AFFINE[name], steps)
    from emfc.layers.sampling import Sampling

    noise = torch.randn(2, layer.noise_dim, requires_grad=True)
    results = []
    for direction in (layer.sampling, Sampling(layer.plan)):
        parameters = layer.flat_parameters(noise)
        value, ladj = direction(noise, parameters, Gates(None))
        wanted = [noise, *layer.parameters()]
        gradients = torch.autograd.grad(value.mean() + ladj.sum(), wanted, allow_unused=True)
        results.append((value, ladj, *(held for held in gradients if held is not None)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def _unstable(steps):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, steps):
        x = pyro.sample(f"x_{t}", dist.Normal(1.02 * x, 0.5))


@pytest.mark.parametrize("name", [name for name in AFFINE if name not in TWO_CLASSES])
def test_affine_chains_are_found(name):
    assert any("scan" in line for line in emfc.compile(AFFINE[name]).sampling.describe())


FAMILIES = {
    "Laplace": lambda loc: dist.Laplace(loc, 0.5),
    "Cauchy": lambda loc: dist.Cauchy(loc, 0.5),
    "StudentT": lambda loc: dist.StudentT(3.0, loc, 0.5),
    "Gumbel": lambda loc: dist.Gumbel(loc, 0.5),
    "SoftLaplace": lambda loc: dist.SoftLaplace(loc, 0.5),
    "AsymmetricLaplace": lambda loc: dist.AsymmetricLaplace(loc, torch.tensor(0.5), torch.tensor(1.5)),
}


@pytest.mark.parametrize("gate", [None, "site"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_a_location(name, gate):
    """Without gates a chain of any of them is a scan; with gates it is a loop."""

    def model():
        x = pyro.sample("x_0", FAMILIES[name](torch.tensor(3.0)))
        for t in range(1, 20):
            x = pyro.sample(f"x_{t}", FAMILIES[name](0.7 * x + 1.0))

    layer, reference = (emfc.compile(model, gate=gate, optimize=held) for held in (True, False))
    assert any("scan" in line for line in layer.sampling.describe())
    noise = torch.randn(5, layer.noise_dim)
    for actual, expected in zip(layer().call_and_ladj(noise), reference().call_and_ladj(noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in LOOPS if name not in PARTLY_AFFINE])
def test_other_loops_are_none(name):
    assert not any("scan" in line for line in emfc.compile(LOOPS[name]).sampling.describe())


SHIFTED = {
    "sum": lambda x, z, w: x + 2.0 * z - 3.0,
    "difference": lambda x, z, w: 1.0 - x,
    "product": lambda x, z, w: z * x * 0.5,
    "quotient": lambda x, z, w: x / (1.0 + z**2),
    "mean of parts": lambda x, z, w: torch.stack([x, 2 * x, z]).mean(),
    "prefix sums": lambda x, z, w: torch.cumsum(torch.stack([x, z, x]), 0)[2],
    "inner product": lambda x, z, w: torch.dot(w, torch.stack([x, z])),
    "linear layer": lambda x, z, w: torch.nn.functional.linear(torch.stack([x, z]), w.unsqueeze(0), z.unsqueeze(0))[0],
    "choice": lambda x, z, w: torch.where(z > 0, x, -x + 1.0),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_coefficients_are_derivatives(name):
    """The chain of each formula equals the loop over it."""

    def model():
        w = pyro.param("w", torch.tensor([0.4, -0.2]))
        z = pyro.sample("z", dist.Laplace(0.0, 1.0))
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, 12):
            x = pyro.sample(f"x_{t}", dist.Normal(SHIFTED[name](x, z, w), 0.5))

    layer, reference = emfc.compile(model), emfc.compile(model, optimize=False)
    assert any("scan" in line for line in layer.sampling.describe())
    noise = torch.randn(5, layer.noise_dim)
    for actual, expected in zip(layer().call_and_ladj(noise), reference().call_and_ladj(noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


NOT = {
    "square": lambda x, z: x * x,
    "inverse": lambda x, z: z / x,
    "sine": torch.sin,
    "choice by the chain": lambda x, z: torch.where(x > 0, x, -x),
    "rounded": lambda x, z: torch.div(x, 2.0, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", NOT)
def test_what_is_not_affine_is_none(name):
    def model():
        z = pyro.sample("z", dist.Laplace(0.0, 1.0))
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, 6):
            formula = NOT[name]
            x = pyro.sample(f"x_{t}", dist.Normal(formula(x) if name == "sine" else formula(x, z), 0.5))

    layer = emfc.compile(model)
    (kernel,) = (held for held in layer.plan.kernels if len(held.held.sites) == 5)
    held = kernel.held.slice
    loads = [number for number, _ in zip(held.numbers, held.values, strict=True)][:1]
    assert linear(held, loads, held.outputs[0]) is None or not any("scan" in line for line in layer.sampling.describe())
    reference = emfc.compile(model, optimize=False)
    noise = torch.randn(5, layer.noise_dim)
    for actual, expected in zip(layer().call_and_ladj(noise), reference().call_and_ladj(noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [3, 100])
def test_second_derivatives_of_long_chains(batch):
    """Levels of a scan are made from one another; no part may count twice when gradients have gradients."""
    torch.set_default_dtype(torch.float64)

    def model():
        slope = pyro.param("slope", torch.tensor(0.97))
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, 300):
            x = pyro.sample(f"x_{t}", dist.Normal(slope * x, 0.1))

    noise = torch.randn(batch, 300, generator=torch.Generator().manual_seed(5))
    found = []
    for optimize in (True, False):
        layer = emfc.compile(model, optimize=optimize)
        (slope,) = layer.parameters()
        (first,) = torch.autograd.grad(torch.tanh(layer()(noise)).sum(), slope, create_graph=True)
        (plain,) = torch.autograd.grad(torch.tanh(layer()(noise)).sum(), slope)
        (second,) = torch.autograd.grad(first, slope)
        torch.testing.assert_close(first, plain, rtol=1e-9, atol=1e-9)
        found.append((first.detach(), second))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [3, 18])
def test_second_derivatives_at_no_slope(steps):
    torch.set_default_dtype(torch.float64)

    def model():
        slope = pyro.param("slope", torch.tensor(0.0))
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, steps):
            x = pyro.sample(f"x_{t}", dist.Normal(slope * x, 1.0))

    found = []
    for optimize in (True, False):
        layer = emfc.compile(model, optimize=optimize)
        (slope,) = layer.parameters()
        total = layer()(torch.ones(1, steps)).square().sum()
        (first,) = torch.autograd.grad(total, slope, create_graph=True)
        found.append(torch.autograd.grad(first, slope)[0])
    torch.testing.assert_close(*found)
