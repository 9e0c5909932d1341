"""Conditioning: sites that become constants and leave a program."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emfc.program.ir import Addresses, Operand, Program, SiteRecord, Specification

__all__ = ["condition"]


def condition(
    program: Program, values: Mapping[int, npt.NDArray[np.float64]], dropped: Collection[int] = ()
) -> Program:
    """A program without some of its sites.

    Args:
        program: The program.
        values: For sites by index their values, which others may go on to read as constants.
        dropped: Indices of observed sites that leave, too.
    """
    gone = {*values, *dropped}
    constants = np.concatenate([values[index].reshape(-1) for index in sorted(values)] or [np.zeros(0)])
    base, added = program.parameter_base, len(constants)
    kept = [index for index in range(len(program.sites)) if index not in gone]
    ends = [output.start + output.size for held in program.instructions for output in held.outputs]
    table = np.arange(max(ends, default=program.instruction_base), dtype=np.int64)
    table[base : program.site_base] += added
    taken = base
    for index in sorted(values):
        site = program.sites[index]
        table[site.start : site.start + site.size] = np.arange(taken, taken + site.size)
        taken += site.size
    position = program.site_base + added
    for index in kept:
        site = program.sites[index]
        if not site.observed:
            table[site.start : site.start + site.size] = np.arange(position, position + site.size)
            position += site.size
    table[program.instruction_base :] += position - program.instruction_base
    move = _Move(table)
    ours = [program.sites[index] for index in kept]
    latent = [np.arange(site.start, site.start + site.size) - program.site_base for site in ours if not site.observed]
    return replace(
        program,
        constants=torch.cat([program.constants, torch.from_numpy(constants)]),
        parameters=tuple(replace(held, start=held.start + added) for held in program.parameters),
        sites=tuple(move.site(site) for site in ours),
        instructions=tuple(
            replace(
                held,
                operands=tuple(move(operand) for operand in held.operands),
                outputs=tuple(replace(output, start=int(table[output.start])) for output in held.outputs),
            )
            for held in program.instructions
        ),
        deterministic={name: move(operand) for name, operand in program.deterministic.items()},
        prototype=program.prototype[torch.from_numpy(np.concatenate(latent))],
    )


class _Move:
    """Which address stands for which from now on."""

    def __init__(self, table: Addresses) -> None:
        self.table = table

    def __call__(self, operand: Operand) -> Operand:
        return Operand(np.asarray(self.table[operand.addresses]), operand.dtype)

    def specification(self, held: Specification) -> Specification:
        """A distribution with moved operands."""
        children: dict[str, Any] = {name: self.specification(child) for name, child in held.children.items()}
        return replace(
            held, parameters={name: self(operand) for name, operand in held.parameters.items()}, children=children
        )

    def site(self, site: SiteRecord) -> SiteRecord:
        """A site at its new place."""
        start = site.start if site.observed else int(self.table[site.start])
        return replace(site, start=start, specification=self.specification(site.specification))
