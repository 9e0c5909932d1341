"""Cut recurrences: values that carry state from step to step become virtual nodes, so that slices stay short.

A slice computes everything between a site and the values that it loads. Where a deterministic state runs through a
loop, that is everything before, and the slices of T steps have T^2 instructions. The cut makes such a state a node of
its own: the slices of what comes after load it.

An instruction *diverges* when its uses never meet again: its immediate post-dominator in the graph of instructions
and sites is the end. The state of a recurrence diverges at every step (one way to the site of that step, another to the
next step), while what is inside a step flows together in its state. Diverging instructions on a path with at least
`SHORTEST` of them are cut; programs without such a path stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emfc.passes.bounds import LARGEST_EXACT, whole_bounds
from emfc.passes.demand import Mask, OutputTable, needed_elements
from emfc.passes.edges import Edges, find_edges
from emfc.program.ir import Addresses, Operand, Program

__all__ = ["SHORTEST", "Virtual", "cut_recurrences", "loaded_addresses"]

SHORTEST = 8
"""How many diverging instructions in a row are worth a cut."""


@dataclass(frozen=True, eq=False)
class Virtual:
    """A deterministic value that other slices load instead of computing it again.

    Attributes:
        name: For pictures and messages.
        addresses: Of its elements ``[*shape]``, all above ``instruction_base``.
        dtype: Dtype kind.
    """

    name: str
    addresses: Addresses
    dtype: str

    @property
    def start(self) -> int:
        """Its first address."""
        return int(self.addresses.flat[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.addresses.shape

    @property
    def size(self) -> int:
        return int(self.addresses.size)


def loaded_addresses(program: Program, virtuals: Sequence[Virtual]) -> Mask:
    """For each address from ``instruction_base`` on whether it belongs to a virtual node."""
    ends = [output.start + output.size for held in program.instructions for output in held.outputs]
    loaded = np.zeros(max(ends, default=program.instruction_base) - program.instruction_base, dtype=np.bool_)
    for virtual in virtuals:
        loaded[virtual.addresses.reshape(-1) - program.instruction_base] = True
    return loaded


def cut_recurrences(program: Program, table: OutputTable, *, shortest: int = SHORTEST) -> tuple[Virtual, ...]:
    """The values to cut, in program order; whole numbers that may be too large for a real one stay in the slices.

    Args:
        program: The program.
        table: The result of `output_table` for the program.
        shortest: How many diverging instructions in a row are worth a cut.
    """
    edges = find_edges(program, table)
    if not _long(edges, len(program.instructions), shortest):
        return ()
    chosen = _on_long_paths(_diverging(edges, len(program.instructions)), edges, shortest)
    if not chosen:
        return ()
    operands: list[Operand] = [held for site in program.sites for held in site.specification.operands()]
    needed = needed_elements(program, operands, table)
    whole = any(output.dtype == "int" for index in chosen for output in program.instructions[index].outputs)
    bounds = dict(zip(table[1], whole_bounds(program, table), strict=True)) if whole else {}
    virtuals = []
    for index in chosen:
        instruction = program.instructions[index]
        for place, (output, mask) in enumerate(zip(instruction.outputs, needed.get(index, ()), strict=False)):
            if not mask.any() or (output.dtype == "int" and not bounds[index, place] <= LARGEST_EXACT):
                continue
            addresses = output.start + np.flatnonzero(mask)
            if mask.all():
                addresses = addresses.reshape(output.shape)
            name = f"{instruction.operation.partition('.')[0]}_{index}" + (f"_{place}" if place else "")
            virtuals.append(Virtual(name, addresses, output.dtype))
    return tuple(virtuals)


def _long(edges: Edges, count: int, shortest: int) -> bool:
    """Whether some path has at least `shortest` instructions."""
    inner = edges.targets < count
    sources, targets = edges.sources[inner], edges.targets[inner]
    for _ in range(shortest - 1):
        if not sources.size:
            return False
        reached = np.zeros(count, dtype=np.bool_)
        reached[targets] = True
        kept = reached[sources]
        sources, targets = sources[kept], targets[kept]
    return True


def _diverging(edges: Edges, count: int) -> list[int]:
    """Instructions whose immediate post-dominator is the end, ascending; what no site needs does not count.

    Post-dominators are lowest common ancestors in a tree that grows from the last instruction to the first; ancestors
    are found by jump pointers, so that long private paths cost their logarithm.
    """
    end = int(edges.targets.max()) + 1
    parent, jump, depth = ([-1] * end + [end] for _ in range(3))
    depth[end] = 0
    for site in range(count, end):
        parent[site] = jump[site] = end
        depth[site] = 1

    def common(a: int, b: int) -> int:
        if depth[a] < depth[b]:
            a, b = b, a
        while depth[a] > depth[b]:
            a = jump[a] if depth[jump[a]] >= depth[b] else parent[a]
        while a != b:
            a, b = (jump[a], jump[b]) if jump[a] != jump[b] else (parent[a], parent[b])
        return a

    bounds = np.searchsorted(edges.sources, np.arange(count + 1)).tolist()
    targets = edges.targets.tolist()
    diverging = []
    for index in range(count - 1, -1, -1):
        uses = [use for use in targets[bounds[index] : bounds[index + 1]] if depth[use] >= 0]
        if not uses:
            continue
        found = uses[0]
        for use in uses[1:]:
            found = common(found, use)
        parent[index], depth[index] = found, depth[found] + 1
        further = jump[found]
        jump[index] = jump[further] if depth[found] - depth[further] == depth[further] - depth[jump[further]] else found
        if found == end:
            diverging.append(index)
    return diverging[::-1]


def _on_long_paths(diverging: list[int], edges: Edges, shortest: int) -> list[int]:
    """Those of some instructions that lie on a path with at least `shortest` of them."""
    if len(diverging) < shortest:
        return []
    end = int(edges.targets.max()) + 1
    own = np.zeros(end, dtype=np.int64)
    own[diverging] = 1
    before, after = own.tolist(), own.tolist()
    one = own.tolist()
    order = np.argsort(edges.targets, kind="stable")
    for source, target in zip(edges.sources[order].tolist(), edges.targets[order].tolist(), strict=True):
        before[target] = max(before[target], before[source] + one[target])
    for source, target in zip(edges.sources[::-1].tolist(), edges.targets[::-1].tolist(), strict=True):
        after[source] = max(after[source], after[target] + one[source])
    return [index for index in diverging if before[index] + after[index] - 1 >= shortest]
