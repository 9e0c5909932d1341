"""Marginalise: find the discrete sites that select populations.

A discrete site that no other site reads is a leaf and stays in the example, dequantised. A discrete site that others
read is summed out, and every site that reads one becomes a mixture; `emfc.passes.eliminate` says in which order.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from emfc.passes.scopes import level_count
from emfc.program.errors import CompileError
from emfc.program.ir import Addresses, Program, SiteRecord

__all__ = ["Populations", "marginalise"]


@dataclass(frozen=True, eq=False)
class Populations:
    """The discrete sites that are summed out.

    Attributes:
        sites: Their indices in ``program.sites``.
        addresses: The addresses of their values, ascending.
        levels: How many levels each of these values has.
        readers: Indices of the sites whose parameters read one of them; these are the mixtures.
    """

    sites: tuple[int, ...]
    addresses: Addresses
    levels: tuple[int, ...]
    readers: tuple[int, ...]


def marginalise(program: Program, site_parents: list[tuple[int, ...]], given: Collection[int] = ()) -> Populations:
    """Choose the sites to sum out.

    Args:
        program: The program.
        site_parents: For each site the sites that its parameters read.
        given: Indices of the sites whose values are data.

    Raises:
        CompileError: A discrete site that others read has infinitely many levels (E-DISCRETE).
    """
    read = sorted({parent for held in site_parents for parent in held if program.sites[parent].discrete} - set(given))
    summed = set(read)
    levels: list[int] = []
    starts: list[Addresses] = [np.zeros(0, dtype=np.int64)]
    for index in read:
        site = program.sites[index]
        levels.extend([_levels(site)] * site.size)
        starts.append(site.start + np.arange(site.size, dtype=np.int64))
    readers = tuple(
        index
        for index, held in enumerate(site_parents)
        if index not in summed and any(parent in summed for parent in held)
    )
    return Populations(tuple(read), np.concatenate(starts), tuple(levels), readers)


def _levels(site: SiteRecord) -> int:
    levels = level_count(site)
    if levels is None:
        raise CompileError(
            "E-DISCRETE",
            f"other sites depend on this discrete {site.specification.family} site, and only Categorical and Bernoulli "
            "can be summed out",
            site=site.name,
            location=site.location,
            source=site.source,
            advice="make it Categorical over the values that matter, or a continuous site",
        )
    return levels
