"""Columns: what all kernels read of one matrix, taken at once so that one gradient is put together from the parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from emfc.layers.readers import Picker
from emfc.special.precision import eager

__all__ = ["Columns", "direct", "plain_gradient", "plain_gradients"]


def direct() -> bool:
    """Whether a function with a backward of its own may stand for its operations: outside every transform."""
    return eager() and forward_ad._current_level < 0


def plain_gradients(gradients: Sequence[Tensor | None]) -> bool:
    """Whether gradients may be looked at and written in place: neither differentiated nor a batch of many."""
    if torch.is_grad_enabled() or not direct():
        return False
    return not any(part is not None and torch._C._functorch.is_legacy_batchedtensor(part) for part in gradients)


def plain_gradient(gradient: Tensor) -> bool:
    """The same for one gradient."""
    return plain_gradients((gradient,))


_ALL = -1


@dataclass(frozen=True)
class _Grid:
    """Columns ``offset + step * i + r`` as an array ``[step, *, rows]``: what is picked with that step is a run there.

    Attributes:
        offset: First column.
        step: Distance of neighbours in a run.
        rows: Length of the runs.
        places: For each picker that reads from it, by number, r, or -1 for vectors of all r, the first i and how many.
    """

    offset: int
    step: int
    rows: int
    places: Mapping[int, tuple[int, int, int]]

    @classmethod
    def of(cls, pickers: Sequence[Picker]) -> _Grid | None:
        """The grid that pays for some pickers, where there is one."""
        steps = Counter(picker.step for picker in pickers if picker.step > 1 and picker.positions.ndim == 1)
        step, count = steps.most_common(1)[0] if steps else (0, 0)
        if count < max(step, 2):
            return None
        members = {place: picker for place, picker in enumerate(pickers) if picker.step == step}
        members = {place: picker for place, picker in members.items() if picker.positions.ndim == 1}
        width = 1 + max(int(picker.positions.max()) for picker in pickers if picker.positions.size)
        start = min(picker.start for picker in members.values())
        for offset in range(start, max(start - step, -1), -1):
            places = {
                place: ((picker.start - offset) % step, (picker.start - offset) // step, picker.positions.size)
                for place, picker in members.items()
            }
            rows = max(first + size for _, first, size in places.values())
            if offset + step * rows > width:
                continue
            for place, picker in enumerate(pickers):
                first, residue = divmod(picker.start - offset, step)
                shape = picker.positions.shape
                if picker.step != 1 or first < 0 or first + shape[0] > rows:
                    continue
                if shape == (1,):  # one column
                    places[place] = (residue, first, 1)
                elif len(shape) == 2 and shape[1] == step and residue == 0:  # all columns of some rows
                    places[place] = (_ALL, first, shape[0])
            return cls(offset, step, rows, places)
        return None

    def lay(self, matrix: Tensor) -> Tensor:
        """The array, of a matrix ``[*, W]``."""
        span = matrix.narrow(-1, self.offset, self.step * self.rows)
        rows: Tensor = span.unflatten(-1, (self.rows, self.step))
        return rows.movedim(-1, 0).contiguous()

    def cuts(self, matrix: Tensor) -> dict[int, Tensor]:
        """What the pickers take of a matrix; runs that stand side by side are cut together, and so are gradients."""
        grid = self.lay(matrix)
        runs: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        taken = {}
        for place, (residue, first, size) in self.places.items():
            if residue == _ALL:
                taken[place] = self.cut(grid, place)
                continue
            if (first, size) not in runs:
                runs[first, size] = grid.narrow(-1, first, size).unbind(0)
            taken[place] = runs[first, size][residue]
        return taken

    def cut(self, grid: Tensor, place: int) -> Tensor:
        """What a picker takes."""
        residue, first, size = self.places[place]
        if residue == _ALL:
            return grid.narrow(-1, first, size).movedim(0, -1)
        return grid[residue].narrow(-1, first, size)

    def put(self, matrix: Tensor, parts: Sequence[Tensor | None]) -> None:
        """Write the gradients of what was taken into a matrix, zeros elsewhere."""
        width = self.step * self.rows
        matrix.narrow(-1, 0, self.offset).zero_()
        matrix.narrow(-1, self.offset + width, matrix.shape[-1] - self.offset - width).zero_()
        grid = matrix.new_zeros((self.step, *matrix.shape[:-1], self.rows))
        for place in self.places:
            part = parts[place]
            if part is not None:
                self.cut(grid, place).add_(part)
        span = matrix.narrow(-1, self.offset, width)
        span.unflatten(-1, (self.rows, self.step)).copy_(grid.movedim(0, -1))


class Columns:
    """Several pickers of one matrix ``[*, W]``.

    The gradient of a slice is a matrix of zeros around it; autograd would make one for every picker and add them up.
    Here the parts are added into one matrix in place.
    """

    def __init__(
        self, pickers: Sequence[Picker], covering: int = 0, major: Collection[int] = (), *, together: bool = True
    ) -> None:
        """Prepare.

        Args:
            pickers: Who reads.
            covering: The first so many pickers together take every column once, so that their gradients need no zeros.
            major: Pickers of vectors whose elements are to lie apart, each element's own for all sites together.
            together: Whether what is far apart is copied together, since every operation on it is then faster.
        """
        self.pickers = tuple(pickers)
        self.covering = covering
        self.major = frozenset(major)
        self._runs = self._disjoint_runs()
        self.together = together
        self._grid = _Grid.of(self.pickers) if together and self._runs is None else None

    def __call__(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """What each picker takes."""
        if len(self.pickers) > 1:
            if self._runs is not None:
                return self._split(matrix, *self._runs)
            if matrix.requires_grad and torch.is_grad_enabled() and direct():
                return _Taken.apply(matrix, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.take(matrix)

    def take(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """By ordinary operations."""
        cuts = {} if self._grid is None else self._grid.cuts(matrix)
        taken = []
        for place, picker in enumerate(self.pickers):
            if place in cuts:
                taken.append(cuts[place])
                continue
            value = picker(matrix)
            if place in self.major:
                value = value.movedim(-1, 0).contiguous().movedim(0, -1)
            elif picker.step > 1 and self.together:
                value = value.contiguous()
            taken.append(value)
        return tuple(taken)

    def _split(self, matrix: Tensor, sizes: list[int], places: list[int]) -> tuple[Tensor, ...]:
        pieces = torch.split_with_sizes(matrix, [*sizes, matrix.shape[-1] - sum(sizes)], -1)
        return tuple(
            pieces[place] if len(picker.shape) == 1 else pieces[place].unflatten(-1, picker.shape)
            for picker, place in zip(self.pickers, places, strict=True)
        )

    def _disjoint_runs(self) -> tuple[list[int], list[int]] | None:
        """Sizes of the pieces of a matrix and each picker's piece, where all take neighbours that no other takes."""
        sizes: list[int] = []
        if self.major:
            return None
        places = [0] * len(self.pickers)
        stop = 0
        for place in sorted(range(len(self.pickers)), key=lambda place: self.pickers[place].start):
            picker = self.pickers[place]
            if picker.step != 1 or picker.start < stop:
                return None
            if picker.start > stop:
                sizes.append(picker.start - stop)
            places[place] = len(sizes)
            sizes.append(picker.size)
            stop = picker.start + picker.size
        return sizes, places

    def gradient(self, shape: torch.Size, parts: Sequence[Tensor | None]) -> Tensor | None:
        """The matrix of gradients of what was taken."""
        like = next((part for part in parts if part is not None), None)
        if like is None:
            return None
        covered = self.covering and all(part is not None for part in parts[: self.covering])
        grid, rest = self._grid, list(range(len(parts)))
        result = like.new_empty(shape) if covered or grid is not None else like.new_zeros(shape)
        if grid is not None:
            grid.put(result, parts)
            rest, covered = [place for place in rest if place not in grid.places], False
        for place in rest:
            part = parts[place]
            if part is not None:
                self.pickers[place].put(result, part, add=not covered or place >= self.covering)
        return result

    def differentiable_gradient(self, shape: torch.Size, parts: Sequence[Tensor | None]) -> Tensor | None:
        """The same by operations that have derivatives and can be mapped."""
        total: Tensor | None = None
        for picker, part in zip(self.pickers, parts, strict=True):
            if part is not None:
                flat = part.reshape(*part.shape[: part.ndim - len(picker.shape)], -1)
                index = torch.as_tensor(picker.positions.reshape(-1), device=part.device)
                whole = flat.new_zeros(shape).index_add(-1, index, flat)
                total = whole if total is None else total + whole
        return total


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, columns: Columns) -> tuple[Tensor, ...]:
        ctx.columns, ctx.shape = columns, matrix.shape
        ctx.set_materialize_grads(False)
        return columns.take(matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        columns, shape = ctx.columns, ctx.shape
        if plain_gradients(gradients):
            return columns.gradient(shape, gradients), None
        return columns.differentiable_gradient(shape, gradients), None
