"""Planning: from a program to the plan of its layer, through all passes."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from emfc.layers.kernel import Kernel
from emfc.layers.plan import Plan
from emfc.layers.readers import Layout
from emfc.layers.recurrent import Recurrences, stage_order
from emfc.passes.classify import SiteClass, classify, classify_virtuals
from emfc.passes.marginalise import marginalise
from emfc.passes.pipeline import PASSES, run_passes
from emfc.passes.recurrences import Virtual
from emfc.program.errors import CompileError
from emfc.program.ir import Addresses, Program, SiteRecord

__all__ = ["make_plan"]


def make_plan(
    program: Program,
    *,
    optimize: bool = True,
    passes: Collection[str] | None = None,
    data: Collection[int] | None = None,
) -> Plan:
    """Run the passes over a program.

    Args:
        program: What the front end wrote down.
        optimize: False keeps every site apart: the reference that the optimised plan must equal.
        passes: Names out of `PASSES` of those that run, where not all should.
        data: Of a variational target, the indices of the sites that are given; they stand behind the others in an
            example. Such a plan is for densities only.

    Raises:
        CompileError: A discrete site cannot be summed out, or the program changes its log density outside its sites.
    """
    if data is None:
        _check_adjustments(program)
    chosen = () if not optimize else PASSES if passes is None else tuple(passes)
    sliced = run_passes(program, chosen)
    program, slices = sliced.program, sliced.slices
    site_parents = [tuple(node for node in held if node < len(program.sites)) for held in sliced.parents][: len(slices)]
    populations = marginalise(program, site_parents, data or ())
    summed = set(populations.sites)
    example = tuple(
        index for index, site in enumerate(program.sites) if not site.observed and index not in summed and site.size
    )
    if not set(example).difference(data or ()):
        raise CompileError(
            "E-DISCRETE",
            "nothing is left of the program once its discrete sites are summed out",
            advice="a layer needs at least one site that no observed site alone reads",
        )
    if data:
        example = tuple(sorted(example, key=lambda index: index in data))
    columns = np.full(program.instruction_base - program.site_base, -1, dtype=np.int64)
    position = 0
    for index in example:
        site = program.sites[index]
        columns[site.start - program.site_base :][: site.size] = np.arange(position, position + site.size)
        position += site.size
    classes = classify_virtuals(program, sliced.virtuals, sliced.virtual_slices)
    stages = stage_order(classes, sliced.parents)
    ordered = [classes[place] for stage in stages for place in stage]
    virtual, virtual_own = _virtual_columns(program, sliced.virtuals, ordered)
    layout = Layout(program, columns, populations.addresses, virtual)
    ends = itertools.accumulate((program.sites[index].noise_size for index in example), initial=0)
    noise = dict(zip(example, ends, strict=False))
    kernels, observed = [], []
    site_classes = classify(program, slices, summed=summed, given=data or (), merge="classify" in chosen)
    for number, held in enumerate(site_classes):
        first = held.sites[0]
        own = _own(program.sites, held.sites, layout)
        sources = _grid([noise.get(index, 0) for index in held.sites], held.noise_shape)
        mixed = any(parent in summed for parent in site_parents[first])
        kernel = Kernel(held, layout, own, sources, number=number, mixed=mixed, emitted=optimize)
        if program.sites[first].observed and (data is None or not mixed):
            if held.paths or program.sites[first].specification.family != "Factor":
                observed.append(kernel)
        elif program.sites[first].size:
            kernels.append(kernel)
    ends = itertools.accumulate((len(stage) for stage in stages), initial=0)
    log = [*sliced.log, f"classify: {len(slices)} sites in {len(site_classes)} classes"]
    if ordered:
        log.append(f"classify: {len(sliced.virtuals)} virtual nodes in {len(ordered)} classes")
    return Plan(
        program=program,
        populations=populations,
        layout=layout,
        example=example,
        noise=noise,
        kernels=tuple(kernels),
        observed=tuple(observed),
        virtuals=sliced.virtuals,
        virtual_kernels=tuple(
            Kernel(
                held,
                layout,
                own,
                np.zeros((len(own), 0), dtype=np.int64),
                number=len(site_classes) + place,
                mixed=False,
                emitted=optimize,
            )
            for place, (held, own) in enumerate(zip(ordered, virtual_own, strict=True))
        ),
        recurrences=Recurrences,
        stages=tuple(tuple(range(end, end + len(stage))) for end, stage in zip(ends, stages, strict=False)),
        node_parents=sliced.parents,
        log=tuple(log),
        given=frozenset(data or ()),
    )


def _virtual_columns(
    program: Program, virtuals: Sequence[Virtual], classes: Sequence[SiteClass]
) -> tuple[Addresses, list[Addresses]]:
    """Columns of the virtual nodes by address, and ``[n, *shape]`` for each class: class by class, row by row."""
    last = max((int(held.addresses.max()) for held in virtuals), default=program.instruction_base - 1)
    columns = np.full(last + 1 - program.instruction_base, -1, dtype=np.int64)
    grids, position = [], 0
    for held in classes:
        size = int(np.prod(held.shape, dtype=np.int64))
        grid = _grid([position + size * row for row in range(len(held.sites))], held.shape)
        for row, node in enumerate(held.sites):
            addresses = virtuals[node - len(program.sites)].addresses
            columns[addresses.reshape(-1) - program.instruction_base] = grid[row].reshape(-1)
        grids.append(grid)
        position += size * len(held.sites)
    return columns, grids


def _own(sites: tuple[SiteRecord, ...], members: tuple[int, ...], layout: Layout) -> Addresses:
    shape = sites[members[0]].shape
    if sites[members[0]].observed:
        return np.zeros((len(members), *shape), dtype=np.int64)
    base = layout.program.site_base
    starts = [int(layout.columns[sites[index].start - base]) if sites[index].size else 0 for index in members]
    return _grid(starts, shape)


def _grid(starts: Sequence[int], shape: tuple[int, ...]) -> Addresses:
    """Consecutive columns from each start on, in a shape."""
    size = int(np.prod(shape, dtype=np.int64))
    first = np.asarray(starts, dtype=np.int64)
    return np.asarray((first[:, None] + np.arange(size)).reshape(len(starts), *shape))


def _check_adjustments(program: Program) -> None:
    for site in program.sites:
        if site.adjustment is None or (site.observed and site.adjustment != "pyro.factor"):
            continue
        raise CompileError(
            "E-FACTOR",
            f"{site.adjustment} changes the log density, which a layer that also samples cannot represent",
            site=site.name,
            location=site.location,
            source=site.source,
            advice="drop it here; a guide (emfc.EMFGuide, emfc.infer) counts it",
        )
