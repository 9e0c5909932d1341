"""From what the watchers recorded to a `Program`: renumber addresses, drop what nothing needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.program.ir import (
    Addresses,
    Instruction,
    Operand,
    Output,
    Parameter,
    Program,
    SiteRecord,
    Specification,
    dtype_kind,
)
from emfc.program.messenger import ProgramMessenger, RawSite
from emfc.program.recorder import Recorder
from emfc.program.specification import Description, support_text

__all__ = ["finish", "live_instructions", "read_addresses"]


def finish(recorder: Recorder, messenger: ProgramMessenger, starts: Mapping[str, int]) -> Program:
    """Renumber addresses into the program's value space and drop what nothing needs."""
    shadow = recorder.shadow
    live = live_instructions(recorder, messenger)
    translation = np.zeros(shadow.size, dtype=np.int64)
    constants: list[Tensor] = []
    position = 0
    read = read_addresses(recorder, messenger, live)
    for start, size, kind, index in shadow.segments:
        if kind == "constant":
            kept = np.flatnonzero(read[start : start + size])
            translation[start + kept] = np.arange(position, position + len(kept))
            constants.append(shadow.constants[index][torch.from_numpy(kept)])
            position += len(kept)
    parameters = []
    for name, raw in messenger.parameters.items():
        start, size = starts[name], raw.value.numel()
        translation[start : start + size] = np.arange(position, position + size)
        parameters.append(Parameter(name, position, tuple(raw.value.shape), raw.constraint, raw.value.cpu()))
        position += size
    for name, site in messenger.sites.items():
        if not site.observed:
            start, size = starts["site:" + name], site.value.numel()
            translation[start : start + size] = np.arange(position, position + size)
            position += size
    for index in live:
        for start, shape, _ in recorder.instructions[index].outputs:
            size = math.prod(shape)
            translation[start : start + size] = np.arange(position, position + size)
            position += size

    def operand(raw: tuple[Addresses, str]) -> Operand:
        return Operand(np.asarray(translation[raw[0]]), raw[1])

    instructions = []
    for index in live:
        step = recorder.instructions[index]
        outputs = tuple(Output(int(translation[start]), shape, kind) for start, shape, kind in step.outputs)
        operands = tuple(operand(held) for held in step.operands)
        instructions.append(Instruction(step.operation, step.arguments, step.keywords, operands, outputs))
    sites = tuple(_site(site, starts, translation, operand) for site in messenger.sites.values())
    deterministic = {}
    for name, value in messenger.deterministic.items():
        if isinstance(value, Tensor) and shadow.is_random(value):
            deterministic[name] = operand((shadow.addresses(value).numpy(), dtype_kind(value.dtype)))
    return Program(
        constants=torch.cat(constants),
        parameters=tuple(parameters),
        sites=sites,
        instructions=tuple(instructions),
        deterministic=deterministic,
        dtype=str(torch.get_default_dtype()).partition(".")[2],
        prototype=torch.cat(
            [site.value.reshape(-1).double().cpu() for site in messenger.sites.values() if not site.observed]
        ),
    )


def _site(
    raw: RawSite, starts: Mapping[str, int], translation: Addresses, operand: Callable[[tuple[Addresses, str]], Operand]
) -> SiteRecord:
    distribution: Any = raw.distribution
    start = -1 if raw.observed else int(translation[starts["site:" + raw.name]])
    try:
        support = distribution.support
        discrete, text = bool(support.is_discrete), support_text(support)
    except (NotImplementedError, AttributeError):
        discrete, text = False, "unknown"
    specification = Specification("Factor", {}) if raw.description is None else _specification(raw.description, operand)
    return SiteRecord(
        name=raw.name,
        specification=specification,
        shape=tuple(raw.value.shape),
        event_dim=len(distribution.event_shape),
        start=start,
        observed=raw.observed,
        discrete=discrete,
        support=text,
        plates=raw.plates,
        location=str(raw.location) if raw.location else None,
        source=raw.location.source if raw.location else None,
        adjustment=raw.adjustment,
        noise_shape=raw.noise_shape,
    )


def _specification(
    description: Description[tuple[Addresses, str]], operand: Callable[[tuple[Addresses, str]], Operand]
) -> Specification:
    return Specification(
        description.family,
        {name: operand(raw) for name, raw in description.parameters.items()},
        {name: _specification(child, operand) for name, child in description.children.items()},
        description.options,
    )


def read_addresses(recorder: Recorder, messenger: ProgramMessenger, live: list[int]) -> npt.NDArray[np.bool_]:
    """Which addresses something reads; address 0, the number zero, always counts."""
    shadow = recorder.shadow
    read = np.zeros(shadow.size, dtype=np.bool_)
    read[0] = True
    for index in live:
        for held, _ in recorder.instructions[index].operands:
            read[held] = True
    for site in messenger.sites.values():
        if site.description is not None:
            for held, _ in site.description.flatten().values():
                read[held] = True
    for value in messenger.deterministic.values():
        if isinstance(value, Tensor) and shadow.is_random(value):
            read[shadow.addresses(value).numpy()] = True
    return read


def live_instructions(recorder: Recorder, messenger: ProgramMessenger) -> list[int]:
    """Indices of the instructions that some site or named output needs, in order."""
    shadow = recorder.shadow
    starts = np.array([segment[0] for segment in shadow.segments], dtype=np.int64)
    is_instruction = np.array([segment[2] == "instruction" for segment in shadow.segments])
    indices = np.array([segment[3] for segment in shadow.segments], dtype=np.int64)

    def producers(held: Addresses) -> set[int]:
        where = np.searchsorted(starts, held.reshape(1) if held.size == 1 else np.unique(held), side="right") - 1
        return set(indices[where[is_instruction[where]]].tolist())

    needed: set[int] = set()
    for site in messenger.sites.values():
        if site.description is not None:
            for held, _ in site.description.flatten().values():
                needed |= producers(held)
    for value in messenger.deterministic.values():
        if isinstance(value, Tensor) and shadow.is_random(value):
            needed |= producers(shadow.addresses(value).numpy())
    for index in range(len(recorder.instructions) - 1, -1, -1):
        if index in needed:
            for held, _ in recorder.instructions[index].operands:
                needed |= producers(held)
    return sorted(needed)
