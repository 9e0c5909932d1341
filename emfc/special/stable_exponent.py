r"""The exponent of the stable laws, smooth in all parameters, at stability 1 as well.

At imaginary arguments, :math:`u = -i v`, the characteristic function in the parametrisation :math:`S_0` is

.. math:: \log E\,e^{i u (X - x)} = \varphi(v)
   = -x v + \beta \tau \frac{v^{\alpha} - v}{\alpha - 1} - (a - i b)\, v^{\alpha}

with :math:`\tau = (\alpha - 1) \tan \frac{\pi \alpha}{2}` and, for :math:`y = \frac{\pi}{2} (\alpha - 1)`,
:math:`a = -\sin y - \beta \cos y \tan \frac y2`, :math:`b = (1 + \beta) \cos y`, all smooth at :math:`\alpha = 1`.
Far from stability 1 the middle term is merged into the others. Source: Nolan, Univariate Stable Distributions, 2020,
chapter 1, for the parametrisation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Exponent", "Slopes", "angle_of", "complex_exp", "edge_of", "exponent_of", "slopes_of"]

_HALF_PI = 0.5 * math.pi
# Stabilities nearer to 1 than this keep the middle term.
_NEAR = 0.25
# A distance from 1 that is as good as none.
_LEAST = {torch.float32: 1e-10, torch.float64: 1e-20}


def complex_exp(w: Tensor) -> Tensor:
    """Exponential of complex numbers, by real functions, which are several times faster."""
    size, angle = torch.exp(w.real.contiguous()), w.imag.contiguous()
    return torch.complex(size * torch.cos(angle), size * torch.sin(angle))


class Exponent(NamedTuple):
    r"""The coefficients of :math:`\varphi`, for one position each.

    Attributes:
        alpha: Stability.
        delta: Stability less 1, never quite 0.
        beta: Skew.
        x: The position, at least 0.
        slope: Factor of -v.
        bend: Factor of the middle term, 0 where it is merged.
        fall: Real part of the factor of :math:`-v^{\alpha}`.
        rise: Minus its imaginary part, b.
        end: The position's distance above the point where a law that ends does so, :math:`x + \beta \tau / \delta`.
        merged: Real part of the factor of :math:`-v^{\alpha}` with all merged.
        turn: The product of that with `delta`, which is smooth.
        pull: The product of `end` with `delta`, which is smooth.
        near: True where the middle term is kept.
    """

    alpha: Tensor
    delta: Tensor
    beta: Tensor
    x: Tensor
    slope: Tensor
    bend: Tensor
    fall: Tensor
    rise: Tensor
    end: Tensor
    merged: Tensor
    turn: Tensor
    pull: Tensor
    near: Tensor

    def take(self, places: Tensor) -> Exponent:
        """Those of some elements."""
        return Exponent(*(part[places] for part in self))

    def columns(self) -> Exponent:
        """The same with a last dimension, for the nodes of a quadrature."""
        return Exponent(*(part.unsqueeze(-1) for part in self))

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        r""":math:`v = e^w`, :math:`v^{\alpha}`, the middle term's function or None, :math:`\varphi`; w is complex."""
        v, power = complex_exp(w), complex_exp(self.alpha * w)
        value = -self.slope * v - torch.complex(self.fall, -self.rise) * power
        middle = None
        if bool(self.near.any()):
            middle = self._middle(w, v)
            value = value + self.bend * middle
        return v, power, middle, value

    def _middle(self, w: Tensor, v: Tensor) -> Tensor:
        turn = self.delta * w.imag
        growth = (self.delta * w.real).clamp(max=60)
        ratio = torch.exp(growth)
        real = torch.expm1(growth) - 2 * ratio * torch.sin(0.5 * turn).square()
        return v * torch.complex(real / self.delta, ratio * torch.sin(turn) / self.delta)

    def derivative(self, v: Tensor, power: Tensor, middle: Tensor | None) -> Tensor:
        r""":math:`v \varphi'(v)`."""
        value = -self.slope * v - self.alpha * torch.complex(self.fall, -self.rise) * power
        return value if middle is None else value + self.bend * (middle + power)

    def real(self, s: Tensor) -> Tensor:
        r"""Real part of :math:`\varphi` for real :math:`s = \log v`."""
        v = torch.exp(s)
        value = -self.slope * v - self.fall * torch.exp(self.alpha * s)
        if bool(self.near.any()):
            value = value + self.bend * v * torch.expm1((self.delta * s).clamp(max=60)) / self.delta
        return value


class Angle(NamedTuple):
    """Trigonometric functions of y, the cosine exact where it vanishes, and tau over the skew's factor."""

    delta: Tensor
    near: Tensor
    sine: Tensor
    cosine: Tensor
    half: Tensor
    tau: Tensor


def angle_of(alpha: Tensor) -> Angle:
    """These for a stability."""
    delta = alpha - 1
    least = _LEAST[alpha.dtype]
    delta = torch.where(delta.abs() < least, least, delta)
    y = _HALF_PI * delta
    sine, cosine = torch.sin(y), torch.sin(_HALF_PI * torch.where(alpha < 1, alpha, 2 - alpha))
    return Angle(delta, delta.abs() < _NEAR, sine, cosine, torch.tan(0.5 * y), -delta * cosine / sine)


def edge_of(alpha: Tensor, beta: Tensor) -> Tensor:
    """Where the law ends above, for stability below 1 and skew -1; infinity elsewhere."""
    _, _, sine, cosine, _, _ = angle_of(alpha)
    return torch.where((alpha < 1) & (beta == -1), -cosine / sine, torch.inf)


def exponent_of(alpha: Tensor, beta: Tensor, x: Tensor) -> Exponent:
    """The exponent for stability, skew and a position that is at least 0."""
    delta, near, sine, cosine, half, tau = angle_of(alpha)
    pull = delta * x + beta * tau
    smooth = -sine - beta * cosine * half
    merged = torch.where(near, smooth - beta * tau / delta, -sine + beta * cosine * cosine / sine)
    end = x + beta * tau / delta
    return Exponent(
        alpha,
        delta,
        beta,
        x,
        torch.where(near, x, end),
        torch.where(near, beta * tau, 0),
        torch.where(near, smooth, merged),
        (1 + beta) * cosine,
        end,
        merged,
        torch.where(near, delta * smooth - beta * tau, delta * merged),
        pull,
        near,
    )


class Slopes(NamedTuple):
    r"""Derivatives of the coefficients of :math:`\varphi` by stability and by skew, at a fixed position."""

    line: tuple[Tensor, Tensor]
    bend: tuple[Tensor, Tensor]
    fall: tuple[Tensor, Tensor]
    rise: tuple[Tensor, Tensor]

    def take(self, places: Tensor) -> Slopes:
        """Those of some elements."""
        return Slopes(*((first[places], second[places]) for first, second in self))

    def columns(self) -> Slopes:
        """The same with a last dimension, for the nodes of a quadrature."""
        return Slopes(*((first.unsqueeze(-1), second.unsqueeze(-1)) for first, second in self))

    def __call__(
        self, exponent: Exponent, w: Tensor, v: Tensor, power: Tensor, middle: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r"""Derivatives of :math:`\varphi` at nodes."""
        factor = torch.complex(exponent.fall, -exponent.rise)
        by = [
            line * v - torch.complex(fall, -rise) * power
            for line, fall, rise in zip(self.line, self.fall, self.rise, strict=True)
        ]
        by[0] = by[0] - factor * w * power
        if middle is not None:
            by = [part + bend * middle for part, bend in zip(by, self.bend, strict=True)]
            by[0] = by[0] + exponent.bend * v * w * w * _second(exponent.delta * w)
        return by[0], by[1]


def slopes_of(alpha: Tensor, beta: Tensor) -> Slopes:
    """Derivatives of `exponent_of`."""
    delta, near, sine, cosine, half, tau = angle_of(alpha)
    zero = torch.zeros_like(alpha)
    # tau by alpha is (y - sin y cos y) / sin(y)^2, in a series near 0.
    y = _HALF_PI * delta
    small = y.abs() < 0.2
    square = torch.where(small, y, 0).square()
    series = 2 / 3 + square * (4 / 45 + square * (4 / 315 + square * (8 / 4725 + square * (4 / 18711))))
    by_alpha = torch.where(small, y * series, (y - sine * cosine) / sine.square())
    smooth = _HALF_PI * (-cosine + beta * (sine * half - 0.5 * cosine * (1 + half * half)))
    merged = -_HALF_PI * cosine * (1 + beta * (1 + 1 / sine.square()))
    return Slopes(
        (torch.where(near, 0, -beta * _HALF_PI / sine.square()), torch.where(near, 0, -tau / delta)),
        (torch.where(near, beta * by_alpha, 0), torch.where(near, tau, 0)),
        (
            torch.where(near, smooth, merged),
            torch.where(near, -cosine * half, cosine * cosine / sine),
        ),
        (-_HALF_PI * (1 + beta) * sine, cosine + zero),
    )


def _second(z: Tensor) -> Tensor:
    """(z exp(z) - exp(z) + 1) / z^2 for complex z."""
    small = z.abs() < 0.6
    near = torch.where(small, z, 0)
    series = torch.zeros_like(z)
    for order in range(14, -1, -1):
        series = series * near + (order + 1) / math.factorial(order + 2)
    far = torch.where(small, 1, z)
    return torch.where(small, series, ((far - 1) * complex_exp(far) + 1) / (far * far))
