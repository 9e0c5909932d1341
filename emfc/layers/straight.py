"""Straight-line code for one row of a class inside a loop.

What does not depend on the loop is computed for all rows before it; what is left of the class's slice becomes one
written function of the values that the row reads, those prepared values, and the row's noise. Numbers are handed over
as tensors, which torch multiplies faster than Python's own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from emfc.layers.emit import Code, Emitted
from emfc.layers.kernel import Kernel
from emfc.passes.slices import Load, Slice, Step, Value
from emfc.program.ir import Ref

__all__ = ["Prepared", "Straight"]

_NUMBERS_FIRST = {"add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add.Scalar", "sub.Scalar", "mul.Scalar"}


@dataclass(frozen=True)
class Prepared:
    """What a row's function takes besides the values that it reads.

    Attributes:
        kind: ``"value"`` (of the slice, computed before the loop), ``"number"``, ``"noise"`` (times the scale where
            that is known before the loop), ``"gate"`` or ``"closed"`` (one minus the gate).
        number: Of the value in the slice.
        missing: Dimensions of size one to put before its own.
        dtype: Its dtype kind.
        constant: The number.
    """

    kind: str
    number: int = -1
    missing: int = 0
    dtype: str = "float"
    constant: float = 0.0


class Straight:
    """The code of a class whose rows are drawn in a loop.

    Attributes:
        varying: Positions of the loads that are read inside the loop, in the order in which the function takes them.
        prepared: What it takes after those.
        results: What it returns: ``"value"`` (the row's draw), with ``"scale"`` if that is made inside the loop, or
            ``"parameters"`` (by path, of a family that is not Normal).
        scale: Number of the slice's scale where a Normal's scale is known before the loop.
    """

    def __init__(
        self, kernel: Kernel, varying: Collection[int], lead: int, *, virtual: bool, gated: str | None
    ) -> None:
        """Write the code.

        Args:
            kernel: Of the class.
            varying: Positions of the loads that read values of the loop.
            lead: Leading batch dimensions of a row's values: 1, or 2 where rows are drawn together.
            virtual: Whether the nodes are virtual.
            gated: The form of the layer's gates, None where it has none.
        """
        self.kernel, self.lead = kernel, lead
        self._held = kernel.held.slice
        held = zip(self._held.numbers, self._held.values, strict=True)
        numbers = [number for number, value in held if isinstance(value, Load)]
        self._inside = self._held.dependent([numbers[place] for place in varying])
        self._values: list[Value] = []
        self._numbers: list[int] = []
        self._next = self._held.numbers[-1] + 64
        self._taken: dict[Prepared, int] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._kinds: dict[int, str] = {}
        loads = self._copy(set(varying))
        outputs = dict(zip(kernel.held.paths, self._held.outputs, strict=True))
        self.scale: int | None = None
        self.results: tuple[str, ...] = ("value",)
        wanted: list[tuple[int, str]]
        if virtual:
            wanted = [self._output(number, kind) for number, kind in zip(outputs.values(), kernel.kinds, strict=True)]
        elif kernel.held.specification.family == "Normal" and (
            gated in (None, "value", "parameter") or outputs["scale"] not in self._inside
        ):
            wanted = [(number, "float") for number in self._normal(outputs["loc"], outputs["scale"], gated=gated)]
        else:
            self.results = ("parameters",)
            wanted = [self._output(number, kind) for number, kind in zip(outputs.values(), kernel.kinds, strict=True)]
        pending = [(value, held) for held, value in self._taken.items()]
        first = [Load(np.broadcast_to(np.int64(0), self._shapes[value]), held.dtype) for value, held in pending]
        numbers = [*loads.values(), *(value for value, _ in pending), *self._numbers]
        own = [self._held.values[self._held.numbers.index(number)] for number in loads.values()]
        self._code = Code(Slice((*own, *first, *self._values), tuple(numbers), tuple(n for n, _ in wanted)), {})
        self._wanted = tuple(wanted)
        taken = self.function(torch.float64).taken
        self.varying = tuple(list(loads)[place] for place in taken if place < len(loads))
        self.prepared = tuple(pending[place - len(loads)][1] for place in taken if place >= len(loads))

    def function(self, dtype: torch.dtype) -> Emitted:
        """The written function of the values read and of what is prepared."""
        return self._code.function(self._wanted, self.lead, dtype)

    def invariants(self) -> list[int]:
        """Numbers of the slice's values that are computed before the loop."""
        held = [item.number for item in self.prepared if item.kind == "value"]
        return list(dict.fromkeys(held if self.scale is None else [*held, self.scale]))

    def kind(self, number: int) -> str:
        """Dtype kind of a value of the slice."""
        return self._kinds[number]

    # ------------------------------------------------------------------ what is inside the loop

    def _copy(self, varying: set[int]) -> dict[int, int]:
        """Put the values inside the loop down again, with what is outside as loads; numbers of the varying loads."""
        loads: dict[int, int] = {}
        place = -1
        for number, value in zip(self._held.numbers, self._held.values, strict=True):
            if isinstance(value, Load):
                place += 1
                self._known(number, value.shape, value.dtype)
                if place in varying:
                    loads[place] = number
            elif isinstance(value, Step):
                for offset, (shape, kind) in enumerate(zip(value.shapes, value.dtypes, strict=True)):
                    self._known(number + offset, shape, kind)
                if number in self._inside:
                    self._add(self._step(value), number)
            else:
                self._known(number, value.shape, value.dtype)
                if number in self._inside:
                    inputs = tuple(self._input(source, value.dtype) for source in value.inputs)
                    self._add(replace(value, inputs=inputs), number)
        return loads

    def _known(self, number: int, shape: tuple[int, ...], kind: str) -> None:
        self._shapes[number], self._kinds[number] = shape, kind

    def _add(self, value: Value, number: int) -> None:
        self._values.append(value)
        self._numbers.append(number)

    def _input(self, number: int, kind: str, rank: int = 0) -> int:
        """An operand in a kind, where it comes from outside with at least so many dimensions."""
        if number in self._inside:
            return number
        missing = max(rank - len(self._shapes[number]), 0)
        return self._take(Prepared("value", number, missing, kind), (1,) * missing + self._shapes[number])

    def _output(self, number: int, kind: str) -> tuple[int, str]:
        return self._input(number, kind), kind

    def _take(self, item: Prepared, shape: tuple[int, ...]) -> int:
        if item not in self._taken:
            self._taken[item] = self._next
            self._known(self._next, shape, item.dtype)
            self._next += 1
        return self._taken[item]

    def _step(self, step: Step) -> Step:
        rank = len(step.shape) if step.pointwise else 0
        inputs = [self._input(source, kind, rank) for source, kind in zip(step.inputs, step.kinds, strict=True)]
        step = replace(step, inputs=tuple(inputs))
        if step.keywords or len(step.arguments) != 2 or set(step.kinds) != {"float"} or step.dtypes != ("float",):
            return step
        left, right = step.arguments
        name = step.operation
        if name == "rsub.Scalar":
            name, left, right = "sub.Tensor", right, left
        elif name not in _NUMBERS_FIRST:
            return step
        operands = tuple(self._operand(argument, step, rank) for argument in (left, right))
        name = name.partition(".")[0] + ".Tensor"
        return replace(step, operation=name, arguments=(Ref(0), Ref(1)), inputs=operands, kinds=("float", "float"))

    def _operand(self, argument: object, step: Step, rank: int) -> int:
        """An operand of arithmetic, numbers as tensors."""
        if isinstance(argument, Ref):
            return step.inputs[argument.index]
        return self._take(Prepared("number", constant=float(argument)), (1,) * rank)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ the draw of a Normal

    def _normal(self, loc: int, scale: int, *, gated: str | None) -> list[int]:
        """loc + scale e, or with a gate g: g loc + (g scale + 1 - g) e, or loc + scale ** g (e - (1 - g) loc).

        Where the scale is known before the loop, the gate that is handed over is what multiplies the location.
        """
        shape = self.kernel.held.shape
        rank = len(shape)
        mean = self._input(loc, "float", rank)
        noise = self._take(Prepared("noise"), shape)
        inside = scale in self._inside
        if gated == "parameter" and inside:
            scale = self._arithmetic("pow", scale, self._take(Prepared("gate"), shape), shape, "Tensor_Tensor")
            pull = self._arithmetic("mul", self._take(Prepared("closed"), shape), scale, shape)
            one = self._take(Prepared("number", constant=1.0), (1,) * rank)
            mean = self._arithmetic("mul", self._arithmetic("sub", one, pull, shape), mean, shape)
        elif gated:
            mean = self._arithmetic("mul", self._take(Prepared("gate"), shape), mean, shape)
        if not inside:
            self.scale = scale
            return [self._arithmetic("add", mean, noise, shape)]
        self.results = ("value", "scale")
        if gated == "value":
            opened = self._arithmetic("mul", self._take(Prepared("gate"), shape), scale, shape)
            scale = self._arithmetic("add", opened, self._take(Prepared("closed"), shape), shape)
        spread = self._arithmetic("mul", scale, noise, shape)
        return [self._arithmetic("add", mean, spread, shape), scale]

    def _arithmetic(self, name: str, left: int, right: int, shape: tuple[int, ...], overload: str = "Tensor") -> int:
        step = Step(
            f"{name}.{overload}", (Ref(0), Ref(1)), (), (left, right), ("float", "float"), (shape,), ("float",), True
        )
        number = self._next
        self._next += 1
        self._known(number, shape, "float")
        self._add(step, number)
        return number
