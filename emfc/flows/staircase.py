"""Masked networks solved for their inputs: from the outputs of the ranks so far follow the inputs of the next ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

__all__ = ["Staircase", "sweep"]


@dataclass(frozen=True)
class Staircase:
    """A masked network between inputs and outputs of D ranks, its units in the order in which they become known.

    Everything is held feature by feature, ``[units, B]``, so that what is known is a leading part.

    Attributes:
        weights: Matrix ``[n, m]`` of each layer, zero where it is masked.
        biases: For each layer ``[n, 1]`` or ``[n, B]``.
        known: For each level, inputs and outputs included, how many units the inputs of the first r ranks determine,
            r = 0..D; for inputs and outputs themselves, how many belong to the first r ranks.
        activations: For each hidden layer the elementwise map ``(rows, values) -> values`` of some of its units.
        direct: The matrix from the inputs of ranks ``[c, d)`` straight to the outputs of ranks ``[s, t)`` as a function
            of (s, t, c, d); None without such connections.
        reach: The lowest rank that is straight connected to each rank, the rank itself if there is none.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    known: Sequence[Sequence[int]]
    activations: Sequence[Callable[[slice, Tensor], Tensor]]
    direct: Callable[[int, int, int, int], Tensor] | None
    reach: Sequence[int]

    @property
    def ranks(self) -> int:
        """D."""
        return len(self.reach)

    def transposed(self, slopes: Sequence[Tensor]) -> Staircase:
        """The network that leads from cotangents of the outputs to cotangents of the inputs, ranks in reverse.

        Args:
            slopes: For each hidden layer the derivatives ``[n, B]`` of its activation.
        """
        count = self.ranks
        levels = [range(count + 1), *self.known[1:-1], range(count + 1)]
        known = [[level[count] - level[count - 1 - rank] for rank in range(count)] for level in levels[1:-1]]
        known = [[*level, level[-1]] for level in known]
        flipped = [slope.flip(0) for slope in slopes]
        furthest = list(range(count))
        for rank, lowest in enumerate(self.reach):
            furthest[lowest] = max(furthest[lowest], rank)
        furthest = [count - 1 - rank for rank in accumulate(furthest, max)]
        return Staircase(
            weights=[self._flipped(place) for place in reversed(range(len(self.weights)))],
            biases=[weight.new_zeros(weight.shape[1], 1) for weight in reversed(self.weights)],
            known=[self.known[-1], *reversed(known), self.known[0]],
            activations=[partial(_times, slope) for slope in reversed(flipped)],
            direct=None if self.direct is None else self._direct_flipped,
            reach=furthest[::-1],
        )

    def _flipped(self, place: int) -> Tensor:
        """A matrix transposed, with ranks in reverse but what belongs to one rank in its order."""
        matrix = self.weights[place]
        after = self.known[-1][1] if place == len(self.weights) - 1 else 1
        before = self.known[0][1] if place == 0 else 1
        return _turned(matrix, after, before)

    def _direct_flipped(self, first: int, last: int, lowest: int, highest: int) -> Tensor:
        count = self.ranks
        if self.direct is None:
            raise ValueError("a network without direct connections has none in reverse")
        matrix = self.direct(count - highest, count - lowest, count - last, count - first)
        return _turned(matrix, self.known[-1][1], self.known[0][1])


def _times(slope: Tensor, rows: slice, values: Tensor) -> Tensor:
    return values * slope[rows]


def _turned(matrix: Tensor, after: int, before: int) -> Tensor:
    """A matrix transposed, its rows reversed in groups of ``after`` and its columns in groups of ``before``."""
    groups = matrix.unflatten(0, (-1, after)).unflatten(2, (-1, before))
    turned: Tensor = groups.flip(0, 2).permute(2, 3, 0, 1).flatten(2, 3).flatten(0, 1)
    return turned


class _Part:
    """The layers between the inputs and the outputs of some successive ranks, with all that came before summed up."""

    def __init__(self, stairs: Staircase, first: int, last: int, held: Sequence[Tensor]) -> None:
        self.inputs = slice(stairs.known[0][first], stairs.known[0][last])
        self.seen = slice(stairs.known[0][first], stairs.known[0][last - 1])
        outputs = slice(stairs.known[-1][first], stairs.known[-1][last])
        hidden = (slice(level[first - 1] if first else 0, level[last - 1]) for level in stairs.known[1:-1])
        self.rows = [self.seen, *hidden, outputs]
        self.activations = stairs.activations
        self.bases: list[Tensor] = []
        self.inner: list[Tensor | None] = []
        layers = zip(stairs.weights, stairs.biases, pairwise(self.rows), held, strict=True)
        for weight, bias, (before, after), values in layers:
            self.bases.append(torch.addmm(bias[after], weight[after, : before.start], values[: before.start]))
            self.inner.append(weight[after, before] if before.stop > before.start else None)
        self.direct: Tensor | None = None
        lowest = min(first, *stairs.reach[first:last])
        if stairs.direct is not None and lowest < last - 1:
            matrix = stairs.direct(first, last, lowest, last)
            start = stairs.known[0][lowest]
            cut = self.inputs.start - start
            self.bases[-1] = torch.addmm(self.bases[-1], matrix[:, :cut], held[0][start : self.inputs.start])
            if self.seen.stop > self.seen.start:
                self.direct = matrix[:, cut : cut + self.seen.stop - self.seen.start]

    def outputs(self, inputs: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Outputs for inputs ``[m, B]``, and values of the hidden units before and after their activations."""
        seen = level = inputs[: self.seen.stop - self.seen.start]
        states = []
        for place, activation in enumerate(self.activations):
            before = self._layer(place, level)
            level = activation(self.rows[place + 1], before)
            states.append((before, level))
        outputs = self._layer(-1, level)
        return (outputs if self.direct is None else torch.addmm(outputs, self.direct, seen)), states

    def _layer(self, place: int, values: Tensor) -> Tensor:
        weight = self.inner[place]
        return self.bases[place] if weight is None else torch.addmm(self.bases[place], weight, values)


def sweep(
    stairs: Staircase, advance: Callable[[slice, Tensor], tuple[Tensor, Tensor]], values: Tensor, block: int
) -> list[Tensor]:
    r"""Solves :math:`x_r = a_r(h_r(x_{<r}))` for all ranks r, in order.

    The ranks are taken in blocks. What the inputs of earlier blocks add to a block comes from one product of matrices
    for each layer. Within a block all inputs are renewed together until a round changes not one bit of them; by then,
    and in any case after as many rounds as the block has ranks, they are what renewing them one by one would give. In
    all, that is the arithmetic of one pass through the network and of the rounds within the blocks.

    Args:
        stairs: The network h.
        advance: The maps a: (ranks, outputs of the network for them ``[n, B]``) to the inputs of these ranks
            ``[m, B]`` and their values ``[ranks, B]``.
        values: Is filled, ``[D, B]``.
        block: Number of ranks in a block.

    Returns:
        For each hidden layer the values ``[n, B]`` of its units before the activation.
    """
    batch = values.shape[1]
    held = [values.new_empty(weight.shape[1], batch) for weight in stairs.weights]
    before = [torch.empty_like(level) for level in held[1:]]
    for first in range(0, stairs.ranks, block):
        last = min(first + block, stairs.ranks)
        part = _Part(stairs, first, last, held)
        given = held[0][part.inputs].zero_()
        for rounds in range(first + 1, last + 1):
            outputs, states = part.outputs(given)
            renewed, found = advance(slice(first, last), outputs)
            if rounds == last or torch.equal(renewed, given):
                break
            given = renewed
        held[0][part.inputs] = renewed
        values[first:last] = found
        for place, state in enumerate(states):
            before[place][part.rows[place + 1]], held[place + 1][part.rows[place + 1]] = state
    return before
