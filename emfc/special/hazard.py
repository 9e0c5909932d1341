r"""Tails by the logarithm y of a cumulative hazard: :math:`q = \exp(-e^y)` and :math:`p = 1 - \exp(-e^y)`.

Families of extremes and their relatives are affine in y. All of this is plain arithmetic, exact in both tails.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["conjugate_log_hazard", "log_hazard_from_tails", "tails_from_log_hazard"]

_LOG_TWO = math.log(2)
_LOG_LOG_TWO = math.log(_LOG_TWO)
_NEARLY_HALF = 1e-3 - _LOG_TWO


def _hazard(y: Tensor) -> Tensor:
    """The hazard, finite."""
    return torch.exp(y.clamp(max=math.log(torch.finfo(y.dtype).max) - 3))


def _small(dtype: torch.dtype) -> float:
    """Next to which 1 is 1, and whose reciprocal is far from overflow."""
    return torch.finfo(dtype).eps ** 2


def tails_from_log_hazard(y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Both log tails: :math:`\log(1 - \exp(-e^y))` and :math:`-e^y`.

    Args:
        y: Log of the cumulative hazard, of any shape; finite.

    Returns:
        Log of the lower tail, which behaves as y far below 0, and of the upper one.
    """
    hazard = _hazard(y)
    near = hazard.clamp(min=_small(y.dtype), max=_LOG_TWO)
    low = y + torch.log(-torch.expm1(-near) / near)
    high = torch.log1p(-torch.exp(-hazard.clamp(min=_LOG_TWO)))
    return torch.lerp(low, high, (y > _LOG_LOG_TWO).to(y.dtype)), -hazard  # a blend by 0 or 1 is exact


def _log_of_minus_log1p(log_p: Tensor) -> Tensor:
    r""":math:`\log(-\log(1 - p))` for :math:`p \le 1/2` given by its log."""
    p = torch.exp(log_p).clamp(min=_small(log_p.dtype))
    return log_p + torch.log(-torch.log1p(-p) / p)


def log_hazard_from_tails(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Log of the cumulative hazard, :math:`\log(-\log q)`, from the smaller tail.

    Args:
        log_p: Log of the lower tail.
        log_q: Log of the upper tail, of a shape that broadcasts.
    """
    low = _log_of_minus_log1p(log_p.clamp(max=_NEARLY_HALF))
    high = torch.log(-log_q.clamp(max=_NEARLY_HALF))
    return torch.where(log_p < log_q, low, high)


def conjugate_log_hazard(y: Tensor) -> Tensor:
    r"""The same with the tails exchanged: :math:`\log(-\log(1 - \exp(-e^y)))`, its own inverse.

    Args:
        y: Log of the cumulative hazard, of any shape; finite.
    """
    hazard = _hazard(y)
    near = hazard.clamp(min=_small(y.dtype), max=_LOG_TWO)
    low = torch.log(-(y.clamp(max=_LOG_LOG_TWO) + torch.log(-torch.expm1(-near) / near)))
    high = _log_of_minus_log1p(-hazard.clamp(min=_LOG_TWO))
    return torch.lerp(low, high, (y > _LOG_LOG_TWO).to(y.dtype))
