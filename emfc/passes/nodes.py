"""Nodes: the graph of sites and virtual nodes, and through it the sites that a site really depends on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from emfc.passes.demand import needed_elements, output_table, runs
from emfc.passes.recurrences import Virtual
from emfc.passes.slices import Slice
from emfc.program.ir import Addresses, Instruction, Operand, Program
from emfc.program.operations import demands, is_pointwise

__all__ = ["ancestors", "direct_parents"]

_Bits = npt.NDArray[np.uint64]
_Pattern = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def direct_parents(
    program: Program, slices: Sequence[Slice], virtuals: Sequence[Virtual] = ()
) -> tuple[tuple[int, ...], ...]:
    """For the sites, then the virtual nodes, the nodes that their slices load, ascending; virtual ones count on after
    the sites.
    """
    base = program.site_base
    size = program.instruction_base - base
    ends = max((int(held.addresses.max()) + 1 - base for held in virtuals), default=size)
    owners = np.full(ends, -1, dtype=np.int64)
    for index, site in enumerate(program.sites):
        if not site.observed:
            owners[site.start - base : site.start - base + site.size] = index
    for index, virtual in enumerate(virtuals):
        owners[virtual.addresses.reshape(-1) - base] = len(program.sites) + index
    result = []
    for held in slices:
        found: set[int] = set()
        for load in held.loads():
            flat = load.addresses.reshape(-1)
            if flat.size == 1:
                if flat[0] >= base:
                    found.add(int(owners[flat[0] - base]))
            else:
                found.update(np.unique(owners[flat[flat >= base] - base]).tolist())
        result.append(tuple(sorted(found)))
    return tuple(result)


def ancestors(program: Program) -> tuple[tuple[int, ...], ...]:
    """For each site all sites that its parameters depend on through instructions, exact for each element.

    Sets of sites are rows of bits, carried forward from instruction to instruction: what `direct_parents` finds
    in slices without virtual nodes, in time and space that do not grow with the length of the slices.
    """
    return _Ancestry(program).run()


class _Ancestry:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.starts, self.owners = output_table(program)
        self.words = -(-max(len(program.sites), 1) // 64)
        self.held: dict[int, _Bits] = {}  # by place in the table
        self.kept: frozenset[int] = frozenset()
        self.patterns: dict[Hashable, list[_Pattern]] = {}
        size = program.instruction_base - program.site_base
        self.sites = np.zeros(size, dtype=np.int64)
        for index, site in enumerate(program.sites):
            if not site.observed:
                self.sites[site.start - program.site_base :][: site.size] = index

    def run(self) -> tuple[tuple[int, ...], ...]:
        sites = self.program.sites
        operands = [list(site.specification.operands()) for site in sites]
        needed = needed_elements(self.program, [held for some in operands for held in some], (self.starts, self.owners))
        ready: dict[int, list[int]] = {}  # sites by the last instruction that they wait for
        last: dict[int, int] = {}  # for each output the last instruction until which it is kept
        for index, some in enumerate(operands):
            places = self._places(some)
            time = max((self.owners[place][0] for place in places), default=-1)
            ready.setdefault(time, []).append(index)
            for place in places:
                last[place] = max(last.get(place, -1), time)
        for index in needed:
            for place in self._places(self.program.instructions[index].operands):
                last[place] = max(last.get(place, -1), index)
        self.kept = frozenset(last)
        free: dict[int, list[int]] = {}
        for place, time in last.items():
            free.setdefault(time, []).append(place)
        result: list[tuple[int, ...]] = [()] * len(sites)
        for time in (-1, *sorted(needed)):
            if time >= 0:
                self._instruction(time)
            for index in ready.get(time, ()):
                result[index] = self._site(operands[index])
            for place in free.get(time, ()):
                self.held.pop(place, None)
        return tuple(result)

    def _places(self, operands: Sequence[Operand]) -> list[int]:
        found: set[int] = set()
        for operand in operands:
            flat = operand.addresses.reshape(-1)
            flat = flat[flat >= self.program.instruction_base]
            if flat.size:
                found.update(np.unique(np.searchsorted(self.starts, flat, side="right") - 1).tolist())
        return sorted(found)

    def _site(self, operands: list[Operand]) -> tuple[int, ...]:
        row = np.zeros(self.words, dtype=np.uint64)
        for operand in operands:
            row |= np.bitwise_or.reduce(self._rows(np.unique(operand.addresses)), axis=0)
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        return tuple(np.flatnonzero(bits).tolist())

    def _rows(self, flat: Addresses) -> _Bits:
        """The sets of some addresses, ``[n, words]``."""
        rows = np.zeros((flat.size, self.words), dtype=np.uint64)
        program = self.program
        chosen = np.flatnonzero((flat >= program.site_base) & (flat < program.instruction_base))
        sites = self.sites[flat[chosen] - program.site_base]
        rows[chosen, sites // 64] = np.uint64(1) << (sites % 64).astype(np.uint64)
        chosen = np.flatnonzero(flat >= program.instruction_base)
        places = np.searchsorted(self.starts, flat[chosen], side="right") - 1
        for place, part in runs(places):
            held = self.held.get(place)
            if held is not None:
                some = chosen[part]
                rows[some] = held[flat[some] - self.starts[place]]
        return rows

    def _instruction(self, index: int) -> None:
        instruction = self.program.instructions[index]
        if is_pointwise(instruction):
            shape = instruction.outputs[0].shape
            total = np.zeros((instruction.outputs[0].size, self.words), dtype=np.uint64)
            for operand in instruction.operands:
                total |= self._rows(np.broadcast_to(operand.addresses, shape).reshape(-1))
        else:
            total = np.zeros((sum(output.size for output in instruction.outputs), self.words), dtype=np.uint64)
            for operand, (outputs, inputs) in zip(instruction.operands, self._patterns(instruction), strict=True):
                if outputs.size:
                    rows = self._rows(operand.addresses.reshape(-1))
                    chosen, bounds = np.unique(outputs, return_index=True)
                    total[chosen] |= np.bitwise_or.reduceat(rows[inputs], bounds, axis=0)
        start = 0
        for output in instruction.outputs:
            place = int(np.searchsorted(self.starts, output.start))
            if output.size and place in self.kept:
                self.held[place] = total[start : start + output.size]
            start += output.size

    def _patterns(self, instruction: Instruction) -> list[_Pattern]:
        """For each operand the pairs (output element, operand element) that depend on each other, by output."""
        zeros = [self.program.is_zero(operand.addresses) for operand in instruction.operands]
        key = (
            instruction.operation,
            repr(instruction.arguments),
            repr(instruction.keywords),
            tuple((held.shape, held.tobytes()) for held in zeros),
        )
        if key not in self.patterns:
            pairs: list[tuple[list[int], list[int]]] = [([], []) for _ in instruction.operands]
            sizes = [output.size for output in instruction.outputs]
            for element in range(sum(sizes)):
                flat = np.zeros(sum(sizes), dtype=np.bool_)
                flat[element] = True
                ends = np.cumsum(sizes)[:-1]
                masks = [
                    held.reshape(output.shape)
                    for held, output in zip(np.split(flat, ends), instruction.outputs, strict=True)
                ]
                for (outputs, inputs), mask in zip(
                    pairs, demands(instruction, masks, self.program.is_zero), strict=True
                ):
                    found = np.flatnonzero(mask).tolist()
                    outputs.extend([element] * len(found))
                    inputs.extend(found)
            self.patterns[key] = [
                (np.array(outputs, dtype=np.int64), np.array(inputs, dtype=np.int64)) for outputs, inputs in pairs
            ]
        return self.patterns[key]
