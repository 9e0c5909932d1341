"""Rewriting: a program with other instructions and the same sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from emfc.program.ir import Addresses, Instruction, Operand, Program, Specification

__all__ = ["Translation", "rewritten", "size_of"]


def size_of(program: Program) -> int:
    """Number of addresses of a program, gaps between outputs included."""
    ends = [output.start + output.size for held in program.instructions for output in held.outputs]
    return max(ends, default=program.instruction_base)


class Translation:
    """Which address stands for which from now on."""

    def __init__(self, program: Program) -> None:
        self.table = np.arange(size_of(program), dtype=np.int64)
        self.changed = False

    def set(self, addresses: Addresses, others: Addresses) -> None:
        """Let `others` stand for `addresses`."""
        self.table[addresses] = others
        self.changed = True

    def __call__(self, operand: Operand) -> Operand:
        """An operand with the addresses that stand for its own; the same object where none changed."""
        if not self.changed:
            return operand
        addresses = self.table[operand.addresses]
        same = operand.addresses is addresses or bool((addresses == operand.addresses).all())
        return operand if same else Operand(np.asarray(addresses), operand.dtype)

    def specification(self, held: Specification) -> Specification:
        """A distribution with translated operands."""
        if not self.changed:
            return held
        return replace(
            held,
            parameters={name: self(operand) for name, operand in held.parameters.items()},
            children={name: self.specification(child) for name, child in held.children.items()},
        )


def rewritten(
    program: Program,
    instructions: Sequence[Instruction],
    translation: Translation,
    constants: torch.Tensor | None = None,
) -> Program:
    """The program with other instructions, whose operands are already translated.

    Args:
        program: The program.
        instructions: Its new instructions, in an order in which they can run.
        translation: What its sites and named values read from now on.
        constants: More constants. Addresses at or above the program's size stand for these.
    """
    program = replace(
        program,
        instructions=tuple(instructions),
        sites=tuple(
            replace(site, specification=translation.specification(site.specification)) for site in program.sites
        )
        if translation.changed
        else program.sites,
        deterministic={name: translation(operand) for name, operand in program.deterministic.items()},
    )
    return program if constants is None else _with_constants(program, constants, len(translation.table))


def _with_constants(program: Program, constants: torch.Tensor, size: int) -> Program:
    """Move new constants, which stand at address `size` and on, behind the old ones, and everything else up."""
    base, count = program.parameter_base, int(constants.numel())
    moved = Translation(program)
    moved.table = np.concatenate([np.arange(base), np.arange(base, size) + count, base + np.arange(count)])
    moved.changed = True
    return replace(
        program,
        constants=torch.cat([program.constants, constants]),
        parameters=tuple(replace(held, start=held.start + count) for held in program.parameters),
        sites=tuple(
            replace(
                site,
                start=site.start if site.observed else site.start + count,
                specification=moved.specification(site.specification),
            )
            for site in program.sites
        ),
        instructions=tuple(
            replace(
                held,
                operands=tuple(moved(operand) for operand in held.operands),
                outputs=tuple(replace(output, start=output.start + count) for output in held.outputs),
            )
            for held in program.instructions
        ),
        deterministic={name: moved(operand) for name, operand in program.deterministic.items()},
    )
