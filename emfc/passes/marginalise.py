"""Marginalise: find the discrete sites that select populations, and the table of their joint values.

A discrete site that no other site reads is a leaf and stays in the example, dequantised. A discrete site that others
read is summed out: all joint values of all such sites are enumerated, and every site that reads one becomes a
mixture.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfc.passes.slices import Slice
from emfc.program.errors import CompileError
from emfc.program.ir import Addresses, Program, SiteRecord

__all__ = ["LARGEST_ENUMERATION", "Populations", "marginalise", "parents"]

LARGEST_ENUMERATION = 1024


@dataclass(frozen=True, eq=False)
class Populations:
    """The discrete sites that are summed out.

    Attributes:
        sites: Their indices in ``program.sites``.
        addresses: The addresses of their values, ascending.
        configurations: Every joint value, ``[K, len(addresses)]``.
        readers: Indices of the sites whose parameters read one of them; these are the mixtures.
    """

    sites: tuple[int, ...]
    addresses: Addresses
    configurations: npt.NDArray[np.float64]
    readers: tuple[int, ...]


def parents(program: Program, slices: list[Slice]) -> list[tuple[int, ...]]:
    """For each site the indices of the sites whose values its parameters depend on, in program order."""
    latent = [index for index, site in enumerate(program.sites) if not site.observed and site.size]
    starts = np.array([program.sites[index].start for index in latent], dtype=np.int64)
    result = []
    for held in slices:
        found: set[int] = set()
        for load in held.loads():
            flat = load.addresses.reshape(-1)
            flat = flat[flat >= program.site_base]
            if flat.size:
                found.update(np.unique(np.searchsorted(starts, flat, side="right") - 1).tolist())
        result.append(tuple(latent[place] for place in sorted(found)))
    return result


def marginalise(program: Program, site_parents: list[tuple[int, ...]]) -> Populations:
    """Choose the sites to sum out and enumerate their joint values.

    Raises:
        CompileError: A discrete site that others read cannot be enumerated, or the enumeration would be too large
        (E-DISCRETE).
    """
    read = sorted({parent for held in site_parents for parent in held if program.sites[parent].discrete})
    choices: list[npt.NDArray[np.float64]] = []
    for index in read:
        site = program.sites[index]
        choices.extend([_values(site)] * site.size)
    size = math.prod(len(values) for values in choices)
    if size > LARGEST_ENUMERATION:
        first = program.sites[read[0]]
        raise CompileError(
            "E-DISCRETE",
            f"summing out {len(choices)} discrete values exactly would take {_large(choices)} populations, "
            f"more than the {LARGEST_ENUMERATION} that are allowed",
            site=first.name,
            location=first.location,
            source=first.source,
            advice="use fewer discrete sites, or a MixtureSameFamily for each row",
        )
    addresses = np.array(
        [
            a
            for index in read
            for a in range(program.sites[index].start, program.sites[index].start + program.sites[index].size)
        ],
        dtype=np.int64,
    )
    table = np.array(list(itertools.product(*choices)), dtype=np.float64).reshape(size, len(choices))
    readers = tuple(
        index for index, held in enumerate(site_parents) if index not in read and any(parent in read for parent in held)
    )
    return Populations(tuple(read), addresses, table, readers)


def _values(site: SiteRecord) -> npt.NDArray[np.float64]:
    family = site.specification.family
    if family == "Categorical":
        return np.arange(site.specification.parameters["logits"].shape[-1], dtype=np.float64)
    if family == "Bernoulli":
        return np.arange(2, dtype=np.float64)
    raise CompileError(
        "E-DISCRETE",
        f"other sites depend on this discrete {family} site, and only Categorical and Bernoulli can be summed out",
        site=site.name,
        location=site.location,
        source=site.source,
        advice="make it Categorical over the values that matter, or a continuous site",
    )


def _large(choices: list[npt.NDArray[np.float64]]) -> str:
    """The size of an enumeration, readable also where it has hundreds of digits."""
    sizes = [len(values) for values in choices]
    total = math.prod(sizes)
    power = f"{sizes[0]}^{len(sizes)}" if len(set(sizes)) == 1 and len(sizes) > 1 else " * ".join(map(str, sizes[:6]))
    return f"{power} = {total}" if total < 10**15 else power
