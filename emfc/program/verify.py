"""Verify: a compiled program must reproduce the model, run again in Python at fresh values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import transform_to

from emfc.program.constraint import constraint_from_data
from emfc.program.errors import CompileError
from emfc.program.ir import Program, SiteRecord, dtype_kind
from emfc.program.messenger import ProgramMessenger, RawParameter, RawSite
from emfc.program.specification import describe
from emfc.program.trace import draw_value, run_model

__all__ = ["Evaluate", "verify"]

Evaluate = Callable[[Tensor, Tensor], Iterable[tuple[int, Mapping[str, Tensor]]]]
_RUNS = 2


def verify(
    program: Program, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], evaluate: Evaluate
) -> None:
    """Run the model again at fresh site values and parameters and compare every site's distribution parameters.

    Args:
        program: The program.
        model: What it was read from.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        evaluate: The compiled program: flat site values ``[S]`` and flat parameters ``[P]`` to parameters by path,
            per site.

    Raises:
        CompileError: The sites differ between runs (E-STRUCT), or the numbers do (E-IMPURE, E-VERIFY).
    """
    for run in range(_RUNS):
        _verify_once(program, model, args, kwargs, evaluate, seed=7919 * (run + 1))


def _verify_once(
    program: Program,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    evaluate: Evaluate,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    moved: list[tuple[nn.Parameter, Tensor]] = []
    parameters: dict[str, Tensor] = {}

    def lift(raw: RawParameter, module: nn.Parameter | None) -> Tensor:
        value = _perturb(raw, generator)
        if module is None:
            parameters[raw.name] = value
            return value
        if not any(held is module for held, _ in moved):
            moved.append((module, module.detach().clone()))
            with torch.no_grad():
                module.copy_(value)
            parameters[raw.name] = module.detach().clone()
        return module

    def seen(site: RawSite) -> None:
        if site.adjustment != "pyro.factor":
            site.description = describe(site.distribution, _pad)

    messenger = ProgramMessenger(draw=draw_value, lift=lift, seen=seen, pause=nullcontext)

    def seeded(*inner_args: Any, **inner_kwargs: Any) -> None:
        torch.manual_seed(seed)
        model(*inner_args, **inner_kwargs)

    try:
        run_model(seeded, args, kwargs, messenger)
    finally:
        with torch.no_grad():
            for module, value in moved:
                module.copy_(value)
    _check_sites(program, messenger.sites)
    values = [site.value.detach().double().reshape(-1).cpu() for site in messenger.sites.values() if not site.observed]
    flat = [parameters[held.name].detach().double().reshape(-1).cpu() for held in program.parameters]
    names = list(messenger.sites)
    with torch.no_grad():
        for index, held in evaluate(
            torch.cat(values), torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)
        ):
            record = program.sites[index]
            expected = messenger.sites[names[index]].description.flatten()
            for path, value in expected.items():
                _compare(record, path, value, held[path])


def _perturb(raw: RawParameter, generator: torch.Generator) -> Tensor:
    """A parameter value near the start, inside its constraint."""
    transform = transform_to(constraint_from_data(raw.constraint))
    start = transform.inv(raw.value)
    noise = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(
        dtype=start.dtype, device=start.device
    )
    moved: Tensor = transform(start + 0.1 * noise)
    return moved.detach()


def _pad(tensor: Tensor, rank: int) -> Tensor:
    held = tensor.detach()
    return held.reshape((1,) * (rank - held.ndim) + tuple(held.shape))


def _check_sites(program: Program, sites: Mapping[str, RawSite]) -> None:
    for record, (name, site) in zip(program.sites, sites.items(), strict=False):
        same = record.name == name and record.shape == tuple(site.value.shape) and record.observed == site.observed
        if not same or (site.description is not None and site.description.family != record.specification.family):
            raise _changed(record, name, str(site.location) if site.location else None)
    if len(program.sites) != len(sites):
        extra = list(sites)[len(program.sites) :] or [held.name for held in program.sites[len(sites) :]]
        record = program.sites[min(len(sites), len(program.sites)) - 1]
        raise _changed(record, extra[0], record.location)


def _changed(record: SiteRecord, name: str, location: str | None) -> CompileError:
    return CompileError(
        "E-STRUCT",
        f"the set of sites changes between runs: {record.name!r} in one run, {name!r} or another shape or family "
        "in the next",
        site=name,
        location=location,
        source=record.source if record.name == name else None,
        advice="sample the same sites in every run; choose between values with torch.where",
    )


def _compare(record: SiteRecord, path: str, expected: Tensor, found: Tensor) -> None:
    single = expected.dtype != torch.float64 and dtype_kind(expected.dtype) == "float"
    relative = 1e-3 if single else 1e-8
    expected = expected.double().cpu()
    found = found.double().cpu()
    scale = expected.abs().amax().clamp(min=1e-30) if expected.numel() else expected.new_ones(())
    close = torch.isclose(found, expected, rtol=relative, atol=float(scale) * relative * 0.1, equal_nan=True)
    if bool(close.all()):
        return
    raise CompileError(
        "E-IMPURE",
        f"running the model again gives another {path!r} for the same site values (found {_shown(expected, close)}, "
        f"the compiled program says {_shown(found, close)})",
        site=record.name,
        location=record.location,
        source=record.source,
        advice="the model must be a function of its sites, parameters and arguments: no Python, numpy or file "
        "randomness, no state kept between runs",
    )


def _shown(value: Tensor, close: Tensor) -> str:
    held = value.expand(close.shape)[~close]
    return f"{float(held[0]):.6g}"
