"""Shadow memory: every storage carries the addresses of the values that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.program.errors import CompileError
from emfc.program.locations import Location, where

__all__ = ["Noise", "Shadow"]


@dataclass(frozen=True, slots=True)
class Noise:
    """Marks a storage that was filled by a random operation outside a sample site."""

    location: Location | None


@dataclass
class Shadow:
    """Addresses of all storages seen so far, and the constants met on the way.

    Addresses are provisional: constants, parameters, site values and instruction outputs are numbered together in the
    order in which they appear; `segments` remembers what each run of addresses is.

    Attributes:
        segments: ``(start, size, kind, index)`` in ascending order of start; kind is ``"constant"``, ``"parameter"``,
            ``"site"`` or ``"instruction"`` and index counts within the kind (constants index `constants`).
    """

    segments: list[tuple[int, int, str, int]] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    _memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _parts: dict[int, list[tuple[Tensor, int]]] = field(default_factory=dict)  # views taken in alone, and their first
    _random: set[int] = field(default_factory=set)
    _noise: dict[int, tuple[Tensor, Noise]] = field(default_factory=dict)
    _scalars: dict[tuple[str, float], int] = field(default_factory=dict)
    _next: int = 0
    _random_address: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1024, dtype=np.bool_))

    def __post_init__(self) -> None:
        self.constant(torch.zeros((), dtype=torch.float64))

    def close(self) -> None:
        """Let go of all storages and constants."""
        for held in (
            self.segments,
            self.constants,
            self._parts,
            self._memory,
            self._noise,
            self._scalars,
            self._random,
        ):
            held.clear()

    @property
    def size(self) -> int:
        """How many addresses have been handed out."""
        return self._next

    def reserve(self, size: int, kind: str, index: int) -> int:
        """Hand out `size` fresh consecutive addresses."""
        start = self._next
        self.segments.append((start, size, kind, index))
        self._next += size
        if self._next > self._random_address.size:
            grown = np.zeros(2 * self._next, dtype=np.bool_)
            grown[: self._random_address.size] = self._random_address
            self._random_address = grown
        self._random_address[start : self._next] = kind != "constant"
        return start

    def constant(self, values: Tensor) -> int:
        """Keep a flat copy of constant values and return the address of the first."""
        start = self.reserve(values.numel(), "constant", len(self.constants))
        self.constants.append(values.detach().reshape(-1).to(device="cpu", dtype=torch.float64, copy=True))
        return start

    def scalar(self, value: float) -> int:
        """The address of a Python number; equal numbers share one."""
        if value == 0:
            return 0
        key = (type(value).__name__, float(value))
        if key not in self._scalars:
            self._scalars[key] = self.constant(torch.tensor(float(value), dtype=torch.float64))
        return self._scalars[key]

    def is_random(self, tensor: Tensor) -> bool:
        """Whether any element of the tensor is anything but a constant."""
        if tensor.layout != torch.strided or tensor.untyped_storage()._cdata not in self._random:
            return False
        return bool(self._random_address[self.addresses(tensor).numpy()].any())

    def noise(self, tensor: Tensor) -> Noise | None:
        """The mark of noise drawn outside a sample site, if the tensor holds any."""
        if tensor.layout != torch.strided:
            return None
        entry = self._noise.get(tensor.untyped_storage()._cdata)
        return entry[1] if entry else None

    def mark_noise(self, tensor: Tensor, noise: Noise) -> None:
        self._noise[tensor.untyped_storage()._cdata] = (tensor, noise)

    def known(self, tensor: Tensor) -> bool:
        """Whether the storage of the tensor has addresses."""
        return tensor.untyped_storage()._cdata in self._memory

    def forget(self, tensor: Tensor) -> None:
        """Drop what was known of a constant storage, because it is being written to."""
        self._memory.pop(tensor.untyped_storage()._cdata, None)

    def register(self, tensor: Tensor, addresses: Tensor, *, random: bool) -> None:
        """Give a fresh tensor's storage its addresses."""
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.element_size()
        memory = torch.zeros(size, dtype=torch.int64)
        self._memory[storage._cdata] = (tensor, memory)
        self._view(tensor, memory).copy_(addresses)
        if random:
            self._random.add(storage._cdata)

    def addresses(self, tensor: Tensor, *, whole: bool = False) -> Tensor:
        """The addresses of a tensor's elements, in its shape; an unknown storage is taken in as constants.

        Args:
            tensor: Any tensor of the traced run.
            whole: Take in the whole storage even where the tensor is a small part of it, since it is about to be
                written to.
        """
        storage = tensor.untyped_storage()
        if storage._cdata in self._memory and self._memory[storage._cdata][0].element_size() != tensor.element_size():
            raise CompileError(
                "E-ESCAPE", "reads the bytes of a random value", advice="use .to(dtype) to convert values", **where()
            )
        if storage._cdata not in self._memory:
            size = storage.nbytes() // tensor.element_size()
            if size > 4 * tensor.numel() and not whole:  # a small view of a large table: keep the view alone
                start = self.constant(tensor)
                self._parts.setdefault(storage._cdata, []).append((tensor, start))
                return torch.arange(start, start + tensor.numel()).reshape(tensor.shape)
            flat = torch.as_strided(tensor.detach(), (size,), (1,), 0)
            start = self.constant(flat)
            self._memory[storage._cdata] = (tensor, torch.arange(start, start + size))
        return self._view(tensor, self._memory[storage._cdata][1])

    def read_places(self, read: npt.NDArray[np.bool_]) -> dict[int, set[int]]:
        """For each storage of which views were taken in alone, the places of its numbers whose addresses are read."""
        found: dict[int, set[int]] = {}
        for storage, parts in self._parts.items():
            places = found.setdefault(storage, set())
            for part, start in parts:
                held = _places(part)
                places.update(held[read[start : start + held.size]].tolist())
        return found

    def is_read(self, tensor: Tensor, read: npt.NDArray[np.bool_], places: dict[int, set[int]]) -> bool:
        """Whether any number of a constant tensor is read, by `read_places` or under the addresses of its storage."""
        held = places.get(tensor.untyped_storage()._cdata)
        if held and not held.isdisjoint(_places(tensor).tolist()):
            return True
        if not self.known(tensor):
            return False
        addresses = self.addresses(tensor).numpy().reshape(-1)
        return bool(read[addresses[addresses < len(read)]].any())

    def write(self, tensor: Tensor, addresses: Tensor) -> None:
        """Record that `tensor` was overwritten in place by values at `addresses`."""
        self.addresses(tensor, whole=True).copy_(addresses)
        self._random.add(tensor.untyped_storage()._cdata)

    @staticmethod
    def _view(tensor: Tensor, memory: Tensor) -> Tensor:
        return torch.as_strided(memory, tensor.size(), tensor.stride(), tensor.storage_offset())


def _places(tensor: Tensor) -> npt.NDArray[np.int64]:
    """Places of a tensor's elements in its storage."""
    places = np.full(tuple(tensor.shape), tensor.storage_offset(), dtype=np.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [-1 if other == dim else 1 for other in range(tensor.ndim)]
        places = places + (stride * np.arange(size, dtype=np.int64)).reshape(shape)
    return np.asarray(places.reshape(-1), dtype=np.int64)
