"""The intermediate representation: a program as data.

A program is a flat *value space* of integer addresses and a list of instructions over it::

    [0, C)            constants (address 0 is the number zero)
    [C, C + P)        parameters, constrained
    [C + P, C + P + S)  values of the latent sites, in program order
    above             outputs of instructions

An operand is an integer array of addresses in the shape of the tensor that it stands for. Views, stacking, indexing
with constants and in-place stores only rearrange addresses; everything else is an instruction in static single
assignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "Addresses",
    "Instruction",
    "Operand",
    "Output",
    "Parameter",
    "Plate",
    "Program",
    "Ref",
    "SiteRecord",
    "Specification",
    "dtype_kind",
]

Addresses = npt.NDArray[np.int64]


def dtype_kind(dtype: torch.dtype) -> str:
    """Name the kind of a dtype (``"float"``, ``"int"``, ``"bool"``, ``"complex"``); a program knows no widths."""
    if dtype == torch.bool:
        return "bool"
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "int"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for operand number ``index`` inside the arguments of an instruction."""

    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor of the program, by the addresses of its elements."""

    addresses: Addresses
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.addresses.shape


@dataclass(frozen=True, slots=True)
class Output:
    """One result of an instruction: ``size`` consecutive addresses from ``start``."""

    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One call of an allowed operation; ``Ref(i)`` in the arguments stands for ``operands[i]``."""

    operation: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    operands: tuple[Operand, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Specification:
    """A distribution as data: family name, parameter operands, nested specifications and static options.

    A family of `pyro.distributions` goes by its class name, one that a user registered by its dotted name.
    """

    family: str
    parameters: Mapping[str, Operand]
    children: Mapping[str, Specification] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Class name of the family."""
        return self.family.rpartition(".")[2]

    def operands(self) -> Iterator[Operand]:
        """All operands, nested ones included, in a fixed order."""
        yield from self.parameters.values()
        for child in self.children.values():
            yield from child.operands()


@dataclass(frozen=True, slots=True)
class Plate:
    """A plate that a site stands in; ``dim`` is None for a sequential plate."""

    name: str
    size: int
    dim: int | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A learnable parameter: its constrained starting value lives at ``start`` and on."""

    name: str
    start: int
    shape: tuple[int, ...]
    constraint: Mapping[str, Any]
    initial: torch.Tensor = field(compare=False, repr=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class SiteRecord:
    """One sample site. ``start`` is the address of its first value, or -1 where the site is observed.

    ``noise_shape`` is the shape of the noise that its value is made from, which may have fewer elements than the value.
    """

    name: str
    specification: Specification
    shape: tuple[int, ...]
    event_dim: int
    start: int
    observed: bool
    discrete: bool
    support: str
    plates: tuple[Plate, ...] = ()
    location: str | None = None
    source: str | None = None
    adjustment: str | None = None
    noise_shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def noise_size(self) -> int:
        return math.prod(self.noise_shape)


@dataclass(frozen=True, eq=False)
class Program:
    """A whole program: constants, parameters, sites and instructions over one value space.

    Attributes:
        constants: Flat, float64.
        parameters: In the order in which the program names them.
        sites: In the order in which the program samples them.
        instructions: In an order in which they can run.
        deterministic: Named `pyro.deterministic` values.
        dtype: Name of the default dtype under which the program ran.
        prototype: Values of the latent sites in the watched run, flat, float64: one joint draw.
    """

    constants: torch.Tensor
    parameters: tuple[Parameter, ...]
    sites: tuple[SiteRecord, ...]
    instructions: tuple[Instruction, ...]
    deterministic: Mapping[str, Operand]
    dtype: str
    prototype: torch.Tensor

    @cached_property
    def parameter_base(self) -> int:
        return int(self.constants.numel())

    @cached_property
    def site_base(self) -> int:
        return self.parameter_base + sum(parameter.size for parameter in self.parameters)

    @cached_property
    def instruction_base(self) -> int:
        return self.site_base + sum(site.size for site in self.sites if not site.observed)

    @cached_property
    def addresses_before(self) -> Addresses:
        """For each site the first address behind the values of the latent sites before it."""
        sizes = [0 if site.observed else site.size for site in self.sites]
        return np.asarray(self.site_base + np.cumsum([0, *sizes])[:-1], dtype=np.int64)

    @cached_property
    def constant_values(self) -> npt.NDArray[np.float64]:
        """The constants as a numpy array."""
        return np.asarray(self.constants.numpy(), dtype=np.float64)

    def is_zero(self, addresses: Addresses) -> npt.NDArray[np.bool_]:
        """Which addresses are those of a constant zero."""
        constants = self.constant_values
        constant = addresses < len(constants)
        return np.asarray(constant & (constants[np.where(constant, addresses, 0)] == 0))
