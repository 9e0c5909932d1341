"""A program as a JSON document and tensors, and back.

Nothing in a stored program is code: operations and families are names that are looked up in allow-lists, and address
arrays and constants are tensors. Loading one runs no user code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from emfc.errors import UserError
from emfc.program.constraint import constraint_from_data
from emfc.program.document import (
    InstructionDocument,
    OperandDocument,
    OutputDocument,
    ParameterDocument,
    PlateDocument,
    ProgramDocument,
    SiteDocument,
    SpecificationDocument,
)
from emfc.program.ir import (
    Instruction,
    Operand,
    Output,
    Parameter,
    Plate,
    Program,
    Ref,
    SiteRecord,
    Specification,
)
from emfc.program.operations import resolve
from emfc.program.specification import stored_arguments

__all__ = ["PROGRAM_VERSION", "program_from_document", "program_to_document"]

PROGRAM_VERSION = 1
_KINDS = ("float", "int", "bool")


class _Writer:
    """Collects address arrays into one flat tensor; equal arrays are kept once."""

    def __init__(self) -> None:
        self.pieces: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self.offsets: dict[bytes, int] = {}
        self.size = 0

    def operand(self, held: Operand) -> OperandDocument:
        flat = np.ascontiguousarray(held.addresses.reshape(-1))
        key = flat.tobytes()
        if key not in self.offsets:
            self.offsets[key] = self.size
            self.pieces.append(flat)
            self.size += flat.size
        return OperandDocument(offset=self.offsets[key], shape=list(held.shape), dtype=held.dtype)

    def specification(self, held: Specification) -> SpecificationDocument:
        return SpecificationDocument(
            family=held.family,
            parameters={name: self.operand(operand) for name, operand in held.parameters.items()},
            children={name: self.specification(child) for name, child in held.children.items()},
            options=dict(held.options),
        )


def _encode(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.index}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": str(value)}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict):
        if set(value) == {"ref"}:
            return Ref(int(value["ref"]))
        if set(value) == {"number"}:
            return float(value["number"])
        if set(value) == {"dtype"} and value["dtype"] in _KINDS:
            return value
        raise UserError(f"the stored program has an argument that is none: {value}")
    return value


def _references(value: Any) -> Iterator[int]:
    """All operand numbers in encoded arguments."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict) and set(value) == {"ref"}:
        yield value["ref"] if type(value["ref"]) is int else -1


def program_to_document(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write a program as a JSON-able document and tensors.

    Returns:
        The document, and the tensors ``constants``, ``addresses``, ``prototype`` and ``initial.NAME`` of each
        parameter.
    """
    writer = _Writer()
    document = ProgramDocument(
        version=PROGRAM_VERSION,
        dtype=program.dtype,
        sites=[
            SiteDocument(
                name=site.name,
                specification=writer.specification(site.specification),
                shape=list(site.shape),
                event_dim=site.event_dim,
                start=site.start,
                observed=site.observed,
                discrete=site.discrete,
                support=site.support,
                plates=[PlateDocument(name=plate.name, size=plate.size, dim=plate.dim) for plate in site.plates],
                location=site.location,
                source=site.source,
                adjustment=site.adjustment,
                noise_shape=list(site.noise_shape),
            )
            for site in program.sites
        ],
        parameters=[
            ParameterDocument(
                name=held.name, start=held.start, shape=list(held.shape), constraint=dict(held.constraint)
            )
            for held in program.parameters
        ],
        instructions=[
            InstructionDocument(
                operation=held.operation,
                arguments=_encode(held.arguments),
                keywords={key: _encode(value) for key, value in held.keywords},
                operands=[writer.operand(operand) for operand in held.operands],
                outputs=[OutputDocument(start=o.start, shape=list(o.shape), dtype=o.dtype) for o in held.outputs],
            )
            for held in program.instructions
        ],
        deterministic={name: writer.operand(held) for name, held in program.deterministic.items()},
    )
    addresses = np.concatenate(writer.pieces) if writer.pieces else np.zeros(0, dtype=np.int64)
    tensors = {
        "constants": program.constants.clone(),
        "addresses": torch.from_numpy(addresses.copy()),
        "prototype": program.prototype.clone(),
        **{f"initial.{held.name}": held.initial.detach().clone().contiguous() for held in program.parameters},
    }
    return document.model_dump(), tensors


class _Reader:
    """Reads operands back, refusing addresses outside the value space."""

    def __init__(self, addresses: Tensor) -> None:
        self.addresses = addresses.numpy()
        self.limit = 0

    def operand(self, held: OperandDocument) -> Operand:
        size = int(np.prod(held.shape, dtype=np.int64))
        flat = self.addresses[held.offset : held.offset + size]
        if held.offset < 0 or flat.size != size or held.dtype not in _KINDS:
            raise UserError("the stored program is damaged: an operand lies outside its addresses")
        if size and (int(flat.min()) < 0 or int(flat.max()) >= self.limit):
            raise UserError("the stored program is damaged: an operand reads a value that does not exist yet")
        return Operand(np.asarray(flat.reshape(held.shape)), held.dtype)

    def specification(self, held: SpecificationDocument) -> Specification:
        names = [*held.parameters, *held.children, *held.options.get("arguments", {})]
        try:
            known = stored_arguments(held.family)
        except KeyError:
            if "." in held.family:
                raise UserError(
                    f"the stored program uses the family {held.family!r}, for which no transform is registered; "
                    "import the module that registers it first"
                ) from None
            raise UserError(
                f"the stored program names a family that this version does not know: {held.family!r}"
            ) from None
        if known is not None and (not known.issuperset(names) or len(set(names)) < len(names)):
            raise UserError(f"the stored program is damaged: {held.family} is made from other arguments than it gives")
        return Specification(
            held.family,
            {name: self.operand(operand) for name, operand in held.parameters.items()},
            {name: self.specification(child) for name, child in held.children.items()},
            held.options,
        )


def program_from_document(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    """Read a program that `program_to_document` wrote, checking everything.

    Raises:
        UserError: The document is damaged, of a newer version, or names something that is not allowed.
    """
    version = document.get("version")
    if isinstance(version, int) and version > PROGRAM_VERSION:
        raise UserError(f"the program was stored by a newer version of emfc (format {version}); update emfc to load it")
    try:
        return _read(document, tensors)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise UserError(f"the stored program is damaged: {type(error).__name__}") from error


def _read(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    try:
        held = ProgramDocument.model_validate(document, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"the stored program is damaged at {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        ) from None
    wanted = {"constants": torch.float64, "addresses": torch.int64, "prototype": torch.float64}
    for name, dtype in wanted.items():
        if name not in tensors or tensors[name].dtype != dtype or tensors[name].ndim != 1:
            raise UserError(f"the stored program is damaged: its tensor {name!r} is missing or of the wrong type")
    names = [site.name for site in held.sites]
    finite = bool(tensors["prototype"].isfinite().all())
    first = tensors["constants"][:1].tolist()
    if not 1 <= held.version <= PROGRAM_VERSION or len(set(names)) < len(names) or not finite or first != [0.0]:
        raise UserError("the stored program is damaged: version, names, constants or prototype are not as written")
    if held.dtype not in ("float32", "float64", "float16", "bfloat16"):
        raise UserError(f"the stored program is damaged: unknown dtype {held.dtype!r}")
    reader = _Reader(tensors["addresses"])
    parameters = tuple(_parameters(held.parameters, tensors))
    position = int(tensors["constants"].numel()) + sum(parameter.size for parameter in parameters)
    _expect(held.parameters, [p.size for p in parameters], int(tensors["constants"].numel()), "parameter")
    latent = [site for site in held.sites if not site.observed]
    sizes = [int(np.prod(site.shape, dtype=np.int64)) for site in latent]
    _expect(latent, sizes, position, "site")
    reader.limit = position + sum(sizes)
    if int(tensors["prototype"].numel()) != sum(sizes):
        raise UserError("the stored program is damaged: its prototype has the wrong size")
    instructions = [_instruction(entry, reader) for entry in held.instructions]
    return Program(
        constants=tensors["constants"],
        parameters=parameters,
        sites=tuple(_site(site, reader) for site in held.sites),
        instructions=tuple(instructions),
        deterministic={name: reader.operand(operand) for name, operand in held.deterministic.items()},
        dtype=held.dtype,
        prototype=tensors["prototype"],
    )


def _expect(entries: Iterable[ParameterDocument | SiteDocument], sizes: list[int], position: int, what: str) -> None:
    for entry, size in zip(entries, sizes, strict=True):
        if entry.start != position:
            raise UserError(f"the stored program is damaged: {what} {entry.name!r} is out of place")
        position += size


def _parameters(entries: list[ParameterDocument], tensors: Mapping[str, Tensor]) -> Iterable[Parameter]:
    for entry in entries:
        initial = tensors.get(f"initial.{entry.name}")
        if initial is None or list(initial.shape) != entry.shape:
            raise UserError(
                f"the stored program is damaged: parameter {entry.name!r} has no starting value of its shape"
            )
        try:
            constraint_from_data(entry.constraint)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"the stored program is damaged: parameter {entry.name!r} has an unknown constraint"
            ) from None
        yield Parameter(entry.name, entry.start, tuple(entry.shape), entry.constraint, initial)


def _instruction(entry: InstructionDocument, reader: _Reader) -> Instruction:
    try:
        resolve(entry.operation)
    except KeyError:
        raise UserError(f"the stored program uses an operation that is not allowed: {entry.operation!r}") from None
    operands = tuple(reader.operand(operand) for operand in entry.operands)
    if any(not 0 <= ref < len(operands) for ref in _references([entry.arguments, *entry.keywords.values()])):
        raise UserError("the stored program is damaged: an instruction refers to an operand that it does not have")
    outputs = []
    for output in entry.outputs:
        if output.start != reader.limit or output.dtype not in _KINDS:
            raise UserError("the stored program is damaged: an instruction writes out of place")
        outputs.append(Output(output.start, tuple(output.shape), output.dtype))
        reader.limit += outputs[-1].size
    return Instruction(
        entry.operation,
        _decode(entry.arguments),
        tuple((key, _decode(value)) for key, value in entry.keywords.items()),
        operands,
        tuple(outputs),
    )


def _site(entry: SiteDocument, reader: _Reader) -> SiteRecord:
    return SiteRecord(
        name=entry.name,
        specification=reader.specification(entry.specification),
        shape=tuple(entry.shape),
        event_dim=entry.event_dim,
        start=entry.start,
        observed=entry.observed,
        discrete=entry.discrete,
        support=entry.support,
        plates=tuple(Plate(plate.name, plate.size, plate.dim) for plate in entry.plates),
        location=entry.location,
        source=entry.source,
        adjustment=entry.adjustment,
        noise_shape=tuple(entry.shape if entry.noise_shape is None else entry.noise_shape),
    )
