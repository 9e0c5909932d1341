"""Common subexpressions: an instruction that does again what one before it did gives way to that one."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from emfc.passes.rewrite import Translation, rewritten
from emfc.program.ir import Instruction, Program

__all__ = ["share_common"]


def share_common(program: Program) -> Program:
    """The program with each value computed once."""
    translation = Translation(program)
    kept: list[Instruction] = []
    seen: dict[Hashable, Instruction] = {}
    for instruction in program.instructions:
        operands = tuple(translation(operand) for operand in instruction.operands)
        key = (
            instruction.operation,
            repr(instruction.arguments),
            repr(instruction.keywords),
            tuple((operand.dtype, operand.shape, operand.addresses.tobytes()) for operand in operands),
        )
        first = seen.get(key)
        if first is not None:
            for own, other in zip(instruction.outputs, first.outputs, strict=True):
                places = np.arange(own.size)
                translation.set(own.start + places, other.start + places)
            continue
        if any(new is not old for new, old in zip(operands, instruction.operands, strict=True)):
            instruction = Instruction(
                instruction.operation, instruction.arguments, instruction.keywords, operands, instruction.outputs
            )
        seen[key] = instruction
        kept.append(instruction)
    return rewritten(program, kept, translation) if len(kept) < len(program.instructions) else program
