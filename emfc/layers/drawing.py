"""The sampling direction of an optimised plan: examples from noise, stage by stage."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emfc.layers.cells import PolynomialLoop
from emfc.layers.chains import Chain
from emfc.layers.columns import Columns
from emfc.layers.divide import divided
from emfc.layers.drawn import Drawn, Pieces, draw, rows_view
from emfc.layers.latents import Gates
from emfc.layers.loops import Loop
from emfc.layers.plan import Plan
from emfc.layers.planning import make_plan
from emfc.layers.readers import Picker
from emfc.layers.sampling import Sampling
from emfc.layers.schedule import Nodes, Stage, schedule
from emfc.program.ir import Addresses

__all__ = ["Drawing"]


class Runner(Protocol):
    """A stage ready to be drawn: it says which columns it draws and returns their values."""

    columns: Addresses

    def __call__(self, drawn: Drawn) -> Tensor:
        """Values ``[B or 1, W]`` of the stage; log-Jacobians are added to `drawn`."""
        ...

    def describe(self) -> str:
        """What the stage does, in words."""
        ...


class Batch:
    """A class whose rows do not read one another: all rows at once."""

    def __init__(self, nodes: Nodes, stage: Stage, pieces: Pieces) -> None:
        (self._number,) = stage.numbers
        self._kernel = nodes.kernels[self._number]
        self._virtual = nodes.virtual[self._number]
        self._sources, layout = pieces.sources(self._kernel.held.addresses)
        own = nodes.columns[self._number]
        self._view = rows_view(nodes, self._number, np.arange(len(own)), layout)
        self._shape = own.shape
        self.columns = own.reshape(-1)

    def __call__(self, drawn: Drawn) -> Tensor:
        """Values ``[B or 1, W]``."""
        parameters = self._kernel.parameters(self._sources(drawn), self._view)
        if self._virtual:
            value = parameters["value"]
            return value.expand(len(value), *self._shape).reshape(len(value), len(self.columns))
        return draw(drawn, self._kernel, self._view, parameters).reshape(len(drawn.noise), len(self.columns))

    def describe(self) -> str:
        """In words."""
        return f"{self._shape[0]} x {_title(self._kernel.held.specification.title, virtual=self._virtual)} at once"


class Ungated:
    """A stage that has a way of its own in layers without gates; with gates its rows are drawn in a loop."""

    def __init__(self, plain: Runner, loop: Loop) -> None:
        self._plain, self._loop = plain, loop
        self.columns = plain.columns
        places = np.argsort(loop.columns)
        self._order = Picker(places[np.searchsorted(loop.columns[places], plain.columns)])

    def __call__(self, drawn: Drawn) -> Tensor:
        """Values ``[B or 1, W]``."""
        return self._plain(drawn) if drawn.gates.values is None else self._order(self._loop(drawn))

    def describe(self) -> str:
        """In words."""
        return self._plain.describe()


def _title(title: str, *, virtual: bool) -> str:
    return "carried value" if virtual else title


class Drawing:
    """Examples from noise, in as few operations as the graph of classes allows.

    It gives the numbers of `Sampling`, to rounding. Classes that do not feed themselves are drawn at once, chains that
    are affine in their own values by a scan, all others in a loop over levels with straight-line code for each class.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._columns: dict[bool, Columns] = {}  # what noise is taken at once, without and with gates

    def __getstate__(self) -> dict[str, Any]:
        """The plan: stages are made again where they are needed, since they hold written functions."""
        return {"plan": self.plan, "_columns": {}}

    def _taken(self, pickers: list[Picker]) -> Columns:
        """The columns of the noise that one call asked for."""
        positions = np.concatenate([picker.positions.reshape(-1) for picker in pickers])
        every = len(positions) == self.plan.noise_dim == len(np.unique(positions))
        return Columns(pickers, covering=len(pickers) if every else 0)

    def __call__(self, noise: Tensor, parameters: Tensor, gates: Gates) -> tuple[Tensor, Tensor]:
        """Examples ``[B, D]`` of noise ``[B, N]`` and the log-Jacobian ``[B]``."""
        if noise.dtype not in (torch.float32, torch.float64):
            return self._reference(noise, parameters, gates)
        drawn = Drawn(noise, parameters, gates)
        values = self._values(drawn)
        if drawn.ladj is None:
            raise RuntimeError("a plan has at least one kernel")
        return values, drawn.ladj

    def values(self, noise: Tensor, parameters: Tensor, gates: Gates) -> Tensor:
        """Examples ``[B, D]`` alone, which cost less."""
        if noise.dtype not in (torch.float32, torch.float64):
            return self._reference(noise, parameters, gates)[0]
        return self._values(Drawn(noise, parameters, gates, wanted=False))

    def _values(self, drawn: Drawn) -> Tensor:
        noise, gates = drawn.noise, drawn.gates
        columns = self._columns.get(gates.values is None)
        if columns is not None and noise.requires_grad and torch.is_grad_enabled():
            held = zip(columns.pickers, columns(noise), strict=True)
            drawn.taken = {id(picker): part for picker, part in held}
        for runner in self._runners:
            drawn.pieces.append(runner(drawn))
        if columns is None:
            self._columns[gates.values is None] = self._taken(drawn.asked)
        kept = [drawn.pieces[place] for place in self._kept]
        joined = kept[0] if len(kept) == 1 else torch.cat([piece.expand(len(noise), -1) for piece in kept], -1)
        return self._order(joined)

    @cached_property
    def _reference(self) -> Sampling:
        plan = self.plan
        return Sampling(make_plan(plan.program, passes=("classify",)) if plan.virtuals else plan)

    @cached_property
    def _nodes(self) -> Nodes:
        return divided(self.plan)

    @cached_property
    def _runners(self) -> tuple[Runner, ...]:
        nodes = self._nodes
        pieces = Pieces(nodes)
        runners = []
        for stage in schedule(nodes):
            runner = self._runner(nodes, stage, pieces)
            pieces.append(runner.columns)
            runners.append(runner)
        return tuple(runners)

    @staticmethod
    def _runner(nodes: Nodes, stage: Stage, pieces: Pieces) -> Runner:
        if not stage.recursive:
            return Batch(nodes, stage, pieces)
        chain = Chain.find(nodes, stage, pieces)
        if chain is not None and chain.gates_well():
            return chain
        found = PolynomialLoop.find(nodes, stage, pieces) if chain is None else chain
        loop = Loop(nodes, stage, pieces)
        return loop if found is None else Ungated(found, loop)

    @cached_property
    def _kept(self) -> tuple[int, ...]:
        """Stages that draw a value of the example."""
        dim = self._nodes.dim
        return tuple(place for place, runner in enumerate(self._runners) if (runner.columns < dim).any())

    @cached_property
    def _order(self) -> Picker:
        """Puts the stages' values, side by side, into the order of an example."""
        columns = np.concatenate([self._runners[place].columns for place in self._kept])
        positions = np.zeros(len(self._nodes.owner), dtype=np.int64)
        positions[columns] = np.arange(len(columns))
        return Picker(positions[: self._nodes.dim])

    def describe(self) -> list[str]:
        """What each stage does, in words, one line for each."""
        return [runner.describe() for runner in self._runners]
