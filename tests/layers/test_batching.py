"""Instructions over leading batch dimensions equal a loop over them."""

from __future__ import annotations

import itertools

import pytest
import torch

from emfc.layers.batching import apply_step
from emfc.passes.slices import Step
from emfc.program.ir import Ref
from emfc.program.operations import resolve


def _positive_definite(*batch):
    half = torch.randn(*batch, 3, 3)
    return half @ half.mT + torch.eye(3)


CASES = {
    "add, ranks differ": ("add.Tensor", (Ref(0), Ref(1)), {}, [(4,), (2, 4)]),
    "mul by number": ("mul.Tensor", (Ref(0), 2.0), {}, [(3,)]),
    "scaled add": ("add.Tensor", (Ref(0), Ref(1)), {"alpha": 3}, [(), (2,)]),
    "sum of all": ("sum.default", (Ref(0),), {}, [(2, 3)]),
    "sum of a scalar": ("sum.default", (Ref(0),), {}, [()]),
    "sum over the first": ("sum.dim_IntList", (Ref(0), (0,)), {}, [(2, 3)]),
    "sum over the last, kept": ("sum.dim_IntList", (Ref(0), (-1,), True), {}, [(2, 3)]),
    "mean over both": ("mean.dim", (Ref(0), (0, 1)), {}, [(2, 3)]),
    "largest": ("amax.default", (Ref(0),), {}, [(2, 3)]),
    "log-sum-exp": ("logsumexp.default", (Ref(0), (0,)), {}, [(2, 3)]),
    "variance": ("var.correction", (Ref(0), (0,)), {"correction": 1}, [(4, 3)]),
    "softmax": ("_softmax.default", (Ref(0), 0, False), {}, [(2, 3)]),
    "log-softmax": ("_log_softmax.default", (Ref(0), -1, False), {}, [(2, 3)]),
    "prefix sums": ("cumsum.default", (Ref(0), 0), {}, [(4, 2)]),
    "prefix sum of a scalar": ("cumsum.default", (Ref(0), 0), {}, [()]),
    "matrix product": ("mm.default", (Ref(0), Ref(1)), {}, [(2, 3), (3, 4)]),
    "batched product": ("bmm.default", (Ref(0), Ref(1)), {}, [(5, 2, 3), (5, 3, 4)]),
    "matrix and vector": ("mv.default", (Ref(0), Ref(1)), {}, [(2, 3), (3,)]),
    "inner product": ("dot.default", (Ref(0), Ref(1)), {}, [(3,), (3,)]),
    "linear layer": ("addmm.default", (Ref(0), Ref(1), Ref(2)), {}, [(4,), (2, 3), (3, 4)]),
    "scaled linear layer": ("addmm.default", (Ref(0), Ref(1), Ref(2)), {"beta": 2}, [(4,), (2, 3), (3, 4)]),
    "bias and vector": ("addmv.default", (Ref(0), Ref(1), Ref(2)), {}, [(2,), (2, 3), (3,)]),
    "cholesky": ("linalg_cholesky_ex.default", (Ref(0),), {}, ["spd"]),
    "determinant": ("_linalg_det.default", (Ref(0),), {}, ["spd"]),
    "a general case": ("flip.default", (Ref(0), (0,)), {}, [(3, 2)]),
    "a general case of two": ("linalg_cross.default", (Ref(0), Ref(1)), {}, [(3,), (3,)]),
}


@pytest.mark.parametrize("lead", [(2, 3), (2, 1), (1, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_batched_equals_a_loop(name, lead):
    operation, arguments, keywords, shapes = CASES[name]
    inputs = []
    for place, shape in enumerate(shapes):
        own = lead if place == 0 else tuple(1 for _ in lead)
        inputs.append(_positive_definite(*own) if shape == "spd" else torch.randn(*own, *shape))
    pointwise = operation.startswith(("add.", "mul."))
    kinds = ("float",) * len(inputs)
    step = Step(
        operation, arguments, tuple(keywords.items()), tuple(range(len(inputs))), kinds, ((),), kinds, pointwise
    )
    results = apply_step(step, inputs, len(lead), torch.get_default_dtype())
    operator = resolve(operation)
    for index in itertools.product(*(range(size) for size in lead)):
        picked = [
            value[tuple(min(i, size - 1) for i, size in zip(index, value.shape, strict=False))] for value in inputs
        ]
        filled = [picked[a.index] if isinstance(a, Ref) else list(a) if isinstance(a, tuple) else a for a in arguments]
        expected = operator(*filled, **keywords)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for found, wanted in zip(results, expected, strict=False):
            held = found[tuple(min(i, size - 1) for i, size in zip(index, found.shape, strict=False))]
            torch.testing.assert_close(held, wanted)
