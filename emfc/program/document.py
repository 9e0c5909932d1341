"""The schema of a stored program."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = [
    "InstructionDocument",
    "OperandDocument",
    "OutputDocument",
    "ParameterDocument",
    "PlateDocument",
    "ProgramDocument",
    "SiteDocument",
    "SpecificationDocument",
    "StoredDocument",
]


class StoredDocument(BaseModel):
    """What all parts have in common: nothing unknown, nothing changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OperandDocument(StoredDocument):
    """Place and shape of an operand's addresses in the tensor ``addresses``."""

    offset: int
    shape: list[int]
    dtype: str


class OutputDocument(StoredDocument):
    """One result of an instruction."""

    start: int
    shape: list[int]
    dtype: str


class InstructionDocument(StoredDocument):
    """One instruction; operands are referred to by number."""

    operation: str
    arguments: list[Any]
    keywords: dict[str, Any]
    operands: list[OperandDocument]
    outputs: list[OutputDocument]


class SpecificationDocument(StoredDocument):
    """One distribution."""

    family: str
    parameters: dict[str, OperandDocument]
    children: dict[str, SpecificationDocument]
    options: dict[str, Any]


class PlateDocument(StoredDocument):
    """One plate."""

    name: str
    size: int
    dim: int | None


class SiteDocument(StoredDocument):
    """One sample site."""

    name: str
    specification: SpecificationDocument
    shape: list[int]
    event_dim: int
    start: int
    observed: bool
    discrete: bool
    support: str
    plates: list[PlateDocument]
    location: str | None
    source: str | None
    adjustment: str | None
    noise_shape: list[int] | None = None


class ParameterDocument(StoredDocument):
    """One learnable parameter."""

    name: str
    start: int
    shape: list[int]
    constraint: dict[str, Any]


class ProgramDocument(StoredDocument):
    """A whole program."""

    version: int
    dtype: str
    sites: list[SiteDocument]
    parameters: list[ParameterDocument]
    instructions: list[InstructionDocument]
    deterministic: dict[str, OperandDocument]
