"""Verify: a compiled program must reproduce the model, run again in Python at fresh values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import transform_to

from emfc.program.constraint import constraint_from_data
from emfc.program.errors import CompileError
from emfc.program.ir import Program, SiteRecord, Specification, dtype_kind
from emfc.program.messenger import ProgramMessenger, RawParameter, RawSite
from emfc.program.specification import Description
from emfc.program.term_check import TargetDensity, compare_densities, term_of
from emfc.program.trace import describe_site, draw_value, run_model

__all__ = ["Evaluate", "verify"]

Evaluate = Callable[[Tensor, Tensor], Iterable[tuple[int, Mapping[str, Tensor]]]]
_RUNS = 2


def verify(
    program: Program,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    evaluate: Evaluate,
    *,
    density: TargetDensity | None = None,
) -> None:
    """Run the model again, twice, at fresh site values and parameters; compare every site's distribution parameters.

    The two runs are two rows of one evaluation, so that arithmetic that mixes examples shows as well.

    Args:
        program: The program.
        model: What it was read from.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        evaluate: The compiled program: site values ``[rows, S]`` and flat parameters ``[P]`` to parameters by path, per
            site, each ``[rows, ...]``.
        density: Of a program that was read as a variational target, its compiled log density, which is compared, too.

    Raises:
        CompileError: The sites differ between runs (E-STRUCT), or the numbers do (E-IMPURE), or it
            cannot be run (E-VERIFY); or the log density of a site is not that of its distribution (E-NOCDF).
    """
    target = density is not None
    runs = [_Replay(program, model, args, kwargs, seed=7919 * (run + 1), target=target) for run in range(_RUNS)]
    values = torch.stack([run.values for run in runs])
    with torch.no_grad():
        for index, held in _evaluated(evaluate, values, runs[0].parameters):
            record = program.sites[index]
            for row, run in enumerate(runs):
                for path, expected in run.descriptions[record.name].flatten().items():
                    found = held[path]
                    _compare(program, record, path, expected, found[row if len(found) > 1 else 0])
        if density is not None:
            compare_densities(
                program,
                density,
                _evaluated(evaluate, values, runs[0].parameters),
                values,
                runs[0].parameters,
                [run.log_densities for run in runs],
            )


def _evaluated(evaluate: Evaluate, values: Tensor, parameters: Tensor) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """The compiled program's parameters.

    Raises:
        CompileError: It cannot be run on several examples at once (E-VERIFY).
    """
    try:
        yield from evaluate(values, parameters)
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
        raise CompileError(
            "E-VERIFY",
            f"the compiled program does not run on several examples at once ({type(error).__name__}: {error})",
            advice="write the computation with matrices of equal batch dimensions, or element by element",
        ) from error


class _Replay:
    """One run of the model in Python, at fresh site values.

    Attributes:
        values: Values of the latent sites, flat.
        parameters: Parameter values, flat; the same in every run.
        descriptions: Distribution parameters by site.
        log_densities: Of a variational target, each site's term as Pyro counts it.
    """

    def __init__(
        self,
        program: Program,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        seed: int,
        target: bool,
    ) -> None:
        self._generator = torch.Generator().manual_seed(7919)
        self._moved: list[tuple[nn.Parameter, Tensor]] = []
        self._parameters: dict[str, Tensor] = {}
        self._target = target
        self.log_densities: dict[str, Tensor] = {}
        computed = {site.name for site in program.sites if site.observed}
        messenger = ProgramMessenger(
            draw=draw_value,
            lift=self._lift,
            seen=self._seen,
            pause=nullcontext,
            target=target,
            computed=lambda name, value: not name or name in computed,
        )

        def seeded(*inner_args: Any, **inner_kwargs: Any) -> None:
            torch.manual_seed(seed)
            model(*inner_args, **inner_kwargs)

        try:
            run_model(seeded, args, kwargs, messenger)
        finally:
            with torch.no_grad():
                for module, value in self._moved:
                    module.copy_(value)
        _check_sites(program, messenger.sites)
        _check_data(program, messenger.sites)
        self.descriptions = {name: site.description for name, site in messenger.sites.items()}
        held = [
            site.value.detach().double().reshape(-1).cpu() for site in messenger.sites.values() if not site.observed
        ]
        self.values = torch.cat(held)
        flat = [self._parameters[known.name].detach().double().reshape(-1).cpu() for known in program.parameters]
        self.parameters = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)

    def _lift(self, raw: RawParameter, module: nn.Parameter | None) -> Tensor:
        value = _perturb(raw, self._generator)
        if module is None:
            self._parameters[raw.name] = value
            return value
        if not any(held is module for held, _ in self._moved):
            self._moved.append((module, module.detach().clone()))
            with torch.no_grad():
                module.copy_(value)
            self._parameters[raw.name] = module.detach().clone()
        return module

    def _seen(self, site: RawSite) -> None:
        site.description = describe_site(site, _pad, target=self._target)
        if self._target:
            with torch.no_grad():
                self.log_densities[site.name] = term_of(site)


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
    held = tensor.detach().clone()  # a module's own weights are put back after the run
    return held.reshape((1,) * (rank - held.ndim) + tuple(held.shape))


def _check_sites(program: Program, sites: Mapping[str, RawSite]) -> None:
    for record, (name, site) in zip(program.sites, sites.items(), strict=False):
        same = record.name == name and record.shape == tuple(site.value.shape) and record.observed == site.observed
        if not same or (site.description is not None and not _alike(site.description, record.specification)):
            raise _changed(record, name, str(site.location) if site.location else None)
    if len(program.sites) != len(sites):
        extra = list(sites)[len(program.sites) :] or [held.name for held in program.sites[len(sites) :]]
        record = program.sites[min(len(sites), len(program.sites)) - 1]
        raise _changed(record, extra[0], record.location)


def _check_data(program: Program, sites: Mapping[str, RawSite]) -> None:
    for record in program.sites:
        site = sites[record.name]
        if not site.given:
            continue
        start = record.start - program.site_base
        before = program.prototype[start : start + record.size]
        after = site.value.detach().double().reshape(-1).cpu()
        same = (before == after) | (before.isnan() & after.isnan())
        if not bool(same.all()):
            first, then = float(before[~same][0]), float(after[~same][0])
            raise CompileError(
                "E-IMPURE",
                f"the observed value changes between runs: {first:.6g}, then {then:.6g}",
                site=record.name,
                location=record.location,
                source=record.source,
                advice="make the data before, and give them to the model as an argument",
            )


def _alike(description: Description[Tensor], specification: Specification) -> bool:
    """Whether two readings of a distribution have the same families, transforms and options throughout."""
    return (
        description.family == specification.family
        and dict(description.options) == dict(specification.options)
        and list(description.parameters) == list(specification.parameters)
        and list(description.children) == list(specification.children)
        and all(_alike(child, specification.children[name]) for name, child in description.children.items())
    )


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


def _compare(program: Program, record: SiteRecord, path: str, expected: Tensor, found: Tensor) -> None:
    single = dtype_kind(expected.dtype) == "float" and (expected.dtype != torch.float64 or program.dtype != "float64")
    relative = 1e-3 if single else 1e-8
    if expected.numel() == found.numel() == 1 and _near(float(expected), float(found), relative):
        return
    expected = expected.double().cpu()
    found = found.double().cpu()
    finite = expected[expected.isfinite()]
    scale = finite.abs().amax().clamp(min=1e-3) if finite.numel() else expected.new_ones(())
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


def _near(expected: float, found: float, relative: float) -> bool:
    """Whether two finite numbers agree: `_compare` for one number, and quick."""
    return abs(expected - found) <= relative * abs(expected) and math.isfinite(expected)


def _shown(value: Tensor, close: Tensor) -> str:
    held = value.expand(close.shape)[~close]
    return f"{float(held[0]):.6g}"
