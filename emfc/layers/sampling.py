"""The sampling direction: examples from noise, level by level of the graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from emfc.layers.draw_groups import Draw, Group, Key, Pieces, group_draws
from emfc.layers.elementwise_draws import State, draw_element
from emfc.layers.kernel import Kernel, View
from emfc.layers.latents import Enumeration, Gates, accumulate, enumerations
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.program.ir import Addresses
from emfc.transforms import from_normal

__all__ = ["Item", "Sampling", "Stage"]


@dataclass(frozen=True, eq=False)
class Item:
    """Sites of one class in one level.

    Attributes:
        kernel: Of the class.
        view: Of the rows.
        sources: Sites whose values the rows read.
        key: Class and level where the class is summed out or reads what is, else None.
    """

    kernel: Kernel
    view: View
    sources: tuple[int, ...]
    key: Key | None


@dataclass(frozen=True, eq=False)
class _Assembly:
    """Puts a site together from what was drawn in one level: whole draws, or some of their columns."""

    site: int
    parts: tuple[tuple[int, tuple[int, ...] | None], ...]
    order: Picker

    def __call__(self, values: list[Tensor], columns: dict[int, tuple[Tensor, ...]]) -> Tensor:
        held = []
        for draw, chosen in self.parts:
            if chosen is None:
                held.append(values[draw])
            else:
                if draw not in columns:
                    columns[draw] = values[draw].unbind(1)
                held.extend(columns[draw][column].unsqueeze(1) for column in chosen)
        return self.order(torch.cat(held, 1) if len(held) > 1 else held[0])


@dataclass(frozen=True, eq=False)
class Stage:
    """One level: what is evaluated or drawn at once, what is drawn element by element, and the sites that gives."""

    items: tuple[Item, ...]
    draws: tuple[Draw, ...]
    noise: Picker
    sites: tuple[_Assembly, ...]


class Sampling:
    """Examples from noise.

    Sites of one class in one level are drawn together. Sites that read a summed-out site are drawn element by
    element, each from the mixture of its components weighted by the responsibilities given the elements before it;
    elements that have no summed-out value in common are drawn together as well.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._pieces = Pieces()

    def __call__(self, noise: Tensor, parameters: Tensor, gates: Gates) -> tuple[Tensor, Tensor]:
        """Examples ``[B, D]`` of noise ``[B, N]`` and the log-Jacobian ``[B]``."""
        drawn: dict[int, Tensor] = {}
        ladj: Tensor | None = None
        masses: dict[Key, list[Tensor]] = {}
        known: dict[Key, dict[str, list[Tensor]]] = {}
        stages = self._schedule
        states = [State() for _ in self._groups]
        floor = torch.finfo(noise.dtype).min / (4 * self.plan.dim + 4 * len(self.plan.populations.addresses) + 4)
        for stage in stages:
            for item in stage.items:
                environment = Environment(_join(item.sources, drawn, noise), parameters)
                if item.key is not None:
                    self._evaluate(item, environment, masses, known, floor)
                    continue
                transform = from_normal(item.kernel.distribution(environment, item.view))
                own, part = gates.apply(transform, item.view.noise).call_and_ladj(item.view.noise(noise))
                ladj = accumulate(ladj, part)
                flat = own.flatten(2) if own.ndim > 2 else own.unsqueeze(-1)
                for place, row in enumerate(item.view.rows):
                    drawn[item.kernel.held.sites[row]] = flat[:, place]
            values, ladjs = self._draw(stage, states, masses, known, noise, gates, floor)
            if ladjs is not None:
                ladj = accumulate(ladj, ladjs)
            columns: dict[int, tuple[Tensor, ...]] = {}
            for assembly in stage.sites:
                drawn[assembly.site] = assembly(values, columns)
        if ladj is None:
            raise RuntimeError("a plan has at least one kernel")
        return torch.cat([drawn[index] for index in self.plan.example], -1), ladj

    def _evaluate(
        self,
        item: Item,
        environment: Environment,
        masses: dict[Key, list[Tensor]],
        known: dict[Key, dict[str, list[Tensor]]],
        floor: float,
    ) -> None:
        """What the elements drawn one by one need, in the pieces in which they need it."""
        key, held = item.key, self._enumerations[item.kernel.number]
        if key is None or key not in self._pieces.taken:
            return
        if held.scopes.own is not None:
            log_masses = held.log_masses(environment, item.view).clamp(min=floor)
            masses[key] = self._pieces.split(key, log_masses.flatten(1, 2))
            return
        rank = item.kernel.batch_ranks
        vector = item.kernel.held.specification.family == "MultivariateNormal"
        width = item.kernel.held.shape[-1] if vector else 1
        known[key] = {
            path: self._pieces.split(key, _flat(value, 1 + rank[path], item), width)
            for path, value in held.parameters(environment, item.view).items()
        }

    def _draw(
        self,
        stage: Stage,
        states: list[State],
        masses: dict[Key, list[Tensor]],
        known: dict[Key, dict[str, list[Tensor]]],
        noise: Tensor,
        gates: Gates,
        floor: float,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Values ``[B, lanes]`` of all elements drawn one by one in a level, and their log-Jacobian."""
        values: list[Tensor] = []
        parts: list[Tensor] = []
        if stage.draws:
            sizes = [draw.columns.positions.size for draw in stage.draws if draw.mixed]
            own = iter(stage.noise(noise).split(sizes, -1) if sizes else ())
        for draw in stage.draws:
            key, piece = draw.step.key, draw.step.piece
            result = draw_element(
                draw,
                self._groups[draw.group],
                states[draw.group],
                self._enumerations[key[0]],
                {path: held[piece] for path, held in known[key].items()} if draw.mixed else None,
                masses,
                next(own) if draw.mixed else noise[:, :0],
                gates,
                floor,
            )
            if result is not None:
                values.append(result[0])
                parts.append(result[1])
        return values, torch.cat(parts, 1).sum(1) if parts else None

    @cached_property
    def _enumerations(self) -> dict[int, Enumeration]:
        return enumerations(self.plan)

    @cached_property
    def _levels(self) -> tuple[dict[int, int], dict[int, int]]:
        """For each site the level at which it is evaluated, and that at which it is drawn.

        What is summed out is never drawn. A mixture waits for all earlier elements of its components.
        """
        plan = self.plan
        summed, mixed = set(plan.populations.sites), set(plan.populations.readers)
        components = self._components()
        evaluated: dict[int, int] = {}
        drawn: dict[int, int] = {}
        ready: dict[int, int] = {}
        floor: dict[tuple[int, int], int] = {}
        for index, site in enumerate(plan.program.sites):
            if site.observed or not site.size:
                continue
            parents = plan.parents[index]
            level = evaluated[index] = 1 + max((drawn[p] for p in parents if p not in summed), default=-1)
            if index in summed or index in mixed:
                level = max([level, *(ready[parent] for parent in parents if parent in summed)])
                level = max([level, *(floor.get(key, 0) for key in components.get(index, ()))])
                floor.update(dict.fromkeys(components.get(index, ()), level))
            if index in summed:
                ready[index] = level
            else:
                drawn[index] = level
        return evaluated, drawn

    def _components(self) -> dict[int, set[tuple[int, int]]]:
        """For each mixed or summed-out site the bundles and copies that its elements are in."""
        sites = {kernel.number: np.asarray(kernel.held.sites) for kernel in self.plan.kernels}
        found: dict[int, set[tuple[int, int]]] = {}
        for place, bundle in enumerate(self.plan.elimination.bundles):
            for number, positions in zip(bundle.kernels, bundle.positions, strict=True):
                rows = positions // len(self._enumerations[number].scopes.elements)
                for copy, site in enumerate(sites[number][rows].tolist()):
                    found.setdefault(site, set()).add((place, copy))
        return found

    @cached_property
    def _groups(self) -> list[Group]:
        evaluated, drawn = self._levels
        return group_draws(self.plan, self._enumerations, evaluated, drawn, self._pieces)

    @cached_property
    def _schedule(self) -> list[Stage]:
        plan = self.plan
        evaluated, drawn = self._levels
        draws = [draw for group in self._groups for draw in group.draws]
        count = 1 + max([*evaluated.values(), *drawn.values(), *(draw.level for draw in draws)])
        rows = plan.rows()
        stages: list[dict[int, list[int]]] = [{} for _ in range(count)]
        kernels: dict[int, Kernel] = {}
        for index, level in evaluated.items():
            kernel, row = rows[index]
            kernels[kernel.number] = kernel
            stages[level].setdefault(kernel.number, []).append(row)
        by_level: list[list[Draw]] = [[] for _ in range(count)]
        for draw in draws:
            by_level[draw.level].append(draw)
        scratch = np.zeros(plan.layout.columns.shape, dtype=np.int64)
        result = []
        for level, (stage, held) in enumerate(zip(stages, by_level, strict=True)):
            items = tuple(self._item(kernels[key], chosen, scratch, level) for key, chosen in stage.items())
            columns = [draw.columns.positions for draw in held if draw.mixed]
            noise = Picker(np.concatenate([*columns, np.zeros(0, dtype=np.int64)]))
            result.append(Stage(items, tuple(held), noise, tuple(_assemblies(draw for draw in held if draw.mixed))))
        return result

    def _item(self, kernel: Kernel, chosen: list[int], scratch: Addresses, level: int) -> Item:
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
        view = kernel.view(chosen, scratch)
        held = self._enumerations.get(kernel.number)
        if held is None:
            return Item(kernel, view, tuple(sources), None)
        return Item(kernel, held.view(view), tuple(sources), (kernel.number, level))


def _assemblies(draws: Iterable[Draw]) -> list[_Assembly]:
    """How the sites of a level come out of its draws."""
    parts: dict[int, list[tuple[int, tuple[int, ...] | None]]] = {}
    places: dict[int, list[int]] = {}
    for number, draw in enumerate(draws):
        sites, elements = draw.sites.T.tolist()
        lanes: dict[int, list[int]] = {}
        for lane, site in enumerate(sites):
            lanes.setdefault(site, []).append(lane)
            places.setdefault(site, []).append(elements[lane])
        for site, chosen in lanes.items():
            parts.setdefault(site, []).append((number, tuple(chosen) if len(lanes) > 1 else None))
    return [_Assembly(site, tuple(held), Picker(np.argsort(places[site]))) for site, held in parts.items()]


def _flat(value: Tensor, dims: int, item: Item) -> Tensor:
    """Parameters ``[B or 1, n or 1, *batch, K, *event]`` as ``[B or 1, elements or 1, K, *event]``."""
    if math.prod(value.shape[1 : 1 + dims]) == 1:
        return value.reshape(value.shape[0], 1, *value.shape[1 + dims :])
    batch = item.kernel.held.shape[: dims - 1]
    full = value.expand(value.shape[0], len(item.view.rows), *batch, *value.shape[1 + dims :])
    return full.reshape(value.shape[0], len(item.view.rows) * math.prod(batch), *value.shape[1 + dims :])


def _join(sources: tuple[int, ...], drawn: Mapping[int, Tensor], noise: Tensor) -> Tensor:
    """Values ``[B, W]`` of the source sites side by side."""
    if len(sources) == 1:
        return drawn[sources[0]]
    return torch.cat([drawn[index] for index in sources], -1) if sources else noise[:, :0]
