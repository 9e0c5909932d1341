"""Models whose own parameters are held at given values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["with_parameters"]


class _Fixed(Messenger):
    """Gives `pyro.param` its value, and lets nothing outside see it; the parameter store stays untouched.

    A parameter of an `nn.Module` is read from the module, whatever `pyro.param` returns, so that it has the value while
    the model runs, and its own again afterwards.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = dict(values)
        self.changed: list[tuple[nn.Parameter, Tensor]] = []

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        held = [each for each in msg["args"] if isinstance(each, nn.Parameter)]
        for parameter in held:
            if not any(parameter is other for other, _ in self.changed):
                self.changed.append((parameter, parameter.detach().clone()))
                with torch.no_grad():
                    parameter.copy_(value)
        msg["value"] = held[0] if held else value
        msg["done"] = msg["stop"] = True

    def __exit__(self, *details: Any) -> Any:
        for parameter, before in self.changed:
            with torch.no_grad():
                parameter.copy_(before)
        self.changed = []
        return super().__exit__(*details)


def with_parameters(model: Callable[..., Any], values: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The model with its `pyro.param` of these names at these values, as constants.

    Args:
        model: The model.
        values: Constrained values by name.
    """
    return _Fixed(values)(model) if values else model
