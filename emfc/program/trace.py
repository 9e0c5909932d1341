"""One watched run of a model, written down as a `Program`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from emfc.program.errors import CompileError
from emfc.program.guard import Guard
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
from emfc.program.locations import Location, is_library
from emfc.program.messenger import ProgramMessenger, RawParameter, RawSite, isolated_store
from emfc.program.recorder import Recorder
from emfc.program.refusals import impure
from emfc.program.shadow import Shadow
from emfc.program.specification import Description, describe, support_text

__all__ = ["Model", "run_model", "trace"]

Model = Callable[..., Any]


def run_model(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], messenger: ProgramMessenger) -> None:
    """Run a model under a messenger: validation off, random state and parameter store as before afterwards.

    Raises:
        CompileError: The model raised an error of its own (E-MODEL).
    """
    try:
        with (
            torch.random.fork_rng(devices=[]),
            isolated_store(),
            pyro.validation_enabled(False),
            messenger,
        ):
            model(*args, **kwargs)
    except CompileError:
        raise
    except Exception as error:
        inner: BaseException = error
        while inner.__cause__ is not None:
            inner = inner.__cause__
        if isinstance(inner, CompileError):
            raise inner from None
        location = _raised_at(error)
        raise CompileError(
            "E-MODEL",
            f"the model raised {type(error).__name__}: {error}",
            location=str(location) if location else None,
            source=location.source if location else None,
            advice="run the model by itself and mend it first",
        ) from error


def _raised_at(error: BaseException) -> Location | None:
    found = None
    step = error.__traceback__
    while step is not None:
        if not is_library(step.tb_frame):
            found = Location(step.tb_frame.f_code.co_filename, step.tb_lineno)
        step = step.tb_next
    return found


class _Watch:
    """State of one watched run."""

    def __init__(self) -> None:
        self.shadow = Shadow()
        self.recorder = Recorder(self.shadow)
        self.starts: dict[str, int] = {}
        self.messenger = ProgramMessenger(draw=self.draw, lift=self.lift, seen=self.seen, pause=self.recorder.pause)

    def draw(self, site: RawSite) -> Tensor:
        return draw_value(site)

    def lift(self, parameter: RawParameter, module: nn.Parameter | None) -> Tensor:
        value = module if module is not None else parameter.value
        if self.shadow.known(value) and module is not None:  # tied weights: the first name keeps them
            del self.messenger.parameters[parameter.name]
            return value
        start = self.shadow.reserve(value.numel(), "parameter", len(self.starts))
        self.starts[parameter.name] = start
        self.shadow.register(value, torch.arange(start, start + value.numel()).reshape(value.shape), random=True)
        return value

    def seen(self, site: RawSite) -> None:
        self.recorder.site_names.append(site.name)
        if site.observed:
            if self.shadow.is_random(site.value):
                raise CompileError(
                    "E-ESCAPE",
                    "an observed value depends on random values",
                    site=site.name,
                    advice="observe data, or use pyro.deterministic for a computed value",
                )
        else:
            with self.recorder.pause():
                start = self.shadow.reserve(site.value.numel(), "site", len(self.recorder.site_names) - 1)
                self.starts["site:" + site.name] = start
                addresses = torch.arange(start, start + site.value.numel()).reshape(site.value.shape)
                self.shadow.register(site.value, addresses, random=True)
        try:
            site.description = describe(site.distribution, self.capture) if site.adjustment != "pyro.factor" else None
        except CompileError as error:
            raise CompileError(error.code, error.reason, site=site.name, advice=error.advice, **_at(site)) from None

    def capture(self, tensor: Tensor, rank: int) -> tuple[Tensor, str]:
        mark = self.shadow.noise(tensor)
        if mark is not None:
            raise impure(mark)
        with self.recorder.pause():
            held = self.shadow.addresses(tensor).clone()
        return held.reshape((1,) * (rank - held.ndim) + tuple(held.shape)), dtype_kind(tensor.dtype)


def _at(site: RawSite) -> dict[str, str | None]:
    return {"location": str(site.location), "source": site.location.source} if site.location else {}


def draw_value(site: RawSite) -> Tensor:
    """Draw a value of a site's distribution.

    Raises:
        CompileError: The distribution cannot be sampled (E-NOCDF).
    """
    distribution: Any = site.distribution
    try:
        drawn: Tensor = distribution.sample()
    except NotImplementedError:
        raise CompileError(
            "E-NOCDF",
            f"the family {type(distribution).__name__} cannot be sampled",
            site=site.name,
            advice="use a family with a proper density",
            **_at(site),
        ) from None
    return drawn


def trace(model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Program:
    """Run a model once, watched, and write down what it did.

    Args:
        model: Any callable that calls Pyro's primitives.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        CompileError: The program does something that cannot be compiled.
    """
    watch = _Watch()
    if not callable(model):
        raise CompileError("E-MODEL", f"a program must be callable, not {type(model).__name__}")

    def watched(*inner_args: Any, **inner_kwargs: Any) -> None:
        with Guard(watch.recorder), watch.recorder:
            model(*inner_args, **inner_kwargs)

    try:
        run_model(watched, args, kwargs or {}, watch.messenger)
    except CompileError as error:
        if watch.recorder.refused is not None:
            raise watch.recorder.refused from None
        if error.code == "E-MODEL" and _runs(model, args, kwargs or {}):
            raise CompileError(
                "E-OPERATION",
                f"the compiler cannot follow this code: {error.reason.removeprefix('the model raised ')}",
                location=error.location,
                source=error.source,
                advice="write it with ordinary tensor operations",
            ) from error
        raise
    if watch.recorder.refused is not None:
        raise watch.recorder.refused
    if not any(not site.observed for site in watch.messenger.sites.values()):
        raise CompileError(
            "E-STRUCT", "the program has no latent sample site", advice="call pyro.sample without obs= at least once"
        )
    return _finish(watch)


def _runs(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the model runs when nothing watches."""
    try:
        with torch.random.fork_rng(devices=[]), isolated_store(), pyro.validation_enabled(False):
            model(*args, **kwargs)
    except Exception:
        return False
    return True


def _finish(watch: _Watch) -> Program:
    """Renumber addresses into the program's value space and drop what nothing needs."""
    shadow, messenger = watch.shadow, watch.messenger
    live = _live_instructions(watch)
    translation = np.zeros(shadow._next, dtype=np.int64)
    constants: list[Tensor] = []
    position = 0
    for start, size, kind, index in shadow.segments:
        if kind == "constant":
            translation[start : start + size] = np.arange(position, position + size)
            constants.append(shadow.constants[index])
            position += size
    parameters = []
    for name, raw in messenger.parameters.items():
        start, size = watch.starts[name], raw.value.numel()
        translation[start : start + size] = np.arange(position, position + size)
        parameters.append(Parameter(name, position, tuple(raw.value.shape), raw.constraint, raw.value.cpu()))
        position += size
    for name, site in messenger.sites.items():
        if not site.observed:
            start, size = watch.starts["site:" + name], site.value.numel()
            translation[start : start + size] = np.arange(position, position + size)
            position += size
    for index in live:
        for start, shape, _ in watch.recorder.instructions[index].outputs:
            size = int(np.prod(shape, dtype=np.int64))
            translation[start : start + size] = np.arange(position, position + size)
            position += size

    def operand(raw: tuple[Tensor, str]) -> Operand:
        return Operand(np.asarray(translation[raw[0].numpy()]), raw[1])

    instructions = []
    for index in live:
        step = watch.recorder.instructions[index]
        outputs = tuple(Output(int(translation[start]), shape, kind) for start, shape, kind in step.outputs)
        operands = tuple(operand(held) for held in step.operands)
        instructions.append(Instruction(step.operation, step.arguments, step.keywords, operands, outputs))
    sites = tuple(_site(site, watch, translation, operand) for site in messenger.sites.values())
    deterministic = {}
    for name, value in messenger.deterministic.items():
        if isinstance(value, Tensor) and shadow.is_random(value):
            deterministic[name] = operand((shadow.addresses(value), dtype_kind(value.dtype)))
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
    raw: RawSite, watch: _Watch, translation: Addresses, operand: Callable[[tuple[Tensor, str]], Operand]
) -> SiteRecord:
    distribution: Any = raw.distribution
    start = -1 if raw.observed else int(translation[watch.starts["site:" + raw.name]])
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
    )


def _specification(
    description: Description[tuple[Tensor, str]], operand: Callable[[tuple[Tensor, str]], Operand]
) -> Specification:
    return Specification(
        description.family,
        {name: operand(raw) for name, raw in description.parameters.items()},
        {name: _specification(child, operand) for name, child in description.children.items()},
        description.options,
    )


def _live_instructions(watch: _Watch) -> list[int]:
    """Indices of the instructions that some site or named output needs, in order."""
    shadow, recorder = watch.shadow, watch.recorder
    starts = np.array([segment[0] for segment in shadow.segments], dtype=np.int64)
    is_instruction = np.array([segment[2] == "instruction" for segment in shadow.segments])
    indices = np.array([segment[3] for segment in shadow.segments], dtype=np.int64)

    def producers(held: Tensor) -> set[int]:
        where = np.searchsorted(starts, np.unique(held.numpy()), side="right") - 1
        return set(indices[where[is_instruction[where]]].tolist())

    needed: set[int] = set()
    for site in watch.messenger.sites.values():
        if site.description is not None:
            for held, _ in site.description.flatten().values():
                needed |= producers(held)
    for value in watch.messenger.deterministic.values():
        if isinstance(value, Tensor) and shadow.is_random(value):
            needed |= producers(shadow.addresses(value))
    for index in range(len(recorder.instructions) - 1, -1, -1):
        if index in needed:
            for held, _ in recorder.instructions[index].operands:
                needed |= producers(held)
    return sorted(needed)
