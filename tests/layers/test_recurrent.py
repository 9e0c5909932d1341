"""Recurrences that are cut equal the program that is run site by site."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc.layers.planning import make_plan
from emfc.program.trace import trace
from tests.programs.random_recurrences import random_recurrence
from tests.programs.recurrences import RECURRENCES, recurrence

ROWS = 4
LONG = 14


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request, _clean_state):
    torch.set_default_dtype(request.param)
    return request.param


def _parameters(program):
    held = [parameter.initial.reshape(-1) for parameter in program.parameters]
    return torch.cat([*held, torch.zeros(0)]).to(torch.get_default_dtype()).requires_grad_()


def _evaluate(plan, values, parameters):
    """Distribution parameters of every site, by site and path."""
    environment = plan.environment(values, parameters)
    return {
        (index, path): value[:, min(row, value.shape[1] - 1)].expand(len(values), *value.shape[2:])
        for kernel in (*plan.kernels, *plan.observed)
        for path, value in kernel.parameters(environment, kernel.full).items()
        for row, index in enumerate(kernel.held.sites)
    }


def _gradients(outcomes, leaves):
    total = sum((1 + 0.1 * index) * value.sin().sum() for (index, _), value in sorted(outcomes.items()))
    return torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else (None,) * len(leaves)


@pytest.mark.parametrize("name", RECURRENCES)
def test_cut_programs_have_the_parameters_and_gradients_of_uncut_ones(name, dtype):
    program = trace(recurrence(name), (LONG,))
    cut, reference = make_plan(program), make_plan(program, optimize=False)
    values = torch.rand(ROWS, cut.dim, generator=torch.Generator().manual_seed(3)).requires_grad_()
    parameters = _parameters(program)
    actual, expected = (_evaluate(plan, values, parameters) for plan in (cut, reference))
    assert actual.keys() == expected.keys()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for key in actual:
        torch.testing.assert_close(actual[key], expected[key], **tolerance)
    found, wanted = (_gradients(held, [values, parameters]) for held in (actual, expected))
    for one, other in zip(found, wanted, strict=True):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("name", RECURRENCES)
def test_layers_equal_the_reference_in_both_directions(name):
    torch.set_default_dtype(torch.float64)
    model = recurrence(name)
    layer, reference = (emfc.compile(model, LONG, optimize=optimize) for optimize in (True, False))
    noise = torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(1))
    x, ladj = layer().call_and_ladj(noise)
    expected, expected_ladj = reference().call_and_ladj(noise)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ladj, expected_ladj, rtol=1e-9, atol=1e-9)
    x = expected.detach().requires_grad_()
    densities = [held().log_prob(x) for held in (layer, reference)]
    torch.testing.assert_close(*densities, rtol=1e-9, atol=1e-9)
    gradients = [
        torch.autograd.grad(density.sum(), [x, *held.parameters()], allow_unused=True)
        for density, held in zip(densities, (layer, reference), strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    again, _ = layer().inverse_and_ladj(x)
    torch.testing.assert_close(again, noise, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", RECURRENCES)
def test_parents_go_through_virtual_nodes(name):
    program = trace(recurrence(name), (LONG,))
    assert make_plan(program).parents == make_plan(program, optimize=False).node_parents
    assert emfc.parse(recurrence(name), LONG).parent_indices == make_plan(program, optimize=False).node_parents


@pytest.mark.parametrize("name", sorted(set(RECURRENCES) - {"latch", "branching"}))
def test_slices_do_not_grow_with_the_length(name):
    plans = [make_plan(trace(recurrence(name), (steps,))) for steps in (40, 80)]
    longest = [
        max(len(kernel.held.slice.values) for kernel in (*plan.kernels, *plan.observed, *plan.virtual_kernels))
        for plan in plans
    ]
    assert longest[0] == longest[1]
    classes = [len(plan.kernels) + len(plan.observed) + len(plan.virtual_kernels) for plan in plans]
    assert classes[0] == classes[1]


@pytest.mark.parametrize("name", ["garch", "positive", "decomposed"])
def test_density_outside_the_support_is_zero(name):
    torch.set_default_dtype(torch.float64)
    layer = emfc.compile(recurrence(name), LONG)
    noise = torch.randn(1, layer.noise_dim, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        moved = layer()(noise).repeat(layer.dim, 1)
        moved[torch.arange(layer.dim), torch.arange(layer.dim)] = -17.0
        log_prob = layer().log_prob(moved)
        outside = layer.outside(moved).any(-1)
    assert outside.any()
    assert not log_prob.isnan().any()
    assert (log_prob[outside] == -torch.inf).all()
    assert log_prob[~outside].isfinite().all()


def test_values_that_overflow_leave_those_before_them_alone():
    torch.set_default_dtype(torch.float32)
    program = trace(recurrence("garch"), (60,))
    plan, reference = make_plan(program), make_plan(program, optimize=False)
    values = torch.rand(2, plan.dim)
    values[1, 30:] = 1e30
    actual, expected = (_evaluate(held, values, _parameters(program)) for held in (plan, reference))
    for key in actual:
        torch.testing.assert_close(actual[key], expected[key], equal_nan=True)


def test_recurrences_under_function_transforms():
    torch.set_default_dtype(torch.float64)
    for name in ("garch", "gru", "coupled"):
        layer = emfc.compile(recurrence(name), LONG)
        x = layer()(torch.randn(3, layer.noise_dim)).detach()
        gradient = torch.func.vmap(torch.func.grad(lambda row, held=layer: held().log_prob(row)))(x)
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(layer().log_prob(leaf).sum(), leaf, create_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
        (second,) = torch.autograd.grad(expected.square().sum(), leaf)
        assert second.isfinite().all()


def test_layers_with_recurrences_are_copied_and_stored():
    torch.set_default_dtype(torch.float64)
    layer = emfc.compile(recurrence("coupled"), LONG)
    x = layer()(torch.randn(3, layer.noise_dim)).detach()
    expected = layer().log_prob(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other().log_prob(x), expected)


@pytest.mark.parametrize("name", RECURRENCES)
def test_a_batch_of_one_and_no_examples(name):
    torch.set_default_dtype(torch.float64)
    program = trace(recurrence(name), (LONG,))
    plan = make_plan(program)
    parameters = _parameters(program)
    values = torch.rand(3, plan.dim)
    whole = _evaluate(plan, values, parameters)
    one = _evaluate(plan, values[1:2], parameters)
    for key, value in one.items():
        torch.testing.assert_close(value, whole[key][1:2])
    none = plan.environment(values[:0], parameters)
    for kernel in plan.kernels:
        for value in kernel.parameters(none, kernel.full).values():
            assert len(value) in (0, 1)


@pytest.mark.parametrize("seed", [0, 1, 3, 7, 10, 13, 17, 19, 23, 29])
def test_random_recurrences_equal_the_reference(seed):
    torch.set_default_dtype(torch.float64)
    model = random_recurrence(seed)
    layer, reference = (emfc.compile(model, 12, optimize=optimize) for optimize in (True, False))
    noise = torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(seed))
    for actual, expected in zip(layer().call_and_ladj(noise), reference().call_and_ladj(noise), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    x = reference()(noise).detach().requires_grad_()
    densities = [held().log_prob(x) for held in (layer, reference)]
    torch.testing.assert_close(*densities, rtol=1e-8, atol=1e-8)
    gradients = [torch.autograd.grad(held.sum(), x)[0] for held in densities]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)
    assert layer.plan.parents == reference.plan.parents


def test_counters_in_half_precision():
    """Half precision does not count to 300, so what is carried is carried in single."""

    def model():
        table = torch.linspace(-1.0, 1.0, 400)
        count, x = torch.zeros((), dtype=torch.int64), pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in range(1, 350):
            count = count + (x > -10).long()
            x = pyro.sample(f"x_{t}", dist.Normal(table[count], 1.0))

    layer = emfc.compile(model)
    assert layer.plan.virtuals
    values = layer()(torch.randn(2, layer.noise_dim, generator=torch.Generator().manual_seed(1))).detach()
    for half in (torch.bfloat16, torch.float16):
        rounded = values.to(half)
        expected = layer().log_prob(rounded.float())
        torch.testing.assert_close(layer().log_prob(rounded).float(), expected, rtol=3e-2, atol=0)
