"""The sum of normal log densities, for scales of any size and in each of its forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import emfc
from emfc.layers.normal_groups import Term
from emfc.layers.normals import normal_sum

KEPT = {torch.float32: 1e-5, torch.float64: 1e-12}


def _problem(size, rows, scale, logarithm, dtype):
    generator = torch.Generator().manual_seed(0)
    difference = scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    held = torch.full((1, 1), scale, dtype=torch.float64)
    held = held.log() if logarithm else held
    return Term(size, logarithm), [difference.to(dtype).requires_grad_(), held.to(dtype).requires_grad_()]


def _found(term, tensors, **options):
    total = normal_sum([term], tensors, **options)
    return [total, *torch.autograd.grad(total.sum(), tensors)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 0.1, 1.0, 30.0, 1e12, 1e30])
@pytest.mark.parametrize("size", [1, 7])
def test_every_form_gives_the_same(size, scale, logarithm, dtype):
    term, tensors = _problem(size, 5, scale, logarithm, dtype)
    difference, held = tensors
    spread = held.double().exp() if logarithm else held.double()
    wanted = dist.Normal(0.0, spread).log_prob(difference.double()).sum(-1)
    plain = _found(term, tensors, direct=False)
    torch.testing.assert_close(plain[0].double(), wanted, rtol=KEPT[dtype], atol=100 * size * KEPT[dtype])
    for options in ({"direct": True}, {"direct": False, "guarded": True}):
        found = _found(term, tensors, **options)
        if options.get("guarded") and not bool(found[0].isfinite().all()):
            assert not 1e-6 < scale < 1e6 or dtype == torch.float64
            assert bool(found[0].isnan().all())
            continue
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=100 * KEPT[dtype], atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e25])
def test_a_compiled_layer_takes_scales_of_any_size(scale):
    def model():
        step = pyro.param("step", torch.tensor(scale), constraint=constraints.positive)
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, 12):
            x = pyro.sample(f"x_{t}", dist.Normal(0.1 * x, step))

    compiled, plain = emfc.compile(model, compile=True), emfc.compile(model)
    values = torch.randn(6, 12) * torch.tensor([1.0] + [scale] * 11)
    values[:, 0] = 0.0
    results = []
    for layer in (compiled, plain):
        inputs = [values.clone().requires_grad_(), *layer.parameters()]
        total = layer().log_prob(inputs[0])
        results.append([total, *torch.autograd.grad(total.sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
