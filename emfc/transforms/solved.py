"""Families whose quantile is solved: draws with derivatives by the implicit function theorem."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from torch import Size, Tensor
from torch.autograd import forward_ad

from emfc.special.normal import log_normal_density, noise_from_tails
from emfc.special.precision import eager, outside_graphs
from emfc.special.roots import Bracket, Function, attach_root, increasing_inverse
from emfc.transforms.components import map_parameters, parameters_of
from emfc.transforms.family import ScalarFamily
from emfc.transforms.supports import Interval, LowerBounded, Position, RealLine, SupportMap, UpperBounded

__all__ = ["SolvedFamily", "coordinate_limits", "is_recorded", "tolerance"]

_BLOCK = 2**14
_STRAIGHT = 1e-3  # noise over which one Newton step is as good as two


def coordinate_limits(support: SupportMap, dtype: torch.dtype) -> tuple[float, float]:
    """Unconstrained coordinates beyond which nothing is told apart, or derivatives overflow."""
    info = torch.finfo(dtype)
    most = 0.85 if dtype == torch.float32 else 0.9
    small, large = math.log(info.tiny) - 14, math.log(info.max) * most
    if isinstance(support, LowerBounded):
        return small, large
    if isinstance(support, UpperBounded):
        return -large, -small
    if isinstance(support, Interval):
        return small + 14, -small - 14
    return -(info.max**most), info.max**most


def tolerance(noise: Tensor) -> Tensor:
    """An error in noise that is a few roundings of it."""
    return 16 * torch.finfo(noise.dtype).eps * noise.abs().clamp(min=1)


def is_recorded(tensors: list[Tensor] | None) -> bool:
    """Whether derivatives by these tensors may be asked for; None stands for tensors that are not known."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and (tensors is None or any(tensor.requires_grad for tensor in tensors))


class SolvedFamily(ScalarFamily):
    """A family that has its tails in closed form but not its quantile.

    A subclass gives `evaluate` and `guess`. The quantile is solved in the unconstrained coordinate of the support, so
    that distances from its ends are exact, and for the noise, in which it is nearly straight. Derivatives of draws are
    exact and of first order.

    Source: the inverse interpolation of `increasing_inverse`; Figurnov, Mohamed and Mnih, Implicit Reparameterization
    Gradients, 2018, for the derivatives.
    """

    @abstractmethod
    def guess(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates below and above that of the draw which noise gives, and one between the two.

        Rounding may put the draw outside. Called without gradients, with finite noise of the full shape.
        """

    def parameters(self) -> list[Tensor] | None:
        """The tensors that the family is made of; None where they are not known."""
        return parameters_of(self)

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Solved on the smaller tail."""
        return self.locate(log_p, log_q).value

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Solved on the smaller tail, with exact distances from the ends."""
        noise = noise_from_tails(log_p, log_q)
        coordinate, _, step = self.solve(noise)
        return self._place(self._attach(coordinate, noise) if self.recorded(noise) else coordinate, step)

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Position, solved, and log density."""
        coordinate, log_prob, step = self.solve(noise)
        if not self.recorded(noise):
            return self._place(coordinate, step), log_prob
        position = self._place(self._attach(coordinate, noise), step)
        return position, self.log_density(position)

    def recorded(self, value: Tensor) -> bool:
        """Whether derivatives by a value or the parameters may be asked for."""
        if torch.compiler.is_compiling():
            return is_recorded(None)
        known = self.parameters()
        return is_recorded(None if known is None else [value, *known])

    @outside_graphs
    def solve(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates and log densities of draws, and a last step of their values, all without gradients."""
        with torch.no_grad():
            noise = noise.detach()
            coordinate, log_prob = self._solve(noise)
            return coordinate, *self._last_step(coordinate, noise, log_prob)

    def tolerance(self, noise: Tensor) -> Tensor:
        """An error in noise that is a few roundings of what it is computed from."""
        return tolerance(noise)

    def _solve(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """In blocks, from which elements are dropped as they are done; all at once inside function transforms."""
        limit = torch.finfo(noise.dtype).max ** 0.5 / 8
        shape = torch.broadcast_shapes(noise.shape, self.batch_shape)
        noise = noise.expand(shape).nan_to_num(torch.nan, limit, -limit).clamp(-limit, limit)
        if not eager() or noise.numel() == 0:
            return self._solve_part(noise, None)
        if parameters_of(self) is None:
            single = self.batch_shape.numel() == 1
            line = noise.reshape(*(1,) * (len(self.batch_shape) - 1), -1)  # of the rank of the parameters
            blocks = line.split(_BLOCK, -1) if single and noise.numel() > _BLOCK else (noise,)
            found = [self._solve_part(part, None) for part in blocks]
            return _joined(found, shape)

        def flat(value: Tensor) -> Tensor:
            return value.reshape(()) if value.numel() == 1 else value.expand(shape).reshape(-1)

        whole = map_parameters(self, flat, Size(()))
        block = _BLOCK if noise.device.type == "cpu" else noise.numel()
        results = []
        for start in range(0, noise.numel(), block):
            index = slice(start, start + block)
            part = cast(SolvedFamily, map_parameters(whole, _taken(index), Size(())))
            results.append(part._solve_part(noise.reshape(-1)[index], part))
        return _joined(results, shape)

    def _solve_part(self, noise: Tensor, whole: SolvedFamily | None) -> tuple[Tensor, Tensor]:
        support = self.support_map
        limits = coordinate_limits(support, noise.dtype)
        low, high, start = (part.expand(noise.shape).clamp(*limits) for part in self.guess(noise))
        margin = 8 * torch.finfo(noise.dtype).eps
        low, high = low - margin * low.abs(), high + margin * high.abs()
        start = torch.minimum(torch.maximum(start, low), high)
        root = increasing_inverse(
            _steepness(self),
            noise,
            Bracket(low, high, None, limits),
            start,
            tolerance=self.tolerance(noise).expand(noise.shape),
            take=None if whole is None else lambda keep: _steepness(map_parameters(whole, _taken(keep), Size(()))),
        )
        return root.at, self.log_density(support.position(root.at)[0])

    def _coarse(self, coordinate: Tensor, noise: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Where rounding of the coordinate shows in value and noise, and a bound of what it does to the value."""
        position, stretch = self.support_map.position(coordinate)
        error = 4 * torch.finfo(noise.dtype).eps * coordinate.abs().clamp(min=1) * stretch.exp()
        in_noise = error * torch.exp(log_prob - log_normal_density(noise))
        spread = 16 * tolerance(noise)
        return (in_noise > spread) & (error > torch.finfo(noise.dtype).eps * position.value.abs()), error

    def _last_step(self, coordinate: Tensor, noise: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Log density, and Newton steps of the value where it is finer than the coordinate.

        That is near 0 beside an end far from 0, and where the spread is small beside the distance from the end.
        """
        support = self.support_map
        first = value = support.nearest(support.position(coordinate)[0].value, smallest=True)
        if isinstance(support, RealLine):
            return log_prob, torch.zeros_like(value)
        size = torch.zeros_like(value)
        for end in (support.low, support.high):
            if end is not None:
                bound = torch.as_tensor(end, dtype=value.dtype, device=value.device)
                size = torch.maximum(size, torch.where(torch.isfinite(bound), bound, 0).abs())
        coarse, error = self._coarse(coordinate, noise, log_prob)
        near_zero = value.abs() < 0.25 * size
        fine = coarse | near_zero
        if eager() and not bool(fine.any()):
            return log_prob, torch.zeros_like(value)
        limit = torch.maximum(
            torch.where(near_zero, 4 * torch.finfo(value.dtype).eps * size, 0), torch.where(coarse, error, 0)
        )
        for _ in range(2):
            found, density = self.noise(support.place(value))
            miss = noise - found
            step = miss * torch.exp(log_normal_density(found) - density)
            step = torch.minimum(torch.maximum(step, -limit), limit)
            moved = support.nearest(value + torch.nan_to_num(step, 0.0), smallest=True)
            value = torch.where(fine & (miss.abs() < torch.where(coarse, 4, 0.1)), moved, value)
            if eager() and not bool((coarse & (miss.abs() > _STRAIGHT)).any()):
                break
        if not eager() or bool(coarse.any()):
            log_prob = torch.where(coarse, self.log_density(support.place(value)), log_prob)
        return log_prob, value - first

    def _place(self, coordinate: Tensor, step: Tensor) -> Position:
        """Position of a coordinate after a last step of its value; a value that moved tells its distances."""
        support = self.support_map
        position = support.position(coordinate)[0]
        value = support.nearest(support.nearest(position.value, smallest=True) + step, smallest=True)
        known = support.place(value.detach())
        below, above = (
            part if part is None or exact is None else part + (exact.detach() - part.detach()).where(step != 0, 0)
            for part, exact in zip(position[1:], known[1:], strict=True)
        )
        return Position(value, below, above)

    def _attach(self, coordinate: Tensor, noise: Tensor) -> Tensor:
        """The coordinate with first derivatives by the implicit function theorem."""
        coordinate = coordinate.detach()
        position, stretch = self.support_map.position(coordinate)
        found, log_prob = self.noise(position)
        slope = torch.exp(log_prob + stretch - log_normal_density(found))
        return attach_root(coordinate, found - noise, slope.clamp(min=16 * torch.finfo(slope.dtype).tiny))


def _joined(results: list[tuple[Tensor, Tensor]], shape: Size) -> tuple[Tensor, Tensor]:
    first, second = (
        torch.cat([part.reshape(-1) for part in parts]).reshape(shape) for parts in zip(*results, strict=True)
    )
    return first, second


def _taken(index: Tensor | slice) -> Callable[[Tensor], Tensor]:
    """What takes elements of flat parameters."""
    return lambda value: value[index] if value.dim() else value


def _steepness(family: ScalarFamily) -> Function:
    """Noise of coordinates, and the coordinate's slope by noise."""

    def function(coordinate: Tensor) -> tuple[Tensor, Tensor]:
        position, stretch = family.support_map.position(coordinate)
        found, log_prob = family.noise(position)
        return found, torch.exp(log_normal_density(found) - log_prob - stretch)

    return function
