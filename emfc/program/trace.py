"""One watched run of a model, written down as a `Program`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from emfc.program.adjusted import describe_target
from emfc.program.errors import CompileError
from emfc.program.finish import finish, live_instructions, read_addresses
from emfc.program.guard import Guard
from emfc.program.ir import Addresses, Program, dtype_kind
from emfc.program.locations import Location, is_library, user_location
from emfc.program.messenger import ProgramMessenger, RawParameter, RawSite, isolated_store
from emfc.program.recorder import Recorder
from emfc.program.refusals import impure
from emfc.program.refused_families import refuse_family
from emfc.program.shadow import Shadow
from emfc.program.specification import Capture, Description, T, describe, describe_data, unwrapped
from emfc.program.target import Target
from emfc.transforms import UnsupportedFamilyError, from_normal

__all__ = ["Model", "describe_site", "run_model", "trace", "trace_target"]

Model = Callable[..., Any]
_ONE_AT_A_TIME = threading.RLock()


def run_model(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], messenger: ProgramMessenger) -> None:
    """Run a model under a messenger: validation off, random state and parameter store as before afterwards.

    Raises:
        CompileError: The model raised an error of its own (E-MODEL).
    """
    try:
        with (
            _ONE_AT_A_TIME,  # Pyro's stack of handlers is one for the whole process
            torch.random.fork_rng(devices=[]),
            isolated_store(),
            pyro.validation_enabled(False),
            messenger,
        ):
            model(*args, **kwargs)
    except CompileError:
        raise
    except (Exception, SystemExit) as error:
        inner: BaseException = error
        while inner.__cause__ is not None:
            inner = inner.__cause__
        if isinstance(inner, CompileError):
            raise inner from None
        location = _raised_at(error)
        raise CompileError(
            "E-MODEL",
            f"the model raised {type(error).__name__}: {error}".rstrip(": "),
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

    def __init__(self, *, target: bool = False) -> None:
        self.shadow = Shadow()
        self.recorder = Recorder(self.shadow)
        self.starts: dict[str, int] = {}
        self.lifted: set[tuple[Any, ...]] = set()
        self.messenger = ProgramMessenger(
            draw=self.draw,
            lift=self.lift,
            seen=self.seen,
            pause=self.recorder.pause,
            target=target,
            checked=Distribution._validate_args,
            computed=self.computed,
        )

    def close(self) -> None:
        """Let go of everything seen, which is much and refers to itself."""
        self.shadow.close()
        self.recorder.instructions.clear()
        self.messenger.sites.clear()

    def reread(self) -> tuple[str, ...]:
        """Names of the data sites whose numbers the model reads elsewhere, too."""
        live = live_instructions(self.recorder, self.messenger)
        read = read_addresses(self.recorder, self.messenger, live)
        places, found = self.shadow.read_places(read), []
        for site in self.messenger.sites.values():
            if site.given and site.source is not None and self.shadow.is_read(site.source, read, places):
                found.append(site.name)
        return tuple(found)

    def computed(self, name: str, value: Tensor) -> bool:
        """Whether a tensor depends on random values."""
        return self.shadow.is_random(value)

    def draw(self, site: RawSite) -> Tensor:
        with self.recorder.pause():
            refuse_family(type(unwrapped(site.distribution)).__name__, site=site.name, **_at(site))
            check_parameters(site.distribution, site)
        return draw_value(site)

    def lift(self, parameter: RawParameter, module: nn.Parameter | None) -> Tensor:
        value = module if module is not None else parameter.value
        place = (value.untyped_storage()._cdata, value.storage_offset(), tuple(value.shape), value.stride())
        if place in self.lifted:  # tied weights: the first name keeps them
            del self.messenger.parameters[parameter.name]
            return value
        shared = any(place[0] == held[0] for held in self.lifted)
        if self.shadow.known(value) and not shared:
            location = user_location(3)
            raise CompileError(
                "E-STRUCT",
                f"parameter {parameter.name!r} was used before pyro.module or pyro.param named it",
                location=str(location) if location else None,
                source=location.source if location else None,
                advice="call pyro.module first",
            )
        self.lifted.add(place)
        start = self.shadow.reserve(value.numel(), "parameter", len(self.starts))
        self.starts[parameter.name] = start
        addresses = torch.arange(start, start + value.numel()).reshape(value.shape)
        if shared:
            self.shadow.write(value, addresses)
        else:
            self.shadow.register(value, addresses, random=True)
        return value

    def seen(self, site: RawSite) -> None:
        self.recorder.site_names.append(site.name)
        if not site.value.numel() and not site.observed and not site.given:
            raise CompileError(
                "E-STRUCT", "the site has no elements", site=site.name, advice="leave out empty sites", **_at(site)
            )
        if site.observed:
            if self.shadow.is_random(site.value) and not self.messenger.target:
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
                site.noise_shape = tuple(site.value.shape) if site.given else noise_shape(site)
        try:
            site.description = describe_site(site, self.capture, target=self.messenger.target)
        except CompileError as error:
            raise CompileError(error.code, error.reason, site=site.name, advice=error.advice, **_at(site)) from None

    def capture(self, tensor: Tensor, rank: int) -> tuple[Addresses, str]:
        mark = self.shadow.noise(tensor)
        if mark is not None:
            raise impure(mark)
        with self.recorder.pause():
            held = self.shadow.addresses(tensor).numpy().copy()
        return held.reshape((1,) * (rank - held.ndim) + held.shape), dtype_kind(tensor.dtype)


def describe_site(site: RawSite, capture: Capture[T], *, target: bool = False) -> Description[T] | None:
    """What a site's distribution says; None for a `pyro.factor`, which counts in a target only.

    Raises:
        CompileError: The distribution of a latent site cannot be written as data (E-NOCDF).
    """
    if target:
        return describe_target(site, capture)
    if site.adjustment == "pyro.factor":
        return None
    return describe_data(site.distribution, capture) if site.observed else describe(site.distribution, capture)


def noise_shape(site: RawSite) -> tuple[int, ...]:
    """Shape of the noise of a latent site; that of its value where the family has no transform, which is told later."""
    inner, shape = unwrapped(_copy(site.distribution)), tuple(site.value.shape)
    try:
        return tuple(from_normal(inner).inverse_shape(shape))
    except (UnsupportedFamilyError, KeyError, TypeError, ValueError, RuntimeError):
        return shape


def _copy(distribution: Distribution) -> Distribution:
    """The same distribution, on which properties may be computed and kept without the model's own seeing them."""
    made = copy(distribution)
    for name, value in vars(made).items():
        if isinstance(value, Distribution):
            made.__dict__[name] = _copy(value)
    return made


def _at(site: RawSite) -> dict[str, str | None]:
    return {"location": str(site.location), "source": site.location.source} if site.location else {}


def check_parameters(distribution: Any, site: RawSite) -> None:
    """Refuse parameters that violate the distribution's own constraints.

    Raises:
        CompileError: A parameter has an impossible value at this draw of the program (E-MODEL).
    """
    for name in ("base_dist", "_mixture_distribution", "_component_distribution"):
        if hasattr(distribution, name):
            check_parameters(getattr(distribution, name), site)
    if hasattr(distribution, "base_dist"):
        return
    for name, constraint in type(distribution).arg_constraints.items() if _has_constraints(distribution) else ():
        value = distribution.__dict__.get(name)
        if not isinstance(value, Tensor) or torch.distributions.constraints.is_dependent(constraint):
            continue
        if not bool(constraint.check(value).all()):
            raise CompileError(
                "E-MODEL",
                f"{name} of {type(distribution).__name__} violates its constraint {constraint}, "
                "at least for some values of the sites before it",
                site=site.name,
                advice="keep it inside, for example by exp or torch.nn.functional.softplus",
                **_at(site),
            )


def _has_constraints(distribution: Any) -> bool:
    return isinstance(getattr(type(distribution), "arg_constraints", None), dict)


def draw_value(site: RawSite) -> Tensor:
    """Draw a value of a site's distribution.

    Raises:
        CompileError: The distribution cannot be sampled (E-NOCDF).
    """
    distribution: Any = _copy(site.distribution)
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
    return _traced(model, args, kwargs or {}, target=False).program


def trace_target(model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Target:
    """Run a model once as a variational target: as `trace`, with data as sites and with factors, scales and masks.

    Args:
        model: Any callable that calls Pyro's primitives.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        CompileError: The program does something that cannot be compiled.
    """
    return _traced(model, args, kwargs or {}, target=True)


def _traced(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, target: bool) -> Target:
    watch = _Watch(target=target)
    if not callable(model):
        raise CompileError("E-MODEL", f"a program must be callable, not {type(model).__name__}")

    def watched(*inner_args: Any, **inner_kwargs: Any) -> None:
        with Guard(watch.recorder), watch.recorder:
            model(*inner_args, **inner_kwargs)

    try:
        run_model(watched, args, kwargs, watch.messenger)
    except CompileError as error:
        if watch.recorder.refused is not None:
            raise watch.recorder.refused from None
        if error.reason.startswith("the model raised") and _runs(model, args, kwargs):
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
    if not any(not site.observed and not site.given for site in watch.messenger.sites.values()):
        raise CompileError(
            "E-STRUCT", "the program has no latent sample site", advice="call pyro.sample without obs= at least once"
        )
    program = finish(watch.recorder, watch.messenger, watch.starts)
    reread = watch.reread() if target else ()
    sites = enumerate(watch.messenger.sites.values())
    data = {index: site.value.cpu() for index, site in sites if site.given}
    watch.close()
    return Target(program, data, tuple(watch.messenger.subsampled), reread)


def _runs(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the model runs when nothing watches."""
    try:
        with torch.random.fork_rng(devices=[]), isolated_store(), pyro.validation_enabled(False):
            model(*args, **kwargs)
    except (Exception, SystemExit):
        return False
    return True
