"""The quadrature rule of Gauss and Legendre, its nodes by Newton steps. Source: DLMF 3.5.15."""

from __future__ import annotations

import math
from functools import cache

__all__ = ["legendre_rule"]


@cache
def legendre_rule(count: int) -> tuple[tuple[float, float], ...]:
    """Nodes on [0, 1], rising, each with its weight."""
    rule = []
    for k in reversed(range(count)):
        z = math.cos(math.pi * (k + 0.75) / (count + 0.5))
        for _ in range(20):
            below, value = 1.0, z
            for n in range(2, count + 1):
                below, value = value, ((2 * n - 1) * z * value - (n - 1) * below) / n
            slope = count * (z * value - below) / (z * z - 1)
            z -= value / slope
        rule.append((0.5 + 0.5 * z, 1 / ((1 - z * z) * slope * slope)))
    return tuple(rule)
