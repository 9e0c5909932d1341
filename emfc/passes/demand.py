"""Demand: which instructions, and which elements of their operands, some values depend on."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from emfc.program.ir import Addresses, Instruction, Operand, Program
from emfc.program.operations import demands, is_pointwise

__all__ = ["Demand", "Mask", "OutputTable", "needed_elements", "output_table", "runs", "shrink"]

Mask = npt.NDArray[np.bool_]
OutputTable = tuple[Addresses, list[tuple[int, int]]]


def output_table(program: Program) -> OutputTable:
    """Starts of all instruction outputs in ascending order, and the (instruction, output) that each belongs to."""
    starts, owners = [], []
    for index, instruction in enumerate(program.instructions):
        for place, output in enumerate(instruction.outputs):
            if output.size:
                starts.append(output.start)
                owners.append((index, place))
    return np.array(starts, dtype=np.int64), owners


def needed_elements(program: Program, operands: Sequence[Operand], table: OutputTable) -> dict[int, list[Mask]]:
    """Which elements of the outputs of which instructions some operands depend on: one flat mask per output."""
    return Demand(program, [operand.addresses for operand in operands], table, None).needed


def shrink(addresses: Addresses, dims: int | None = None) -> Addresses:
    """Cut dimensions along which addresses repeat to size one, so that broadcasting does what expansion did.

    Args:
        addresses: Of an operand.
        dims: How many of the first dimensions may be cut; the others are an event, whose size has a meaning.
    """
    for axis, size in enumerate(addresses.shape[:dims]):
        if size > 1:
            first = addresses.take([0], axis=axis)
            if (addresses == first).all():
                addresses = first
    return addresses


def runs(places: Addresses) -> Iterator[tuple[int, Addresses]]:
    """Each different number with the positions where it stands, ascending, in the time of one sort."""
    order = np.argsort(places, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(places[order])) + 1) if places.size else ():
        yield int(places[part[0]]), part


class Demand:
    """What some addresses depend on, down to what is loaded.

    Attributes:
        order: Indices of the instructions, last first.
        needed: For each of them which elements are needed, one flat mask per output.
        prepared: For each of them the addresses of its operands once only the needed elements are computed.
    """

    def __init__(self, program: Program, wanted: Sequence[Addresses], table: OutputTable, loaded: Mask | None) -> None:
        """Walk back from some addresses.

        Args:
            program: The program.
            wanted: Addresses to start from.
            table: The result of `output_table` for the program.
            loaded: For each address from ``instruction_base`` on whether the walk ends there.
        """
        self.program = program
        self.base = program.instruction_base
        self.starts, self.owners = table
        self.loaded = loaded
        self.order: list[int] = []
        self.needed: dict[int, list[Mask]] = {}
        self.prepared: dict[int, list[Addresses]] = {}
        self._pending: list[int] = []  # a heap of negative indices: the last instruction comes first
        for addresses in wanted:
            self._mark(addresses)
        while self._pending:
            index = -heapq.heappop(self._pending)
            self.order.append(index)
            self.prepared[index] = self._narrow(program.instructions[index], self.needed[index])
            for addresses in self.prepared[index]:
                self._mark(addresses)

    def computed(self, addresses: Addresses) -> Mask:
        """Which addresses are computed; the others are loaded."""
        above = np.asarray(addresses >= self.base)
        if self.loaded is not None and above.any():
            above[above] = ~self.loaded[addresses[above] - self.base]
        return above

    def loads(self, addresses: Addresses) -> bool:
        """Whether none of some addresses is computed."""
        if not addresses.size or addresses.max() < self.base:
            return True
        return self.loaded is not None and not self.computed(addresses).any()

    def _mark(self, addresses: Addresses) -> None:
        if self.loads(addresses):
            return
        flat = addresses.reshape(-1)
        flat = flat[self.computed(flat)]
        places = np.searchsorted(self.starts, flat, side="right") - 1
        for place, chosen in runs(places):
            index, output = self.owners[place]
            masks = self.needed.get(index)
            if masks is None:
                outputs = self.program.instructions[index].outputs
                masks = self.needed[index] = [np.zeros(held.size, dtype=np.bool_) for held in outputs]
                heapq.heappush(self._pending, -index)
            masks[output][flat[chosen] - self.starts[place]] = True

    def _narrow(self, instruction: Instruction, needed: list[Mask]) -> list[Addresses]:
        """Operand addresses of an instruction once only its needed elements are computed."""
        if is_pointwise(instruction):
            shape, mask = instruction.outputs[0].shape, needed[0]
            if mask.all():
                return [shrink(operand.addresses) for operand in instruction.operands]
            chosen = np.flatnonzero(mask)
            return [
                operand.addresses
                if operand.addresses.size == 1 and not operand.shape
                else np.broadcast_to(operand.addresses, shape).reshape(-1)[chosen]
                for operand in instruction.operands
            ]
        masks = demands(
            instruction,
            [mask.reshape(output.shape) for mask, output in zip(needed, instruction.outputs, strict=True)],
            self.program.is_zero,
        )
        return [
            operand.addresses if mask.all() else np.where(mask, operand.addresses, 0)
            for operand, mask in zip(instruction.operands, masks, strict=True)
        ]
