"""Edges: which instructions and sites read which instructions, whole outputs at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfc.passes.demand import OutputTable
from emfc.program.ir import Program

__all__ = ["Edges", "find_edges"]


@dataclass(frozen=True, eq=False)
class Edges:
    """From instructions to their uses: other instructions, and sites numbered after them.

    Attributes:
        sources: Instructions.
        targets: Their uses; pairs ascend by source, then target.
    """

    sources: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def find_edges(program: Program, table: OutputTable, *, named: bool = False) -> Edges:
    """All pairs of an instruction and a use of it.

    Args:
        program: The program.
        table: The result of `output_table` for the program.
        named: Whether named values (`pyro.deterministic`) count as uses; they are numbered together, after the sites.
    """
    starts, owners = table
    base, count = program.instruction_base, len(program.instructions)
    pieces, users = [], []
    held = [operand for site in program.sites for operand in site.specification.operands()]
    numbers = [count + n for n, site in enumerate(program.sites) for _ in site.specification.operands()]
    if named:
        held.extend(program.deterministic.values())
        numbers.extend([count + len(program.sites)] * len(program.deterministic))
    for index, instruction in enumerate(program.instructions):
        held.extend(instruction.operands)
        numbers.extend([index] * len(instruction.operands))
    for operand, number in zip(held, numbers, strict=True):
        addresses = operand.addresses
        if addresses.size and addresses.max() >= base:
            flat = addresses.reshape(-1)
            pieces.append(flat if flat.size == 1 else flat[flat >= base])
            users.append(number)
    if not pieces:
        return Edges(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    targets = np.repeat(np.array(users, dtype=np.int64), [len(piece) for piece in pieces])
    instructions = np.array([index for index, _ in owners], dtype=np.int64)
    sources = instructions[np.searchsorted(starts, np.concatenate(pieces), side="right") - 1]
    total = count + len(program.sites) + 1
    keys = np.unique(sources * total + targets)
    return Edges(keys // total, keys % total)
