"""Classify: sites whose slices are the same code form one class, evaluated together over integer gather maps.

Loop indices have vanished into addresses by now, so the unrolled steps of a loop are literally the same slice reading
other addresses. A class keeps one slice and, for each of its loads, a matrix of addresses with a row per site.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emfc.passes.demand import Mask, OutputTable, output_table
from emfc.passes.recurrences import Virtual
from emfc.passes.scopes import latent_pattern, level_count
from emfc.passes.slices import Load, Slice, Step, slice_operands
from emfc.program.ir import Addresses, Operand, Program, SiteRecord, Specification
from emfc.program.specification import event_dim

__all__ = [
    "SiteClass",
    "batch_ranks",
    "classify",
    "classify_virtuals",
    "flatten_paths",
    "load_kinds",
    "slice_sites",
    "slice_virtuals",
]


@dataclass(frozen=True, eq=False)
class SiteClass:
    """Isomorphic sites.

    Attributes:
        sites: Indices into ``program.sites``, in program order.
        specification: Shared structure of their distributions.
        paths: Dotted path of each output of the slice inside the specification.
        slice: The code that they share (loads of the first site).
        addresses: For each load, in order, the addresses ``[n, *shape]``; one row where all sites read the same.
    """

    sites: tuple[int, ...]
    specification: Specification
    paths: tuple[str, ...]
    slice: Slice
    addresses: tuple[Addresses, ...]
    shape: tuple[int, ...]
    event_dim: int
    noise_shape: tuple[int, ...]


def flatten_paths(specification: Specification, prefix: str = "") -> list[str]:
    """Dotted paths of all operands, in the order of `Specification.operands`."""
    paths = [prefix + name for name in specification.parameters]
    for name, child in specification.children.items():
        paths.extend(flatten_paths(child, f"{prefix}{name}."))
    return paths


def batch_ranks(specification: Specification, rank: int) -> dict[str, int]:
    """For each operand by path how many of its first dimensions belong to the batch of a site of rank `rank`."""
    return dict.fromkeys(flatten_paths(specification), rank - event_dim(specification))


def slice_sites(program: Program, table: OutputTable | None = None, loaded: Mask | None = None) -> list[Slice]:
    """The slice of every site, in program order.

    Args:
        program: The program.
        table: The result of `output_table`, where it is known.
        loaded: The result of `loaded_addresses`, where recurrences are cut.
    """
    table = output_table(program) if table is None else table
    return [
        slice_operands(
            program,
            list(site.specification.operands()),
            list(batch_ranks(site.specification, len(site.shape)).values()),
            table,
            loaded,
        )
        for site in program.sites
    ]


def slice_virtuals(program: Program, virtuals: Sequence[Virtual], table: OutputTable, loaded: Mask) -> list[Slice]:
    """The slice of every virtual node; it computes that node and loads the others."""
    slices = []
    for virtual in virtuals:
        own = virtual.addresses.reshape(-1) - program.instruction_base
        loaded[own] = False
        slices.append(slice_operands(program, [Operand(virtual.addresses, virtual.dtype)], [0], table, loaded))
        loaded[own] = True
    return slices


def classify(
    program: Program,
    slices: list[Slice],
    *,
    summed: Collection[int] = (),
    given: Collection[int] = (),
    merge: bool = True,
) -> list[SiteClass]:
    """Group isomorphic sites.

    Args:
        program: The program.
        slices: The result of `slice_sites`.
        summed: Indices of the sites that are summed out; they never share a class with others.
        given: Indices of the sites whose values are data; nor do they.
        merge: False keeps every site a class of its own: the reference that merging must equal.
    """
    latents = np.array(
        [program.sites[index].start + place for index in sorted(summed) for place in range(program.sites[index].size)],
        dtype=np.int64,
    )
    levels = [level_count(site) for site in map(program.sites.__getitem__, sorted(summed)) for _ in range(site.size)]
    groups: dict[Hashable, list[int]] = {}
    for index, (site, held) in enumerate(zip(program.sites, slices, strict=True)):
        key = (
            index in summed,
            index in given,
            latent_pattern(held, latents, levels),
            _key(program, site, held, latents),
        )
        groups.setdefault(key if merge else index, []).append(index)
    return [_merge(program, slices, members) for members in groups.values()]


def classify_virtuals(program: Program, virtuals: Sequence[Virtual], slices: list[Slice]) -> list[SiteClass]:
    """Group isomorphic virtual nodes; ``sites`` numbers nodes, virtual ones after the program's sites."""
    none = np.zeros(0, dtype=np.int64)
    groups: dict[Hashable, list[int]] = {}
    for index, (virtual, held) in enumerate(zip(virtuals, slices, strict=True)):
        key = (_values_key(program, held, none), held.outputs, virtual.shape, virtual.dtype)
        groups.setdefault(key, []).append(index)
    classes = []
    for members in groups.values():
        first = virtuals[members[0]]
        specification = Specification("Virtual", {"value": Operand(first.addresses, first.dtype)})
        classes.append(
            SiteClass(
                sites=tuple(len(program.sites) + index for index in members),
                specification=specification,
                paths=("value",),
                slice=slices[members[0]],
                addresses=_merged_addresses(slices, members),
                shape=first.shape,
                event_dim=0,
                noise_shape=(0,),
            )
        )
    return classes


def load_kinds(program: Program, addresses: Addresses, latents: Addresses) -> Addresses:
    """Kind of each address: 0 constant, 1 parameter, 2 site, 3 summed-out site, 4 virtual node."""
    kinds = (addresses >= program.parameter_base).astype(np.int64) + (addresses >= program.site_base)
    kinds += 2 * (addresses >= program.instruction_base)
    if latents.size:
        kinds = kinds + np.isin(addresses, latents)
    return np.asarray(kinds)


def _key(program: Program, site: SiteRecord, held: Slice, latents: Addresses) -> Hashable:
    return (
        _specification_key(site.specification),
        _values_key(program, held, latents),
        held.outputs,
        site.shape,
        site.noise_shape,
        site.event_dim,
        site.observed,
        site.adjustment,
    )


def _values_key(program: Program, held: Slice, latents: Addresses) -> Hashable:
    values: list[Hashable] = []
    for value in held.values:
        if isinstance(value, Load):
            kinds = load_kinds(program, value.addresses, latents)
            uniform = kinds.size > 0 and (kinds == kinds.flat[0]).all()
            values.append((value.dtype, value.shape, int(kinds.flat[0]) if uniform else kinds.tobytes()))
        elif isinstance(value, Step):
            values.append(
                (
                    value.operation,
                    _freeze(value.arguments),
                    _freeze(value.keywords),
                    value.inputs,
                    value.kinds,
                    value.shapes,
                )
            )
        else:
            values.append((value.inputs, value.indices.tobytes(), value.shape, value.dtype))
    return tuple(values)


def _specification_key(specification: Specification) -> Hashable:
    return (
        specification.family,
        tuple(specification.parameters),
        tuple((name, _specification_key(child)) for name, child in specification.children.items()),
        _freeze(specification.options),
    )


def _freeze(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return (type(value).__name__, value)


def _merge(program: Program, slices: list[Slice], members: list[int]) -> SiteClass:
    first = program.sites[members[0]]
    return SiteClass(
        sites=tuple(members),
        specification=first.specification,
        paths=tuple(flatten_paths(first.specification)),
        slice=slices[members[0]],
        addresses=_merged_addresses(slices, members),
        shape=first.shape,
        event_dim=first.event_dim,
        noise_shape=first.noise_shape,
    )


def _merged_addresses(slices: list[Slice], members: list[int]) -> tuple[Addresses, ...]:
    """Addresses of each load, a row per member, or one row where all read the same."""
    loads = [slices[index].loads() for index in members]
    addresses = []
    for place in range(len(loads[0])):
        rows = np.stack([held[place].addresses for held in loads])
        same = len(members) > 1 and (rows == rows[:1]).all()
        addresses.append(rows[:1] if same else rows)
    return tuple(addresses)
