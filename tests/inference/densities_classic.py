r"""Classic two-dimensional densities on which flows are tried, with their normalisers.

``u1`` to ``u4`` are the potentials of Rezende and Mohamed (2015), "Variational inference with normalizing flows", ICML,
table 1: the density is :math:`e^{-U(z)}`. The bands of ``u2`` to ``u4`` have no end in the first coordinate; here they
fall off beyond 4 as a normal with standard deviation 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CLASSIC", "Classic"]

_ROOT = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Classic:
    """A test density.

    Attributes:
        log_density: From points ``[*, 2]`` to ``[*]``.
        log_normaliser: Logarithm of its integral, None where it has no closed form.
        window: A square ``[-window, window]^2`` with nearly all of its mass.
    """

    log_density: Callable[[Tensor], Tensor]
    log_normaliser: float | None
    window: float = 5.0


def _normal(value: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    return -0.5 * (value / scale).square()


def banana(z: Tensor) -> Tensor:
    """A normal of standard deviations 1 and 0.3, bent along a parabola."""
    x, y = z.unbind(-1)
    return _normal(x) + _normal(y - 0.5 * (x.square() - 1), 0.3) - math.log(2 * math.pi * 0.3)


def ring(z: Tensor) -> Tensor:
    """A circle of radius 2, 0.3 thick."""
    return _normal(_norm(z) - 2, 0.3)


def two_moons(z: Tensor) -> Tensor:
    """Two arcs of a circle of radius 2, left and right."""
    side = z[..., 0].abs()
    radius = _normal(_norm(z) - 2, 0.2)
    return radius + _normal(side - 2, 0.3) + torch.nn.functional.softplus(-4 * side / 0.09)


def funnel(z: Tensor) -> Tensor:
    """Neal's funnel in two dimensions, its neck upright."""
    x, v = z.unbind(-1)
    scale = (0.5 * v).exp()
    return _normal(v, 1.5) - math.log(1.5) + _normal(x, scale) - 0.5 * v - 2 * math.log(_ROOT)


def eight_gaussians(z: Tensor) -> Tensor:
    """Eight normals of standard deviation 0.5 on a circle of radius 3."""
    angles = torch.arange(8, dtype=z.dtype, device=z.device) * (math.pi / 4)
    centres = 3 * torch.stack([angles.cos(), angles.sin()], -1)
    parts = _normal(z.unsqueeze(-2) - centres, 0.5).sum(-1) - 2 * math.log(0.5 * _ROOT)
    return parts.logsumexp(-1) - math.log(8)


def u1(z: Tensor) -> Tensor:
    """Two half moons."""
    x = z[..., 0]
    return _normal(_norm(z) - 2, 0.4) + torch.logaddexp(_normal(x - 2, 0.6), _normal(x + 2, 0.6))


def u2(z: Tensor) -> Tensor:
    """A wave."""
    x, y = z.unbind(-1)
    return _normal(y - _wave(x), 0.4) + _fence(x)


def u3(z: Tensor) -> Tensor:
    """A wave that splits in two and joins again."""
    x, y = z.unbind(-1)
    bump = 3 * _normal(x - 1, 0.6).exp()
    return torch.logaddexp(_normal(y - _wave(x), 0.35), _normal(y - _wave(x) + bump, 0.35)) + _fence(x)


def u4(z: Tensor) -> Tensor:
    """A wave that splits in two."""
    x, y = z.unbind(-1)
    step = 3 * torch.sigmoid((x - 1) / 0.3)
    return torch.logaddexp(_normal(y - _wave(x), 0.4), _normal(y - _wave(x) + step, 0.35)) + _fence(x)


def _norm(z: Tensor) -> Tensor:
    return (z.square().sum(-1) + 1e-12).sqrt()


def _wave(x: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * x)


def _fence(x: Tensor) -> Tensor:
    return _normal((x.abs() - 4).clamp(min=0), 0.2)


def _ring_normaliser(radius: float, width: float) -> float:
    ratio = radius / width
    inner = width**2 * math.exp(-0.5 * ratio**2)
    outer = radius * width * math.sqrt(math.pi / 2) * (1 + math.erf(ratio / math.sqrt(2)))
    return math.log(2 * math.pi * (inner + outer))


_LENGTH = 8 + 0.2 * _ROOT  # of a fenced band

CLASSIC: dict[str, Classic] = {
    "banana": Classic(banana, 0.0),
    "ring": Classic(ring, _ring_normaliser(2, 0.3)),
    "two_moons": Classic(two_moons, None),
    "funnel": Classic(funnel, 0.0, window=30.0),
    "eight_gaussians": Classic(eight_gaussians, 0.0),
    "u1": Classic(u1, None),
    "u2": Classic(u2, math.log(_LENGTH * 0.4 * _ROOT)),
    "u3": Classic(u3, math.log(_LENGTH * 2 * 0.35 * _ROOT)),
    "u4": Classic(u4, math.log(_LENGTH * 0.75 * _ROOT), window=6.0),
}
"""The densities by name."""
