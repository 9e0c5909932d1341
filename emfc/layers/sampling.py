"""The sampling direction: examples from noise, level by level of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from emfc.layers.components import sequential_components
from emfc.layers.kernel import Kernel, View
from emfc.layers.latents import Gates, accumulate, configured_environment, latent_log_prob
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.program.ir import Addresses
from emfc.transforms import CDFTransform, from_normal, mixture_family

__all__ = ["Item", "Sampling"]


@dataclass(frozen=True, eq=False)
class Item:
    """Sites of one class in one level.

    Attributes:
        kind: ``"ordinary"``, ``"latent"`` (summed out) or ``"mixture"`` (reads a summed-out site; one site).
        kernel: Of the class.
        view: Of the rows.
        sources: Sites whose values the rows read.
    """

    kind: str
    kernel: Kernel
    view: View
    sources: tuple[int, ...]


class Sampling:
    """Examples from noise.

    Sites of one class in one level are drawn together. Sites that read a summed-out site are drawn element by
    element, each from the mixture of its components weighted by the responsibilities given the elements before it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, noise: Tensor, parameters: Tensor, gates: Gates) -> tuple[Tensor, Tensor]:
        """Examples ``[B, D]`` of noise ``[B, N]`` and the log-Jacobian ``[B]``."""
        plan = self.plan
        drawn: dict[int, Tensor] = {}
        ladj: Tensor | None = None
        weights: Tensor | None = None
        for level in self._schedule:
            for item in level:
                values = _join(item.sources, drawn, noise)
                environment = Environment(values, parameters)
                if item.kind == "ordinary":
                    transform = from_normal(item.kernel.distribution(environment, item.view))
                    own, part = gates.apply(transform, item.view.noise).call_and_ladj(item.view.noise(noise))
                    ladj = accumulate(ladj, part)
                    flat = own.flatten(2) if own.ndim > 2 else own.unsqueeze(-1)
                    for place, row in enumerate(item.view.rows):
                        drawn[item.kernel.held.sites[row]] = flat[:, place]
                    continue
                configured = configured_environment(plan, environment)
                if item.kind == "latent":
                    part = latent_log_prob(plan, item.kernel, item.view, configured).sum(1)
                    weights = part if weights is None else weights + part
                    continue
                if weights is None:
                    weights = noise.new_zeros(1, len(plan.populations.configurations))
                own, part, weights = self._draw_mixture(item.kernel, item.view, configured, noise, gates, weights)
                drawn[item.kernel.held.sites[item.view.rows[0]]] = own
                ladj = accumulate(ladj, part)
        if ladj is None:
            raise RuntimeError("a plan has at least one kernel")
        return torch.cat([drawn[index] for index in plan.example], -1), ladj

    def _draw_mixture(
        self, kernel: Kernel, view: View, configured: Environment, noise: Tensor, gates: Gates, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One mixed site, element by element: its values ``[B, size]``, log-Jacobian ``[B]`` and the new weights."""
        steps = sequential_components(kernel, kernel.parameters(configured, view))
        columns = view.noise.positions.reshape(-1)
        values: list[Tensor] = []
        ladj = noise.new_zeros(len(noise))
        family = next(steps)
        for place, column in enumerate(columns):
            transform = CDFTransform(mixture_family(weights.log_softmax(-1), family))
            picker = Picker(np.asarray([column]))
            value, part = gates.apply(transform, Picker(np.asarray(column))).call_and_ladj(picker(noise)[:, 0])
            values.append(value)
            ladj = ladj + part
            log_prob = family.log_prob(value.unsqueeze(-1))
            weights = weights + log_prob.clamp(min=torch.finfo(log_prob.dtype).min / (4 * self.plan.dim))
            if place + 1 < len(columns):
                family = steps.send(value.unsqueeze(-1))
        return torch.stack(values, -1), ladj, weights

    @cached_property
    def _schedule(self) -> list[list[Item]]:
        """Sites by level of the graph; what is summed out and what reads it stays in program order."""
        plan, sites = self.plan, self.plan.program.sites
        summed, mixed = set(plan.populations.sites), set(plan.populations.readers)
        levels: dict[int, int] = {}
        last = -1
        for index, site in enumerate(sites):
            if site.observed or not site.size:
                continue
            level = 1 + max((levels[parent] for parent in plan.parents[index]), default=-1)
            if index in summed or index in mixed:
                level = last = max(level, last + 1)
            levels[index] = level
        rows = plan.rows()
        stages: list[dict[int, list[int]]] = [{} for _ in range(1 + max(levels.values()))]
        kernels: dict[int, Kernel] = {}
        for index, level in levels.items():
            kernel, row = rows[index]
            kernels[kernel.number] = kernel
            stages[level].setdefault(kernel.number, []).append(row)
        scratch = np.zeros(plan.layout.columns.shape, dtype=np.int64)
        return [[self._item(kernels[key], chosen, scratch) for key, chosen in stage.items()] for stage in stages]

    def _item(self, kernel: Kernel, chosen: list[int], scratch: Addresses) -> Item:
        """Prepare some rows of a class to read from the concatenated values of the sites that they depend on."""
        plan = self.plan
        summed = set(plan.populations.sites)
        members = [kernel.held.sites[row] for row in chosen]
        sources = sorted({parent for index in members for parent in plan.parents[index]} - summed)
        position = 0
        for index in sources:
            site = plan.program.sites[index]
            scratch[site.start - plan.program.site_base :][: site.size] = np.arange(position, position + site.size)
            position += site.size
        kind = "latent" if members[0] in summed else "mixture" if kernel.mixed else "ordinary"
        return Item(kind, kernel, kernel.view(chosen, scratch), tuple(sources))


def _join(sources: tuple[int, ...], drawn: dict[int, Tensor], noise: Tensor) -> Tensor:
    """Values ``[B, W]`` of the source sites side by side."""
    if len(sources) == 1:
        return drawn[sources[0]]
    return torch.cat([drawn[index] for index in sources], -1) if sources else noise[:, :0]
