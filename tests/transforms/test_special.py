"""Special functions against mpmath, and the bracketed solver."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.normal import log1mexp, log_sum_exp, noise_from_tails, tails_from_noise
from emfc.special.precision import wide
from emfc.special.roots import attach_root, increasing_root
from emfc.transforms import log_ndtr, ndtri_exp
from tests.transforms.cases import DTYPES

BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])


def reference(noise: float) -> mp.mpf:
    with mp.workdps(2500 if noise > 10 else 60):
        return mp.log(mp.erfc(-mp.mpf(noise) / mp.sqrt(2)) / 2)


@BOTH
@pytest.mark.parametrize("mapped", [False, True], ids=["eager", "vmap"])
def test_log_ndtr(precision, mapped):
    noise = torch.tensor([-1e4, -100, -25, -8, -3, -1.1, -0.99, -0.71, -0.6, -0.1, 0, 0.5, 2, 5], dtype=precision)
    result = torch.func.vmap(log_ndtr)(noise) if mapped else log_ndtr(noise)
    for e, value in zip(noise.tolist(), result.tolist(), strict=True):
        expected = reference(e)
        assert abs(float((value - expected) / expected)) < (200 if e > 1 else 8) * torch.finfo(precision).eps


@BOTH
def test_ndtri_exp_inverts_log_ndtr(precision):
    noise = torch.cat((-torch.logspace(4, -2, 200), torch.linspace(0, 3, 20))).to(precision)
    expected = noise.double()
    result = ndtri_exp(torch.special.log_ndtr(expected).to(precision)).double()
    slope = torch.special.log_ndtr(expected).abs() * torch.exp(
        torch.special.log_ndtr(expected) + 0.5 * expected**2
    ).nan_to_num(posinf=1.0)
    allowed = torch.finfo(precision).eps * (8 * expected.abs().clamp(min=1) + 8 * slope.clamp(max=10))
    assert ((result - expected).abs() <= allowed).all()


def test_derivatives():
    log_p = torch.tensor([-2000.0, -710.0, -700.0, -300.0, -2.0, -0.7, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ndtri_exp, [log_p], check_forward_ad=True)
    assert torch.autograd.gradcheck(
        torch.func.vmap(log_ndtr), [torch.linspace(-9, 3, 25, dtype=torch.float64).requires_grad_()]
    )
    assert torch.autograd.gradgradcheck(ndtri_exp, [log_p.detach()[3:].requires_grad_()])
    for function, value in ((ndtri_exp, -1e30), (ndtri_exp, -1e-30), (log1mexp, -1e-300), (log1mexp, -1e30)):
        leaf = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(function(leaf), leaf)
        assert torch.isfinite(gradient)


def test_log_sum_exp_of_nothing_has_no_gradient():
    leaf = torch.full((2, 3), -torch.inf, requires_grad=True)
    total = log_sum_exp(leaf)
    assert (total == -torch.inf).all()
    assert (torch.autograd.grad(total.sum(), leaf)[0] == 0).all()


def test_wide_keeps_single_and_double():
    assert wide(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert wide(torch.ones(1, dtype=torch.float32)).dtype == torch.float32
    assert wide(torch.ones(1, dtype=torch.float16)).dtype == torch.float32
    assert wide(torch.ones(1, dtype=torch.int64)).dtype == torch.get_default_dtype()


@settings(max_examples=60, deadline=None)
@given(st.floats(-37, 37))
def test_noise_of_its_tails(noise):
    tensor = torch.tensor(noise, dtype=torch.float64)
    assert abs(noise_from_tails(*tails_from_noise(tensor)).item() - noise) <= 1e-12 * max(1, abs(noise))


NASTY = {
    "line": lambda x: (x, torch.ones_like(x)),
    "cube": lambda x: (x**3, 3 * x**2),
    "step": lambda x: (torch.atan(1e6 * x), 1e6 / (1 + (1e6 * x) ** 2)),
    "flat": lambda x: (torch.tanh(x - 30) + torch.tanh(x + 30) + 1e-9 * x, 1e-9 + 0 * x),
    "wrong slope": lambda x: (x + x**5, 1e-3 * torch.ones_like(x)),
}


@pytest.mark.parametrize("name", NASTY)
@BOTH
def test_the_solver_finds_roots_of_nasty_functions(name, precision):
    torch.manual_seed(0)
    shift = torch.randn(200, dtype=precision)
    function = NASTY[name]
    low, high = torch.full_like(shift, -77.0), torch.full_like(shift, 1234.0)
    tolerance = torch.zeros_like(shift)
    root = increasing_root(lambda x: function(x - shift), low, high, torch.full_like(shift, 5.0), tolerance=tolerance)
    eps = torch.finfo(precision).eps
    margin = 64 * eps * root.abs().clamp(min=1) * (1e4 if name == "cube" else 1)
    ends = [function(root + sign * margin - shift)[0] for sign in (-1, 1)]
    assert ((ends[0] <= 0) & (ends[1] >= 0)).all()


def test_attached_root_has_the_gradient_of_the_implicit_function():
    a = torch.tensor([2.0, 9.0], dtype=torch.float64, requires_grad=True)
    root = a.detach().sqrt()
    (gradient,) = torch.autograd.grad(attach_root(root, root**2 - a, 2 * root).sum(), a)
    torch.testing.assert_close(gradient, 0.5 / root)
