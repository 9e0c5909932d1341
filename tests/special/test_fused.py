"""The normal distribution function in the form that a compiler fuses is the one computed outside."""

from __future__ import annotations

import math

import pytest
import torch

from emfc.special.fused import normal_probability

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def compiled(function):
    """Traced as the compiler does, and run as plain operations."""
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@BOTH
def test_the_fused_form_is_exact_in_the_lower_tail(dtype):
    end, reach = torch.finfo(dtype), {torch.float32: 12.5, torch.float64: 37.0}[dtype]
    noise = torch.cat([torch.linspace(-reach, 8, 4001, dtype=dtype), torch.tensor([0.0, 40.0, math.inf], dtype=dtype)])
    expected = 0.5 * torch.erfc(-math.sqrt(0.5) * noise)
    found = compiled(normal_probability)(noise)
    error = (found / expected - 1).abs() / end.eps
    assert (error <= 4 * (1 + noise.clamp(-reach, reach) ** 2)).all()  # rounding of the exponent grows with the square


@BOTH
def test_the_fused_form_has_the_density_as_derivative(dtype):
    noise = torch.tensor([-9.0, -1.0, 0.0, 0.5, 3.0, 1e30], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(compiled(normal_probability)(noise).sum(), noise)
    torch.testing.assert_close(slope, torch.exp(-0.5 * noise.detach() ** 2) / math.sqrt(2 * math.pi), rtol=1e-5, atol=0)


@BOTH
def test_nothing_becomes_a_number_that_was_none(dtype):
    assert compiled(normal_probability)(torch.tensor([math.nan], dtype=dtype)).isnan().all()
