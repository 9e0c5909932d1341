"""Fold constants: an instruction that reads constants alone is run once and for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfc.passes.rewrite import Translation, rewritten
from emfc.program.ir import Instruction, Operand, Program, Ref
from emfc.program.operations import resolve

__all__ = ["fold_constants"]

_DTYPES = {"float": torch.float64, "int": torch.int64, "bool": torch.bool}


def fold_constants(program: Program) -> Program:
    """The program with its constant instructions as constants; real numbers are computed in double precision."""
    translation = Translation(program)
    size = len(translation.table)
    values: list[Tensor] = []
    known: dict[int, float] = {}

    kept: list[Instruction] = []
    position = size
    for instruction in program.instructions:
        operands = tuple(translation(operand) for operand in instruction.operands)
        results: tuple[Tensor, ...] = ()
        if all(_constant(operand, program, size) for operand in operands):
            results = _run(instruction, [_tensor(operand, program, known) for operand in operands])
        if results and all(_exact(result) for result in results):
            for output, result in zip(instruction.outputs, results, strict=True):
                flat = result.reshape(-1).to(torch.float64)
                translation.set(output.start + np.arange(output.size), position + np.arange(output.size))
                known.update(enumerate(flat.tolist(), position))
                values.append(flat)
                position += output.size
            continue
        kept.append(
            Instruction(
                instruction.operation, instruction.arguments, instruction.keywords, operands, instruction.outputs
            )
        )
    return rewritten(program, kept, translation, torch.cat(values)) if values else program


def _constant(operand: Operand, program: Program, size: int) -> bool:
    held = operand.addresses
    return bool(((held < program.parameter_base) | (held >= size)).all())


def _exact(result: Tensor) -> bool:
    """Whether numbers survive as constants, which are of double precision."""
    return result.is_floating_point() or not bool((result.to(torch.float64).abs() >= 2.0**53).any())


@contextmanager
def _in_double() -> Iterator[None]:
    """Quotients of whole numbers are of the default dtype, which is not the program's to know."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tensor(operand: Operand, program: Program, known: dict[int, float]) -> Tensor:
    constants = program.constant_values
    flat = [known[a] if a in known else float(constants[a]) for a in operand.addresses.reshape(-1).tolist()]
    return torch.tensor(flat, dtype=torch.float64).reshape(operand.shape).to(_DTYPES[operand.dtype])


def _run(instruction: Instruction, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    def fill(value: Any) -> Any:
        if isinstance(value, Ref):
            return inputs[value.index]
        if isinstance(value, tuple):
            return [fill(item) for item in value]
        return _DTYPES[value["dtype"]] if isinstance(value, dict) else value

    keywords = {key: fill(value) for key, value in instruction.keywords}
    with _in_double():
        result = resolve(instruction.operation)(*[fill(value) for value in instruction.arguments], **keywords)
    return (result,) if isinstance(result, Tensor) else tuple(result)
