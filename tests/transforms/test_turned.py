"""Half-lines moved by tensor scales of any sign have one support, however they are run."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td
from torch.func import vmap

from emfc.transforms import from_normal, gated

BASES = {
    "gamma": lambda like: td.Gamma(2 + 0 * like, 1 + 0 * like),
    "below 1": lambda like: td.TransformedDistribution(td.Exponential(1 + 0 * like), [td.AffineTransform(1.0, -1.0)]),
}
SCALES = [[1.5, 2.5], [-1.5, -2.5], [1.5, -2.5]]


def make(base, scale, gate=None):
    dist = td.TransformedDistribution(BASES[base](scale), [td.AffineTransform(0.3 + 0 * scale, scale)])
    transform = from_normal(dist)
    return transform if gate is None else gated(transform, torch.tensor(gate, dtype=scale.dtype))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("gate", [None, 0.4, 1.0])
@pytest.mark.parametrize("base", BASES)
def test_every_mode_is_one_law(base, gate, scale):
    scale = torch.tensor(scale, dtype=torch.float64)
    noise = torch.tensor([[-9.0, 9.0], [-1.0, 0.7], [4.0, -4.0]], dtype=torch.float64)

    def draw(noise, scale):
        return make(base, scale, gate).call_and_ladj(noise)

    def back(value, scale):
        return make(base, scale, gate).inverse_and_ladj(value)

    each = [make(base, one, gate) for one in scale]  # of one sign each
    alone = [torch.stack(parts, -1) for parts in zip(*map(lambda t, e: t.call_and_ladj(e), each, noise.T), strict=True)]
    value = alone[0]
    assert ((value - 0.3 - (scale if base == "below 1" else 0)) * scale * (1 if base == "gamma" else -1) > 0).all()
    outside = 2 * (0.3 + (scale if base == "below 1" else 0)) - value
    for function, at in ((draw, noise), (back, value), (back, outside)):
        expected = function(at, scale)
        compiled = torch.compile(function, backend="eager")(at, scale)
        mapped = vmap(vmap(function), (0, None))(at, scale)
        for first, second, third in zip(expected, mapped, compiled, strict=True):
            torch.testing.assert_close(second, first, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(third, first, rtol=1e-9, atol=1e-9)
    for found, known in zip(draw(noise, scale), alone, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-9)
    found, _ = back(value, scale)
    torch.testing.assert_close(found[1:], noise[1:], rtol=1e-8, atol=1e-8)  # values beside an end not 0 are coarse
    assert torch.isneginf(back(outside, scale)[1]).all()


@pytest.mark.parametrize("gate", [None, 0.4])
def test_gradients(gate):
    scale = torch.tensor([1.5, -2.5], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([-1.0, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e, s: make("gamma", s, gate).call_and_ladj(e), (noise, scale))
    value = make("gamma", scale, gate)(noise).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: make("gamma", s, gate).inverse_and_ladj(x), (value, scale))


@pytest.mark.parametrize("scale", SCALES)
def test_mixtures_have_the_union(scale):
    scale = torch.tensor(scale, dtype=torch.float64)
    noise = torch.linspace(-6, 6, 7, dtype=torch.float64)

    def draw(noise, scale):
        parts = td.TransformedDistribution(BASES["gamma"](scale), [td.AffineTransform(0.3 * scale, scale)])
        weights = td.Categorical(torch.ones(2, dtype=torch.float64))
        mixture = td.MixtureSameFamily(weights, parts, validate_args=False)
        return gated(from_normal(mixture), torch.tensor(0.4, dtype=torch.float64)).call_and_ladj(noise)

    for found, known in zip(vmap(draw, (0, None))(noise, scale), draw(noise, scale), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-8, atol=1e-8)
