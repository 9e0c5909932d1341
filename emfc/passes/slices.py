"""Slice: the parameters of one site as a small program of their own over the values that they depend on.

A slice walks back from a site's parameters through the instructions. Pointwise instructions are narrowed to the
elements that are needed, so a slice never computes a neighbour's value; of other instructions the elements that do
not matter (see `emfc.program.operations.demands`) are replaced by the constant zero. The loads that remain are the
true dependencies.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emfc.passes.demand import Demand, Mask, OutputTable, runs, shrink
from emfc.program.ir import Addresses, Instruction, Operand, Program
from emfc.program.operations import is_pointwise

__all__ = ["Gather", "Load", "Slice", "Step", "Value", "slice_operands"]


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

    def dependent(self, loads: Collection[int]) -> set[int]:
        """Numbers of the values that depend on some loads, these included."""
        found = set(loads)
        for number, value in zip(self.numbers, self.values, strict=True):
            if not isinstance(value, Load) and not found.isdisjoint(value.inputs):
                found.update(range(number, number + (len(value.shapes) if isinstance(value, Step) else 1)))
        return found


class _Slicer:
    def __init__(self, demand: Demand) -> None:
        self.demand = demand
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


def slice_operands(
    program: Program,
    operands: Sequence[Operand],
    batch_ranks: Sequence[int],
    table: OutputTable,
    loaded: Mask | None = None,
) -> Slice:
    """The smallest straight-line program that computes some operands from values of constants, parameters and sites.

    Args:
        program: The program.
        operands: What to compute.
        batch_ranks: For each operand how many of its first dimensions are batch; where expanded, these come out with
            size one.
        table: The result of `output_table` for the program.
        loaded: For each address from ``instruction_base`` on whether it is loaded like a site instead of computed.
    """
    wanted = [
        Operand(shrink(operand.addresses, dims), operand.dtype)
        for operand, dims in zip(operands, batch_ranks, strict=True)
    ]
    demand = Demand(program, [operand.addresses for operand in wanted], table, loaded)
    slicer = _Slicer(demand)
    for index in reversed(demand.order):
        _emit(program.instructions[index], index, slicer)
    outputs = tuple(_number(operand.addresses, operand.dtype, slicer) for operand in wanted)
    return Slice(tuple(slicer.values), tuple(slicer.numbers), outputs)


def _emit(instruction: Instruction, index: int, slicer: _Slicer) -> None:
    needed, prepared = slicer.demand.needed[index], slicer.demand.prepared[index]
    pointwise = is_pointwise(instruction)
    inputs = tuple(
        _number(addresses, operand.dtype, slicer)
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
                layout = np.arange(math.prod(shapes[0])).reshape(shapes[0])
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


def _number(addresses: Addresses, dtype: str, slicer: _Slicer) -> int:
    """The number of a value with the given addresses, added where it is new."""
    key = (dtype, addresses.tobytes(), addresses.shape)
    if key in slicer.memo:
        return slicer.memo[key]
    if slicer.demand.loads(addresses):
        number = slicer.add(Load(addresses, dtype))
    else:
        number = _gather(addresses, dtype, slicer)
    slicer.memo[key] = number
    return number


def _gather(addresses: Addresses, dtype: str, slicer: _Slicer) -> int:
    starts, owners = slicer.demand.starts, slicer.demand.owners
    flat = addresses.reshape(-1)
    computed = slicer.demand.computed(flat)
    places = np.where(computed, np.searchsorted(starts, flat, side="right") - 1, -1)
    inputs: list[int] = []
    indices = np.zeros(flat.shape, dtype=np.int64)
    offset = 0
    parts = list(runs(places))
    for place, chosen in parts:
        if place < 0:
            inputs.append(slicer.add(Load(flat[chosen], dtype)))
            indices[chosen] = offset + np.arange(chosen.size)
            offset += chosen.size
            continue
        index, output = owners[place]
        first, positions, step = slicer.outputs[index]
        local = flat[chosen] - starts[place]
        held = positions[output]
        size = math.prod(step.shapes[output])
        indices[chosen] = offset + (local if held is None else held[local])
        if len(parts) == 1 and size == flat.size and (indices == np.arange(size)).all():
            if step.shapes[output] == addresses.shape:
                return int(first + output)
        inputs.append(first + output)
        offset += size
    return slicer.add(Gather(tuple(inputs), indices.reshape(addresses.shape), dtype))
