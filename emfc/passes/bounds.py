"""Bounds: how large the whole numbers of a program can get, so that they may be kept as real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from emfc.passes.demand import OutputTable
from emfc.program.ir import Addresses, Instruction, Program

__all__ = ["LARGEST_EXACT", "whole_bounds"]

LARGEST_EXACT = 2.0**24
"""Up to here single precision holds every whole number."""

_SUMS = frozenset(("add.Tensor", "sub.Tensor"))
_CHOICES = frozenset(("maximum.default", "minimum.default", "neg.default", "abs.default", "_to_copy.default"))


def whole_bounds(program: Program, table: OutputTable) -> list[float]:
    """A bound of the absolute values of each output of `output_table`, infinite for real ones and where no rule is."""
    starts, owners = table
    bounds: list[float] = []
    for index, place in owners:
        instruction = program.instructions[index]
        kind = instruction.outputs[place].dtype
        if kind == "int":
            operands = [_operand(held.addresses, program, starts, bounds) for held in instruction.operands]
            bounds.append(_bound(instruction, operands))
        else:
            bounds.append(1.0 if kind == "bool" else math.inf)
    return bounds


def _operand(addresses: Addresses, program: Program, starts: Addresses, bounds: Sequence[float]) -> float:
    flat = addresses.reshape(-1)
    constant, computed = flat < program.parameter_base, flat >= program.instruction_base
    if not (constant | computed).all():
        return math.inf
    found = float(np.abs(program.constant_values[flat[constant]]).max(initial=0.0))
    places = np.unique(np.searchsorted(starts, flat[computed], side="right") - 1)
    return max(found, max((bounds[place] for place in places.tolist()), default=0.0))


def _bound(instruction: Instruction, operands: Sequence[float]) -> float:
    name = instruction.operation
    if instruction.keywords and name != "_to_copy.default":
        return math.inf
    if len(operands) != sum(1 for value in instruction.arguments if not isinstance(value, (int, float))):
        return math.inf
    if name in _SUMS and len(operands) == 2:
        return operands[0] + operands[1]
    if name == "mul.Tensor" and len(operands) == 2:
        return operands[0] * operands[1]
    if name in _CHOICES and operands:
        return max(operands)
    if name == "where.self" and len(operands) == 3:
        return max(operands[1:])
    return math.inf
