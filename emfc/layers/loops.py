"""Loops: classes that feed one another, drawn level by level in straight-line code."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from emfc.layers.batching import cast
from emfc.layers.drawn import Drawn, Pieces, rows_view
from emfc.layers.fetches import Fetch, Fetches
from emfc.layers.readers import Environment, Layout
from emfc.layers.schedule import Nodes, Stage
from emfc.layers.straight import Prepared, Straight
from emfc.program.ir import Addresses
from emfc.program.specification import build
from emfc.transforms import from_normal

__all__ = ["Loop"]


class _Member:
    """One class of a loop: what is prepared for all its rows, and the code of one."""

    def __init__(self, nodes: Nodes, number: int, rows: Sequence[Addresses], stage: Stage, layout: Layout) -> None:
        self.number, self.kernel, self.virtual = number, nodes.kernels[number], nodes.virtual[number]
        self.sizes = [len(held) for held in rows]
        self.lead = 1 if all(len(group.rows) == 1 for group in stage.groups) else 2
        inside = set(stage.numbers)
        self.varying = [
            place
            for place, held in enumerate(nodes.loads[number])
            if inside.intersection(np.unique(nodes.owner[held[held >= 0]]).tolist())
        ]
        addresses = self.kernel.held.addresses
        ignored = {place: np.zeros_like(addresses[place][:1]) for place in self.varying}
        self.view = rows_view(nodes, number, np.concatenate(rows), layout, ignored)
        self._codes: dict[str | None, Straight] = {}
        self.code(gated=None)

    def code(self, *, gated: str | None) -> Straight:
        held = self._codes.get(gated)
        if held is None:
            held = self._codes[gated] = Straight(
                self.kernel, self.varying, self.lead, virtual=self.virtual, gated=gated
            )
        return held


class _Run:
    """One class during one call."""

    def __init__(self, member: _Member, drawn: Drawn, environment: Environment) -> None:
        self.member, self.drawn = member, drawn
        plain = drawn.gates.values is None or member.virtual
        self.gate = None if plain else drawn.gates.pick(member.view.noise)
        self.added: Tensor | None = None
        self.code = member.code(gated=None if self.gate is None else drawn.gates.form)
        self.noise = None if member.virtual else drawn.noise_of(member.view.noise)
        self.values = self._invariants(environment)
        self.scale: Tensor | None = None
        if self.code.scale is not None:
            self.scale = self.values[self.code.scale]
            if self.gate is not None:
                self.gate, self.added, self.scale = drawn.gates.normal(self.scale, self.gate)
        self.scales: list[Tensor] = []
        function = self.code.function(environment.dtype).call
        prepared = [self._prepared(item, environment) for item in self.code.prepared]
        self._rows = zip(*map(self._each, prepared), strict=False) if prepared else itertools.repeat(())
        self.step: Callable[..., Tensor] = getattr(self, f"_{self.code.results[-1]}")(function)

    def _invariants(self, environment: Environment) -> dict[int, Tensor]:
        """Values of the slice that do not depend on the loop, ``[B or 1, n or 1, *shape]``."""
        wanted = self.code.invariants()
        kinds = tuple((number, self.code.kind(number)) for number in wanted)
        function = self.member.kernel.code.function(kinds, 2, environment.dtype)
        readers = self.member.view.readers
        return dict(zip(wanted, function.call(*[readers[place](environment) for place in function.taken]), strict=True))

    def _prepared(self, item: Prepared, environment: Environment) -> Tensor:
        if item.kind == "value":
            held = cast(self.values[item.number], item.dtype, environment.dtype)
            return held.reshape(*held.shape[:2], *[1] * item.missing, *held.shape[2:])
        if item.kind == "number":
            rank = 2 + item.missing
            return torch.full((1,) * rank, item.constant, dtype=environment.dtype, device=environment.device)
        if item.kind == "noise":
            noise = self._noise()
            if self.scale is None:
                return noise
            return self.scale * noise if self.added is None else torch.addcmul(self.added, self.scale, noise)
        if self.gate is None:
            raise RuntimeError("a layer without gates has none to hand over")
        return self.gate if item.kind == "gate" else 1 - self.gate

    def _noise(self) -> Tensor:
        if self.noise is None:
            raise RuntimeError("a virtual node has no noise")
        return self.noise

    def _each(self, value: Tensor) -> Iterator[Tensor]:
        """A value ``[B or 1, n or 1, *shape]`` for each group."""
        if value.shape[1] == 1 and len(self.member.sizes) > 1:
            return itertools.repeat(value[:, 0] if self.member.lead == 1 else value)
        if self.member.lead == 1:
            return iter(value.transpose(0, 1).contiguous().unbind(0))
        return iter(value.split(self.member.sizes, 1) if value.shape[1] > 1 else (value,))

    # ------------------------------------------------------------------ one step, by what the code returns

    def _value(self, function: Callable[..., tuple[Tensor]]) -> Callable[..., Tensor]:
        rows = self._rows

        def step(*read: Tensor) -> Tensor:
            return function(*read, *next(rows))[0]

        return step

    def _scale(self, function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        rows, keep = self._rows, self.scales.append

        def step(*read: Tensor) -> Tensor:
            value, scale = function(*read, *next(rows))
            keep(scale)
            return value

        return step

    def _parameters(self, function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
        held, rows = self.member.kernel.held, self._rows
        noises = self._each(self._noise())
        gates = None if self.gate is None else self._each(self.gate)

        def step(*read: Tensor) -> Tensor:
            parameters = dict(zip(held.paths, function(*read, *next(rows)), strict=True))
            transform = from_normal(build(held.specification, parameters))
            if gates is not None:
                transform = self.drawn.gates.opened(transform, next(gates))
            value, ladj = transform.call_and_ladj(next(noises))
            self.drawn.add(ladj)
            return value

        return step

    def finish(self) -> None:
        """Add the log-Jacobians of a Normal, for all rows at once."""
        if not self.drawn.wanted:
            return
        if self.scale is not None:
            self.drawn.add(self.scale.log(), self.noise)
        elif self.scales:
            scales = self.scales
            if len({held.shape for held in scales}) > 1:
                shape = torch.broadcast_shapes(*(held.shape[:1] for held in scales))
                scales = [held.expand(*shape, *held.shape[1:]) for held in scales]
                if self.member.lead == 2:
                    scales = [
                        held.expand(-1, size, *held.shape[2:])
                        for held, size in zip(scales, self.member.sizes, strict=True)
                    ]
            stacked = torch.stack(scales, 1) if self.member.lead == 1 else torch.cat(scales, 1)
            self.drawn.add(stacked.log(), self.noise)


class Loop:
    """A stage whose rows read one another."""

    def __init__(self, nodes: Nodes, stage: Stage, pieces: Pieces) -> None:
        """Prepare a stage.

        Args:
            nodes: Of the program.
            stage: Classes that feed one another.
            pieces: The stages before.
        """
        self._lead = 1 if all(len(group.rows) == 1 for group in stage.groups) else 2
        kernels = [nodes.kernels[number] for number in stage.numbers]
        self._sources, layout = pieces.sources(held for kernel in kernels for held in kernel.held.addresses)
        rows: dict[int, list[Addresses]] = {number: [] for number in stage.numbers}
        for group in stage.groups:
            rows[group.number].append(group.rows)
        self._members = {number: _Member(nodes, number, rows[number], stage, layout) for number in stage.numbers}
        finder = Fetches(nodes, stage.groups, layout, self._lead)
        found = {
            number: [finder.of(number, place, rows[number]) for place in member.code(gated=None).varying]
            for number, member in self._members.items()
        }
        columns = {number: zip(*held, strict=True) for number, held in found.items()}
        self._steps: list[tuple[int, tuple[Fetch, ...]]] = [
            (group.number, next(columns[group.number], ())) for group in stage.groups
        ]
        self.columns = np.concatenate([nodes.columns[group.number][group.rows].reshape(-1) for group in stage.groups])
        self._scalars = self._lead == 1 and all(not kernel.held.shape for kernel in kernels)
        self._sizes = [(len(group.rows), *nodes.columns[group.number].shape[1:]) for group in stage.groups]

    def __call__(self, drawn: Drawn) -> Tensor:
        """Values ``[B or 1, W]``."""
        environment = self._sources(drawn)
        runs = {number: _Run(member, drawn, environment) for number, member in self._members.items()}
        steps = {number: run.step for number, run in runs.items()}
        values: list[Tensor] = []
        for number, fetches in self._steps:
            read = [values[held] if held.__class__ is int else held(values, environment) for held in fetches]  # type: ignore[operator]
            values.append(steps[number](*read))
        for run in runs.values():
            run.finish()
        return self._joined(values)

    def _joined(self, values: list[Tensor]) -> Tensor:
        batch = max(len(held) for held in values) if all(len(held) for held in values) else 0
        if self._scalars:
            return torch.stack([held if len(held) == batch else held.expand(batch) for held in values]).t()
        full = []
        for value, size in zip(values, self._sizes, strict=True):
            shape = size if self._lead == 2 else size[1:]
            spread = value.expand(batch, *shape)
            full.append(spread.flatten(1) if shape else spread.unsqueeze(-1))
        return torch.cat(full, -1)

    def describe(self) -> str:
        """In words."""
        titles = Counter(
            "carried value" if member.virtual else member.kernel.held.specification.title
            for member in self._members.values()
        )
        names = " and ".join(title if count == 1 else f"{count} kinds of {title}" for title, count in titles.items())
        count = sum(sum(member.sizes) for member in self._members.values())
        kind = "straight-line loop" if self._lead == 1 else "loop over levels"
        return f"{count} x {names} in a {kind} of {len(self._steps)} steps"
