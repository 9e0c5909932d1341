"""Slice: the parameters of one site as a small program of their own over the values that they depend on.

A slice walks back from a site's parameters through the instructions. Pointwise instructions are narrowed to the
elements that are needed, so a slice never computes a neighbour's value; of other instructions the elements that do
not matter (see `emfc.program.operations.demands`) are replaced by the constant zero. The loads that remain are the
true dependencies.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emfc.program.ir import Addresses, Instruction, Operand, Program
from emfc.program.operations import demands, is_pointwise

__all__ = ["Gather", "Load", "OutputTable", "Slice", "Step", "Value", "output_table", "slice_operands"]

Mask = npt.NDArray[np.bool_]
OutputTable = tuple[Addresses, list[tuple[int, int]]]


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """Values read from the value space: constants, parameters and sites."""

    addresses: Addresses
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.addresses.shape


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One instruction of a slice; ``inputs[i]`` numbers the value that ``Ref(i)`` stands for."""

    operation: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    inputs: tuple[int, ...]
    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    pointwise: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """Elements picked from the concatenation of some values: what is left of views and stacking."""

    inputs: tuple[int, ...]
    indices: Addresses
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.indices.shape


Value = Load | Step | Gather


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Values in order of evaluation; a Step takes one number per output. ``outputs`` numbers the requested operands."""

    values: tuple[Value, ...]
    numbers: tuple[int, ...]
    outputs: tuple[int, ...]

    def loads(self) -> list[Load]:
        return [value for value in self.values if isinstance(value, Load)]


class _Slicer:
    def __init__(self, program: Program, starts: Addresses) -> None:
        self.program = program
        self.base = program.instruction_base
        self.starts = starts
        self.constants = program.constant_values
        self.values: list[Value] = []
        self.numbers: list[int] = []
        self.count = 0
        self.memo: dict[tuple[str, bytes, tuple[int, ...]], int] = {}
        self.outputs: dict[int, tuple[int, tuple[npt.NDArray[np.int64] | None, ...], Step]] = {}

    def add(self, value: Value, results: int = 1) -> int:
        self.values.append(value)
        self.numbers.append(self.count)
        self.count += results
        return self.count - results

    def zero(self, addresses: Addresses) -> Mask:
        constant = addresses < len(self.constants)
        return np.asarray(constant & (self.constants[np.where(constant, addresses, 0)] == 0))

    def producers(self, addresses: Addresses) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Instruction outputs behind some addresses (index into `starts`) and the addresses themselves, flattened."""
        flat = addresses.reshape(-1)
        flat = flat[flat >= self.base]
        return np.searchsorted(self.starts, flat, side="right") - 1, flat


def _shrink(addresses: Addresses, dims: int | None = None) -> Addresses:
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


def output_table(program: Program) -> OutputTable:
    """Starts of all instruction outputs in ascending order, and the (instruction, output) that each belongs to."""
    starts, owners = [], []
    for index, instruction in enumerate(program.instructions):
        for place, output in enumerate(instruction.outputs):
            if output.size:
                starts.append(output.start)
                owners.append((index, place))
    return np.array(starts, dtype=np.int64), owners


def slice_operands(
    program: Program, operands: Sequence[Operand], batch_ranks: Sequence[int], table: OutputTable
) -> Slice:
    """The smallest straight-line program that computes some operands from values of constants, parameters and sites.

    Args:
        program: The program.
        operands: What to compute.
        batch_ranks: For each operand how many of its first dimensions are batch; where expanded, these come out with
            size one.
        table: The result of `output_table` for the program.
    """
    starts, owners = table
    slicer = _Slicer(program, starts)
    wanted = [
        Operand(_shrink(operand.addresses, dims), operand.dtype)
        for operand, dims in zip(operands, batch_ranks, strict=True)
    ]
    needed: dict[int, list[Mask]] = {}

    def mark(addresses: Addresses) -> None:
        if not addresses.size or addresses.max() < slicer.base:
            return
        places, flat = slicer.producers(addresses)
        for place in np.unique(places):
            index, output = owners[place]
            masks = needed.get(index)
            if masks is None:
                outputs = program.instructions[index].outputs
                masks = needed[index] = [np.zeros(held.size, dtype=np.bool_) for held in outputs]
                heapq.heappush(pending, -index)
            masks[output][flat[places == place] - starts[place]] = True

    pending: list[int] = []  # a heap of negative indices: the last instruction comes first
    for operand in wanted:
        mark(operand.addresses)
    order: list[int] = []
    prepared: dict[int, list[Addresses]] = {}
    while pending:
        index = -heapq.heappop(pending)
        order.append(index)
        prepared[index] = _narrow(program.instructions[index], needed[index], slicer)
        for addresses in prepared[index]:
            mark(addresses)
    for index in reversed(order):
        _emit(program.instructions[index], index, needed[index], prepared[index], slicer, owners)
    outputs = tuple(_number(operand.addresses, operand.dtype, slicer, owners) for operand in wanted)
    return Slice(tuple(slicer.values), tuple(slicer.numbers), outputs)


def _narrow(instruction: Instruction, needed: list[Mask], slicer: _Slicer) -> list[Addresses]:
    """Operand addresses of an instruction once only its needed elements are computed."""
    if is_pointwise(instruction):
        shape, mask = instruction.outputs[0].shape, needed[0]
        if mask.all():
            return [_shrink(operand.addresses) for operand in instruction.operands]
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
        slicer.zero,
    )
    return [
        operand.addresses if mask.all() else np.where(mask, operand.addresses, 0)
        for operand, mask in zip(instruction.operands, masks, strict=True)
    ]


def _emit(
    instruction: Instruction,
    index: int,
    needed: list[Mask],
    prepared: list[Addresses],
    slicer: _Slicer,
    owners: list[tuple[int, int]],
) -> None:
    pointwise = is_pointwise(instruction)
    inputs = tuple(
        _number(addresses, operand.dtype, slicer, owners)
        for addresses, operand in zip(prepared, instruction.operands, strict=True)
    )
    positions: tuple[npt.NDArray[np.int64] | None, ...] = tuple(None for _ in instruction.outputs)
    shapes = tuple(output.shape for output in instruction.outputs)
    if pointwise:
        full = bool(needed[0].all())
        if not full:
            renumber = np.cumsum(needed[0]) - 1
            positions = (renumber.astype(np.int64),)
            shapes = ((int(needed[0].sum()),),)
        else:
            shapes = (np.broadcast_shapes(*(addresses.shape for addresses in prepared)),)
            if shapes[0] != instruction.outputs[0].shape:
                layout = np.arange(int(np.prod(shapes[0], dtype=np.int64))).reshape(shapes[0])
                positions = (np.broadcast_to(layout, instruction.outputs[0].shape).reshape(-1),)
    step = Step(
        instruction.operation,
        instruction.arguments,
        instruction.keywords,
        inputs,
        tuple(operand.dtype for operand in instruction.operands),
        shapes,
        tuple(output.dtype for output in instruction.outputs),
        pointwise,
    )
    slicer.outputs[index] = (slicer.add(step, len(shapes)), positions, step)


def _number(addresses: Addresses, dtype: str, slicer: _Slicer, owners: list[tuple[int, int]]) -> int:
    """The number of a value with the given addresses, added where it is new."""
    key = (dtype, addresses.tobytes(), addresses.shape)
    if key in slicer.memo:
        return slicer.memo[key]
    if not addresses.size or addresses.max() < slicer.base:
        number = slicer.add(Load(addresses, dtype))
    else:
        number = _gather(addresses, dtype, slicer, owners)
    slicer.memo[key] = number
    return number


def _gather(addresses: Addresses, dtype: str, slicer: _Slicer, owners: list[tuple[int, int]]) -> int:
    flat = addresses.reshape(-1)
    computed = flat >= slicer.base
    places = np.where(computed, np.searchsorted(slicer.starts, flat, side="right") - 1, -1)
    inputs: list[int] = []
    indices = np.zeros(flat.shape, dtype=np.int64)
    offset = 0
    for place in np.unique(places):
        chosen = places == place
        if place < 0:
            inputs.append(slicer.add(Load(flat[chosen], dtype)))
            indices[chosen] = offset + np.arange(int(chosen.sum()))
            offset += int(chosen.sum())
            continue
        index, output = owners[place]
        first, positions, step = slicer.outputs[index]
        local = flat[chosen] - slicer.starts[place]
        held = positions[output]
        size = int(np.prod(step.shapes[output], dtype=np.int64))
        indices[chosen] = offset + (local if held is None else held[local])
        if len(np.unique(places)) == 1 and size == flat.size and (indices == np.arange(size)).all():
            if step.shapes[output] == addresses.shape:
                return int(first + output)
        inputs.append(first + output)
        offset += size
    return slicer.add(Gather(tuple(inputs), indices.reshape(addresses.shape), dtype))
