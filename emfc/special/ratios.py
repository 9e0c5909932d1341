r"""Smooth quotients whose numerator and denominator vanish together, and logarithms next to 0.

Plain arithmetic, differentiable any number of times: near the common zero a series, the closed form elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import differentiable, elementwise, halves
from emfc.special.polynomials import differentiable_polynomial

__all__ = ["bounded_exp", "expm1_ratio", "log1p_ratio", "log_distance", "log_expm1_ratio", "logistic_pair", "side_of"]

_EXPM1 = [1 / math.factorial(n + 1) for n in range(15)]
_ATANH = [1 / (2 * n + 1) for n in range(9)]


def side_of(value: Tensor) -> Tensor:
    """-1 below 0 and 1 from 0 on; a factor for what is mirrored there, without a gradient."""
    return torch.copysign(torch.ones_like(value), value.detach())


def bounded_exp(exponent: Tensor, *, room: float = 0.0) -> Tensor:
    """Exponential that stays finite, and below the largest number by so many units of the exponent.

    Args:
        exponent: Any shape.
        room: Log of the largest number with which the result is multiplied.
    """
    info = torch.finfo(exponent.dtype)
    largest = math.log(info.max)
    return torch.exp(exponent.clamp(max=largest - max(room, 4 * info.eps * largest)))


def expm1_ratio(w: Tensor) -> Tensor:
    r""":math:`(e^w - 1) / w`, and 1 at 0.

    Args:
        w: Any shape; the result is finite as long as the exponential is.
    """
    near = w.abs() < 0.5
    safe = torch.where(near, 1.0, w)
    return torch.lerp(torch.expm1(safe) / safe, differentiable_polynomial(_EXPM1, w.clamp(-0.5, 0.5)), halves(near, w))


def log_expm1_ratio(w: Tensor) -> Tensor:
    r""":math:`\log((e^w - 1) / w)`, and 0 at 0, for any w without overflow."""
    near = w.abs() < 0.5
    safe = torch.where(near, 1.0, w)
    size = safe.abs()
    far = safe.clamp(min=0) + torch.log(-torch.expm1(-size)) - size.log()
    small = w.clamp(-0.5, 0.5)
    return torch.lerp(far, torch.log1p(small * differentiable_polynomial(_EXPM1[1:], small)), halves(near, w))


def log1p_ratio(w: Tensor) -> Tensor:
    r""":math:`\log(1 + w) / w`, and 1 at 0.

    Args:
        w: More than -1.

    Source: the series of the inverse hyperbolic tangent, DLMF 4.6.4, near 0.
    """
    near = w.abs() < 0.2
    safe = torch.where(near, 1.0, w)
    small = w.clamp(-0.2, 0.2)
    turned = small / (2 + small)
    series = 2 / (2 + small) * differentiable_polynomial(_ATANH, turned * turned)
    return torch.lerp(torch.log1p(safe) / safe, series, halves(near, w))


def logistic_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic function of a number and of its negative, also where they are subnormal."""
    side = side_of(x)
    small = torch.exp(-side * x)
    large = 1 / (1 + small)
    small = small * large
    upper = 0.5 + 0.5 * side
    return torch.lerp(small, large, upper), torch.lerp(large, small, upper)


@elementwise("log_distance", inputs=1)
def _log_distance(distance: Tensor) -> tuple[Tensor, ...]:
    info = torch.finfo(distance.dtype)
    return (torch.log(distance.clamp(min=info.tiny * info.eps)),)


def _log_distance_partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    (distance,) = inputs
    tiny = torch.finfo(distance.dtype).tiny
    return ((1 / distance.clamp(min=4096 * tiny),),)  # far from overflow when multiplied


_log_distance_differentiable = differentiable(_log_distance, _log_distance_partials)


def log_distance(distance: Tensor) -> Tensor:
    """Log of a positive number, subnormal ones too; finite, with finite derivatives, also at 0 and below.

    Args:
        distance: Any shape, float32 or float64.
    """
    return _log_distance_differentiable(distance)[0]
