"""The filter of one part of a component, for all its copies and examples.

The plan (`emfc.passes.eliminate`) names the steps. Steps of the same kind take their factors out of one tensor, so that
a long chain costs a few operations a step, and a plate none for its rows: these are lanes beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emfc.layers.latents import Enumeration
from emfc.layers.readers import Picker
from emfc.passes.eliminate import Bundle
from emfc.passes.ordering import Operation
from emfc.program.ir import Addresses

__all__ = ["PartFilter", "Stream", "factor_index", "known", "log_normalised", "marginal", "merge_runs"]

_SHIFTED = 8  # elements after which log weights are brought back to zero


def factor_index(operation: Operation, conditioned: tuple[int, ...], enumeration: Enumeration) -> Addresses:
    """For each joint level of the axes of an operation its place among the K populations of the class."""
    sizes = (*conditioned, *operation.live)
    index = np.zeros(sizes, dtype=np.int64)
    for slot, axis in enumerate(operation.axes):
        if axis >= 0:
            digits = np.arange(sizes[axis]) * enumeration.slots.strides[slot]
            index = index + digits.reshape([-1 if place == axis else 1 for place in range(len(sizes))])
    return np.asarray(index)


def marginal(weights: Tensor, axes: tuple[int, ...], enumeration: Enumeration, lead: int) -> Tensor:
    """Log weights of the K populations of a class, from those of the axes.

    Args:
        weights: ``[*lead, *axes]``.
        axes: For each slot of the class its axis, or -1.
        enumeration: The class at its joint values.
        lead: Number of leading dimensions.
    """
    sizes = enumeration.slots.sizes
    axes = (*axes, *[-1] * (len(sizes) - len(axes)))
    kept = sorted(axis for axis in axes if axis >= 0)
    gone = [lead + axis for axis in range(weights.ndim - lead) if axis not in kept]
    if gone:
        weights = weights.logsumexp(gone)
    order = [lead + kept.index(axis) for axis in axes if axis >= 0]
    if order != sorted(order):
        weights = weights.permute(*range(lead), *order)
    for slot, axis in enumerate(axes):
        if axis < 0:
            weights = weights.unsqueeze(lead + slot)
    return weights.expand(*weights.shape[:lead], *sizes).reshape(*weights.shape[:lead], enumeration.count)


def merge_runs(part: tuple[Operation, ...]) -> list[tuple[Operation, list[int]]]:
    """Operations with the events that they stand for: elements that follow each other with nothing between count as
    one."""
    merged: list[tuple[Operation, list[int]]] = []
    for operation in part:
        plain = operation._replace(event=-1)
        if merged and plain.kind == "observe" and merged[-1][0] == plain:
            merged[-1][1].append(operation.event)
        else:
            merged.append((plain, [operation.event]))
    return merged


@dataclass(frozen=True, eq=False)
class Stream:
    """Steps that take their factors out of one tensor ``[B or 1, runs, m, lanes, *axes]``.

    Attributes:
        operation: What they do.
        index: Where the factors lie among the flat ones of the class, ``[runs, m, lanes, *axes]``.
        events: Number of each event in its bundle, ``[runs, m, P]``.
        positions: Its place among the elements of the class, ``[runs * m * lanes]``.
    """

    operation: Operation
    index: Picker
    events: Addresses
    positions: Addresses
    single: bool


class PartFilter:
    """The filter of the parts of a bundle that have the same operations."""

    def __init__(self, bundle: Bundle, parts: list[tuple[Operation, ...]], held: Mapping[int, Enumeration]) -> None:
        self.conditioned = len(bundle.conditioned)
        self.parts = len(parts)
        merged = [merge_runs(part) for part in parts]
        chosen: dict[tuple[Operation, int], list[int]] = {}
        self.steps: list[tuple[Operation, int, int]] = []
        for place, (operation, events) in enumerate(merged[0]):
            key = (operation, len(events))
            if operation.kind == "eliminate":
                self.steps.append((operation, -1, -1))
                continue
            runs = chosen.setdefault(key, [])
            self.steps.append((operation, list(chosen).index(key), len(runs)))
            runs.append(place)
        self.streams: list[Stream] = []
        for (operation, length), runs in chosen.items():
            numbers = np.array([[[part[run][1][i] for part in merged] for i in range(length)] for run in runs])
            positions = bundle.positions[numbers].reshape(*numbers.shape[:2], -1)
            inner = factor_index(operation, bundle.conditioned, held[operation.kernel])
            index = positions.reshape(*positions.shape, *(1,) * inner.ndim) * held[operation.kernel].count + inner
            self.streams.append(Stream(operation, Picker(index), numbers, positions.reshape(-1), length == 1))

        self._moves: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._fused = self._fuse()

    def _fuse(self) -> list[tuple[Operation, int, int]]:
        """The steps, with each passage of a chain from one value to the next as a single move."""
        fused: list[tuple[Operation, int, int]] = []
        place = 0
        while place < len(self.steps):
            (seen, first, run), *rest = self.steps[place : place + 3]
            if len(rest) == 2 and self._passes(seen, rest[0][0], rest[1][0]):
                key = (first, rest[0][1])
                runs = self._moves.setdefault(key, [])
                fused.append((rest[0][0]._replace(kind="move"), list(self._moves).index(key), len(runs)))
                runs.append((run, rest[0][2]))
                place += 3
            else:
                fused.append(self.steps[place])
                place += 1
        return fused

    def _passes(self, seen: Operation, new: Operation, gone: Operation) -> bool:
        kinds = (seen.kind, new.kind, gone.kind) == ("observe", "introduce", "eliminate")
        return kinds and len(seen.live) == 1 and gone.axis == self.conditioned

    def factors(self, flat: Mapping[int, Tensor]) -> list[Tensor]:
        """The factors of each stream ``[B or 1, runs, m, lanes, *axes]``."""
        return [stream.index(flat[stream.operation.kernel]) for stream in self.streams]

    def run(self, factors: list[Tensor], *, seen: bool) -> tuple[Tensor, list[Tensor | None]]:
        """Filter all elements.

        Examples come last inside: sums over a few levels then run along them.

        Args:
            factors: The result of `factors`.
            seen: Whether the weights before each element are wanted.

        Returns:
            Log evidence of every lane, ``[*conditioned, lanes, B or 1]``, and for each stream of elements the log
            weights of the axes alive before each of them, ``[B or 1, runs, m, lanes, *axes]``, normalised for each
            joint level of the conditioned axes; None where nothing is alive.
        """
        whole = [_examples_last(held) for held in factors]
        summed = [
            held.squeeze(1) if stream.single else held.sum(1) for stream, held in zip(self.streams, whole, strict=True)
        ]
        parts = [held.unbind(0) for held in summed]
        moves = [_moves(summed, *key, runs, 2 + self.conditioned).unbind(0) for key, runs in self._moves.items()]
        origins = [key[0] for key in self._moves]
        before: list[list[Tensor]] = [[] for _ in self.streams]
        found: list[Tensor] = []
        weights: Tensor | None = None
        observed = 0
        for operation, stream, run in self._fused:
            if operation.kind == "move":
                held = known(weights)
                before[origins[stream]].append(held)
                weights = (held.unsqueeze(1 + self.conditioned) + moves[stream][run]).logsumexp(self.conditioned)
            elif operation.kind == "eliminate":
                weights = known(weights).logsumexp(operation.axis)
            elif weights is None:
                weights = parts[stream][run]
            elif operation.kind == "introduce":
                weights = weights.unsqueeze(-3) + parts[stream][run]
            else:
                before[stream].append(weights)
                weights = weights + parts[stream][run]
            live = tuple(range(self.conditioned, weights.ndim - 2))
            if not live:
                found.append(weights)
                weights = None
            elif operation.kind in ("observe", "move"):
                observed += 1
                if not observed % _SHIFTED:  # small numbers are exact numbers
                    shift = weights.detach().amax(live, keepdim=True)
                    weights = weights - shift
                    found.append(shift.squeeze(live))
        if weights is not None:
            found.append(weights.logsumexp(tuple(range(self.conditioned, weights.ndim - 2))))
        result = found[0]
        for held in found[1:]:
            result = result + held
        if not seen:
            return result, []
        return result, [
            self._before(stream, held, factor) if held else None
            for stream, held, factor in zip(self.streams, before, whole, strict=True)
        ]

    def _before(self, stream: Stream, found: list[Tensor], factor: Tensor) -> Tensor:
        """Weights before each element, ``[B or 1, runs, m, lanes, *axes]``, of those before each run."""
        size = next((held.shape[-1] for held in found if held.shape[-1] != 1), 1)
        wide = [held.expand(*held.shape[:-1], size) for held in found]
        weights = torch.stack(wide).unsqueeze(1)
        if not stream.single:
            sums = factor.cumsum(1)
            weights = weights + torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], 1)
        first = 2 + self.conditioned
        weights = log_normalised(weights, tuple(range(first, first + len(stream.operation.live))))
        return weights.permute(-1, 0, 1, -2, *range(2, weights.ndim - 2))


def log_normalised(weights: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Log weights that sum to one over some dimensions."""
    return weights.log_softmax(dims[0]) if len(dims) == 1 else weights - weights.logsumexp(dims, keepdim=True)


def _examples_last(held: Tensor) -> Tensor:
    """``[B, runs, m, lanes, *axes]`` as ``[runs, m, *axes, lanes, B]``."""
    return held.permute(1, 2, *range(4, held.ndim), 3, 0).contiguous()


def _moves(summed: list[Tensor], seen: int, new: int, runs: list[tuple[int, int]], dim: int) -> Tensor:
    """Factors of all moves between the same two streams, ``[moves, *conditioned, old, new, lanes, B or 1]``."""
    held = [_taken(summed[stream], [run[place] for run in runs]) for place, stream in enumerate((seen, new))]
    return held[0].unsqueeze(dim) + held[1]


def _taken(values: Tensor, runs: list[int]) -> Tensor:
    if runs == list(range(runs[0], runs[0] + len(runs))):
        return values[runs[0] : runs[0] + len(runs)]
    return values[runs]


def known(weights: Tensor | None) -> Tensor:
    """Weights where something is alive."""
    if weights is None:
        raise RuntimeError("nothing is alive")
    return weights
