"""The log density of a variational target against Pyro's own, site by site where their sums differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from emfc.program.errors import CompileError
from emfc.program.improper import IMPROPER
from emfc.program.ir import Program, SiteRecord
from emfc.program.messenger import RawSite
from emfc.program.refused_families import REFUSED_FAMILIES

__all__ = ["TargetDensity", "compare_densities", "term_of"]

_FAILURES = (KeyError, TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError, IndexError)
_SUM, _TERM = {"float64": 1e-7, "float32": 1e-4}, {"float64": 1e-3, "float32": 2e-2}


class TargetDensity(Protocol):
    """A compiled target."""

    def at(self, values: Tensor, parameters: Tensor) -> Tensor | None:
        """Log joint density ``[rows]`` at values of all sites and the constrained parameters; None where discrete sites
        are summed out of it."""

    def term(self, index: int, parameters: Mapping[str, Tensor], value: Tensor) -> Tensor:
        """Log density of a site at its value ``[rows, 1, *shape]`` under its parameters ``[rows, 1, ...]``."""


def term_of(site: RawSite) -> Tensor:
    """What Pyro adds for a site: its log probability, scaled and masked; 0 for an improper prior.

    Raises:
        CompileError: It cannot be computed (E-NOCDF).
    """
    if site.adjustment == IMPROPER:
        return torch.zeros(())
    held: Any = site.distribution
    factor = site.adjustment == "pyro.factor"
    try:
        term = held.log_prob(site.value.new_zeros(held.batch_shape + held.event_shape) if factor else site.value)
        adjusted: Tensor = scale_and_mask(term, site.scale, site.masks[0] if site.masks else None)
    except _FAILURES as error:
        raise CompileError(
            "E-NOCDF",
            f"the log density of {type(held).__name__} cannot be computed ({type(error).__name__}: {error})",
            site=site.name,
            location=str(site.location) if site.location else None,
            source=site.location.source if site.location else None,
            advice="observe values of the right shape, under a family with a density"
            if site.value.is_floating_point()
            else f"observe floating-point numbers of the right shape; these are of {site.value.dtype}",
        ) from error
    return adjusted.sum()


def compare_densities(
    program: Program,
    density: TargetDensity,
    evaluated: Iterable[tuple[int, Mapping[str, Tensor]]],
    values: Tensor,
    parameters: Tensor,
    expected: Sequence[Mapping[str, Tensor]],
) -> None:
    """Compare a compiled log density with Pyro's terms.

    Args:
        program: The program.
        density: What was compiled from it.
        evaluated: Parameters of each site by path, ``[rows, ...]``, by index.
        values: Values of all sites that are not computed, ``[rows, S]``.
        parameters: The program's parameters.
        expected: For each row Pyro's terms by site.

    Raises:
        CompileError: A family is not what the compiler takes it for (E-NOCDF), or the sum is not that of its terms
            (E-VERIFY).
    """
    wanted = torch.tensor([[float(term) for term in row.values()] for row in expected], dtype=torch.float64)
    total: Tensor | None = None
    failure: Exception | None = None
    try:
        total = density.at(values, parameters)
    except _FAILURES as error:
        failure = error  # some term cannot be computed; which, is found below
    if total is not None and _agree(total.double(), wanted.sum(-1), 1 + wanted.abs().sum(-1), _SUM[program.dtype]):
        return
    found = torch.zeros_like(wanted)
    places = {name: place for place, name in enumerate(expected[0])}
    for index, held in evaluated:
        record = program.sites[index]
        own = torch.zeros(len(values), 1, *record.shape, dtype=values.dtype)
        if not record.observed:
            start = record.start - program.site_base
            own = values[:, start : start + record.size].reshape(len(values), 1, *record.shape)
        terms = _term(program, record, density, index, held, own)
        place = places[record.name]
        found[:, place] = terms
        if not _agree(terms, wanted[:, place], 1 + wanted[:, place].abs(), _TERM[program.dtype]):
            raise _another(record)
    if failure is not None:
        raise CompileError(
            "E-VERIFY",
            f"the compiled log density cannot be computed ({type(failure).__name__}: {failure})",
            advice="report this program",
        ) from failure
    if total is not None and not _agree(total.double(), found.sum(-1), 1 + found.abs().sum(-1), _SUM[program.dtype]):
        raise CompileError(
            "E-VERIFY",
            f"the compiled log density is {float(total[0]):.6g}, and the sum of its terms {float(found[0].sum()):.6g}",
            advice="report this program",
        )


def _term(
    program: Program, record: SiteRecord, density: TargetDensity, index: int, held: Mapping[str, Tensor], own: Tensor
) -> Tensor:
    """A site's term ``[rows]``."""
    dtype = getattr(torch, program.dtype)
    try:
        placed = {path: value.unsqueeze(1) for path, value in held.items()}
        term = density.term(index, placed, own.to(dtype))
    except _FAILURES as error:
        raise _another(record) from error
    return term.double().flatten(1).sum(-1).expand(len(own))


def _agree(found: Tensor, expected: Tensor, scale: Tensor, relative: float) -> bool:
    """Whether numbers agree wherever both are finite, and are finite where they should be."""
    known = expected.isfinite()
    return bool(((found - expected).abs() <= relative * scale)[known].all())


def _another(record: SiteRecord) -> CompileError:
    family = record.specification.children.get("base", record.specification).title
    _, advice = REFUSED_FAMILIES.get(family, ("", "write the site with a family whose parameters say all about it"))
    return CompileError(
        "E-NOCDF",
        f"the density of {family} cannot be made again from what the distribution keeps of its arguments",
        site=record.name,
        location=record.location,
        source=record.source,
        advice=advice,
    )
