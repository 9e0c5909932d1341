"""Quantiles of a mixture, solved element by element in blocks that fit a cache."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from emfc.special.normal import log_normal_density, ndtri_exp
from emfc.special.roots import Bracket, Root, increasing_inverse
from emfc.transforms.components import locate_in_union
from emfc.transforms.family import ScalarFamily
from emfc.transforms.layout import FlatMixture, Layout
from emfc.transforms.scalar import Normal
from emfc.transforms.solved import coordinate_limits, tolerance

__all__ = ["mixture_quantiles"]

_NUMBERS = {"cpu": 2**16}  # of a block, over all components
_MANY = 2**26
_GRID = 2**11  # points of a table of quantiles
_SMALLEST = 2**8  # elements of a block
_GRID_END = 9.0
_LINEAR = {torch.float32: 11.5, torch.float64: 36.0}  # noise whose tail is far from underflow
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)


class _Solver(FlatMixture):
    """A mixture that solves its quantile; normal components have a way of their own, by error functions alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = self.log_weights.exp()
        self.normal: tuple[Tensor, Tensor, Tensor] | None = None
        if type(self.component) is Normal:
            scale = self.component.scale
            self.normal = (self.component.loc, _SQRT_HALF / scale, self.weights * (_DENSITY / scale))

    def tail(self, coordinate: Tensor, lower: bool) -> tuple[Tensor, Tensor]:
        """Noise of one tail and the coordinate's slope by noise, for tails that are far from underflow."""
        info = torch.finfo(coordinate.dtype)
        if self.normal is not None:
            loc, factor, weights = self.normal
            z = (coordinate - loc) * factor
            tail = 0.5 * (torch.special.erfc(-z if lower else z) * self.weights).sum(0)
            density = (z.square_().neg_().exp_() * weights).sum(0)
        else:
            position, stretch = self.support.position(coordinate)
            log_prob, log_cdf, log_sf = self.components(position)
            tail = (self.log_weights + (log_cdf if lower else log_sf)).exp_().sum(0)
            density = (self.log_weights + log_prob).exp_().sum(0) * stretch.exp()
        noise = torch.special.ndtri(tail.clamp(info.tiny, 1 - 0.5 * info.eps))
        slope = torch.exp(-0.5 * noise * noise).mul_(_DENSITY).div_(density)
        return (noise if lower else -noise), slope

    def log_tail(self, coordinate: Tensor, lower: bool) -> tuple[Tensor, Tensor]:
        """The same in logs, for any tail."""
        position, stretch = self.support.position(coordinate)
        log_prob, log_cdf, log_sf = self.components(position)
        tail = torch.logsumexp(self.log_weights + (log_cdf if lower else log_sf), 0)
        log_density = torch.logsumexp(self.log_weights + log_prob, 0) + stretch
        noise = ndtri_exp(tail.clamp(min=torch.finfo(tail.dtype).min / 16, max=-torch.finfo(tail.dtype).tiny))
        slope = torch.exp(log_normal_density(noise) - log_density)
        return (noise if lower else -noise), slope

    def bracket(self, noise: Tensor) -> tuple[Bracket, Tensor]:
        """The components' own quantiles enclose the mixture's; a guess between them."""
        position = locate_in_union(self.component.draw(noise)[0], self.component.support_map, self.support, 0)
        coordinate = self.support.coordinate(position)[0]
        limits = coordinate_limits(self.support, noise.dtype)
        coordinate = coordinate.clamp(*limits)
        weighed = self.log_weights > -math.inf
        low = torch.where(weighed, coordinate, math.inf).amin(0)
        high = torch.where(weighed, coordinate, -math.inf).amax(0)
        margin = 8 * torch.finfo(noise.dtype).eps
        low, high = low - margin * low.abs(), high + margin * high.abs()
        start = (self.weights * coordinate).sum(0)
        return Bracket(low, high, None, limits), torch.minimum(torch.maximum(start, low), high)

    def solve(self, noise: Tensor, bracket: Bracket | None = None, start: Tensor | None = None) -> Root:
        """Coordinates of the quantiles, by tails of one sign and size at a time."""
        if bracket is None or start is None:
            bracket, start = self.bracket(noise)
        root = _empty_root(noise)
        inside = noise.abs() <= _LINEAR[noise.dtype]
        below = noise < 0
        for lower in (True, False):
            for linear in (True, False):
                index = ((below == lower) & (inside == linear)).nonzero().squeeze(-1)
                if index.numel() == 0:
                    continue
                part = self._solve_tail(noise[index], *_select(bracket, start, index), index, lower, linear)
                for whole, piece in zip(root, part, strict=True):
                    whole[index] = piece
        return root

    def _solve_tail(
        self, noise: Tensor, bracket: Bracket, start: Tensor, index: Tensor, lower: bool, linear: bool
    ) -> Root:
        own = cast(_Solver, self.take(index))

        def function(flat: _Solver) -> Any:
            tail = flat.tail if linear else flat.log_tail
            return lambda coordinate: tail(coordinate, lower)

        return increasing_inverse(
            function(own),
            noise,
            bracket,
            start,
            tolerance=tolerance(noise),
            take=lambda keep: function(cast(_Solver, own.take(keep))),
        )


def _empty_root(like: Tensor) -> Root:
    at, value, slope = like.new_empty(3, *like.shape)
    return Root(at, value, slope, torch.empty_like(like, dtype=torch.bool))


def _select(bracket: Bracket, start: Tensor, index: Tensor) -> tuple[Bracket, Tensor]:
    ends = bracket.ends
    if ends is not None:
        ends = (ends[0][index], ends[1][index], ends[2][index], ends[3][index])
    return Bracket(bracket.low[index], bracket.high[index], ends, bracket.limits), start[index]


def _table_bracket(flat: _Solver, noise: Tensor, block: int) -> Any:
    """Brackets and guesses from a table of exact quantiles at equal steps of noise, for the noise inside it."""
    first = float(noise.amin().clamp(-_GRID_END, _GRID_END))
    last = float(noise.amax().clamp(-_GRID_END, _GRID_END))
    grid = torch.linspace(first, last, _GRID, dtype=noise.dtype, device=noise.device)
    root = Root(*(torch.cat(parts) for parts in zip(*map(flat.solve, grid.split(block)), strict=True)))
    at, slope = root.at.cummax(0).values, root.slope
    limits = coordinate_limits(flat.support, noise.dtype)

    def bracket(noise: Tensor) -> tuple[Bracket, Tensor]:
        place = (noise - first).mul_((_GRID - 1) / (last - first)).clamp_(0, _GRID - 2).long()
        low, low_value, low_slope = at[place], grid[place], slope[place]
        place += 1
        high, high_value, high_slope = at[place], grid[place], slope[place]
        rise, width = high_value - low_value, high - low
        steepest = 3 * width / rise
        part = ((noise - low_value) / rise).clamp_(0, 1)
        rest = 1 - part
        bend = torch.minimum(low_slope, steepest) * rest - torch.minimum(high_slope, steepest) * part
        start = low + part * (width * part * (3 - 2 * part) + rise * rest * bend)
        ends = (low_value, low_slope, high_value, high_slope)
        return Bracket(low, high, ends, limits), torch.minimum(torch.maximum(start, low), high)

    return bracket if last > first else None


def _solve_shared(flat: _Solver, noise: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Coordinates and log densities of one mixture at many noises."""
    table = _table_bracket(flat, noise, block) if noise.numel() >= 4 * _GRID else None
    parts = []
    for piece in noise.split(block):
        if table is None or bool((piece.abs() > _GRID_END).any()):
            near = (piece.abs() <= _GRID_END) & (table is not None)
            parts.append(_finish(flat, _solve_both(flat, piece, near, table)))
        else:
            parts.append(_finish(flat, flat.solve(piece, *table(piece))))
    coordinate, log_prob = zip(*parts, strict=True)
    return torch.cat(coordinate), torch.cat(log_prob)


def _solve_both(flat: _Solver, noise: Tensor, near: Tensor, table: Any) -> Root:
    """The noise inside the table by it, the rest by the components' quantiles."""
    root = _empty_root(noise)
    for mask, inside in ((near, True), (~near, False)):
        index = mask.nonzero().squeeze(-1)
        if index.numel():
            piece = noise[index]
            part = flat.solve(piece, *table(piece)) if inside else flat.solve(piece)
            for whole, values in zip(root, part, strict=True):
                whole[index] = values
    return root


def _finish(flat: _Solver, root: Root) -> tuple[Tensor, Tensor]:
    """Coordinates and log densities of roots; where the density underflows, from its logarithm."""
    coordinate, value, slope, regular = root
    position, stretch = flat.support.position(coordinate)
    log_prob = log_normal_density(value) - slope.log() - stretch
    if not bool(regular.all()):
        exact = flat.components(position).log_prob
        log_prob = torch.where(regular, log_prob, torch.logsumexp(flat.log_weights + exact, 0))
    return coordinate, log_prob


@torch.no_grad()
def mixture_quantiles(
    log_weights: Tensor, component: ScalarFamily, parameters: list[Tensor], noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Quantiles of mixtures, as unconstrained coordinates, and the log densities there.

    One mixture with many elements is tabulated first, so that nearly all of them need one evaluation of the
    components. The memory is that of a block of elements times the components.

    Args:
        log_weights: Normalised log weights, shape [..., K].
        component: The components, batch shape [..., K].
        parameters: The tensors of `component`, as `parameters_of` gives them.
        noise: Of a shape that the parameters' batch shapes broadcast against, and of their dtype.

    Returns:
        Coordinates of the mixture's support and log densities, of the shape of `noise`, without gradients.
    """
    if noise.numel() == 0:
        return noise.clone(), noise.clone()
    layout = Layout(log_weights, component, parameters, noise.shape)
    mixture = cast(_Solver, layout.mixture(_Solver))
    limit = torch.finfo(noise.dtype).max ** 0.5 / 8
    flat = layout.flatten(noise).nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
    numbers = _NUMBERS.get(noise.device.type, _MANY)
    block = max(numbers // layout.count, _SMALLEST)
    groups = layout.groups(mixture)
    if groups is None:
        coordinate, log_prob = layout.apply(mixture, _solve_each, numbers, flat)
    else:
        solved = [_solve_shared(cast(_Solver, own), flat[part], block) for own, part in groups]
        coordinate, log_prob = (torch.cat(parts) for parts in zip(*solved, strict=True))
    unknown = noise.isnan()
    coordinate, log_prob = layout.restore(coordinate), layout.restore(log_prob)
    return coordinate.masked_fill(unknown, torch.nan), log_prob.masked_fill(unknown, torch.nan)


def _solve_each(mixture: FlatMixture, noise: Tensor) -> tuple[Tensor, Tensor]:
    own = cast(_Solver, mixture)
    return _finish(own, own.solve(noise))
