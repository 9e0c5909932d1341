"""The log density of a layer under `torch.compile`, made when it is first wanted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from emfc.layers.parameters import Parameters
from emfc.special.precision import eager

__all__ = ["Fused"]


class _LogDensity(Protocol):
    def __call__(self, values: Tensor, parameters: Parameters) -> Tensor: ...


class Fused:
    """The log density ``[B]`` as one function of examples and parameters, fused by the compiler.

    Where the compiler cannot be used, for want of a C++ compiler for example, it says so once and the ordinary
    operations do the work.
    """

    def __init__(self, log_density: _LogDensity) -> None:
        """Prepare.

        Args:
            log_density: Of examples and parameters.
        """
        self._log_density = log_density
        self._compiled: Callable[..., Tensor] | None = None
        self._known: set[tuple[torch.dtype, torch.device]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None, "_known": set()}

    def __call__(self, values: Tensor, parameters: Parameters) -> Tensor:
        """Log density where every value is inside its support; elsewhere not finite."""
        if not eager():
            return self._log_density(values, parameters)
        key = (values.dtype, values.device)
        if key not in self._known:  # tables are made once, outside the compiler
            self._known.add(key)
            with torch.no_grad():
                self._log_density(values[:1], parameters)
        if self._compiled is None:
            self._compiled = torch.compile(self._run)
        try:
            return self._compiled(parameters.transforms, values, *parameters.unconstrained)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(f"this layer runs without torch.compile: {str(error).splitlines()[0]}", stacklevel=2)
            self._compiled = self._run
        return self._log_density(values, parameters)

    def _run(self, transforms: Any, values: Tensor, *unconstrained: Tensor) -> Tensor:
        return self._log_density(values, Parameters(unconstrained, transforms, values))
