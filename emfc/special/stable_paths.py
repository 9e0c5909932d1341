r"""Paths of integration for the stable laws, from 0 to infinity in the half-plane where :math:`e^{\varphi}` decays.

The upper tail is :math:`\frac1\pi \operatorname{Im} \int e^{\varphi(v)} \frac{dv}{v}` along any path that leaves 0 in
the positive direction. Three pieces are enough, each with nodes in the logarithm w of v:

* the positive axis, where the power law of the tail arises, up to where the integrand has decayed or up to the saddle;
* a curve of steepest descent out of a saddle, which carries a light tail;
* one smooth path close to that of constant phase, where the integrand would oscillate on the axis.

Source: Nolan, Numerical calculation of stable densities and distribution functions, Stochastic Models 13, 1997, for the
path of constant phase (Zolotarev's integral); de Bruijn, Asymptotic Methods in Analysis, 1958, chapter 5, for the
descent from a saddle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from emfc.special.legendre import legendre_rule
from emfc.special.stable_exponent import Exponent

__all__ = ["Nodes", "Plan", "along_axis", "between", "deepest", "descent", "peak", "plan_of"]


class _Settings(NamedTuple):
    """Numbers of nodes, decay in the exponent that is as good as complete, and the deepest saddle that is resolved."""

    axis: int
    descent: int
    between: int
    decay: float
    deepest: float


_SETTINGS = {
    torch.float32: _Settings(31, 20, 37, 18.0, 1e3),
    torch.float64: _Settings(71, 64, 81, 42.0, 1e5),
}
# The least v at which a path leaves the axis.
_LEAST_LOG_EXIT = math.log(0.5)
# The most that the phase may turn on the axis.
_MOST_TURN = 12.0
# Where the path of constant phase bends over a longer way than this, in w, it is smooth enough.
_SHARPEST = 1.5
# The ends of paths are found by cutting brackets into so many parts, so many times.
_PARTS, _LEVELS = 10, 3


class Nodes(NamedTuple):
    """Points of a quadrature in w, and their weights times dw, in shape [n, nodes]."""

    w: Tensor
    weight: Tensor


class Plan(NamedTuple):
    """Which pieces each element takes.

    Attributes:
        has_saddle: True where the real part has a minimum on the axis, out of which a path descends.
        exit: Logarithm of v where the path leaves the axis.
        last: Logarithm of v up to which the axis matters, at most `exit`.
        on_axis: True where the axis, and the descent out of its saddle, are the path.
    """

    has_saddle: Tensor
    exit: Tensor
    last: Tensor
    on_axis: Tensor


def deepest(dtype: torch.dtype) -> float:
    """The depth of a saddle up to which the way down is resolved."""
    return _SETTINGS[dtype].deepest


def _boundary(inside: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """A point at most a thousandth of the bracket beyond that up to which a condition on points [n, m] holds."""
    parts = torch.arange(1, _PARTS, dtype=low.dtype, device=low.device)
    for _ in range(_LEVELS):
        width = (high - low) / _PARTS
        holds = inside(low.unsqueeze(-1) + width.unsqueeze(-1) * parts)
        low = low + width * holds.cumprod(-1).sum(-1)
        high = low + width
    return high


def _saddle(e: Exponent) -> tuple[Tensor, Tensor]:
    """Where the real part has a minimum on the axis, and the logarithm of v there."""
    has = (e.turn < 0) & (e.pull > 0)
    # v^delta is pull / (-alpha turn), which is 1 + delta times a smooth number.
    excess = (e.x + e.alpha * e.fall - e.bend) / (-e.alpha * torch.where(has, e.turn, -1))
    least = torch.finfo(e.x.dtype).eps - 1
    near = torch.log1p((e.delta * torch.where(has & e.near, excess, 0)).clamp(min=least)) / e.delta
    tiny = torch.finfo(e.x.dtype).tiny
    far = (e.end.abs().clamp(min=tiny) / (e.alpha * torch.where(has, e.merged, 1).abs())).log() / e.delta
    return has, torch.where(e.near, near, far)


def plan_of(e: Exponent) -> Plan:
    """The pieces that a tail needs."""
    settings, info = _SETTINGS[e.x.dtype], torch.finfo(e.x.dtype)
    has, saddle = _saddle(e)
    largest = (0.9 * math.log(info.max) - e.x.clamp(min=1).log()) / e.alpha.clamp(min=1)
    leave = torch.minimum(saddle.clamp(min=_LEAST_LOG_EXIT), largest)
    farthest = math.log(60) / e.alpha.clamp(max=1) + 2
    start = -torch.log1p(e.x) - 3
    end = torch.where(has, torch.minimum(leave, farthest), farthest)
    open_ended = e.real(end) > -settings.decay
    columns = e.columns()
    last = torch.where(open_ended, end, _boundary(lambda s: columns.real(s) > -settings.decay, start, end))
    turn = e.rise * torch.exp(e.alpha * last)
    # How far the path of constant phase bends around a saddle, in w.
    bend = torch.atan2(e.delta.abs() * e.rise, e.turn.abs()) / e.delta.abs()
    smooth = has & open_ended & (bend > _SHARPEST)
    grows = ~has & (e.end <= 0) & (e.merged < 0)
    return Plan(has, leave, last, (turn < _MOST_TURN) & ~smooth & ~grows)


def _steps(low: Tensor, high: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Equidistant points in shape [n, count], and their distance."""
    places = torch.arange(count, dtype=low.dtype, device=low.device)
    step = (high - low).unsqueeze(-1) / (count - 1)
    return low.unsqueeze(-1) + step * places, step


def along_axis(e: Exponent, last: Tensor) -> Nodes:
    """The axis from 0 to `last`: tanh-sinh nodes in v.

    Source: Takahasi and Mori, Double exponential formulas for numerical integration, 1974.
    """
    settings = _SETTINGS[last.dtype]
    reach = 0.9 * settings.decay / math.pi
    tau, step = _steps(-torch.asinh(reach / e.alpha), torch.full_like(last, math.asinh(reach)), settings.axis)
    z = math.pi * torch.sinh(tau)
    s = last.unsqueeze(-1) + torch.nn.functional.logsigmoid(z)
    weight = torch.sigmoid(-z) * torch.cosh(tau) * (math.pi * step)
    return Nodes(torch.complex(s, torch.zeros_like(s)), torch.complex(weight, torch.zeros_like(s)))


def _curve(alpha: Tensor, delta: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    r"""Height of the curve of steepest descent where the phase vanishes on the axis, and its derivative by the angle.

    It is :math:`\frac{1}{\delta} \log \frac{\alpha \sin \eta}{\sin \alpha \eta}` at the angle :math:`\eta`.
    """
    sine, inner = torch.sin(angle), torch.sin(alpha * angle)
    excess = (sine - 2 * torch.cos(0.5 * (1 + alpha) * angle) * torch.sin(0.5 * delta * angle) / delta) / inner
    least = torch.finfo(angle.dtype).eps - 1
    height = torch.log1p((delta * excess).clamp(min=least)) / delta
    return height, torch.sin(delta * angle) / (delta * sine * inner) - torch.cos(alpha * angle) / inner


def descent(e: Exponent, leave: Tensor) -> Nodes:
    """The way down from a saddle: Gauss-Legendre nodes in the angle, up to where the integrand has decayed."""
    settings, info = _SETTINGS[leave.dtype], torch.finfo(leave.dtype)
    top = math.pi / e.alpha.clamp(min=1) * (1 - 4 * info.eps)
    floor = (e.real(leave) - settings.decay).unsqueeze(-1)
    columns, begin = e.columns(), leave.unsqueeze(-1)

    def high(angle: Tensor) -> Tensor:
        height, _ = _curve(columns.alpha, columns.delta, angle)
        value: Tensor = columns(torch.complex(begin + height, angle))[-1]
        return value.real > floor

    end = _boundary(high, torch.zeros_like(top), top).unsqueeze(-1)
    rule = zip(*legendre_rule(settings.descent), strict=True)
    places, weights = (torch.tensor(part, dtype=leave.dtype, device=leave.device) for part in rule)
    # Small stabilities decay late: their nodes are denser there.
    power = torch.where(e.alpha < 0.3, 2, 1).to(leave.dtype).unsqueeze(-1)
    rest = 1 - places
    angle = end * (1 - rest**power)
    step = end * weights * power * rest ** (power - 1)
    height, slope = _curve(columns.alpha, columns.delta, angle)
    return Nodes(torch.complex(begin + height, angle), torch.complex(slope * step, step))


def peak(e: Exponent, leave: Tensor) -> Nodes:
    """The same as one node with the width of the peak (Laplace's method), for saddles too deep to be resolved."""
    curvature = e.alpha * e.turn.abs() * torch.exp(e.alpha * leave)
    width = torch.sqrt(0.5 * math.pi / curvature).unsqueeze(-1)
    w = leave.unsqueeze(-1)
    return Nodes(torch.complex(w, torch.zeros_like(w)), torch.complex(torch.zeros_like(w), width))


def _smooth_angle(e: Exponent, s: Tensor) -> tuple[Tensor, Tensor]:
    """Angle of a smooth path near that of constant phase, and its derivative by s; coefficients as columns."""
    growth = e.delta * s
    ratio, rest = torch.exp(growth.clamp(max=0)), torch.exp(-growth.clamp(min=0))
    direct = e.end * rest / e.alpha + ratio * e.merged
    smooth = (e.x / e.alpha - e.bend * (torch.expm1(growth.clamp(max=60)) / e.delta + 1 / e.alpha)) * rest
    across, along = ratio * e.rise, torch.where(e.near, smooth + ratio * e.fall, direct)
    size = torch.hypot(across, along)
    angle = torch.atan2(across, along) / e.alpha
    slope = across / size * (e.pull * rest / e.alpha / size) / e.alpha
    # Below the end, small stabilities have to turn back to where exp(-end v) decays.
    beyond = (e.end < 0) & (e.alpha < 0.75)
    if bool(beyond.any()):
        size = torch.hypot(e.merged, e.rise)
        start = torch.atan2(e.rise, e.merged) / e.alpha
        across = e.alpha * ratio * size * torch.sin(start)
        along = e.end * rest + e.alpha * ratio * size * torch.cos(start)
        size = torch.hypot(across, along)
        angle = torch.where(beyond, torch.atan2(across, along), angle)
        slope = torch.where(beyond, e.delta * (across / size) * (e.end * rest / size), slope)
    return angle, slope


def between(e: Exponent) -> Nodes:
    """A smooth path near that of constant phase: the trapezoidal rule in a variable that stretches the way to 0.

    Source: Takahasi and Mori, as above, for integrands that decay exponentially on one side.
    """
    settings = _SETTINGS[e.x.dtype]
    centre = -torch.log1p(e.x).unsqueeze(-1)
    columns = e.columns()

    def high(tau: Tensor) -> Tensor:
        s = centre + tau - torch.exp(-tau)
        value: Tensor = columns(torch.complex(s, _smooth_angle(columns, s)[0]))[-1]
        return value.real > -settings.decay

    end = _boundary(high, torch.zeros_like(e.x), torch.full_like(e.x, 60.0))
    tau, step = _steps(-torch.log(1.4 * settings.decay / e.alpha), end, settings.between)
    stretch = torch.exp(-tau)
    s = centre + tau - stretch
    angle, slope = _smooth_angle(columns, s)
    ds = (1 + stretch) * step
    return Nodes(torch.complex(s, angle), torch.complex(ds, slope * ds))
