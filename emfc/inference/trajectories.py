"""Trajectories of the no-U-turn sampler, all chains at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["End", "Potential", "Sampler", "State"]

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From places ``[C, N]`` to energies ``[C]`` and their gradients ``[C, N]``."""

_DIVERGENT = 1000.0


@dataclass(eq=False)
class State:
    """Where the chains stand ``[C, N]``, with energy ``[C]`` and its gradient."""

    place: Tensor
    energy: Tensor
    gradient: Tensor

    def where(self, mask: Tensor, other: State) -> State:
        """This where the mask ``[C]`` holds, else the other."""
        return State(
            torch.where(mask[:, None], self.place, other.place),
            torch.where(mask, self.energy, other.energy),
            torch.where(mask[:, None], self.gradient, other.gradient),
        )


@dataclass(eq=False)
class End:
    """One end of a trajectory."""

    state: State
    momentum: Tensor

    def where(self, mask: Tensor, other: End) -> End:
        """This where the mask ``[C]`` holds, else the other."""
        return End(self.state.where(mask, other.state), torch.where(mask[:, None], self.momentum, other.momentum))


@dataclass(eq=False)
class _Subtree:
    """What a doubling found."""

    end: End
    proposal: State
    log_weight: Tensor
    momentum_sum: Tensor
    whole: Tensor
    diverged: Tensor


@dataclass(eq=False)
class Sampler:
    """Chains that move together, with a common step size and mass matrix."""

    potential: Potential
    state: State
    generator: torch.Generator
    max_depth: int
    target: float
    step_size: float = 1.0
    inverse_mass: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.inverse_mass = torch.ones_like(self.state.place[0])

    def uniform(self) -> Tensor:
        return torch.empty_like(self.state.energy).uniform_(generator=self.generator)

    def draw_momentum(self) -> Tensor:
        return torch.empty_like(self.state.place).normal_(generator=self.generator) / self.inverse_mass.sqrt()

    def kinetic(self, momentum: Tensor) -> Tensor:
        return 0.5 * (momentum.square() * self.inverse_mass).sum(-1)

    def leap(self, end: End, step: Tensor) -> End:
        """One leapfrog step."""
        half = end.momentum - 0.5 * step * end.state.gradient
        place = end.state.place + step * self.inverse_mass * half
        energy, gradient = self.potential(place)
        return End(State(place, energy, gradient), half - 0.5 * step * gradient)

    def _turned(self, first: Tensor, last: Tensor, total: Tensor) -> Tensor:
        """Whether a trajectory with these momenta at its ends, and this sum of momenta, has begun to turn back."""
        middle = (total - 0.5 * (first + last)) * self.inverse_mass
        return ((middle * first).sum(-1) <= 0) | ((middle * last).sum(-1) <= 0)

    def step(self) -> tuple[Tensor, Tensor]:
        """One transition of all chains: mean acceptance, and which chains diverged."""
        momentum = self.draw_momentum()
        self._zero = self.state.energy + self.kinetic(momentum)
        left = right = End(self.state, momentum)
        total, log_weight = momentum, torch.zeros_like(self._zero)
        active = torch.ones_like(self._zero, dtype=torch.bool)
        diverged = torch.zeros_like(active)
        self._accepted, self._count = torch.zeros_like(self._zero), torch.zeros_like(self._zero)
        for depth in range(self.max_depth):
            forward = self.uniform() < 0.5
            tree = self._grow(right.where(forward, left), forward, depth, active)
            diverged = diverged | tree.diverged
            taken = tree.whole & (self.uniform().log() < tree.log_weight - log_weight)
            self.state = tree.proposal.where(taken, self.state)
            log_weight = torch.where(tree.whole, torch.logaddexp(log_weight, tree.log_weight), log_weight)
            total = torch.where(tree.whole[:, None], total + tree.momentum_sum, total)
            right = tree.end.where(tree.whole & forward, right)
            left = tree.end.where(tree.whole & ~forward, left)
            active = tree.whole & ~self._turned(left.momentum, right.momentum, total)
            if not bool(active.any()):
                break
        return (self._accepted / self._count).mean(), diverged

    def _grow(self, end: End, forward: Tensor, depth: int, active: Tensor) -> _Subtree:
        """As many steps again as the trajectory has, in one direction, unless it turns or diverges on the way."""
        step = torch.where(forward, self.step_size, -self.step_size).to(end.momentum)[:, None]
        running, diverged, turned = active, torch.zeros_like(active), torch.zeros_like(active)
        proposal, total = end.state, torch.zeros_like(end.momentum)
        log_weight = torch.full_like(self._zero, -math.inf)
        marks: dict[int, tuple[Tensor, Tensor]] = {}
        for number in range(2**depth):
            new = self.leap(end, step)
            change = new.state.energy + self.kinetic(new.momentum) - self._zero
            change = torch.where(change.isfinite(), change, math.inf)
            self._accepted += torch.where(running, (-change).exp().clamp(max=1), 0)
            self._count += running
            diverged = diverged | (running & (change > _DIVERGENT))
            running = running & (change <= _DIVERGENT)
            end = new.where(running, end)
            joint = torch.where(running, torch.logaddexp(log_weight, -change), log_weight)
            proposal = new.state.where(running & (self.uniform().log() < -change - joint), proposal)
            log_weight = joint
            total = torch.where(running[:, None], total + end.momentum, total)
            place = (number >> 1).bit_count()
            if number % 2 == 0:
                marks[place] = end.momentum, total
            else:
                ones = ((number + 1) & -(number + 1)).bit_length() - 1  # trailing ones: spans that end here
                for mark in range(place, place - ones, -1):
                    first, before = marks[mark]
                    turned = turned | (running & self._turned(first, end.momentum, total - before + first))
                running = running & ~turned
            if not bool(running.any()):
                break
        return _Subtree(end, proposal, log_weight, total, running, diverged)
