"""Inverses of increasing functions: bends, flats, jumps, wrong brackets and bad starts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.special.roots import Bracket, increasing_inverse


def smooth(x):
    return torch.sinh(x) + 3 * x, 1 / (torch.cosh(x) + 3)


def kinked(x):
    slope = torch.where(x < 1, 0.001, 1000.0)
    return torch.where(x < 1, 0.001 * (x - 1), 1000.0 * (x - 1)), 1 / slope


def steps(x):
    """Three logistic steps of very different widths."""
    places, widths = torch.tensor([-50.0, 0.0, 30.0]), torch.tensor([1e-4, 1.0, 1e-2])
    z = (x.unsqueeze(-1) - places) / widths
    rate = torch.sigmoid(z) * torch.sigmoid(-z) / widths
    return torch.sigmoid(z).sum(-1), 1 / rate.sum(-1)


def misleading(x):
    """Slopes of no use at all."""
    return x**3, torch.full_like(x, 1e3)


def solve(function, target, low, high, start, **options):
    bracket = Bracket(torch.full_like(target, low), torch.full_like(target, high), None, (-1e300, 1e300))
    return increasing_inverse(
        function,
        target,
        bracket,
        torch.full_like(target, start),
        tolerance=torch.full_like(target, 1e-13),
        **options,
    )


@pytest.mark.parametrize("start", [-90.0, 0.3, 79.0])
@pytest.mark.parametrize(
    ("function", "targets"),
    [
        (smooth, [-30.0, -1.0, 0.0, 1e-9, 2.0, 1e6]),
        (kinked, [-0.05, -1e-6, 0.0, 1e-3, 70.0]),
        (steps, [0.2, 0.99, 1.5, 1.999, 2.5, 2.99]),
        (misleading, [-1e3, -1e-9, 1e-3, 8.0]),
    ],
)
def test_values_are_met(function, targets, start):
    target = torch.tensor(targets, dtype=torch.float64)
    calls = []

    def counted(x):
        calls.append(x.numel())
        return function(x)

    root = solve(counted, target, -100.0, 100.0, start)
    ulp = torch.nextafter(root.at.abs(), torch.tensor(math.inf, dtype=torch.float64)) - root.at.abs()
    reach = [function(root.at - 4 * ulp)[0] - 1e-12, function(root.at + 4 * ulp)[0] + 1e-12]
    assert ((reach[0] <= target) & (target <= reach[1])).all()
    assert len(calls) <= 200
    torch.testing.assert_close(root.value, function(root.at)[0], rtol=0, atol=0)
    torch.testing.assert_close(root.slope, function(root.at)[1], rtol=0, atol=0)


def test_few_steps_suffice_where_it_is_smooth():
    calls = []

    def counted(x):
        calls.append(x.numel())
        return smooth(x)

    solve(counted, torch.linspace(-100, 100, 51, dtype=torch.float64), -100.0, 100.0, 0.5)
    assert len(calls) <= 20


def test_elements_that_are_done_are_dropped():
    sizes = []
    target = torch.cat((torch.full((90,), 3.2), torch.tensor([1e5] * 10))).double()

    def of(target):
        def function(x):
            sizes.append(x.numel())
            assert x.shape == target.shape
            return x**3 / 10, 10 / (3 * x * x).clamp(min=1e-30)

        return function

    root = solve(of(target), target, 0.0, 1e4, 32 ** (1 / 3), take=lambda keep: of(target[keep]))
    torch.testing.assert_close(root.at, (10 * target) ** (1 / 3), rtol=1e-13, atol=0)
    assert sizes[0] == 100
    assert sizes[-1] <= 10


def test_a_root_outside_its_bracket_is_found():
    target = torch.tensor([5.0, -7.0], dtype=torch.float64)
    root = solve(smooth, target, -0.1, 0.1, 0.0)
    torch.testing.assert_close(smooth(root.at)[0], target)


def test_no_root_at_all_ends_at_the_limit():
    def bounded(x):
        return torch.tanh(x), torch.cosh(x.clamp(-300, 300)) ** 2

    root = increasing_inverse(
        bounded,
        torch.tensor([2.0, -2.0], dtype=torch.float64),
        Bracket(torch.full((2,), -1.0).double(), torch.full((2,), 1.0).double(), None, (-50.0, 40.0)),
        torch.zeros(2, dtype=torch.float64),
        tolerance=torch.full((2,), 1e-13, dtype=torch.float64),
    )
    torch.testing.assert_close(root.at, torch.tensor([40.0, -50.0], dtype=torch.float64))


def test_a_flat_stretch_has_its_left_end():
    def flat(x):
        inside = (x > 1) & (x <= 2)
        return torch.where(inside, 1.0, torch.where(x > 2, x - 1, x)), torch.where(inside, math.inf, 1.0)

    root = solve(flat, torch.tensor([1.0], dtype=torch.float64), 0.0, 3.0, 1.6)
    torch.testing.assert_close(root.at, torch.tensor([1.0], dtype=torch.float64))
    assert root.regular.all()


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-6, 6), st.floats(-8, 8), st.sampled_from([torch.float32, torch.float64]))
def test_any_place_and_width(place, log_width, quantile, precision):
    width = 10**log_width

    def function(x):
        z = (x - place) / width
        return torch.asinh(z), width * torch.sqrt(1 + z * z)

    target = torch.tensor([quantile], dtype=precision)
    reach = 1e4 * width + abs(place)
    root = increasing_inverse(
        function,
        target,
        Bracket(torch.full_like(target, -reach), torch.full_like(target, reach)),
        torch.full_like(target, -0.3 * reach),
        tolerance=8 * torch.finfo(precision).eps * target.abs().clamp(min=1),
    )
    value = function(root.at)[0]
    rounding = 4 * torch.finfo(precision).eps * (abs(place) / width + 1)
    assert (value - target).abs() <= max(1e-4 if precision == torch.float32 else 1e-12, rounding)
