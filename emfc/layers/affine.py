"""Values of a slice that are affine in some of its loads, and their exact linear coefficients.

Beside each value that depends on the chosen loads, its derivatives along the directions of those loads are computed by
the same instructions: a linear instruction maps derivatives as it maps values, a product multiplies them by the other
factor. Nothing is differenced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emfc.layers.batching import apply_step, cast
from emfc.layers.readers import Picker
from emfc.passes.slices import Gather, Load, Slice, Step
from emfc.program.ir import Ref

__all__ = ["Linear", "linear"]

_MAPS = frozenset("neg sum mean cumsum flip _to_copy".split())
_SUMS = {"add": (0, 1), "sub": (0, 1), "rsub": (0, 1), "where": (1, 2)}
_FACTORS = frozenset("mul mv mm bmm dot".split())
_SHIFTED_FACTORS = frozenset("addmm addmv baddbmm".split())


@dataclass(frozen=True, eq=False)
class Linear:
    """How a slice's values depend on some loads.

    Attributes:
        held: The slice.
        chain: Numbers of the values that depend on the loads, each affine in them.
        homogeneous: Those that are zero where the loads are.
        pointwise: Whether only pointwise instructions lie between the loads and the target.
        operands: Numbers and kinds of the other values that the coefficients are made of.
        target: Number of the value whose coefficients are wanted.
    """

    held: Slice
    chain: frozenset[int]
    homogeneous: frozenset[int]
    pointwise: bool
    operands: tuple[tuple[int, str], ...]
    target: int

    def coefficients(self, seeds: Mapping[int, Tensor], operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Derivatives ``[B or 1, n or 1, J, *shape]`` of the target along J directions.

        Args:
            seeds: By number of the load, its own derivatives ``[1, 1, J, *shape]``.
            operands: Values of `operands`, ``[B or 1, n or 1, *shape]``.
            dtype: The dtype of real values.
        """
        known = {number: value.unsqueeze(2) for (number, _), value in zip(self.operands, operands, strict=True)}
        found = dict(seeds)
        like = next(iter(seeds.values()))
        shapes = _shapes(self.held)

        def zero(number: int) -> Tensor:
            return like.new_zeros((1, 1, 1, *shapes[number]))

        for number, value in zip(self.held.numbers, self.held.values, strict=True):
            if number not in self.chain or isinstance(value, Load):
                continue
            if isinstance(value, Gather):
                pieces = [found[source] if source in found else zero(source) for source in value.inputs]
                found[number] = _gather(value, pieces)
                continue
            name = value.operation.partition(".")[0]
            inside = {place for place, source in enumerate(value.inputs) if source in found}
            inputs = []
            for place, (source, kind) in enumerate(zip(value.inputs, value.kinds, strict=True)):
                if source in found:
                    inputs.append(found[source])
                elif _kept(value, place, inside):
                    inputs.append(cast(known[source], kind, dtype))
                else:
                    inputs.append(zero(source))
            (found[number],) = apply_step(_without_numbers(value) if name in _SUMS else value, inputs, 3, dtype)
        return found[self.target]


def linear(held: Slice, loads: Collection[int], target: int) -> Linear | None:
    """How a value depends on some loads, or None where that is not seen to be affine.

    Args:
        held: The slice.
        loads: Numbers of the loads.
        target: Number of the value.
    """
    chain, homogeneous = set(loads), set(loads)
    operands: dict[tuple[int, str], None] = {}
    pointwise = True
    needed = _needed(held, target)
    for number, value in zip(held.numbers, held.values, strict=True):
        if isinstance(value, Load) or chain.isdisjoint(value.inputs) or number not in needed:
            continue
        if isinstance(value, Gather):
            if value.dtype != "float":
                return None
            chain.add(number)
            if homogeneous.issuperset(value.inputs):
                homogeneous.add(number)
            pointwise = False
            continue
        inside = {place for place, source in enumerate(value.inputs) if source in chain}
        if len(value.shapes) != 1 or value.dtypes != ("float",) or not _affine(value, inside):
            return None
        chain.add(number)
        pointwise = pointwise and value.pointwise
        for place, (source, kind) in enumerate(zip(value.inputs, value.kinds, strict=True)):
            if place not in inside and _kept(value, place, inside):
                operands[source, kind] = None
        if _stays_zero(value, {place for place, source in enumerate(value.inputs) if source in homogeneous}):
            homogeneous.add(number)
    if target not in chain:
        return None
    return Linear(held, frozenset(chain), frozenset(homogeneous), pointwise, tuple(operands), target)


def _needed(held: Slice, target: int) -> set[int]:
    """Numbers of the values, by their first output, that a value is made of."""
    needed = {target}
    for number, value in zip(reversed(held.numbers), reversed(held.values), strict=True):
        count = len(value.shapes) if isinstance(value, Step) else 1
        if not isinstance(value, Load) and not needed.isdisjoint(range(number, number + count)):
            needed.add(number)
            needed.update(value.inputs)
    return needed


def _references(step: Step) -> list[Any]:
    """Place of the operand that each argument is, or the argument."""
    return [argument.index if isinstance(argument, Ref) else argument for argument in step.arguments]


def _affine(step: Step, inside: set[int]) -> bool:
    """Whether an instruction is affine in some operands together."""
    name = step.operation.partition(".")[0]
    if any(step.kinds[place] != "float" for place in inside):
        return False
    if name in _MAPS:
        return inside == {0} and len(step.inputs) == 1
    arguments = _references(step)
    if name in _SUMS:
        return all(isinstance(argument, Ref | int | float) for argument in step.arguments) and not (
            name == "where" and arguments[0] in inside
        )
    if name in _FACTORS:
        return len(inside) == 1 and not step.keywords
    if name == "div":
        return not step.keywords and len(inside) == 1 and arguments[0] in inside
    if name in _SHIFTED_FACTORS:
        return arguments[:3] == [0, 1, 2] and len(step.inputs) == 3 and not {1, 2} <= inside
    return False


def _kept(step: Step, place: int, inside: set[int]) -> bool:
    """Whether an operand outside the chain stays as it is when derivatives are mapped, and is not zero there."""
    name = step.operation.partition(".")[0]
    if name in _SUMS:
        return name == "where" and place == 0
    return name not in _SHIFTED_FACTORS or (place > 0 and not inside.isdisjoint({1, 2}))


def _stays_zero(step: Step, zeros: set[int]) -> bool:
    """Whether a result is zero where some operands are."""
    name = step.operation.partition(".")[0]
    if name in _SUMS:
        summands = [_references(step)[place] for place in _SUMS[name] if place < len(step.arguments)]
        numbers = [step.arguments[place] for place in _SUMS[name] if place < len(step.arguments)]
        return all(isinstance(held, Ref) for held in numbers) and zeros.issuperset(summands)
    if name in _SHIFTED_FACTORS:
        return 0 in zeros and bool(zeros & {1, 2})
    return bool(zeros)


def _without_numbers(step: Step) -> Step:
    """A sum with its summands that are plain numbers set to zero."""
    places = _SUMS[step.operation.partition(".")[0]]
    arguments = tuple(
        0.0 if place in places and not isinstance(argument, Ref) else argument
        for place, argument in enumerate(step.arguments)
    )
    return replace(step, arguments=arguments)


def _shapes(held: Slice) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for number, value in zip(held.numbers, held.values, strict=True):
        shapes = value.shapes if isinstance(value, Step) else (value.shape,)
        found.update({number + offset: shape for offset, shape in enumerate(shapes)})
    return found


def _gather(value: Gather, pieces: Sequence[Tensor]) -> Tensor:
    flat = [piece.flatten(3) if piece.ndim > 3 else piece.unsqueeze(-1) for piece in pieces]
    lead = torch.broadcast_shapes(*(piece.shape[:3] for piece in flat))
    return Picker(value.indices)(torch.cat([piece.expand(*lead, -1) for piece in flat], -1))
