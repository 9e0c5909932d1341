"""Elementwise monotone maps that keep exact distances: the steps of a chain from one support to the next.

A step takes a `Position` between two ends to one between two others, and back.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions.transforms import Transform
from torch.nn.functional import logsigmoid

from emfc.special.precision import eager, wide
from emfc.special.ratios import bounded_exp, log_distance, logistic_pair
from emfc.transforms.ends import (
    OPEN,
    Ends,
    ends_of,
    from_zero,
    inner_end,
    log_of,
    moved_end,
    to_one,
    within,
)
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.supports import Bound, Position, SupportMap, support_map

__all__ = [
    "AffinePart",
    "ExpPart",
    "GeneralPart",
    "LogPart",
    "LogitPart",
    "Part",
    "SigmoidPart",
    "need_lower_end",
    "one_sign",
]


class Part(ABC):
    """One step: an elementwise bijection of an interval.

    Attributes:
        sign: 1 where it increases and -1 where it decreases, a tensor where its elements may differ.
    """

    sign: int | Tensor = 1

    @abstractmethod
    def image(self, ends: Ends) -> Ends:
        """Ends of the values of inputs between these ends.

        Raises:
            UnsupportedFamilyError: If inputs between these ends have no value.
        """

    @abstractmethod
    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Value of an input between these ends, and the log of the derivative's size."""

    @abstractmethod
    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Input, between these ends, of a value, and the log of the size of the derivative there of `forward`."""


def need_lower_end(ends: Ends, name: str) -> None:
    if ends[0] is None or (not isinstance(ends[0], Tensor) and ends[0] < 0):
        raise UnsupportedFamilyError(f"{name} takes positive values, and what comes before it has others.")


class ExpPart(Part):
    """The exponential."""

    def image(self, ends: Ends) -> Ends:
        """From 0, or from the exponential of the lower end, on."""
        low, high = (moved_end(end, torch.exp) for end in ends)
        return 0.0 if low is None else low, high

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Exponential and its logarithm."""
        y = bounded_exp(at.value)
        return within(self.image(ends), y, y, -torch.expm1(at.value.clamp(max=1))), at.value

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Logarithm."""
        x = log_of(at, self.image(ends))
        return within(ends, x), x


class LogPart(Part):
    """The logarithm."""

    def image(self, ends: Ends) -> Ends:
        """Between the logarithms of ends above 0."""
        need_lower_end(ends, "A logarithm")
        return moved_end(inner_end(ends[0], 0), torch.log), moved_end(ends[1], torch.log)

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Logarithm."""
        y = log_of(at, ends)
        return within(self.image(ends), y), -y

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Exponential."""
        x = bounded_exp(at.value)
        return within(ends, x, x, -torch.expm1(at.value.clamp(max=1))), -at.value


class SigmoidPart(Part):
    """The logistic function."""

    def image(self, ends: Ends) -> Ends:
        """The unit interval, or a part of it."""
        low, high = (moved_end(end, torch.sigmoid) for end in ends)
        return 0.0 if low is None else low, 1.0 if high is None else high

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Logistic function of the value and of its negative."""
        low, high = logistic_pair(at.value)
        return within(self.image(ends), low, low, high), logsigmoid(at.value) + logsigmoid(-at.value)

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Log odds."""
        outer = self.image(ends)
        log_low, log_high = log_distance(from_zero(at, outer)), log_distance(to_one(at, outer))
        return within(ends, log_low - log_high), log_low + log_high


class LogitPart(Part):
    """The log odds."""

    def image(self, ends: Ends) -> Ends:
        """Between the log odds of ends inside the unit interval."""
        need_lower_end(ends, "The logit")
        if ends[1] is None or (not isinstance(ends[1], Tensor) and ends[1] > 1):
            raise UnsupportedFamilyError("The logit takes values below 1, and what comes before it has others.")
        return moved_end(inner_end(ends[0], 0), torch.logit), moved_end(inner_end(ends[1], 1), torch.logit)

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Log odds."""
        log_low, log_high = log_distance(from_zero(at, ends)), log_distance(to_one(at, ends))
        return within(self.image(ends), log_low - log_high), -log_low - log_high

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Logistic function."""
        low, high = logistic_pair(at.value)
        return within(ends, low, low, high), -logsigmoid(at.value) - logsigmoid(-at.value)


def one_sign(scale: Bound) -> int | Tensor:
    """Sign of a factor, a tensor only where it differs or must not be looked at."""
    if not isinstance(scale, Tensor):
        return 1 if scale > 0 else -1
    if eager():
        if bool((scale > 0).all()):
            return 1
        if bool((scale < 0).all()):
            return -1
    return scale.detach().sign()


class AffinePart(Part):
    """loc + scale x, with a scale of any sign but 0."""

    def __init__(self, loc: Bound, scale: Bound) -> None:
        self.loc = wide(loc) if isinstance(loc, Tensor) else loc
        self.scale = wide(scale) if isinstance(scale, Tensor) else scale
        self.size = self.scale.abs() if isinstance(self.scale, Tensor) else abs(self.scale)
        self.sign = one_sign(self.scale)

    def _swap(self, low: Tensor | None, high: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if isinstance(self.sign, int):
            return (low, high) if self.sign > 0 else (high, low)
        if low is None or high is None:
            return None, None
        return torch.where(self.sign > 0, low, high), torch.where(self.sign > 0, high, low)

    def image(self, ends: Ends) -> Ends:
        """Moved ends; none where a half-line may be turned around."""
        low, high = (None if end is None else self.loc + self.scale * end for end in ends)
        if isinstance(self.sign, int):
            return (low, high) if self.sign > 0 else (high, low)
        if low is None or high is None:
            return OPEN
        first, second = torch.as_tensor(low), torch.as_tensor(high)
        return self._swap(first, second)

    def _ladj(self, like: Tensor) -> Tensor:
        size = self.size
        size = size.to(like.dtype).log() if isinstance(size, Tensor) else like.new_full((), math.log(size))
        return size.expand(torch.broadcast_shapes(size.shape, like.shape))

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Moved value and stretched distances."""
        low, high = (None if part is None else part * self.size for part in at[1:])
        value = self.loc + self.scale * at.value
        return Position(value, *self._swap(low, high)), self._ladj(value)

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Value and distances moved back."""
        value = (at.value - self.loc) / self.scale
        low, high = self._swap(*(None if part is None else part / self.size for part in at[1:]))
        known = within(ends, value)
        below = known.below if low is None or ends[0] is None else low
        above = known.above if high is None or ends[1] is None else high
        return Position(value, below, above), self._ladj(value)


class GeneralPart(Part):
    """Any elementwise bijection by its own functions, between the ends of its codomain."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.domain, self.codomain = _map_of(transform, "domain"), _map_of(transform, "codomain")
        try:
            self.sign = transform.sign
        except NotImplementedError:
            self.sign = 0  # not known

    def image(self, ends: Ends) -> Ends:
        """Those of the codomain."""
        return OPEN if self.codomain is None else ends_of(self.codomain)

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """The transform and its log-Jacobian."""
        x = at.value if self.domain is None else self.domain.nearest(at.value, smallest=True)
        y = self.transform(x)
        return within(self.image(ends), y), self.transform.log_abs_det_jacobian(x, y)

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Its inverse, and the log-Jacobian of the transform."""
        y = at.value if self.codomain is None else self.codomain.nearest(at.value)
        x = self.transform.inv(y)
        return within(ends, x), self.transform.log_abs_det_jacobian(x, y)


def _map_of(transform: Transform, side: str) -> SupportMap | None:
    try:
        return support_map(getattr(transform, side))
    except (UnsupportedFamilyError, NotImplementedError):
        return None
