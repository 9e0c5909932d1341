"""What is compared: each program with its hand-written versions, and with Pyro's own ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from emfc.cli.bench import by_hand, programs

__all__ = ["SUBJECTS", "Subject", "pyro_density", "pyro_draw", "pyro_enumeration"]

Evaluation = Callable[..., Tensor]


@dataclass(frozen=True)
class Subject:
    """A program whose cost is measured.

    Attributes:
        title: What it is called in the table.
        model: The program, a function of its number of steps.
        density: The hand-written log density of examples and unconstrained parameters.
        draw: The hand-written map from noise to examples, if there is one.
        only_steps: The only length at which it is measured.
        most_steps: The greatest length at which it is measured.
        plain: Whether the layer that works site by site is measured, too.
        compiled: Whether the density is also measured through ``torch.compile``.
        enumerated: Whether Pyro has to sum out discrete sites.
        factory: Whether `model` has to be called for the program, which then holds modules of its own.
    """

    title: str
    model: Callable[..., Any]
    density: Evaluation
    draw: Evaluation | None = None
    only_steps: int | None = None
    most_steps: int = 10_000
    plain: bool = True
    compiled: bool = False
    enumerated: bool = False
    factory: bool = False

    def program(self) -> Callable[[int], Any]:
        """The program, in the default dtype."""
        made: Callable[[int], Any] = self.model() if self.factory else self.model
        return made

    def lengths(self, asked: Sequence[int]) -> list[int]:
        """Lengths at which it is measured, of those that are asked for."""
        if self.only_steps is not None:
            return [self.only_steps]
        return [steps for steps in asked if steps <= self.most_steps]


SUBJECTS: dict[str, Subject] = {
    "brownian": Subject("Brownian motion", programs.brownian, by_hand.brownian, by_hand.draw_brownian, compiled=True),
    "ornstein-uhlenbeck": Subject(
        "Ornstein-Uhlenbeck", programs.ornstein_uhlenbeck, by_hand.ornstein_uhlenbeck, by_hand.draw_ornstein_uhlenbeck
    ),
    "lorenz": Subject("Lorenz", programs.lorenz, by_hand.lorenz, by_hand.draw_lorenz, compiled=True),
    "lorenz-scalars": Subject("Lorenz, scalar sites", programs.lorenz_scalars, by_hand.lorenz, by_hand.draw_lorenz),
    "stochastic-volatility": Subject(
        "stochastic volatility",
        programs.stochastic_volatility,
        by_hand.stochastic_volatility,
        by_hand.draw_stochastic_volatility,
    ),
    "radon": Subject("radon, 85 counties", programs.radon, by_hand.radon),
    "autoregression": Subject("AR(2)", programs.autoregression, by_hand.autoregression, by_hand.draw_autoregression),
    "local-trend": Subject("local trend", programs.local_trend, by_hand.local_trend, by_hand.draw_local_trend),
    "gated-recurrent": Subject(
        "GRU-driven series",
        programs.gated_recurrent,
        by_hand.gated_recurrent,
        by_hand.draw_gated_recurrent,
        most_steps=300,
        plain=False,
        factory=True,
    ),
    "hidden-markov": Subject(
        "hidden Markov model, 3 states",
        programs.hidden_markov,
        by_hand.hidden_markov,
        only_steps=416,
        plain=False,
        enumerated=True,
    ),
}


def _batched(model: Callable[[int], Any], steps: int, size: int) -> Callable[[], None]:
    """The program within one plate over examples, as a user of Pyro vectorises it."""

    def batched() -> None:
        with pyro.plate("examples", size):
            model(steps)

    return batched


def _conditioned(model: Callable[[int], Any], steps: int, values: dict[str, Tensor]) -> Callable[[], None]:
    size = len(next(iter(values.values())))
    return poutine.condition(_batched(model, steps, size), values)


def pyro_density(model: Callable[[int], Any], steps: int, values: dict[str, Tensor]) -> Tensor:
    """Sum over examples of Pyro's log density; the program runs once, every site on all examples."""
    with pyro.get_param_store().scope():
        trace = poutine.trace(_conditioned(model, steps, values)).get_trace()
        return torch.as_tensor(trace.log_prob_sum())


def pyro_enumeration(model: Callable[[int], Any], steps: int, values: dict[str, Tensor]) -> Tensor:
    """The same where discrete sites are summed out in turn, by Pyro's enumeration."""
    with pyro.get_param_store().scope():
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(_conditioned(model, steps, values), lambda: None)
    return -torch.as_tensor(loss)


def pyro_draw(model: Callable[[int], Any], steps: int, size: int) -> Tensor:
    """Examples ``[B, D]`` from one run of the program, every site for all examples."""
    with pyro.get_param_store().scope():
        trace = poutine.trace(_batched(model, steps, size)).get_trace()
    values: list[Tensor] = [site["value"] for site in trace.nodes.values() if site["type"] == "sample"]  # type: ignore[misc]
    return torch.cat([value.reshape(size, -1) for value in values if value.is_floating_point()], 1)
