"""Emit: the code of a slice as one Python function, written once per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from emfc.layers.writer import Emitted, write
from emfc.passes.slices import Load, Slice, Step

__all__ = ["Code", "Emitted"]


class Code:
    """The functions of one slice, written when first wanted."""

    def __init__(self, held: Slice, literals: Mapping[int, float]) -> None:
        """Prepare.

        Args:
            held: The slice.
            literals: Loads, by place among the loads, that are one and the same number everywhere.
        """
        self.held = held
        self.literals = literals
        self._written: dict[tuple[Any, ...], Emitted] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_written": {}}  # functions are written again where they are needed

    def literal(self, number: int) -> float | None:
        """The number that a value of the slice is everywhere, where it is one."""
        places = {held: place for place, held in enumerate(self._load_numbers())}
        return self.literals.get(places.get(number, -1))

    def exponent(self, number: int) -> int | None:
        """The value whose exponential a real value of the slice is, where it is one."""
        for held, value in zip(self.held.numbers, self.held.values, strict=True):
            if held == number and isinstance(value, Step) and value.operation == "exp.default":
                return value.inputs[0] if value.kinds == ("float",) else None
        return None

    def function(self, wanted: Sequence[tuple[int, str]], lead: int, dtype: torch.dtype) -> Emitted:
        """The function that computes some values.

        Args:
            wanted: Numbers of values and the kinds in which they are wanted.
            lead: Number of leading batch dimensions.
            dtype: The dtype of real values.
        """
        key = (tuple(wanted), lead, dtype)
        held = self._written.get(key)
        if held is None:
            held = self._written[key] = write(self.held, self.literals, wanted, lead, dtype)
        return held

    def _load_numbers(self) -> list[int]:
        pairs = zip(self.held.numbers, self.held.values, strict=True)
        return [number for number, value in pairs if isinstance(value, Load)]
