"""The plan of a layer: what the passes made of a program, ready to be evaluated in both directions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from emfc.layers.kernel import Kernel
from emfc.layers.readers import Environment, Layout
from emfc.passes.classify import classify, slice_sites
from emfc.passes.marginalise import Populations, marginalise, parents
from emfc.program.errors import CompileError
from emfc.program.ir import Addresses, Program, SiteRecord

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Kernels and layout of a program.

    Attributes:
        program: The program.
        parents: For each site the indices of the sites that its parameters depend on.
        populations: The discrete sites that are summed out.
        layout: Columns of values in an example.
        example: Indices of the sites of an example, in order.
        noise: First column of the noise of each site of an example.
        kernels: One per class of sites of the example or summed out.
        observed: Kernels of the observed sites; they stay outside the layer and are only verified.
    """

    program: Program
    parents: tuple[tuple[int, ...], ...]
    populations: Populations
    layout: Layout
    example: tuple[int, ...]
    noise: Mapping[int, int]
    kernels: tuple[Kernel, ...]
    observed: tuple[Kernel, ...]

    @cached_property
    def dim(self) -> int:
        """Number of elements D of an example."""
        return sum(self.program.sites[index].size for index in self.example)

    @cached_property
    def noise_dim(self) -> int:
        """Number of noise variables N."""
        return sum(self.program.sites[index].noise_size for index in self.example)

    def environment(self, values: Tensor, parameters: Tensor) -> Environment:
        """What kernels read where whole examples ``[B, D]`` are known."""
        return Environment(values, parameters)

    @cached_property
    def ordinary(self) -> tuple[Kernel, ...]:
        """Kernels of the sites whose transform is that of their own distribution."""
        summed = set(self.populations.sites)
        return tuple(kernel for kernel in self.kernels if not kernel.mixed and kernel.held.sites[0] not in summed)

    @cached_property
    def mixtures(self) -> tuple[Kernel, ...]:
        """Kernels of the sites that become mixtures over populations."""
        summed = set(self.populations.sites)
        return tuple(kernel for kernel in self.kernels if kernel.mixed and kernel.held.sites[0] not in summed)

    @cached_property
    def latents(self) -> tuple[Kernel, ...]:
        """Kernels of the sites that are summed out."""
        summed = set(self.populations.sites)
        return tuple(kernel for kernel in self.kernels if kernel.held.sites[0] in summed)

    def column(self, index: int) -> int:
        """First column of a site's value in an example."""
        return int(self.layout.columns[self.program.sites[index].start - self.program.site_base])

    def rows(self) -> dict[int, tuple[Kernel, int]]:
        """For each site its kernel and its row there."""
        return {index: (kernel, row) for kernel in self.kernels for row, index in enumerate(kernel.held.sites)}


def make_plan(program: Program, *, optimize: bool = True) -> Plan:
    """Run the passes over a program.

    Args:
        program: What the front end wrote down.
        optimize: False keeps every site apart: the reference that the optimised plan must equal.

    Raises:
        CompileError: A discrete site cannot be summed out, or the program changes its log density outside its sites.
    """
    _check_adjustments(program)
    slices = slice_sites(program)
    site_parents = parents(program, slices)
    populations = marginalise(program, site_parents)
    summed = set(populations.sites)
    example = tuple(
        index for index, site in enumerate(program.sites) if not site.observed and index not in summed and site.size
    )
    if not example:
        raise CompileError(
            "E-DISCRETE",
            "nothing is left of the program once its discrete sites are summed out",
            advice="a layer needs at least one site that no observed site alone reads",
        )
    columns = np.full(program.instruction_base - program.site_base, -1, dtype=np.int64)
    position = 0
    for index in example:
        site = program.sites[index]
        columns[site.start - program.site_base :][: site.size] = np.arange(position, position + site.size)
        position += site.size
    layout = Layout(program, columns, populations.addresses)
    ends = itertools.accumulate((program.sites[index].noise_size for index in example), initial=0)
    noise = dict(zip(example, ends, strict=False))
    kernels, observed = [], []
    for number, held in enumerate(classify(program, slices, summed=summed, merge=optimize)):
        first = held.sites[0]
        own = _own(program.sites, held.sites, layout)
        sources = _grid([noise.get(index, 0) for index in held.sites], held.noise_shape)
        mixed = any(parent in summed for parent in site_parents[first])
        kernel = Kernel(held, layout, own, sources, number=number, mixed=mixed)
        if program.sites[first].observed:
            if program.sites[first].specification.family != "Factor":
                observed.append(kernel)
        elif program.sites[first].size:
            kernels.append(kernel)
    return Plan(
        program=program,
        parents=tuple(site_parents),
        populations=populations,
        layout=layout,
        example=example,
        noise=noise,
        kernels=tuple(kernels),
        observed=tuple(observed),
    )


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
            advice="drop it here; in a variational target it counts",
        )
