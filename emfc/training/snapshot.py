"""Everything of a training that changes from step to step, as it was at the end of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from emfc.training.optimiser import WeightAverage

__all__ = ["Snapshot", "undone_on_error"]


@dataclass
class Snapshot:
    """Weights, their average, and the optimiser's memory.

    Attributes:
        live: The weights themselves, in the order of the average's parameters.
        average: Their average.
        average_steps: How many steps the average has taken in.
        optimiser: The optimiser's tensors for each parameter; none for an optimiser that has made no step.
    """

    live: list[Tensor]
    average: list[Tensor]
    average_steps: int
    optimiser: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def take(cls, average: WeightAverage, optimiser: torch.optim.Optimizer | None) -> Snapshot:
        """Copies the state of a training; the optimiser's only if it is given."""
        live = [parameter.detach().clone() for parameter in average.parameters]
        memory = []
        if optimiser is not None:
            memory = [
                {key: torch.as_tensor(value).clone() for key, value in optimiser.state.get(parameter, {}).items()}
                for parameter in average.parameters
            ]
        return cls(live, average.state(), average.steps, memory)

    @torch.no_grad()
    def restore(self, average: WeightAverage, optimiser: torch.optim.Optimizer) -> None:
        """Puts the state back; an optimiser of which nothing was kept stays as it is."""
        for parameter, saved in zip(average.parameters, self.live, strict=True):
            parameter.copy_(saved)
        average.restore(self.average)
        average.steps = self.average_steps
        for parameter, memory in zip(average.parameters, self.optimiser, strict=False):
            if memory:
                optimiser.state[parameter] = {key: value.clone() for key, value in memory.items()}

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns the state as named tensors, given the names of the parameters."""
        held = {f"live.{name}": tensor for name, tensor in zip(names, self.live, strict=True)}
        held |= {f"average.{name}": tensor for name, tensor in zip(names, self.average, strict=True)}
        for name, memory in zip(names, self.optimiser, strict=False):
            held |= {f"optimiser.{name}.{key}": value for key, value in memory.items()}
        return held

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], named: Sequence[tuple[str, nn.Parameter]], *, average_steps: int
    ) -> Snapshot:
        """Reads the state from named tensors, as ``tensors`` gave them, into the dtypes of the parameters."""
        memory = []
        for name, parameter in named:
            prefix = f"optimiser.{name}."
            entry = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            memory.append({key: value if key == "step" else value.to(parameter.dtype) for key, value in entry.items()})
        return cls(
            [tensors[f"live.{name}"].to(parameter.dtype) for name, parameter in named],
            [tensors[f"average.{name}"].to(parameter.dtype) for name, parameter in named],
            average_steps,
            memory,
        )


@contextmanager
def undone_on_error(flow: Any) -> Iterator[None]:
    """Gives a flow that an error leaves before training its parameters and buffers back, as they were."""
    parameters = [(parameter, parameter.data, parameter.detach().clone()) for parameter in flow.parameters()]
    buffers = [
        (part, name, held, held.clone()) for part in flow.modules() for name, held in part.named_buffers(recurse=False)
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, held, value in parameters:
                parameter.data = held.copy_(value)
            for part, name, held, value in buffers:
                setattr(part, name, held.copy_(value))
        raise
