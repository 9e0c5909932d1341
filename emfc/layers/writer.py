"""Write the code of a slice as a Python function.

Every value of the slice becomes a local variable and every pointwise instruction one expression, with ranks, casts,
numbers and dimensions settled when the function is written; nothing is looked up when it runs. The text is made from
the allow-listed instructions of a slice alone: numbers are written out, all else is bound to a name.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from emfc.layers.batching import KINDS, cast, prepare_step
from emfc.layers.joining import Join, stack
from emfc.layers.readers import Picker
from emfc.passes.slices import Gather, Load, Slice, Step
from emfc.program.ir import Ref
from emfc.program.operations import resolve

__all__ = ["Emitted", "write"]

_VARIABLE = re.compile(r"\bv(\d+)\b")
_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARED = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_REAL = frozenset("rsub pow atan atan2 sinh cosh softplus maximum minimum clamp relu elu lgamma digamma where".split())
_UNARY = frozenset("abs cos erf erfc exp expm1 log log1p neg reciprocal rsqrt sigmoid sin sqrt square tanh".split())


@dataclass(frozen=True)
class Emitted:
    """A written function.

    Attributes:
        source: Its text.
        taken: Places of the loads that it takes, in order.
        joins: Whether it puts vectors together from numbers.
        call: Those loads ``[B or 1, n or 1, *shape]`` to the wanted values.
    """

    source: str
    taken: tuple[int, ...]
    joins: bool
    call: Any


def write(
    held: Slice, literals: Mapping[int, float], wanted: Sequence[tuple[int, str]], lead: int, dtype: torch.dtype
) -> Emitted:
    """Write a function that computes some values of a slice.

    Args:
        held: The slice.
        literals: Loads, by place among the loads, that are one and the same number everywhere.
        wanted: Numbers of values and the kinds in which they are wanted.
        lead: Number of leading batch dimensions.
        dtype: The dtype of real values.
    """
    return _Writer(held, literals, lead, dtype).write(wanted)


@dataclass
class _Value:
    """What is known of a value when the function is written: its dtype kind is None where only a run can tell."""

    shape: tuple[int, ...]
    kind: str | None
    literal: float | None = None


@dataclass
class _Writer:
    held: Slice
    literals: Mapping[int, float]
    lead: int
    dtype: torch.dtype
    lines: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    known: dict[int, _Value] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    joins: bool = False
    deferred: dict[int, tuple[int, float]] = field(default_factory=dict)

    def write(self, wanted: Sequence[tuple[int, str]]) -> Emitted:
        held = self.held
        live = self._live({number for number, _ in wanted})
        scaled = self._scaled(live, {number for number, _ in wanted})
        loads: dict[int, int] = {}
        for index, (number, value) in enumerate(zip(held.numbers, held.values, strict=True)):
            if isinstance(value, Load):
                place = len(loads)
                loads[number] = place
                self.known[number] = _Value(value.shape, value.dtype, self.literals.get(place))
            elif index in live:
                if isinstance(value, Step):
                    factor = self._factor(value) if number in scaled else None
                    if factor is not None:
                        self.known[number], self.deferred[number] = _Value(value.shape, "float"), factor
                        continue
                    self._step(number, value)
                else:
                    self._gather(number, value)
        results = "".join(f"{self._cast(number, kind)}, " for number, kind in wanted)
        taken = [number for number in loads if number in self.used]
        self._release([number for number, _ in wanted])
        head = f"def run({', '.join(f'v{number}' for number in taken)}):"
        source = "\n".join([head, *(f"    {line}" for line in self.lines), f"    return ({results})"])
        scope = {**self.names, "D": self.dtype, "cast": cast, "torch": torch}
        exec(compile(source, "<emfc class>", "exec"), scope)
        return Emitted(source, tuple(loads[number] for number in taken), self.joins, scope["run"])

    def _live(self, wanted: set[int]) -> set[int]:
        """Indices of the values that the wanted ones depend on."""
        held = self.held
        needed, live = set(wanted), set()
        for index in range(len(held.values) - 1, -1, -1):
            value = held.values[index]
            count = len(value.shapes) if isinstance(value, Step) else 1
            if needed.isdisjoint(range(held.numbers[index], held.numbers[index] + count)):
                continue
            live.add(index)
            if not isinstance(value, Load):
                needed.update(value.inputs)
        return live

    def _scaled(self, live: set[int], wanted: set[int]) -> set[int]:
        """Values that only one sum or difference reads, as its second operand: a factor there costs nothing."""
        held = self.held
        readers: dict[int, list[Step | None]] = {number: [None] for number in wanted}
        for index in live:
            value = held.values[index]
            if not isinstance(value, Load):
                for source in value.inputs:
                    readers.setdefault(source, []).append(value if isinstance(value, Step) else None)
        chosen = set()
        for number, (reader, *others) in readers.items():
            if reader is not None and not others and _is_sum(reader) and reader.inputs[1] == number:
                chosen.add(number)
        return chosen

    def _factor(self, step: Step) -> tuple[int, float] | None:
        """What a product multiplies by a number, and the number."""
        name, _, overload = step.operation.partition(".")
        if name != "mul" or step.keywords or len(step.arguments) != 2 or "float" not in step.kinds:
            return None
        if len(step.inputs) == 1 and overload in ("Tensor", "Scalar"):
            number = step.arguments[1]
            if step.arguments[0] != Ref(0) or step.kinds != ("float",) or isinstance(number, bool):
                return None
            finite = isinstance(number, (int, float)) and math.isfinite(number)
            return (step.inputs[0], float(number)) if finite else None
        literals = self._literals(step)
        for place, number in literals.items():
            return step.inputs[1 - place], number
        return None

    def _release(self, kept: Sequence[int]) -> None:
        """Drop every intermediate value after the line that reads it last."""
        last = {int(number): place for place, line in enumerate(self.lines) for number in _VARIABLE.findall(line)}
        for number, place in last.items():
            if number not in kept:
                self.lines[place] += f"; del v{number}"

    # ------------------------------------------------------------------ expressions

    def _name(self, value: Any) -> str:
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def _cast(self, number: int, kind: str) -> str:
        """A value in a kind."""
        self.used.add(number)
        if self.known[number].kind == kind:
            return f"v{number}"
        return f"cast(v{number}, {kind!r}, D)"

    def _pad(self, text: str, missing: int) -> str:
        return text + f".unsqueeze({self.lead})" * missing

    def _argument(self, value: Any, operands: Sequence[str]) -> str:
        if isinstance(value, Ref):
            return operands[value.index]
        if isinstance(value, tuple):
            return "[" + "".join(f"{self._argument(item, operands)}, " for item in value) + "]"
        if isinstance(value, dict):
            return self._name(KINDS.get(value["dtype"], self.dtype))
        plain = value is None or isinstance(value, (bool, int, str)) or _written_out(value)
        return repr(value) if plain else self._name(value)

    # ------------------------------------------------------------------ steps

    def _step(self, number: int, step: Step) -> None:
        if not step.pointwise:
            self._general(number, step)
            return
        self.known[number] = _Value(step.shape, self._kind(step))
        name, _, overload = step.operation.partition(".")
        plain = not step.keywords and (overload in ("Tensor", "Scalar") or overload == "default")
        literals = self._literals(step) if plain and name in _BINARY and len(step.arguments) == 2 else {}
        rank = len(step.shape)
        if _is_sum(step) and step.inputs[1] in self.deferred:
            self._sum(number, step)
            return
        for place, value in literals.items():
            if value == (1 if name in ("mul", "div") else 0) and (place == 1 or name in ("add", "mul")):
                self.lines.append(f"v{number} = {self._cast(step.inputs[1 - place], 'float')}")
                return
        operands = []
        for place, (source, kind) in enumerate(zip(step.inputs, step.kinds, strict=True)):
            if place in literals:
                operands.append(repr(literals[place]))
                continue
            operands.append(self._pad(self._cast(source, kind), rank - len(self.known[source].shape)))
        arguments = [self._argument(value, operands) for value in step.arguments]
        if plain and len(arguments) == 2 and name in {**_BINARY, **_COMPARED}:
            sign = _BINARY.get(name) or _COMPARED[name]
            text = f"{arguments[0]} {sign} {arguments[1]}"
        elif plain and len(arguments) == 2 and name == "rsub":
            text = f"{arguments[1]} - {arguments[0]}"
        elif plain and len(arguments) == 1 and name in _UNARY:
            text = f"torch.{name}({arguments[0]})"
        else:
            keywords = [f"{_identifier(key)}={self._argument(value, operands)}" for key, value in step.keywords]
            text = f"{self._name(resolve(step.operation))}({', '.join([*arguments, *keywords])})"
        self.lines.append(f"v{number} = {text}")

    def _sum(self, number: int, step: Step) -> None:
        """A sum whose second operand is a product with a number."""
        first, (second, factor) = step.inputs[0], self.deferred[step.inputs[1]]
        rank = len(step.shape)
        operands = [
            self._pad(self._cast(source, "float"), rank - len(self.known[source].shape)) for source in (first, second)
        ]
        alpha = -factor if step.operation == "sub.Tensor" else factor
        self.lines.append(f"v{number} = torch.add({operands[0]}, {operands[1]}, alpha={alpha!r})")

    def _kind(self, step: Step) -> str | None:
        """The kind of the result of pointwise arithmetic, where it is sure to come out in it."""
        name = step.operation.partition(".")[0]
        if name in _COMPARED:
            return "bool"
        sure = name in _BINARY or name in _UNARY or name in _REAL
        return "float" if sure and "float" in step.kinds and not step.keywords else None

    def _literals(self, step: Step) -> dict[int, float]:
        """Operands that can be written as numbers: beside a real tensor that has the result's own shape."""
        held = [self.known[source] for source in step.inputs]
        if len(held) != 2 or step.kinds != ("float", "float"):
            return {}
        for place, other in ((1, 0), (0, 1)):
            number = held[place].literal
            fits = held[other].literal is None and held[other].shape == step.shape
            if number is not None and fits and not (place == 0 and step.operation == "div.Tensor"):
                return {place: number}
        return {}

    def _general(self, number: int, step: Step) -> None:
        for offset, shape in enumerate(step.shapes):
            self.known[number + offset] = _Value(shape, None)
        operands = [self._cast(source, kind) for source, kind in zip(step.inputs, step.kinds, strict=True)]
        ranks = [len(self.known[source].shape) for source in step.inputs]
        run = self._name(prepare_step(step, ranks, self.lead, self.dtype))
        results = "".join(f"v{number + offset}, " for offset in range(len(step.shapes)))
        self.lines.append(f"{results}= {run}({', '.join(operands)})")

    # ------------------------------------------------------------------ gathers

    def _gather(self, number: int, value: Gather) -> None:
        self.known[number] = _Value(value.shape, value.dtype)
        pieces = [self._cast(source, value.dtype) for source in value.inputs]
        shapes = [self.known[source].shape for source in value.inputs]
        flat = [
            text if len(shape) == 1 else self._pad(text, 1) if not shape else f"{text}.flatten({self.lead})"
            for text, shape in zip(pieces, shapes, strict=True)
        ]
        if len(flat) == 1:
            if value.indices.size == 1:
                chosen = f"{flat[0]}.select(-1, {int(value.indices.flat[0])})"
                self.lines.append(f"v{number} = {self._pad(chosen, value.indices.ndim)}")
                return
            self.lines.append(f"v{number} = {self._name(Picker(value.indices))}({flat[0]})")
            return
        counted = value.indices.shape == (len(flat),) and (value.indices == np.arange(len(flat))).all()
        if counted and all(math.prod(shape) == 1 for shape in shapes):
            self.joins = True
            numbers = [
                text if not shape else f"{text}.flatten({self.lead}).squeeze(-1)"
                for text, shape in zip(pieces, shapes, strict=True)
            ]
            self.lines.append(f"v{number} = {self._name(stack)}({', '.join(numbers)})")
            return
        run = self._name(Join(Picker(value.indices), self.lead))
        self.lines.append(f"v{number} = {run}({', '.join(flat)})")


def _is_sum(step: Step) -> bool:
    """Whether a step adds or subtracts two real tensors."""
    bare = step.arguments == (Ref(0), Ref(1)) and not step.keywords and step.inputs[0] != step.inputs[1]
    return step.operation in ("add.Tensor", "sub.Tensor") and bare and step.kinds == ("float", "float")


def _identifier(name: str) -> str:
    """A name that may stand in a text; a stored program could have any."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no name of an argument")
    return name


def _written_out(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
