"""A model as a guide reads it: its target, and one run of it that Pyro's handlers saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from emfc.compiler import parse_target
from emfc.passes.nodes import ancestors
from emfc.program.errors import CompileError
from emfc.program.specification import unwrapped
from emfc.program.target import Target

__all__ = ["Reading", "read_model", "vectorised_plates"]

_OF_DATA = ("E-NOCDF", "E-OPERATION", "E-ESCAPE", "E-FACTOR")


@dataclass(frozen=True, eq=False)
class Reading:
    """What a guide knows of a model.

    Attributes:
        target: The model as a target.
        trace: A run at the values of the target's prototype, with the continuous latent sites alone.
        nesting: How deep the model's plates are nested, those of its data included.
    """

    target: Target
    trace: Any
    nesting: int


def read_model(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, with_data: bool
) -> Reading:
    """Run a model as a target and under Pyro's handlers.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        with_data: Whether the data must be read as well; else families and operations of data that have no place in a
            compiled program are left out.

    Raises:
        CompileError: The program cannot be compiled, or a discrete latent site has too many values or is read nowhere.
    """
    with poutine.block(), torch.enable_grad():
        target, whole = _parse(model, args, kwargs, with_data)
        trace = _prototype(model, target, args, kwargs)
    sites = [target.program.sites[index] for index in target.latent()]
    summed = {site.name for site in sites if site.discrete}
    kept = {site.name for site in sites if not site.discrete}
    if summed and whole:
        _check_read(target)
    nesting = 0
    for name, site in list(trace.nodes.items()):
        if site["type"] != "sample":
            continue
        if not site_is_subsample(site):
            nesting = max([nesting, *(-frame.dim for frame in vectorised_plates(site))])
        if name in summed and not unwrapped(site["fn"]).has_enumerate_support:
            raise CompileError(
                "E-DISCRETE",
                f"the latent site {name!r} has too many values to be summed out",
                site=name,
                advice="give it a distribution with finitely many values, or sum it out by hand",
            )
        if name not in kept:
            trace.remove_node(name)
    return Reading(target, trace, nesting)


def vectorised_plates(site: Any) -> list[Any]:
    """The plates of a site of a trace that are dimensions of its value."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _parse(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], with_data: bool
) -> tuple[Target, bool]:
    """The target, and whether its data are in it."""
    try:
        return parse_target(model, *args, **kwargs), True
    except CompileError as error:
        if with_data or error.code not in _OF_DATA:
            raise
        try:
            return parse_target(poutine.block(model, hide_fn=_is_data), *args, **kwargs), False
        except CompileError:
            raise error from None


def _check_read(target: Target) -> None:
    """Refuses discrete latent sites that nothing reads: no density that sums them out says anything of them."""
    read = {parent for parents in ancestors(target.program) for parent in parents}
    for index in target.latent():
        site = target.program.sites[index]
        if site.discrete and index not in read:
            raise CompileError(
                "E-DISCRETE",
                f"the latent site {site.name!r} is discrete and nothing depends on it, so that it cannot be inferred",
                site=site.name,
                location=site.location,
                source=site.source,
                advice="observe it, or leave it out and draw it afterwards",
            )


def _is_data(msg: Any) -> bool:
    return bool(msg["type"] == "sample" and msg["is_observed"])


def _prototype(model: Callable[..., Any], target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A run at the values of the watched run."""
    program = target.program
    values = {}
    for index in target.latent():
        site = program.sites[index]
        start = site.start - program.site_base
        held = program.prototype[start : start + site.size].reshape(site.shape)
        values[site.name] = held.to(torch.long if site.discrete else getattr(torch, program.dtype))

    def chosen(site: Any) -> Tensor:
        held = values[site["name"]]
        return held if held.is_floating_point() else held.to(site["fn"].sample().dtype)

    return poutine.trace(InitMessenger(chosen)(model)).get_trace(*args, **kwargs)
