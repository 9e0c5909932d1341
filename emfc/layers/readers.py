"""Readers: how a kernel gets the values that its slice loads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.layers.batching import cast
from emfc.program.ir import Addresses, Program
from emfc.special.precision import eager

__all__ = ["Environment", "Layout", "Picker", "Reader"]


def _lasting() -> bool:
    """Whether a tensor made now may be kept: not where it is a wrapper of a function transform or of inference mode."""
    return eager() and not torch.is_inference_mode_enabled()


@dataclass(frozen=True, eq=False)
class Environment:
    """The values that kernels read.

    Attributes:
        values: Site values ``[B, W]``: whole examples in the density direction, the sources of one level when sampling.
        parameters: All program parameters, constrained and flat, ``[P]``.
        configurations: Joint values of the summed-out sites ``[K, Z]``.
        virtual: Values of the virtual nodes ``[B or 1, V]``, at ``Layout.virtual``.
    """

    values: Tensor
    parameters: Tensor
    configurations: Tensor | None = None
    virtual: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device


@dataclass(eq=False)
class Picker:
    """Columns of a matrix, in the shape of an index array; a regular pattern is a view instead of a gather.

    Attributes:
        positions: The columns.
        shape: Of the index array, as numbers that a compiled program reads.
        size: How many columns.
        start: First column of a regular pattern.
        step: Distance of its columns; 0 where there is no such pattern.
        outer: Distance of its rows where each row is a run of `width` neighbours; 0 where there is no such pattern.
    """

    positions: Addresses
    _cache: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)
    start: int = 0
    step: int = 0
    outer: int = 0
    width: int = 1
    shape: tuple[int, ...] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.shape, self.size = self.positions.shape, self.positions.size
        flat = self.positions.reshape(-1)
        steps = np.unique(np.diff(flat))
        if flat.size == 1:
            self.start, self.step = int(flat[0]), 1
        elif flat.size and steps.size == 1 and steps[0] > 0:
            self.start, self.step = int(flat[0]), int(steps[0])
        elif flat.size and self.positions.ndim > 1 and self.positions.shape[0] > 1:
            rows = self.positions.reshape(len(self.positions), -1)
            outer, run = int(rows[1, 0] - rows[0, 0]), np.arange(rows.shape[1])
            if outer > 0 and (rows == rows[0, 0] + outer * np.arange(len(rows))[:, None] + run).all():
                self.start, self.outer, self.width = int(flat[0]), outer, rows.shape[1]

    def __call__(self, matrix: Tensor) -> Tensor:
        """``[*, W]`` -> ``[*, *positions.shape]``."""
        if self.step:
            size = self.size
            if self.step == 1:
                taken = matrix if size == matrix.shape[-1] else matrix.narrow(-1, self.start, size)
            else:
                taken = matrix[..., self.start : self.start + self.step * (size - 1) + 1 : self.step]
            if len(self.shape) < 2:
                return taken if self.shape else taken.squeeze(-1)
            shaped: Tensor = taken.unflatten(-1, self.shape)
            return shaped
        shape = matrix.shape[:-1] + self.shape
        if self.outer:
            return self._rows(matrix).reshape(shape)
        index = self._index(matrix.device)
        if matrix.dtype == torch.float64 and matrix.is_cpu and eager():  # where selection has no fast way
            return matrix.gather(-1, index.expand(*matrix.shape[:-1], -1)).reshape(shape)
        return matrix.index_select(-1, index).reshape(shape)

    def _rows(self, matrix: Tensor) -> Tensor:
        span = self.outer * (self.shape[0] - 1) + self.width
        rows: Tensor = matrix.narrow(-1, self.start, span).unfold(-1, self.width, self.outer)
        return rows

    def _index(self, device: torch.device) -> Tensor:
        index = self._cache.get(device)
        if index is None:
            index = torch.from_numpy(self.positions.reshape(-1).copy()).to(device)
            if _lasting():
                self._cache[device] = index
        return index

    def put(self, matrix: Tensor, part: Tensor, *, add: bool) -> None:
        """Write what would be picked into its columns, in place.

        Args:
            matrix: ``[*, W]``.
            part: ``[*, *positions.shape]``.
            add: Add to what is there; otherwise the columns must differ.
        """
        if self.step:
            size = self.size
            if self.step == 1:
                target = matrix.narrow(-1, self.start, size)
            else:
                target = matrix[..., self.start : self.start + self.step * (size - 1) + 1 : self.step]
            part = part if part.ndim == target.ndim else part.reshape(target.shape)
        elif self.outer >= self.width:
            target = self._rows(matrix)
            part = part.reshape(target.shape)
        else:
            index = self._index(matrix.device)
            part = part.reshape(*matrix.shape[:-1], len(index))
            if add:
                matrix.index_add_(-1, index, part)
            else:
                matrix.scatter_(-1, index.expand(part.shape), part)
            return
        if add:
            target.add_(part)
        else:
            target.copy_(part)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the addresses of a program stand: the column of each site element in an example, of each latent, of each
    parameter.

    Attributes:
        columns: For each address from ``site_base`` to ``instruction_base`` its column in the example, -1 where it
            has none.
        latents: Ascending addresses of the summed-out values.
        virtual: For each address from ``instruction_base`` on its column among the values of the virtual nodes, -1
            where it has none.
    """

    program: Program
    columns: Addresses
    latents: Addresses
    virtual: Addresses = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class Reader:
    """Reads one load for some rows of a class: ``[n, *shape]`` values out of an environment.

    The result is ``[B or 1, n or 1, *shape]``, with a configuration dimension ``K or 1`` after the first one when the
    environment has configurations.
    """

    def __init__(self, addresses: Addresses, kind: str, layout: Layout, columns: Addresses | None = None) -> None:
        """Prepare to read.

        Args:
            addresses: Addresses ``[n, *shape]``.
            kind: Dtype kind of the load.
            layout: Of the program.
            columns: Columns that replace the layout's: those of the sources of one level.
        """
        program = layout.program
        self.kind = kind
        columns = layout.columns if columns is None else columns
        masks = self._kinds(addresses, layout)
        uniform = [name for name, mask in masks.items() if mask.all()]
        self.mixed = not uniform
        present = uniform[:1] or [name for name, mask in masks.items() if mask.any()]
        self.constant: npt.NDArray[np.float64] | None = None
        self.pickers: dict[str, Picker] = {}
        self.masks = {name: masks[name] for name in present}
        for name in present:
            safe = np.where(masks[name], addresses, -1)
            if name == "constant":
                self.constant = np.where(masks[name], program.constant_values[np.maximum(safe, 0)], 0.0)
            elif name == "parameter":
                self.pickers[name] = Picker(np.where(masks[name], addresses - program.parameter_base, 0))
            elif name == "latent":
                self.pickers[name] = Picker(
                    np.searchsorted(layout.latents, np.where(masks[name], addresses, layout.latents[0]))
                )
            elif name == "virtual":
                held = layout.virtual[np.maximum(safe - program.instruction_base, 0)]
                self.pickers[name] = Picker(np.where(masks[name], held, 0))
            else:
                self.pickers[name] = Picker(np.where(masks[name], columns[np.maximum(safe - program.site_base, 0)], 0))
        self._cache: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._mask_cache: dict[tuple[torch.device, str], Tensor] = {}

    @staticmethod
    def _kinds(addresses: Addresses, layout: Layout) -> dict[str, npt.NDArray[np.bool_]]:
        program = layout.program
        latent = (
            np.isin(addresses, layout.latents) if layout.latents.size else np.zeros(addresses.shape, dtype=np.bool_)
        )
        constant = addresses < program.parameter_base
        parameter = ~constant & (addresses < program.site_base)
        virtual = np.asarray(addresses >= program.instruction_base)
        return {
            "constant": np.asarray(constant),
            "parameter": np.asarray(parameter),
            "latent": latent,
            "site": np.asarray(~constant & ~parameter & ~latent & ~virtual),
            "virtual": virtual,
        }

    def __call__(self, environment: Environment) -> Tensor:
        """The values, in the environment's dtype and device."""
        parts = {name: self._part(name, environment) for name in self.masks}
        names = list(parts)
        result = parts[names[0]]
        for name in names[1:]:
            result = torch.where(self._mask(name, environment), parts[name], result)
        return result

    def _part(self, name: str, environment: Environment) -> Tensor:
        configured = environment.configurations is not None
        if name == "constant":
            return self._constant(environment, configured)
        if name == "parameter":
            held = self.pickers[name](environment.parameters)
            return cast(held[None, None] if configured else held[None], self.kind, environment.dtype)
        if name == "latent":
            if environment.configurations is None:
                raise RuntimeError("a summed-out value was read without configurations")
            return cast(self.pickers[name](environment.configurations)[None], self.kind, environment.dtype)
        if name == "virtual":
            if environment.virtual is None:
                raise RuntimeError("a virtual node was read before it was computed")
            held = self.pickers[name](environment.virtual)
        else:
            held = self.pickers[name](environment.values)
        return cast(held.unsqueeze(1) if configured else held, self.kind, environment.dtype)

    def _constant(self, environment: Environment, configured: bool) -> Tensor:
        key = (environment.device, environment.dtype)
        held = self._cache.get(key)
        if held is None:
            kind = "float" if self.mixed else self.kind
            values = torch.as_tensor(self.constant, dtype=torch.float64)
            held = cast(values, kind, environment.dtype).to(environment.device)[None]
            if _lasting():
                self._cache[key] = held
        return held[None] if configured else held

    def _mask(self, name: str, environment: Environment) -> Tensor:
        key = (environment.device, name)
        held = self._mask_cache.get(key)
        if held is None:
            held = torch.as_tensor(self.masks[name], device=environment.device)[None]
            if _lasting():
                self._mask_cache[key] = held
        return held
