"""Dead code: instructions that neither a site nor a named value needs."""

from __future__ import annotations

from emfc.passes.demand import output_table
from emfc.passes.edges import find_edges
from emfc.passes.rewrite import Translation, rewritten
from emfc.program.ir import Program

__all__ = ["drop_dead"]


def drop_dead(program: Program) -> Program:
    """The program without the instructions that nothing needs."""
    count = len(program.instructions)
    edges = find_edges(program, output_table(program), named=True)
    needed = [False] * count
    for source, target in zip(edges.sources[::-1].tolist(), edges.targets[::-1].tolist(), strict=True):
        if target >= count or needed[target]:
            needed[source] = True
    if all(needed):
        return program
    kept = [instruction for instruction, wanted in zip(program.instructions, needed, strict=True) if wanted]
    return rewritten(program, kept, Translation(program))
