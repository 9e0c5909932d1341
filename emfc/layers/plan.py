"""The plan of a layer: what the passes made of a program, ready to be evaluated in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from emfc.layers.kernel import Kernel
from emfc.layers.readers import Environment, Layout
from emfc.passes.eliminate import Elimination, eliminate
from emfc.passes.marginalise import Populations
from emfc.passes.nodes import ancestors
from emfc.passes.recurrences import Virtual
from emfc.program.ir import Program
from emfc.special.precision import wide

__all__ = ["Evaluate", "Plan"]

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""From site values ``[B, D]`` and parameters ``[P]`` to values ``[B or 1, V]``."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Kernels and layout of a program.

    Attributes:
        program: The program.
        populations: The discrete sites that are summed out.
        layout: Columns of values in an example.
        example: Indices of the sites of an example, in order.
        noise: First column of the noise of each site of an example.
        kernels: One per class of sites of the example or summed out.
        observed: Kernels of the observed sites; they stay outside the layer and are only verified.
        virtuals: Deterministic values that carry state from step to step. Node ``i`` is site ``i``, or virtual
            ``i - len(program.sites)``.
        virtual_kernels: One per class of virtual nodes; ``kernel.held.sites`` numbers nodes, the value of each is
            ``kernel.parameters(...)["value"]``, ``kernel.own`` are its columns in ``Environment.virtual``.
        stages: How the virtual classes follow each other: indices into `virtual_kernels`.
        recurrences: Makes what computes the values of the virtual nodes of a plan.
        node_parents: For each node the nodes that its slice reads.
        log: What each pass did, in words.
        given: Of a variational target, the sites whose values are data; they stand behind the others in an example.
    """

    program: Program
    populations: Populations
    layout: Layout
    example: tuple[int, ...]
    noise: Mapping[int, int]
    kernels: tuple[Kernel, ...]
    observed: tuple[Kernel, ...]
    virtuals: tuple[Virtual, ...]
    virtual_kernels: tuple[Kernel, ...]
    stages: tuple[tuple[int, ...], ...]
    recurrences: Callable[[Plan], Evaluate]
    node_parents: tuple[tuple[int, ...], ...]
    log: tuple[str, ...]
    given: frozenset[int] = frozenset()

    @cached_property
    def dim(self) -> int:
        """Number of elements D of an example."""
        return sum(self.program.sites[index].size for index in self.example)

    @cached_property
    def noise_dim(self) -> int:
        """Number of noise variables N."""
        return sum(self.program.sites[index].noise_size for index in self.example)

    @cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """For each site the indices of the sites that its parameters depend on; through virtual nodes, where there
        are any, which may take a while.
        """
        return ancestors(self.program) if self.virtuals else self.node_parents

    @cached_property
    def _recurrences(self) -> Evaluate:
        return self.recurrences(self)

    def environment(self, values: Tensor, parameters: Tensor) -> Environment:
        """What kernels read where whole examples ``[B, D]`` are known."""
        if not self.virtuals:
            return Environment(values, parameters)
        virtual = self._recurrences(wide(values), wide(parameters))  # half precision does not even count to 300
        return Environment(values, parameters, virtual=virtual)

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

    @cached_property
    def elimination(self) -> Elimination:
        """How the summed-out sites are summed out.

        Raises:
            CompileError: That takes too many joint values at a time (E-DISCRETE).
        """
        return eliminate(self.program, self.populations, {kernel.number: kernel.held for kernel in self.kernels})

    def column(self, index: int) -> int:
        """First column of a site's value in an example."""
        return int(self.layout.columns[self.program.sites[index].start - self.program.site_base])

    def rows(self) -> dict[int, tuple[Kernel, int]]:
        """For each site its kernel and its row there."""
        return {index: (kernel, row) for kernel in self.kernels for row, index in enumerate(kernel.held.sites)}
