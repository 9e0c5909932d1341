"""Rewrites keep what a program computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.layers.planning import make_plan
from emfc.layers.verification import evaluate_plan
from emfc.passes.common import share_common
from emfc.passes.dead import drop_dead
from emfc.passes.fold import fold_constants
from emfc.passes.pipeline import PASSES
from emfc.program.ir import Operand
from emfc.program.trace import trace
from emfc.program.verify import verify
from tests.programs.accepted import PROGRAMS


def _repeated():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    w = pyro.param("w", torch.tensor(0.3))
    for t in range(4):
        pyro.sample(f"x_{t}", dist.Normal(torch.exp(w) * t + a.sin(), torch.exp(w)))
    pyro.deterministic("told", torch.exp(w) + a.cos())


def _same(program, other, model, args=(), kwargs=None):
    """Both programs tell the same parameters, those of the model, at fresh values."""
    for held in (program, other):
        plan = make_plan(held, passes=("classify",))
        verify(held, model, args, kwargs or {}, evaluate_plan(plan))


def test_equal_instructions_are_run_once():
    program = trace(_repeated)
    shared = share_common(program)
    assert len(shared.instructions) == len(program.instructions) - 2 * 3 - 4
    names = [held.operation for held in shared.instructions]
    assert names.count("exp.default") == names.count("sin.default") == 1
    _same(program, shared, _repeated)


def test_what_nothing_needs_is_dropped():
    program = trace(_repeated)
    bare = replace(program, deterministic={})
    dropped = drop_dead(bare)
    assert len(dropped.instructions) == len(program.instructions) - 3
    assert drop_dead(program) is program
    _same(program, dropped, _repeated)


def test_instructions_over_constants_are_folded():
    program = trace(_repeated)
    constant = Operand(np.zeros((), dtype=np.int64), "float")
    instructions = tuple(
        replace(held, operands=(constant,)) if held.operation == "sin.default" else held
        for held in program.instructions
    )
    changed = replace(program, instructions=instructions)
    folded = fold_constants(changed)
    assert len(folded.instructions) == len(program.instructions) - 5  # and what is added to a product with zero
    assert folded.parameter_base == program.parameter_base + 5

    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        w = pyro.param("w", torch.tensor(0.3))
        for t in range(4):
            pyro.sample(f"x_{t}", dist.Normal(torch.exp(w) * t, torch.exp(w)))

    _same(changed, folded, model)


@pytest.mark.parametrize("name", PROGRAMS)
def test_rewrites_keep_every_program(name):
    model, args, kwargs = PROGRAMS[name].build()
    program = trace(model, args, kwargs)
    rewritten = drop_dead(share_common(fold_constants(program)))
    assert len(rewritten.instructions) <= len(program.instructions)
    verify(rewritten, model, args, kwargs, evaluate_plan(make_plan(rewritten, passes=("classify",))))


def test_passes_are_switched_one_by_one():
    program = trace(_repeated)
    for chosen in ((), *((name,) for name in PASSES), PASSES):
        plan = make_plan(program, passes=chosen)
        assert (len(plan.kernels) < 5) == ("classify" in chosen)
        assert len(plan.log) == len(set(chosen) | {"classify"})
    with pytest.raises(ValueError, match="no pass is named"):
        make_plan(program, passes=("clasify",))
