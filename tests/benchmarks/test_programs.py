"""Cost of programs, as ratios within one run: the goals that `emfc bench` tells of, asserted."""

from __future__ import annotations

import pytest
import torch

from emfc.cli.bench.figures import Settings, measure_programs
from emfc.cli.bench.goals import EVERY_DENSITY, IN_CLOSED_FORM, STEP_BY_STEP, findings
from emfc.cli.bench.measure import one_thread
from emfc.cli.bench.scaling import LONG_PROGRAMS, compile_alone

pytestmark = pytest.mark.benchmark

BOTH = pytest.mark.parametrize("single", [True, False], ids=["float32", "float64"])


def hold(figures):
    """Print what was found, and fail where a goal is missed."""
    found = findings(figures)
    assert found
    for finding in found:
        bound = "at least" if finding.at_least else "at most"
        print(f"\n  {finding.what}: {finding.value:.2f} ({bound} {finding.limit:g}; {finding.where})", end="")
    missed = [f"{finding.what}: {finding.value:.2f} ({finding.where})" for finding in found if not finding.met]
    assert missed == []


def measured(name, **settings):
    with one_thread():
        return list(measure_programs([name], Settings(**settings)))


@pytest.mark.parametrize("name", EVERY_DENSITY)
@BOTH
def test_density(name, single):
    """Beside hand-written PyTorch, at every length; the same operations for 30 steps as for 3000."""
    torch.set_default_dtype(torch.float32 if single else torch.float64)
    hold(measured(name, measures=("density",), against_pyro=False, against_plain=False))


@pytest.mark.parametrize("name", IN_CLOSED_FORM)
@BOTH
def test_draws_in_closed_form(name, single):
    """Series that are affine in the value before, with gradient, beside cumulative sums and Pyro's loop."""
    torch.set_default_dtype(torch.float32 if single else torch.float64)
    hold(measured(name, steps=(3000,), measures=("draws with gradient",), against_plain=False))


@pytest.mark.parametrize("name", STEP_BY_STEP)
@BOTH
def test_draws_step_by_step(name, single):
    """Series that are not, beside a hand-written loop and Pyro's run of the program."""
    torch.set_default_dtype(torch.float32 if single else torch.float64)
    hold(measured(name, steps=(300,), measures=("draws",), against_plain=False))


@pytest.mark.parametrize("name", ["brownian", "lorenz"])
def test_compiled_density(name):
    torch.set_default_dtype(torch.float32)
    hold(measured(name, steps=(300,), batches=(1000,), measures=("compiled density",), against_plain=False))


def test_recurrence_costs_in_proportion_to_its_length():
    torch.set_default_dtype(torch.float32)
    hold(measured("gated-recurrent", steps=(30, 300), batches=(100,), measures=("density", "compile"), budget=4.0))


def test_hidden_markov_model_against_enumeration():
    torch.set_default_dtype(torch.float32)
    hold(measured("hidden-markov", batches=(100,), measures=("density",)))


@pytest.mark.parametrize("program", LONG_PROGRAMS)
def test_long_programs_compile_in_proportion_to_their_length(program):
    hold([compile_alone(program, sites) for sites in (10_000, 100_000)])
