"""More steps of chains: softplus, powers, ELU, distribution functions, and the inverses of such."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from emfc.special.normal import log1mexp
from emfc.special.precision import wide
from emfc.special.ratios import bounded_exp, log_distance
from emfc.transforms.ends import (
    POSITIVE,
    UNIT,
    Ends,
    between,
    ends_of,
    from_zero,
    inner_end,
    log_of,
    moved_end,
    to_one,
    within,
)
from emfc.transforms.family import ScalarFamily
from emfc.transforms.parts import Part, need_lower_end, one_sign
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.supports import Bound, Position

__all__ = ["CDFPart", "ELUPart", "PowerPart", "ReversedPart", "SignedPowerPart", "SoftplusPart"]


class SoftplusPart(Part):
    r""":math:`\log(1 + e^x)`."""

    def image(self, ends: Ends) -> Ends:
        """From 0, or from the value at the lower end, on."""
        low, high = (moved_end(end, lambda x: -logsigmoid(-x)) for end in ends)
        return 0.0 if low is None else low, high

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Minus the log of a logistic function."""
        y = -logsigmoid(-at.value)
        return within(self.image(ends), y, y), logsigmoid(at.value)

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Value plus the log of one minus its negative exponential."""
        y = from_zero(at, self.image(ends))
        slope = log1mexp(-y.clamp(min=torch.finfo(y.dtype).tiny))
        return within(ends, y + slope), slope


class _Power(Part):
    """A power by a tensor, or by one over it, whose rounding would tell."""

    def __init__(self, exponent: Tensor, *, reciprocal: bool = False) -> None:
        self.exponent, self.reciprocal = wide(exponent), reciprocal

    def _raised(self, log_x: Tensor) -> Tensor:
        exponent = self.exponent.to(log_x.dtype)
        return log_x / exponent if self.reciprocal else log_x * exponent

    def _root(self, log_y: Tensor) -> Tensor:
        exponent = self.exponent.to(log_y.dtype)
        return log_y * exponent if self.reciprocal else log_y / exponent

    def _step(self, log_x: Tensor, log_y: Tensor) -> Tensor:
        size = self.exponent.to(log_x.dtype).abs().log()
        return (-size if self.reciprocal else size) + log_y - log_x


def _gentle(log_y: Tensor, log_x: Tensor) -> Tensor:
    """The log of a power, whose derivative is reduced where that of the power by its base would overflow."""
    limit = math.log(torch.finfo(log_y.dtype).max) - 24  # which leaves room for products
    with torch.no_grad():
        factor = torch.exp((limit - log_y + log_x).clamp(max=0))
    return log_y.detach() + factor * (log_y - log_y.detach())


class PowerPart(_Power):
    """A power of a positive value."""

    def __init__(self, exponent: Tensor, *, reciprocal: bool = False) -> None:
        super().__init__(exponent, reciprocal=reciprocal)
        self.sign = one_sign(self.exponent)

    def image(self, ends: Ends) -> Ends:
        """Powers of the ends; from 0 on where they may be exchanged for some elements."""
        need_lower_end(ends, "A power")
        if not isinstance(self.sign, int):
            return POSITIVE
        low, high = self._moved(inner_end(ends[0], 0)), self._moved(ends[1])
        return (0.0 if low is None else low, high) if self.sign > 0 else (0.0 if high is None else high, low)

    def _moved(self, end: Bound | None) -> Tensor | None:
        return None if end is None else bounded_exp(self._raised(torch.as_tensor(end).to(self.exponent).log()))

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Exponential of a multiple of the logarithm."""
        log_x = log_of(at, ends)
        log_y = self._raised(log_x)
        y = bounded_exp(_gentle(log_y, log_x))
        return within(self.image(ends), y, y, -torch.expm1(log_y.clamp(max=1))), self._step(log_x, log_y)

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The reciprocal power."""
        log_y = log_of(at, self.image(ends))
        log_x = self._root(log_y)
        x = bounded_exp(log_x)
        return within(ends, x, x, -torch.expm1(log_x.clamp(max=1))), self._step(log_x, log_y)


class SignedPowerPart(_Power):
    """A positive power of the size of a real value, with its sign."""

    def image(self, ends: Ends) -> Ends:
        """Powers of the ends."""
        low, high = (None if end is None else self._moved(torch.as_tensor(end).to(self.exponent)) for end in ends)
        return low, high

    def _moved(self, value: Tensor) -> Tensor:
        return value.sign() * bounded_exp(self._raised(log_distance(value.abs())))

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The power; its log-Jacobian at 0 is that of the smallest number."""
        log_x = log_distance(at.value.abs())
        return within(self.image(ends), self._moved(at.value)), self._step(log_x, self._raised(log_x))

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The reciprocal power."""
        log_y = log_distance(at.value.abs())
        log_x = self._root(log_y)
        return within(ends, at.value.sign() * bounded_exp(log_x)), self._step(log_x, log_y)


class ELUPart(Part):
    r"""x above 0, :math:`e^x - 1` below; onto what lies above -1."""

    def image(self, ends: Ends) -> Ends:
        """From -1, or from the value at the lower end, on."""
        low, high = (moved_end(end, torch.nn.functional.elu) for end in ends)
        return -1.0 if low is None else low, high

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Value, and its exact distance to -1."""
        low = at.value.clamp(max=0)
        rest = at.value.clamp(min=0)
        # expm1 has the derivative of its value plus 1, which is rounded away near -1
        part = torch.where(low < -0.5, torch.exp(low) - 1, torch.expm1(low.clamp(min=-0.5)))
        known = within(self.image(ends), rest + part)
        return (known if ends[0] is not None else known._replace(below=rest + torch.exp(low))), low

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Value, or the logarithm of the distance to -1."""
        below = 1 + at.value if at.below is None or ends[0] is not None else at.below
        x = torch.where(at.value > 0, at.value, log_of(Position(below, below, -at.value), UNIT))
        return within(ends, x), x.clamp(max=0)


class CDFPart(Part):
    """The distribution function of a univariate family, onto the unit interval."""

    def __init__(self, family: ScalarFamily) -> None:
        self.family = family
        self.ends = ends_of(family.support_map)

    def image(self, ends: Ends) -> Ends:
        """The unit interval."""
        return 0.0, 1.0

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Both tails and the log density."""
        support = self.family.support_map
        value = support.nearest(at.value, smallest=True)
        place, known = support.place(value), between(self.ends, at, ends)
        below = place.below if known.below is None else known.below
        above = place.above if known.above is None else known.above
        log_prob, log_p, log_q = self.family.evaluate(Position(value, below, above))
        low, high = torch.exp(log_p), torch.exp(log_q)
        return Position(torch.where(log_p < log_q, low, 1 - high), low, high), log_prob

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The quantile and the log density there."""
        low, high = from_zero(at, UNIT), to_one(at, UNIT)
        place = self.family.locate(log_distance(low), log_distance(high))
        return between(ends, place, self.ends), self.family.log_density(place)


class ReversedPart(Part):
    """The inverse of a step whose codomain has fixed ends."""

    def __init__(self, part: Part, domain: Ends, name: str) -> None:
        self.part, self.domain, self.name = part, domain, name
        self.sign = part.sign

    def image(self, ends: Ends) -> Ends:
        """Where the step takes its inputs from."""
        low, high = self.part.image(self.domain)
        if (low is not None and ends[0] is None) or (high is not None and ends[1] is None):
            raise UnsupportedFamilyError(f"{self.name} takes values between ends, and what comes before it has others.")
        return self.domain

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The step backwards."""
        inner, step = self.part.backward(between(self.part.image(self.domain), at, ends), self.domain)
        return inner, -step

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The step forwards."""
        inner, step = self.part.forward(between(self.domain, at, self.domain), self.domain)
        return between(ends, inner, self.part.image(self.domain)), -step
