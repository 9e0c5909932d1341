"""Elements: a class of short vectors, put together from numbers, as one class of numbers for each element.

The elements of a state that equations move, stacked in every step, have code of their own each. Apart they need neither
the stack nor its way back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from emfc.layers.kernel import Kernel
from emfc.passes.slices import Gather, Load, Slice, Step, Value
from emfc.program.ir import Addresses

__all__ = ["by_element"]

_LONGEST = 8
_MOST_WORK = 1.25


def by_element(kernel: Kernel) -> list[Kernel]:
    """Kernels of the elements of a class of independent vectors; the kernel itself where that does not pay."""
    held = kernel.held
    values = held.slice.values
    short = len(held.shape) == 1 and 1 < held.shape[0] <= _LONGEST and held.noise_shape == held.shape
    pointwise = all(value.pointwise for value in values if isinstance(value, Step))
    stacked = any(isinstance(value, Gather) and len(value.inputs) > 1 for value in values)
    if not (short and pointwise and stacked and held.specification.family in ("Normal", "LogNormal")):
        return [kernel]
    parts = [_Part(kernel, place) for place in range(held.shape[0])]
    work = sum(int(np.prod(value.shape, dtype=np.int64)) for value in values if isinstance(value, Step))
    if sum(part.work for part in parts) > _MOST_WORK * work:
        return [kernel]
    return [part.kernel() for part in parts]


@dataclass
class _Part:
    """The slice of one element, numbers throughout."""

    source: Kernel
    place: int
    values: list[Value] = field(default_factory=list)
    addresses: list[Addresses] = field(default_factory=list)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    work: int = 0

    def __post_init__(self) -> None:
        held = self.source.held
        shapes = {number: value.shape for number, value in zip(held.slice.numbers, held.slice.values, strict=True)}
        self.outputs = [(number, _broadcast(shapes[number], held.shape, self.place)) for number in held.slice.outputs]
        wanted = self._wanted(shapes)
        loads = iter(held.addresses)
        for number, value in zip(held.slice.numbers, held.slice.values, strict=True):
            addresses = next(loads) if isinstance(value, Load) else None
            for element in sorted(wanted.get(number, ())):
                self._add(number, element, value, addresses, shapes)

    def _wanted(self, shapes: dict[int, tuple[int, ...]]) -> dict[int, set[int]]:
        """Elements of each value that the outputs depend on."""
        held = self.source.held.slice
        wanted: dict[int, set[int]] = {}
        for number, element in self.outputs:
            wanted.setdefault(number, set()).add(element)
        for number, value in zip(reversed(held.numbers), reversed(held.values), strict=True):
            for element in wanted.get(number, ()):
                for source, at in _sources(value, element, shapes):
                    wanted.setdefault(source, set()).add(at)
        return wanted

    def _add(
        self,
        number: int,
        element: int,
        value: Value,
        addresses: Addresses | None,
        shapes: dict[int, tuple[int, ...]],
    ) -> None:
        sources = tuple(self.numbers[source] for source in _sources(value, element, shapes))
        if isinstance(value, Gather) and len(sources) == 1 and self._kind(sources[0]) == value.dtype:
            self.numbers[number, element] = sources[0]
            return
        if isinstance(value, Load) and addresses is not None:
            chosen = addresses.reshape(len(addresses), -1)[:, element]
            self.addresses.append(chosen)
            made: Value = Load(chosen[0].reshape(()), value.dtype)
        elif isinstance(value, Step):
            made = replace(value, inputs=sources, shapes=((),))
            self.work += 1
        else:
            made = Gather(sources, np.zeros((), dtype=np.int64), value.dtype) if isinstance(value, Gather) else value
        self.numbers[number, element] = len(self.values)
        self.values.append(made)

    def _kind(self, number: int) -> str:
        value = self.values[number]
        return value.dtypes[0] if isinstance(value, Step) else value.dtype

    def kernel(self) -> Kernel:
        """The element's kernel."""
        source = self.source
        held = replace(
            source.held,
            slice=Slice(
                tuple(self.values), tuple(range(len(self.values))), tuple(self.numbers[key] for key in self.outputs)
            ),
            addresses=tuple(self.addresses),
            shape=(),
            event_dim=0,
            noise_shape=(),
        )
        return Kernel(
            held,
            source.layout,
            source.own[:, self.place],
            source.noise[:, self.place],
            number=source.number,
            mixed=source.mixed,
            emitted=source.emitted,
        )


def _sources(value: Value, element: int, shapes: dict[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    """Values and elements that one element of a value is made from."""
    if isinstance(value, Load):
        return []
    if isinstance(value, Step):
        return [(source, _broadcast(shapes[source], value.shape, element)) for source in value.inputs]
    at = int(value.indices.reshape(-1)[element])
    for source in value.inputs:
        size = int(np.prod(shapes[source], dtype=np.int64))
        if at < size:
            return [(source, at)]
        at -= size
    raise IndexError(element)


def _broadcast(shape: tuple[int, ...], to: tuple[int, ...], element: int) -> int:
    """The element of an array that stands at a place of the array that it is broadcast to."""
    places = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    return int(np.broadcast_to(places, to).reshape(-1)[element])
