"""Chains: classes whose rows follow one another affinely, solved for all rows at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emfc.layers.affine import Linear, linear
from emfc.layers.columns import direct
from emfc.layers.drawn import Drawn, Pieces, draw, rows_view
from emfc.layers.paths import Directions, Paths, find_directions, find_paths
from emfc.layers.readers import Environment, Layout, Reader
from emfc.layers.scan import Block, factor, solve
from emfc.layers.schedule import Nodes, Stage
from emfc.passes.slices import Load
from emfc.special.precision import eager

__all__ = ["Chain"]

_LOCATIONS = frozenset("Normal MultivariateNormal Laplace Cauchy StudentT Gumbel SoftLaplace AsymmetricLaplace".split())
_GATED = frozenset(("Normal", "MultivariateNormal"))  # their gates keep a location a location
_MANY = 64  # examples that a recurrence of fixed coefficients is laid out for


class Chain:
    r"""A class of a location family whose location is affine in earlier values of the same class.

    .. math:: x_t = \ell_t(0) + \sum_k A_{t,k} x_{t-k} + s_t(e_t)

    Coefficients and spreads may depend on parameters and on all that was drawn before. Where the one coefficient is
    the number 1, values are cumulative sums.
    """

    def __init__(
        self, nodes: Nodes, number: int, pieces: Pieces, paths: Paths, found: Directions, held: Linear
    ) -> None:
        """Prepare a class; see `Chain.find`."""
        self._kernel, self._virtual = nodes.kernels[number], nodes.virtual[number]
        self._paths, self._directions, self._linear = paths, found, held
        addresses = self._kernel.held.addresses
        self._sources, layout = pieces.sources(addresses)
        nothing = {place: np.zeros_like(addresses[place][:1]) for place in found.loads}
        self._view = rows_view(nodes, number, paths.order, layout, nothing)
        self._shape = self._kernel.held.shape
        self._size = int(np.prod(self._shape, dtype=np.int64))
        self.columns = nodes.columns[number][paths.order].reshape(-1)
        mask = found.own & (found.lag > 0)
        needed = ~mask & (found.lag > 0) & (paths.joined | (paths.position[:, None] >= found.lag))
        self._mask = mask if needed.any() else None
        self._entering(nodes, layout)
        taken = self._kernel.code.function(held.operands, 2, torch.float64).taken
        self._steady = all(addresses[place].max(initial=0) < nodes.program.parameter_base for place in taken)
        self._held: dict[tuple[torch.dtype, torch.device], tuple[Tensor, tuple[Block, ...] | None]] = {}

    @staticmethod
    def find(nodes: Nodes, stage: Stage, pieces: Pieces) -> Chain | None:
        """The chain that a stage is, or None where it is none."""
        if len(stage.numbers) > 1:
            return None
        (number,) = stage.numbers
        kernel = nodes.kernels[number]
        held, virtual = kernel.held, nodes.virtual[number]
        outputs = dict(zip(held.paths, held.slice.outputs, strict=True))
        if not virtual and (held.specification.family not in _LOCATIONS or held.specification.children):
            return None
        name = "value" if virtual else "loc"
        target = outputs[name]
        numbers = [first for first, _ in nodes.load_values(number)]
        inside = [
            first
            for first, columns in zip(numbers, nodes.loads[number], strict=True)
            if (nodes.owner[columns[columns >= 0]] == number).any()
        ]
        found = linear(held.slice, inside, target)
        others = {other for path, other in outputs.items() if path != name}  # one tensor may be two parameters
        floats = all(kind == "float" for kind in kernel.kinds)
        if found is None or not floats or not others.isdisjoint(held.slice.dependent(inside)):
            return None
        paths = find_paths(nodes, number)
        directions = None if paths is None else find_directions(nodes, number, paths, elementwise=found.pointwise)
        if paths is None or directions is None:
            return None
        return Chain(nodes, number, pieces, paths, directions, found)

    def gates_well(self) -> bool:
        """Whether a gated layer's rows still are a chain."""
        return self._virtual or self._kernel.held.specification.family in _GATED

    def _entering(self, nodes: Nodes, layout: Layout) -> None:
        """Find the rows that read values from before the chain."""
        found = self._directions
        own = found.own.reshape(found.own.shape + (1,) * (found.addresses.ndim - 2))
        constants = nodes.program.constant_values
        fixed = found.addresses < len(constants)
        zero = fixed & (constants[np.where(fixed, found.addresses, 0)] == 0)
        outside = ~own & ~zero
        self._rows = np.flatnonzero(outside.reshape(len(outside), -1).any(1))
        read = np.where(own, 0, found.addresses)[self._rows]
        self._entered = Reader(read, "float", layout) if len(self._rows) else None

    # ------------------------------------------------------------------ drawing

    def __call__(self, drawn: Drawn) -> Tensor:
        """Values ``[B or 1, W]``."""
        environment = self._sources(drawn)
        gates = None if self._virtual or drawn.gates.values is None else drawn.gates.pick(self._view.noise)
        offsets, gates, fresh = self._offsets(drawn, environment, gates)
        slopes, blocks = self._slopes(environment, gates)
        offsets = self._enter(offsets, slopes, environment, fresh=fresh)
        values = self._sums(offsets) if blocks is None else self._solved(offsets, blocks)
        return values.reshape(len(values), self._paths.order.size * self._size)

    def _offsets(
        self, drawn: Drawn, environment: Environment, gates: Tensor | None
    ) -> tuple[Tensor, Tensor | None, bool]:
        """What is added to each row ``[B or 1, n, *shape]``, its location's factor, whether it may change."""
        parameters = self._kernel.parameters(environment, self._view)
        full = (self._paths.order.size, *self._shape)
        if self._virtual:
            value = parameters["value"]
            return value.expand(len(value), *full), None, False
        if self._kernel.held.specification.family != "Normal":
            return draw(drawn, self._kernel, self._view, parameters), gates, False
        noise, scale = drawn.noise_of(self._view.noise), parameters["scale"]
        added: Tensor | None = None
        if gates is not None:
            gates, added, scale = drawn.gates.normal(scale, gates)
        if drawn.wanted:
            drawn.add(scale.log(), noise)
        offsets = scale * noise if added is None else torch.addcmul(added, scale, noise)
        if self._linear.target not in self._linear.homogeneous:
            loc = parameters["loc"]
            offsets = offsets + (loc if gates is None else gates * loc)
        return offsets, gates, direct()

    def _enter(self, offsets: Tensor, slopes: Tensor, environment: Environment, *, fresh: bool) -> Tensor:
        """Add what values from before the chain contribute."""
        if self._entered is None:
            return offsets
        values = self._entered(environment)
        if not self._directions.elementwise:
            values = values.reshape(*values.shape, *[1] * len(self._shape))
        rows = torch.as_tensor(self._rows, device=offsets.device)
        held = slopes if slopes.shape[1] == 1 else slopes.index_select(1, rows)
        added = (held * values).sum(2)
        batch = torch.broadcast_shapes(offsets.shape[:1], added.shape[:1])
        added = added.expand(*batch, len(rows), *self._shape)
        if offsets.shape[:1] != batch:
            offsets, fresh = offsets.expand(*batch, *offsets.shape[1:]), False
        return offsets.index_add_(1, rows, added) if fresh else offsets.index_add(1, rows, added)

    # ------------------------------------------------------------------ coefficients

    def _slopes(self, environment: Environment, gates: Tensor | None) -> tuple[Tensor, tuple[Block, ...] | None]:
        """Derivatives of the location in each direction ``[B or 1, n or 1, J, *shape]``, and the recurrence.

        The recurrence is None where values are cumulative sums.
        """
        key = (environment.dtype, environment.device)
        if self._steady:
            held = self._held.get(key)
            if held is None:
                with torch.no_grad():
                    slopes = self._derivatives(environment)
                    held = (slopes, None if self._ones(slopes) else self._factored(slopes, _MANY))
                if eager() and not torch.is_inference_mode_enabled():
                    self._held[key] = held
            if gates is None:
                return held
            slopes = held[0]
        else:
            slopes = self._derivatives(environment)
        if gates is not None:
            slopes = slopes * gates.unsqueeze(2)
        return slopes, self._factored(slopes, len(environment.values))

    def _derivatives(self, environment: Environment) -> Tensor:
        found, held = self._directions, self._linear
        function = self._kernel.code.function(held.operands, 2, environment.dtype)
        operands = function.call(*[self._view.readers[place](environment) for place in function.taken])
        seeds, first = {}, 0
        every = [n for n, value in zip(held.held.numbers, held.held.values, strict=True) if isinstance(value, Load)]
        loads = [every[place] for place in found.loads]
        units = torch.eye(len(found.lag), dtype=environment.dtype, device=environment.device)
        for number, shape in zip(loads, self._load_shapes(), strict=True):
            if found.elementwise:
                seeds[number] = units[first].reshape(1, 1, -1, *[1] * len(shape))
                first += 1
            else:
                size = int(np.prod(shape, dtype=np.int64))
                seeds[number] = units[first : first + size].T.reshape(1, 1, -1, *shape)
                first += size
        return held.coefficients(seeds, operands, environment.dtype)

    def _load_shapes(self) -> list[tuple[int, ...]]:
        return [self._kernel.held.addresses[place].shape[1:] for place in self._directions.loads]

    def _ones(self, slopes: Tensor) -> bool:
        """Whether each row is the row before plus its offset."""
        found = self._directions
        chosen = found.lag > 0
        scalar = found.elementwise or self._size == 1
        if not scalar or self._mask is not None or chosen.sum() != 1 or int(found.lag.max()) != 1:
            return False
        return bool((slopes[:, :, int(np.flatnonzero(chosen)[0])] == 1).all())

    def _factored(self, slopes: Tensor, batch: int) -> tuple[Block, ...]:
        """The recurrence, with coefficients ``[B or 1, P or 1, S or 1, T or 1, p, d, d]``."""
        found, paths, size = self._directions, self._paths, self._size
        if self._mask is not None:
            mask = torch.as_tensor(self._mask, dtype=slopes.dtype, device=slopes.device)
            slopes = slopes * mask.reshape(1, *mask.shape, *[1] * len(self._shape))
        small = slopes.shape[3:].numel() == 1 and found.elementwise
        spread = slopes if small else slopes.expand(*slopes.shape[:3], *self._shape)
        flat = spread.flatten(3) if self._shape else spread.unsqueeze(-1)
        batch_size, rows, directions = flat.shape[:3]
        width = 1 if found.elementwise else size
        used = np.flatnonzero(found.lag > 0)
        places = np.zeros((directions, paths.lag * width))
        places[used, (found.lag[used] - 1) * width + (0 if found.elementwise else found.element[used])] = 1
        placed = flat.transpose(2, 3) @ torch.as_tensor(places, dtype=flat.dtype, device=flat.device)
        long = (1, 1) if rows == 1 else (paths.count, paths.order.size // paths.count)
        if found.elementwise:
            held = placed.reshape(batch_size, *long, flat.shape[3], paths.lag, 1, 1).transpose(2, 3)
        else:
            held = placed.reshape(batch_size, *long, 1, size, paths.lag, size).movedim((3, 5), (2, 4))
        return factor(held, paths.order.size // paths.count, batch * paths.count * (size if found.elementwise else 1))

    # ------------------------------------------------------------------ solving

    def _sums(self, offsets: Tensor) -> Tensor:
        paths = self._paths
        if paths.count == 1:
            return offsets.cumsum(1)
        length = paths.order.size // paths.count
        return offsets.reshape(len(offsets), paths.count, length, *self._shape).cumsum(2)

    def _solved(self, offsets: Tensor, blocks: tuple[Block, ...]) -> Tensor:
        count, length = self._paths.count, self._paths.order.size // self._paths.count
        held = offsets.reshape(len(offsets), count, length, self._size)
        if self._directions.elementwise:
            return solve(blocks, held.transpose(2, 3).unsqueeze(-1)).squeeze(-1).transpose(2, 3)
        return solve(blocks, held.unsqueeze(2)).squeeze(2)

    def describe(self) -> str:
        """In words."""
        title = "carried value" if self._virtual else self._kernel.held.specification.title
        count = "" if self._paths.count == 1 else f" in {self._paths.count} chains"
        return f"{self._paths.order.size} x {title}{count} by a scan of step {self._paths.lag}"
