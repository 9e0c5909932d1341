"""Monotonic maps of single numbers whose parameters a hyper-network gives, in the direction data -> noise."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from emfc.flows._zuko import MonotonicRQSTransform
from emfc.transforms import LadjTransform

__all__ = ["LOG_SCALE_BOUND", "AffineTransform", "ScaleTransform", "soft_bound", "spline"]

LOG_SCALE_BOUND = math.log(1e3)
"""One factor of a scale stays strictly between one thousandth and one thousand."""

SPLINE_SLOPE = 1e-3


def soft_bound(value: Tensor, below: float, above: float) -> Tensor:
    r"""Smooth bound: slope one at zero, always inside :math:`(-b, a)`.

    :math:`v / (1 + v / a)` above zero, and :math:`v / (1 - v / b)` below it.
    """
    return value / (1 + torch.maximum(value / above, -value / below))


class AffineTransform(Transform):
    r"""Standardisation :math:`e = (x - m) \exp(-s)`, the form of the masked autoregressive flow's paper.

    The log-scale is bounded smoothly, from above by log 1000. Parameters of zero give the identity.

    Args:
        mean: :math:`m`, any shape.
        log_scale: :math:`s` before it is bounded, same shape.
        below: How far below zero it may go.

    Source: Papamakarios et al. (2017), "Masked autoregressive flow for density estimation", equation 4.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, mean: Tensor, log_scale: Tensor, below: float = LOG_SCALE_BOUND) -> None:
        super().__init__()
        self.mean = mean
        self.log_scale = soft_bound(log_scale, below, LOG_SCALE_BOUND)

    def _call(self, x: Tensor) -> Tensor:
        return (x - self.mean) * torch.exp(-self.log_scale)

    def _inverse(self, y: Tensor) -> Tensor:
        return y * torch.exp(self.log_scale) + self.mean

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.log_scale.expand(x.shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(x), -self.log_scale.expand(x.shape)


class ScaleTransform(LadjTransform):
    r"""The map :math:`x = \exp(c) \odot e` of vectors, with :math:`|c| < \log 1000`.

    Args:
        layer: The module whose parameter ``log_scale`` ``[D]`` is c before it is bounded; read when the map is called.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def _log_scale(self) -> Tensor:
        return soft_bound(self.layer.log_scale, LOG_SCALE_BOUND, LOG_SCALE_BOUND)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled vector and the sum of the log-scales."""
        log_scale = self._log_scale()
        return x * log_scale.exp(), log_scale.sum(dim=-1).expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The vector before it was scaled, and minus the sum of the log-scales."""
        log_scale = self._log_scale()
        return y * torch.exp(-log_scale), -log_scale.sum(dim=-1).expand(y.shape[:-1])


@cache
def _start_logits(bins: int, bound: float, core: float) -> tuple[float, ...]:
    """Logits of the bin widths before training: equal bins over ``[-core, core]``, one wide bin on either side.

    They are given before zuko's soft bound on the logits, so that the bound returns them.
    """
    if bins < 4 or core >= bound:
        return (0.0,) * bins
    widths = [bound - core, *([2 * core / (bins - 2)] * (bins - 2)), bound - core]
    logs = [math.log(width) for width in widths]
    centre = (max(logs) + min(logs)) / 2
    limit = -math.log(SPLINE_SLOPE) / 2
    return tuple((value - centre) / (1 - abs(value - centre) / limit) for value in logs)


def _spline(bins: int, bound: float, core: float, widths: Tensor, heights: Tensor, derivatives: Tensor) -> Transform:
    start = widths.new_tensor(_start_logits(bins, bound, core))
    transform: Transform = MonotonicRQSTransform(
        widths + start, heights + start, derivatives, bound=bound, slope=SPLINE_SLOPE
    )
    return transform


def spline(bins: int, bound: float, core: float) -> Any:
    r"""Constructor of a monotonic rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    The knots start equally spaced over ``[-core, core]`` with one wide bin on either side, at the same places on both
    axes and with slopes of one: parameters of zero give the identity, the resolution is where a standard normal has its
    mass, and the domain is still wide.

    Args:
        bins: The number of bins :math:`K`; the parameters have shapes ``[*, K]``, ``[*, K]`` and ``[*, K - 1]``.
        bound: :math:`B`.
        core: Half the width of the part with equally spaced knots.

    Source: Durkan et al. (2019), "Neural spline flows".
    """
    return partial(_spline, bins, bound, core)
