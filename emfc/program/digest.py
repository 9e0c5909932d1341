"""The digest of a program: equal for programs that are the same to the last number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from emfc.program.ir import Operand, Program, Specification

__all__ = ["digest"]


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(program: Program) -> str:
    """SHA-256 of everything in a program, names and source lines included, in time linear in its size.

    Args:
        program: The program.

    Returns:
        64 hexadecimal digits; equal digests mean that compiling gives the same layer, messages of errors included.
    """
    hashed = hashlib.sha256()
    _text(hashed, program.dtype)
    for tensor in (program.constants, program.prototype):
        _tensor(hashed, tensor)
    for parameter in program.parameters:
        _text(hashed, (parameter.name, parameter.start, parameter.shape, _plain(parameter.constraint)))
        _tensor(hashed, parameter.initial)
    for site in program.sites:
        _text(hashed, (site.name, site.shape, site.noise_shape, site.event_dim, site.start, site.support, site.plates))
        _text(hashed, (site.observed, site.discrete, site.adjustment, site.location, site.source))
        _specification(hashed, site.specification)
    for instruction in program.instructions:
        _text(hashed, (instruction.operation, instruction.arguments, instruction.keywords, instruction.outputs))
        for operand in instruction.operands:
            _operand(hashed, operand)
    for name, operand in program.deterministic.items():
        _text(hashed, name)
        _operand(hashed, operand)
    return hashed.hexdigest()


def _plain(value: Any) -> Any:
    """Mappings as sorted pairs, so that equal ones read the same."""
    if isinstance(value, Mapping):
        return [(key, _plain(value[key])) for key in sorted(value)]
    if isinstance(value, torch.Tensor):  # whose repr leaves elements out
        return ("tensor", str(value.dtype), value.tolist())
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _text(hashed: _Hash, value: object) -> None:
    written = repr(value).encode()
    hashed.update(len(written).to_bytes(8, "little"))
    hashed.update(written)


def _tensor(hashed: _Hash, tensor: torch.Tensor) -> None:
    values = np.ascontiguousarray(tensor.detach().cpu().to(torch.float64).numpy())
    _text(hashed, (values.shape, str(tensor.dtype)))
    hashed.update(values.tobytes())


def _operand(hashed: _Hash, operand: Operand) -> None:
    _text(hashed, (operand.dtype, operand.shape))
    hashed.update(np.ascontiguousarray(operand.addresses).tobytes())


def _specification(hashed: _Hash, specification: Specification) -> None:
    _text(hashed, (specification.family, list(specification.parameters), _plain(specification.options)))
    for operand in specification.parameters.values():
        _operand(hashed, operand)
    for name, child in specification.children.items():
        _text(hashed, name)
        _specification(hashed, child)
