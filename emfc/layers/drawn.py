"""What the stages of sampling share: the values drawn so far, and how a stage reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from emfc.layers.kernel import Kernel, View
from emfc.layers.latents import Gates, accumulate
from emfc.layers.readers import Environment, Layout, Picker, Reader
from emfc.layers.schedule import Nodes
from emfc.passes.slices import Load
from emfc.program.ir import Addresses
from emfc.program.specification import build
from emfc.transforms import NormalTransform, from_normal
from emfc.transforms.affine import NormalAffine

__all__ = ["Drawn", "Pieces", "Sources", "draw", "family_transform", "rows_view"]


@dataclass(eq=False)
class Drawn:
    """One call of the sampling direction, as far as it has come.

    Attributes:
        noise: ``[B, N]``.
        parameters: All program parameters, constrained and flat.
        gates: Of the layer.
        pieces: Values of each stage done, side by side ``[B or 1, W]``.
        ladj: Log-Jacobian ``[B]`` so far.
        taken: Noise that was taken out before, by the identity of its picker.
        asked: Pickers of noise, in the order in which they were asked for.
        wanted: Whether log-Jacobians are.
    """

    noise: Tensor
    parameters: Tensor
    gates: Gates
    pieces: list[Tensor] = field(default_factory=list)
    ladj: Tensor | None = None
    taken: dict[int, Tensor] = field(default_factory=dict)
    asked: list[Picker] = field(default_factory=list)
    wanted: bool = True

    def noise_of(self, picker: Picker) -> Tensor:
        """Some columns of the noise ``[B, *positions.shape]``."""
        self.asked.append(picker)
        held = self.taken.get(id(picker))
        return picker(self.noise) if held is None else held

    def add(self, ladj: Tensor, value: Tensor | None = None) -> None:
        """Add log-Jacobians as `accumulate` does."""
        self.ladj = accumulate(self.ladj, ladj, value)


class Pieces:
    """Where the values of the stages stand: for each column of `Nodes` its stage and its place there."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.columns: list[Addresses] = []
        self._stage = np.full(len(nodes.owner), -1, dtype=np.int64)
        self._place = np.zeros(len(nodes.owner), dtype=np.int64)
        self._sites = np.zeros(nodes.layout.columns.shape, dtype=np.int64)
        self._virtual = np.zeros(nodes.layout.virtual.shape, dtype=np.int64)

    def append(self, columns: Addresses) -> None:
        """Say which columns the next stage draws, in order."""
        flat = columns.reshape(-1)
        self._stage[flat] = len(self.columns)
        self._place[flat] = np.arange(flat.size)
        self.columns.append(flat)

    def sources(self, addresses: Iterable[Addresses]) -> tuple[Sources, Layout]:
        """How to read some addresses of earlier stages, and the layout for readers made next (not for later ones)."""
        nodes = self.nodes
        found = [nodes.of(held) for held in addresses]
        wanted = (
            np.unique(np.concatenate([held[held >= 0] for held in found])) if found else np.zeros(0, dtype=np.int64)
        )
        wanted = wanted[self._stage[wanted] >= 0]
        stages, places = self._stage[wanted], self._place[wanted]
        positions = np.zeros(wanted.shape, dtype=np.int64)
        parts: list[tuple[int, Picker | None]] = []
        offset = 0
        for stage in np.unique(stages).tolist():
            chosen = stages == stage
            width = len(self.columns[stage])
            if 2 * int(chosen.sum()) >= width:
                positions[chosen] = offset + places[chosen]
                parts.append((stage, None))
                offset += width
            else:
                used = np.unique(places[chosen])
                positions[chosen] = offset + np.searchsorted(used, places[chosen])
                parts.append((stage, Picker(used)))
                offset += len(used)
        address = nodes.address[wanted]
        virtual = wanted >= nodes.dim
        self._sites[address[~virtual] - nodes.program.site_base] = positions[~virtual]
        self._virtual[address[virtual] - nodes.program.instruction_base] = positions[virtual]
        layout = replace(nodes.layout, columns=self._sites, virtual=self._virtual)
        return Sources(tuple(parts)), layout


@dataclass(frozen=True, eq=False)
class Sources:
    """Earlier stages that a stage reads, each whole or by some columns."""

    parts: tuple[tuple[int, Picker | None], ...]

    def __call__(self, drawn: Drawn) -> Environment:
        """The environment in which they stand side by side."""
        held = [drawn.pieces[stage] if picker is None else picker(drawn.pieces[stage]) for stage, picker in self.parts]
        if not held:
            values = drawn.noise[:, :0]
        elif len(held) == 1:
            values = held[0]
        else:
            rows = max(len(piece) for piece in held) if len(drawn.noise) else 0
            values = torch.cat([piece.expand(rows, -1) for piece in held], -1)
        return Environment(values, drawn.parameters, virtual=values)


def rows_view(
    nodes: Nodes, number: int, rows: Addresses, layout: Layout, replaced: Mapping[int, Addresses] | None = None
) -> View:
    """Readers of some rows of a class.

    Args:
        nodes: Of the program.
        number: Of the class.
        rows: Which rows.
        layout: Where the values stand that they read.
        replaced: Other addresses ``[n or 1, *shape]`` for some loads, by their position among the loads.
    """
    kernel = nodes.kernels[number]
    loads = [value for value in kernel.held.slice.values if isinstance(value, Load)]
    readers = []
    for place, (addresses, load) in enumerate(zip(kernel.held.addresses, loads, strict=True)):
        held = replaced[place] if replaced is not None and place in replaced else addresses
        readers.append(Reader(held if len(held) == 1 else held[rows], load.dtype, layout))
    own, noise = kernel.own[rows], kernel.noise[rows] if not nodes.virtual[number] else kernel.noise
    return View(tuple(rows.tolist()), tuple(readers), Picker(own), Picker(noise))


def family_transform(kernel: Kernel, parameters: Mapping[str, Tensor]) -> NormalTransform:
    """The transform of a class from its distribution parameters."""
    if kernel.held.specification.family == "Normal":
        return NormalAffine(parameters["loc"], parameters["scale"])
    return from_normal(build(kernel.held.specification, parameters))


def draw(drawn: Drawn, kernel: Kernel, view: View, parameters: Mapping[str, Tensor]) -> Tensor:
    """Values ``[B, n, *shape]`` of some rows of a class of sites; their log-Jacobian is added to what is drawn."""
    transform = drawn.gates.apply(family_transform(kernel, parameters), view.noise)
    noise = drawn.noise_of(view.noise)
    if not drawn.wanted:
        return cast(Tensor, transform(noise))
    value, ladj = transform.call_and_ladj(noise)
    constant = transform.constant_ladj
    if constant is None:
        drawn.add(ladj)
    else:
        drawn.add(constant, value)
    return value
