r"""The log density of whole examples, class by class and without their noise.

The noise of a value costs its family's distribution function; the density does not need it. A class of normal sites is
a sum of squares: where one scale serves many sites, they are summed before they are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import ExpTransform

from emfc.layers.batching import cast
from emfc.layers.columns import Columns, direct
from emfc.layers.elements import by_element
from emfc.layers.kernel import Kernel, View
from emfc.layers.normal_groups import Term
from emfc.layers.normals import normal_sum
from emfc.layers.parameters import Parameters
from emfc.layers.pieces import in_pieces
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker, Reader
from emfc.layers.terms import site_log_density
from emfc.special.precision import eager

__all__ = ["LogDensity"]

_NORMAL = {("Normal", ("loc", "scale")), ("LogNormal", ("loc", "scale")), ("HalfNormal", ("scale",))}
_GROUPS = 8  # of sites in a class that are evaluated apart
_LEAST = 8  # sites in such a group, on average


class _Class:
    """Some sites of a class: what of their slice is wanted, and how their density is found."""

    def __init__(self, kernel: Kernel, view: View, *, given: bool) -> None:
        self.kernel = kernel
        self.view = view
        self.given = given
        held = kernel.held
        self.size = math.prod(held.shape) * len(view.rows)
        self.wanted = tuple(zip(held.slice.outputs, kernel.kinds, strict=True))
        self.family = held.specification.family
        self.loc: float | None = None
        self.term: Term | None = None
        if (self.family, held.paths) in _NORMAL:
            self._normal()

    def _normal(self) -> None:
        code = self.kernel.code
        *locs, (scale, kind) = self.wanted
        self.loc = code.literal(locs[0][0]) if locs else 0.0
        exponent = code.exponent(scale)
        scale = scale if exponent is None else exponent
        number = code.literal(scale)
        shift = self.size * math.log(2) if self.family == "HalfNormal" else 0.0
        self.term = Term(self.size, exponent is not None, number, shift)
        self.wanted = (*(locs if self.loc is None else ()), *([(scale, kind)] if number is None else ()))

    def coordinate(self, own: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is normal of the values of a normal class, and what ``[B]`` is added to the log density for it."""
        if self.family == "Normal":
            return own, None
        low = own > 0 if self.family == "LogNormal" else own >= 0
        if not eager():
            outside = torch.where(low.flatten(1).all(-1), 0.0, -torch.inf).to(own.dtype)
            own = torch.where(low, own, 1)
        elif not bool(low.all()):
            return own, torch.full_like(own.flatten(1).sum(-1), -torch.inf)
        else:
            outside = None
        if self.family == "HalfNormal":
            return own, outside
        own = own.log()
        stretch = -own.flatten(1).sum(-1)
        return own, stretch if outside is None else stretch + outside

    def difference(self, own: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Of a class of normal sites, the values less their location, and the scale where it is a tensor."""
        computed = iter(values)
        loc = self.loc if self.loc is not None else next(computed)
        return own if isinstance(loc, float) and loc == 0 else own - loc, next(computed, None)

    def __call__(self, own: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Log density of any other class, ``[B]``."""
        held = self.kernel.held
        parameters = dict(zip(held.paths, values, strict=True))
        return site_log_density(held.specification, parameters, own, given=self.given).flatten(1).sum(-1)


def _views(kernel: Kernel) -> list[View]:
    """The sites of a class, apart where they read the same values as many others do: those then need no gather."""
    count = len(kernel.held.sites)
    groups = np.zeros(count, dtype=np.int64)
    for addresses in kernel.held.addresses:
        if len(addresses) == count and addresses.size and addresses.max() >= kernel.layout.program.parameter_base:
            _, group = np.unique(addresses.reshape(count, -1), axis=0, return_inverse=True)
            _, joint = np.unique(groups * count + group.reshape(-1), return_inverse=True)
            if joint.max() < min(_GROUPS, count // _LEAST):
                groups = joint.reshape(-1)
    number = int(groups.max()) + 1
    return [kernel.full] if number == 1 else [kernel.view(np.flatnonzero(groups == place)) for place in range(number)]


@dataclass
class _Sources:
    """Who reads what of one matrix of the environment; equal readings are one."""

    pickers: list[Picker] = field(default_factory=list)
    places: dict[Any, int] = field(default_factory=dict)

    def add(self, picker: Picker) -> int:
        key = (picker.positions.shape, picker.positions.tobytes())
        if key not in self.places:
            self.places[key] = len(self.pickers)
            self.pickers.append(picker)
        return self.places[key]


@dataclass(frozen=True, eq=False)
class _Step:
    """One class in a call: where its values are, the function of its slice, and where that reads.

    A load is the number of a reading of sites, of data or of virtual nodes, that of a parameter on its own, or else its
    reader.
    """

    held: _Class
    own: tuple[str, int]
    call: Callable[..., Any]
    loads: tuple[tuple[str, Any, str], ...]

    def alone(self, own: Tensor, *arguments: Tensor) -> Tensor:
        """Log density ``[B]`` of some of the sites, by what they read."""
        held, share = self.held, own.shape[1] / len(self.held.view.rows)
        if held.term is None:
            return held(own, self.call(*arguments))
        own, part = held.coordinate(own)
        term = replace(held.term, size=round(held.term.size * share), shift=held.term.shift * share)
        total = normal_sum([term], held.difference(own, self.call(*arguments)), direct=own.is_cpu and direct())
        return total if part is None else total + part


class _Prepared:
    """All that a dtype settles."""

    def __init__(
        self,
        plan: Plan,
        dtype: torch.dtype,
        *,
        together: bool,
        only: Callable[[Kernel], bool] | None,
        split: int | None,
    ) -> None:
        self.split = plan.dim if split is None else split
        chosen = plan.ordinary if only is None else tuple(kernel for kernel in plan.ordinary if only(kernel))
        kernels = [part for kernel in chosen for part in by_element(kernel)]
        classes = [
            _Class(kernel, view, given=kernel.held.sites[0] in plan.given)
            for kernel in kernels
            for view in _views(kernel)
        ]
        self.sources = {name: _Sources() for name in ("site", "data", "parameter", "virtual")}
        base = plan.program.parameter_base
        self.places = {(held.start - base, held.size): number for number, held in enumerate(plan.program.parameters)}
        self.alone: dict[tuple[int, tuple[int, ...]], int] = {}
        latent = [held for held in classes if split is None or not held.given]
        own = {id(held): ("site", self.sources["site"].add(held.view.own)) for held in latent}
        covering = len(own) if sum(held.size for held in latent) == self.split else 0
        own |= {id(held): ("data", self._add(held.view.own, "data")) for held in classes if id(held) not in own}
        major: set[int] = set()
        steps = []
        for held in classes:
            name, place = own[id(held)]
            function = held.kernel.code.function(held.wanted, 2, dtype)
            loads = tuple(self._load(held.view.readers[load]) for load in function.taken)
            steps.append(_Step(held, (name, place), function.call, loads))
            if function.joins:
                sites = [source for kind, source in [(name, place), *(load[:2] for load in loads)] if kind == "site"]
                pickers = self.sources["site"].pickers
                major.update(site for site in sites if pickers[site].positions.ndim == 2)
        self.steps = tuple(steps)
        self.values = Columns(self.sources["site"].pickers, covering, major if together else (), together=together)
        self.columns = {
            name: Columns(self.sources[name].pickers) for name in ("parameter", "virtual") if self.sources[name].pickers
        }
        self.data = Columns(self.sources["data"].pickers)
        self.whole = bool(self.columns) or any(not name for step in steps for name, _, _ in step.loads)

    def _load(self, reader: Reader) -> tuple[str, Any, str]:
        (name, *others) = reader.masks
        if others or name not in self.sources:
            return "", reader, reader.kind
        picker = reader.pickers[name]
        place = self.places.get((picker.start, picker.positions.size)) if picker.step == 1 else None
        if name == "parameter" and place is not None:
            key = (place, (1, *picker.positions.shape))
            return "alone", self.alone.setdefault(key, len(self.alone)), reader.kind
        if name == "site" and picker.size and picker.positions.min() >= self.split:
            name = "data"
        return name, self._add(picker, name), reader.kind

    def _add(self, picker: Picker, name: str) -> int:
        """The number of a reading; data have columns of their own."""
        return self.sources[name].add(Picker(picker.positions - self.split) if name == "data" else picker)


class LogDensity:
    """Log density of examples, for plans without summed-out sites and calls without gates."""

    def __init__(
        self,
        plan: Plan,
        *,
        chunk: int | None = None,
        only: Callable[[Kernel], bool] | None = None,
        split: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            plan: The plan.
            chunk: How many sites of a class are evaluated at a time, and again for their gradients, so that what is
                kept for the backward does not grow with their number; None for all at once.
            only: Which classes count, where not all do.
            split: Of a variational target, the number of columns before the data, where data are given apart; no class
                may read both in one tensor, nor may a recurrence read data.
        """
        self.plan = plan
        self.only = only
        self.split = split
        self.chunk = chunk
        self._prepared: dict[torch.dtype, _Prepared] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": {}}

    def prepared(self, dtype: torch.dtype) -> _Prepared:
        """What is worked out once."""
        held = self._prepared.get(dtype)
        if held is None:
            held = self._prepared[dtype] = _Prepared(
                self.plan, dtype, together=self.chunk is None, only=self.only, split=self.split
            )
        return held

    def __call__(
        self, values: Tensor, parameters: Parameters, data: Tensor | None = None, *, guarded: bool = False
    ) -> Tensor:
        """Log density ``[B]`` of examples ``[B, D]`` where every site is inside its support; elsewhere not finite.

        Args:
            values: The examples.
            parameters: The program's parameters.
            data: Where they are apart, the data ``[B or 1, O]``.
            guarded: Whether the result may be NaN also where a scale is so small or large that its square is not safe,
                since the caller then finds it again without this.
        """
        dtype = values.dtype
        prepared = self.prepared(dtype)
        read = {"site": prepared.values(values)}
        if data is not None:
            read["data"] = prepared.data(data)
        constrained = parameters.constrained
        read["alone"] = tuple(constrained[place].reshape(shape) for place, shape in prepared.alone)
        logarithms = self._logarithms(prepared, parameters, read["alone"]) if guarded else ()
        environment: Environment | None = None
        if prepared.whole:
            environment = self.plan.environment(values, parameters.flat)
            matrices = {"virtual": environment.virtual, "parameter": environment.parameters[None]}
            for name, columns in prepared.columns.items():
                matrix = matrices[name]
                if matrix is None:
                    raise RuntimeError("a virtual node was read before it was computed")
                read[name] = columns(matrix)
        parts: list[Tensor] = []
        terms: list[Term] = []
        tensors: list[Tensor | None] = []
        for step in prepared.steps:
            arguments = []
            for name, source, kind in step.loads:
                value = read[name][source] if name else source(environment)
                arguments.append(value if kind == "float" else cast(value, kind, dtype))
            held, own = step.held, read[step.own[0]][step.own[1]]
            if self.chunk is not None and self.chunk < own.shape[1]:
                parts.append(in_pieces(step.alone, own, arguments, self.chunk))
                continue
            if held.term is None:
                parts.append(held(own, step.call(*arguments)))
                continue
            own, part = held.coordinate(own)
            if part is not None:
                parts.append(part)
            difference, scale = held.difference(own, step.call(*arguments))
            exponent = None if held.term.logarithm else next((raw for value, raw in logarithms if value is scale), None)
            terms.append(held.term if exponent is None else replace(held.term, logarithm=True))
            if len(difference) != len(values):  # data that no latent value is taken from
                difference = difference.expand(len(values), *difference.shape[1:])
            tensors += (difference, scale if exponent is None else exponent)
        if terms:
            parts.append(normal_sum(terms, tensors, direct=values.is_cpu and direct(), guarded=guarded))
        total = parts[0] if parts else values.new_zeros(len(values))
        for part in parts[1:]:
            total = total + part
        return total if data is None else total.expand(len(values))

    @staticmethod
    def _logarithms(
        prepared: _Prepared, parameters: Parameters, alone: Sequence[Tensor]
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """Parameters of one number that are made as exponentials, as they are read, with their logarithms."""
        found = []
        for (place, shape), value in zip(prepared.alone, alone, strict=True):
            raw = parameters.unconstrained[place]
            exponential = isinstance(parameters.transforms[place], ExpTransform)
            if exponential and raw.numel() == 1 and raw.dtype == value.dtype:
                found.append((value, raw.reshape(shape)))
        return found
