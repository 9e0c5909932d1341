"""The line of passes that a program goes through before its sites are grouped into classes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from emfc.passes.classify import slice_sites, slice_virtuals
from emfc.passes.common import share_common
from emfc.passes.dead import drop_dead
from emfc.passes.demand import output_table
from emfc.passes.fold import fold_constants
from emfc.passes.nodes import ancestors, direct_parents
from emfc.passes.recurrences import Virtual, cut_recurrences, loaded_addresses
from emfc.passes.slices import Slice
from emfc.program.ir import Program

__all__ = ["PASSES", "Sliced", "run_passes", "site_parents"]

_REWRITES: dict[str, Callable[[Program], Program]] = {
    "fold": fold_constants,
    "common": share_common,
    "dead": drop_dead,
}
PASSES = (*_REWRITES, "recurrences", "classify")
"""Names of the passes that can be switched off, in order."""


@dataclass(frozen=True, eq=False)
class Sliced:
    """A program after its passes.

    Attributes:
        program: Rewritten.
        slices: Of its sites.
        virtuals: What was cut.
        virtual_slices: Of the virtual nodes.
        parents: For the sites, then the virtual nodes, the nodes that their slices load.
        log: What each pass did, in words.
    """

    program: Program
    slices: list[Slice]
    virtuals: tuple[Virtual, ...]
    virtual_slices: list[Slice]
    parents: tuple[tuple[int, ...], ...]
    log: list[str] = field(default_factory=list)


def run_passes(program: Program, passes: Collection[str]) -> Sliced:
    """Rewrite, cut and slice a program.

    Args:
        program: What the front end wrote down.
        passes: Names out of `PASSES`.

    Raises:
        ValueError: There is no such pass.
    """
    unknown = set(passes) - set(PASSES)
    if unknown:
        raise ValueError(f"no pass is named {sorted(unknown)[0]!r}; they are {', '.join(PASSES)}")
    log: list[str] = []
    for name, rewrite in _REWRITES.items():
        if name in passes:
            before, program = len(program.instructions), rewrite(program)
            log.append(f"{name}: {before} -> {len(program.instructions)} instructions")
    table = output_table(program)
    virtuals = cut_recurrences(program, table) if "recurrences" in passes else ()
    if virtuals:
        loaded = loaded_addresses(program, virtuals)
        slices = slice_sites(program, table, loaded)
        virtual_slices = slice_virtuals(program, virtuals, table, loaded)
        parents = direct_parents(program, [*slices, *virtual_slices], virtuals)
        if not any(_discrete(program, parent) for held in parents for parent in held):
            log.append(_told(virtuals, [*slices, *virtual_slices]))
            return Sliced(program, slices, virtuals, virtual_slices, parents, log)
        log.append("recurrences: not cut, because discrete sites are summed out")
    elif "recurrences" in passes:
        log.append("recurrences: none long enough to cut")
    slices = slice_sites(program, table)
    return Sliced(program, slices, (), [], direct_parents(program, slices), log)


def site_parents(program: Program) -> tuple[tuple[int, ...], ...]:
    """For each site the indices of the sites that its parameters depend on, in program order."""
    table = output_table(program)
    if cut_recurrences(program, table):
        return ancestors(program)
    return direct_parents(program, slice_sites(program, table))


def _discrete(program: Program, node: int) -> bool:
    """Whether a node is a discrete site; one that is read is summed out."""
    return node < len(program.sites) and program.sites[node].discrete


def _told(virtuals: tuple[Virtual, ...], slices: list[Slice]) -> str:
    steps = sum(len(held.values) - len(held.loads()) for held in slices)
    return f"recurrences: {len(virtuals)} virtual nodes cut, {steps} instructions in all slices after"
