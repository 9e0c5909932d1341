"""Recurrences: the values of virtual nodes, where the values of all sites are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from emfc.layers.batching import cast
from emfc.layers.carried import common_batch
from emfc.layers.chains import Chain
from emfc.layers.drawn import Drawn, Pieces
from emfc.layers.kernel import Kernel
from emfc.layers.latents import Gates
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.layers.schedule import Nodes, Stage, components
from emfc.layers.steps import Steps
from emfc.passes.classify import SiteClass
from emfc.special.precision import eager

__all__ = ["Recurrences", "stage_order"]

_MANY = 16
"""More stages than this are run as one scan, since each stage joins what the ones before computed."""


def stage_order(classes: Sequence[SiteClass], parents: Sequence[Sequence[int]]) -> list[list[int]]:
    """Classes of virtual nodes in the order in which they can be computed; those of one stage need each other.

    Args:
        classes: Classes of virtual nodes.
        parents: For every node of the program the nodes that it reads.
    """
    owners = {node: place for place, held in enumerate(classes) for node in held.sites}
    edges = [
        {owners[parent] for node in held.sites for parent in parents[node] if parent in owners} for held in classes
    ]
    ordered = components(edges)
    return ordered if len(ordered) <= _MANY else [list(range(len(classes)))]


class Recurrences:
    """Computes the values of all virtual nodes, stage by stage.

    A stage of one class that does not read itself is one batch; where it reads itself affinely it is an associative
    scan. In any other stage everything that does not read the state is computed for all steps at once, and what remains
    is one short written function per step.
    """

    def __init__(self, plan: Plan) -> None:
        count = len(plan.ordinary)
        kernels = (*plan.ordinary, *plan.virtual_kernels)
        nodes = Nodes(plan, kernels, [place >= count for place in range(len(kernels))])
        self._pieces = Pieces(nodes)
        self._pieces.append(np.arange(plan.dim))
        self.stages = [self._stage(plan, nodes, places) for places in plan.stages]

    def _stage(self, plan: Plan, nodes: Nodes, places: Sequence[int]) -> Kernel | Steps | Affine:
        kernels = [plan.virtual_kernels[place] for place in places]
        numbers = [len(plan.ordinary) + place for place in places]
        members = {node for kernel in kernels for node in kernel.held.sites}
        found: Kernel | Steps | Affine | None = None
        if len(kernels) == 1:
            if all(members.isdisjoint(plan.node_parents[node]) for node in members):
                found = kernels[0]
            else:
                chain = Chain.find(nodes, Stage((numbers[0],), True, ()), self._pieces)
                found = None if chain is None else Affine(chain, kernels[0], plan.node_parents)
        self._pieces.append(np.concatenate([nodes.columns[number].reshape(-1) for number in numbers]))
        return Steps(kernels, plan.node_parents) if found is None else found

    def __call__(self, values: Tensor, parameters: Tensor) -> Tensor:
        """Values ``[B or 1, V]`` of the virtual nodes, given site values ``[B, D]`` and parameters ``[P]``."""
        if not len(values):
            return self(values.new_ones(1, values.shape[1]), parameters)[:0]
        drawn = Drawn(values, parameters, Gates(None), [values])
        known = values.new_zeros(1, 0)
        for stage in self.stages:
            environment = Environment(values, parameters, virtual=known)
            if isinstance(stage, Kernel):
                value = cast(stage.parameters(environment, stage.full)["value"], "float", values.dtype)
                value = value.expand(len(value), *stage.own.shape)
                pieces = [value.flatten(1)]
            elif isinstance(stage, Affine):
                pieces = stage(drawn, environment)
            else:
                pieces = stage(environment)
            rows = common_batch((known, *pieces))
            own = torch.cat([piece.expand(rows, -1) for piece in pieces], 1) if len(pieces) > 1 else pieces[0]
            drawn.pieces.append(own)
            known = torch.cat([known.expand(rows, -1), own.expand(rows, -1)], 1)
        return known


class Affine:
    """A class whose rows follow one another affinely.

    An associative scan multiplies by zero what a row does not read, so one infinite value would make NaN of rows
    before it. Where that may be, the rows are computed step by step.
    """

    def __init__(self, chain: Chain, kernel: Kernel, parents: Sequence[Sequence[int]]) -> None:
        self._chain = chain
        self._order = Picker(np.argsort(chain.columns))
        self._kernel = kernel
        self._parents = parents

    @cached_property
    def _steps(self) -> Steps:
        return Steps([self._kernel], self._parents)

    def __call__(self, drawn: Drawn, environment: Environment) -> list[Tensor]:
        """Values ``[B or 1, n]`` in the order of the rows."""
        found = self._order(self._chain(drawn))
        if eager() and not bool(found.isfinite().all()):
            return self._steps(environment)
        return [found]
