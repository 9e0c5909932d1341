"""The no-U-turn sampler in the noise space of a flow, all chains at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.inference.diagnostics import ess_bulk, rhat
from emfc.inference.traced import traced_value_and_gradient
from emfc.inference.trajectories import End, Potential, Sampler, State
from emfc.inference.variational import VariationalFlow

__all__ = ["Chains", "run_nuts"]


@dataclass(eq=False)
class Chains:
    """Draws of a sampler and how far to trust them.

    Attributes:
        draws: Values by site ``[chains, samples, *shape]``.
        r_hat: By site, elementwise: near 1 where the halves of the chains agree (rank-normalised).
        ess: Effective number of draws in the bulk by site, elementwise.
        divergences: Number of trajectories after the warm-up that left the energy surface.
        acceptance: Mean acceptance after the warm-up.
        step_size: The step size that the warm-up settled on.
        gradients: Number of gradients that were computed, of all chains together.
        seconds: Wall time.
    """

    draws: dict[str, Tensor]
    r_hat: dict[str, Tensor]
    ess: dict[str, Tensor]
    divergences: int
    acceptance: float
    step_size: float
    gradients: int
    seconds: float

    @property
    def worst_ess(self) -> float:
        """Smallest effective number of draws of all elements that are not constant; NaN where a draw is not finite."""
        return float(self._varying(self.ess).min())

    @property
    def worst_r_hat(self) -> float:
        """Largest R-hat of all elements that are not constant; infinite where a draw is not finite."""
        return float(self._varying(self.r_hat).nan_to_num(math.inf, math.inf).max())

    def _varying(self, figures: dict[str, Tensor]) -> Tensor:
        """Figures of the elements that are not constant, side by side; NaN where there are none."""
        held = torch.cat([value.reshape(-1) for value in figures.values()])
        flat = torch.cat([self.draws[name].flatten(0, 1)[:, None].flatten(1) for name in figures], -1)
        constant = (flat == flat[0]).all(0) & flat[0].isfinite()
        return held[~constant] if bool((~constant).any()) else held.new_full((1,), math.nan)

    def __repr__(self) -> str:
        chains, samples = next(iter(self.draws.values())).shape[:2]
        return (
            f"{chains} x {samples} draws in {self.seconds:.1f} s: R-hat at most {self.worst_r_hat:.3f}, at least "
            f"{self.worst_ess:.0f} effective draws, {self.divergences} divergences"
        )


def run_nuts(
    flow: VariationalFlow,
    log_density: Callable[[Tensor], Tensor],
    context: Tensor | None = None,
    *,
    warmup: int = 500,
    samples: int = 500,
    chains: int = 1,
    seed: int = 0,
    max_tree_depth: int = 8,
    target_accept: float = 0.85,
) -> Chains:
    r"""Sample an unnormalised density p of examples through a flow T.

    The chains move in noise e under :math:`\log p(T(e)) + \log |\det \partial T / \partial e|`, which is a standard
    normal density if the flow fits. Multinomial trajectories that double until they turn (Hoffman and Gelman 2014,
    Betancourt 2017); the step size is adapted by dual averaging, a diagonal mass matrix in windows that double.

    Args:
        flow: The flow.
        log_density: Log density of examples ``[*, D]``.
        context: What the flow is conditioned on.
        warmup: Steps of adaptation.
        samples: Draws kept per chain.
        chains: Number of chains.
        seed: Of the random numbers.
        max_tree_depth: Doublings of a trajectory at most.
        target_accept: Acceptance that the step size is adapted to.

    Raises:
        UserError: A count is not positive, or the density is not finite at the starting points.
    """
    if min(warmup, samples, chains, max_tree_depth) < 1:
        raise UserError("warmup, samples, chains and max_tree_depth are whole numbers of 1 or more")
    began = time.perf_counter()
    like = next(flow.parameters())
    generator = torch.Generator(device=like.device).manual_seed(seed)
    chain = flow.transform(context)
    gradients = 0

    def energy(noise: Tensor) -> Tensor:
        examples, ladj = chain.call_and_ladj(noise)
        return -(log_density(examples) + ladj)

    with torch.no_grad():
        shape = (3 * chains, flow.noise_dim)
        noise, *others = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device).split(chains)
        evaluate = traced_value_and_gradient(energy, torch.cat(others))

        def potential(noise: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal gradients
            gradients += len(noise)
            return evaluate(noise)

        state = _Start(potential).run(noise, generator)
        sampler = _Adapting(potential, state, generator, max_tree_depth, target_accept)
        sampler.warm_up(warmup)
        kept, diverged, accepted = [], 0, 0.0
        for _ in range(samples):
            mean, wrong = sampler.step()
            kept.append(sampler.state.place)
            diverged, accepted = diverged + int(wrong.sum()), accepted + float(mean)
        places = torch.stack(kept, 1)
        examples = chain(places.reshape(-1, flow.noise_dim)).reshape(chains, samples, flow.dim)
        draws = flow.layer.unpack(examples)
        r_hat, ess = {}, {}
        for name, value in draws.items():
            r_hat[name] = rhat(value)
            ess[name] = ess_bulk(value)
    return Chains(
        draws, r_hat, ess, diverged, accepted / samples, sampler.step_size, gradients, time.perf_counter() - began
    )


@dataclass(eq=False)
class _Start:
    """Finds starting points at which the density is finite."""

    potential: Potential
    tries: int = 50

    def run(self, noise: Tensor, generator: torch.Generator) -> State:
        """The given points, or new ones where they do not do."""
        state = State(noise, *self.potential(noise))
        for _ in range(self.tries):
            fine = state.energy.isfinite() & state.gradient.isfinite().all(-1)
            if bool(fine.all()):
                return state
            new = torch.empty_like(noise).normal_(generator=generator)
            state = state.where(fine, State(new, *self.potential(new)))
        raise UserError(
            f"the log density is not finite at {self.tries} starting points drawn from the guide; train it first"
        )


class _Adapting(Sampler):
    """Chains that choose their step size and mass matrix."""

    def _reasonable(self) -> None:
        """A step size at which one leapfrog step is accepted about half the time."""
        direction = 0
        for _ in range(30):
            momentum = self.draw_momentum()
            before = self.state.energy + self.kinetic(momentum)
            new = self.leap(End(self.state, momentum), torch.full_like(momentum[:, :1], self.step_size))
            change = before - new.state.energy - self.kinetic(new.momentum)
            accepted = float(torch.where(change.isfinite(), change.exp().clamp(max=1), 0).mean())
            now = 1 if accepted > 0.8 else -1
            if direction and now != direction:
                return
            direction = now
            self.step_size *= 2.0**direction

    def warm_up(self, steps: int) -> None:
        """Adapt the step size throughout, the mass matrix in windows that double between a first and a last phase."""
        ends = _windows(steps)
        self._reasonable()
        average = _DualAveraging(self.step_size, self.target)
        window: list[Tensor] = []
        for number in range(1, steps + 1):
            mean, _ = self.step()
            self.step_size = average.update(float(mean))
            if ends and ends[0] <= number <= ends[-1]:
                window.append(self.state.place)
            if number in ends[1:]:
                held = torch.stack(window).flatten(0, 1)
                count = len(held)
                if count > 4:
                    variance = held.var(0)
                    self.inverse_mass = (count * variance + 5.0) / (count + 5.0)  # towards 1, as noise has
                    self.step_size = average.mean
                    self._reasonable()
                    average = _DualAveraging(self.step_size, self.target)
                window = []
        self.step_size = average.mean


_LAST = 50
"""Steps at least that the step size has after the last mass matrix, and enough to find it from ten times too much."""


def _windows(steps: int) -> list[int]:
    """Where the first phase and then each window ends."""
    if steps < 3 * _LAST:  # too few for a mass matrix and a step size to go with it
        return []
    first, last = int(0.15 * steps), steps - max(int(0.1 * steps), _LAST)
    ends, width = [first], 25
    while ends[-1] < last:
        end = ends[-1] + width
        ends.append(last if end + 2 * width > last else end)
        width *= 2
    return ends


_GAIN = 5.0
"""Of the step size's adaptation. The usual 20 lets step sizes swing so widely that their geometric mean is too small:
at a target of 0.8 chains in 50 dimensions then accept 0.92, with 5 they accept 0.82."""


class _DualAveraging:
    """Nesterov's dual averaging of the logarithm of a step size (Hoffman and Gelman 2014)."""

    def __init__(self, start: float, target: float) -> None:
        self._shrink, self._target = math.log(10 * start), target
        self._count, self._error, self._log_mean = 0, 0.0, math.log(start)

    def update(self, accepted: float) -> float:
        """The next step size."""
        self._count += 1
        rate = 1 / (self._count + 10)
        self._error = (1 - rate) * self._error + rate * (self._target - accepted)
        log_step = self._shrink - _GAIN * math.sqrt(self._count) * self._error
        weight = self._count**-0.75
        self._log_mean = weight * log_step + (1 - weight) * self._log_mean
        return math.exp(log_step)

    @property
    def mean(self) -> float:
        """The step size to keep."""
        return math.exp(self._log_mean)
