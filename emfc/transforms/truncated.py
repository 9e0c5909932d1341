"""A univariate family restricted to an interval."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, broadcast_shapes
from torch.distributions import constraints

from emfc.special.normal import tails_from_noise
from emfc.special.precision import eager, wide
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.interval import check_mass, log_mass
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.solved import SolvedFamily, coordinate_limits
from emfc.transforms.supports import Bound, Interval, LowerBounded, Position, RealLine, UpperBounded

__all__ = ["TruncatedFamily"]

_SMALL = math.log(1e-3)


def _tighter(bound: Tensor | None, end: Bound | None, *, lower: bool) -> tuple[Bound | None, bool]:
    """The inner one of a bound and the support's own end, and whether the bound has a say at all."""
    if bound is None or end is None:
        return (end if bound is None else bound), bound is not None
    end = torch.as_tensor(end, dtype=bound.dtype, device=bound.device)
    if eager() and bool((bound <= end if lower else bound >= end).all()):
        return end, False
    return torch.maximum(bound, end) if lower else torch.minimum(bound, end), True


class TruncatedFamily(SolvedFamily):
    r""":math:`F(x) = (F_0(x) - F_0(a)) / (F_0(b) - F_0(a))`, in logs and by the distances from a and b.

    Args:
        base: A continuous family on the real line, a half-line or an interval.
        low: Lower end, or None for the base's own.
        high: Upper end, or None.

    Raises:
        UnsupportedFamilyError: If the base is discrete, or of another support.
    """

    def __init__(self, base: ScalarFamily, low: Tensor | None, high: Tensor | None) -> None:
        known = type(base.support_map) in (RealLine, LowerBounded, UpperBounded, Interval)
        if base.discrete or not known:
            raise UnsupportedFamilyError(
                f"{type(base).__name__} can't be truncated; continuous families on the real line, a half-line or an "
                "interval with fixed ends can, such as Normal and Gamma."
            )
        check_mass(base, "Truncated")
        self.base = base
        low, high = (None if end is None else wide(end) for end in (low, high))
        own = base.support_map
        self.low, self.cut_below = _tighter(low, own.low, lower=True)
        self.high, self.cut_above = _tighter(high, own.high, lower=False)
        shapes = (end.shape for end in (self.low, self.high) if isinstance(end, Tensor))
        self.batch_shape = Size(broadcast_shapes(base.batch_shape, *shapes))
        self.support = self._interval()

    def _interval(self) -> constraints.Constraint:
        if self.low is None:
            return constraints.real if self.high is None else constraints.less_than(self.high)
        return constraints.greater_than(self.low) if self.high is None else constraints.interval(self.low, self.high)

    def _ends(self, like: Tensor) -> tuple[Position | None, Position | None]:
        """The ends that are cut, as positions in the base's support."""
        own = self.base.support_map
        ends: list[Position | None] = []
        for end, cut in ((self.low, self.cut_below), (self.high, self.cut_above)):
            if not cut or end is None:
                ends.append(None)
            else:
                value = torch.as_tensor(end, dtype=like.dtype, device=like.device)
                ends.append(own.place(own.nearest(value)))
        return ends[0], ends[1]

    def _inner(self, at: Position) -> Position:
        """A position in the base's support."""
        own = self.base.support_map
        return Position(
            own.nearest(at.value),
            _shifted(at.below, at.value, self.low, own.low, 1),
            _shifted(at.above, at.value, self.high, own.high, -1),
        )

    def _log_total(self, first: Position | None, last: Position | None) -> Tensor | float:
        if first is not None and last is not None:
            return log_mass(self.base, first, last, last.value - first.value)
        if first is not None:
            return self.base.evaluate(first).log_sf
        return 0.0 if last is None else self.base.evaluate(last).log_cdf

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        first, last = self._ends(at.value)
        inner = self._inner(at)
        total = self._log_total(first, last)
        known = self.base.evaluate(inner)
        log_prob, log_cdf, log_sf = known
        if first is not None:
            width = at.value - first.value if at.below is None else at.below
            log_cdf = log_mass(self.base, first, inner, width, (None, known))
        if last is not None:
            width = last.value - at.value if at.above is None else at.above
            log_sf = log_mass(self.base, inner, last, width, (known, None))
        return Evaluation(log_prob - total, (log_cdf - total).clamp(max=0), (log_sf - total).clamp(max=0))

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return self.base.log_density(self._inner(at)) - self._log_total(*self._ends(at.value))

    def tolerance(self, noise: Tensor) -> Tensor:
        """Wider in a tail, where the base's logs are large."""
        sizes = [
            torch.maximum(-tails.log_cdf, -tails.log_sf)
            for tails in (self.base.evaluate(end) for end in self._ends(noise) if end is not None)
        ]
        ordinary = super().tolerance(noise)
        if not sizes:
            return ordinary
        return ordinary + 3 * torch.finfo(noise.dtype).eps * torch.stack(torch.broadcast_tensors(*sizes)).amax(0)

    def guess(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The base's quantile of its restricted probabilities; beside an end, the distance by the density there."""
        first, last = self._ends(noise)
        total = self._log_total(first, last)
        log_p, log_q = (tail + total for tail in tails_from_noise(noise))
        inside: list[Tensor] = []
        near: list[Tensor | None] = []
        for end, log_mine in ((first, log_p), (last, log_q)):
            if end is None:
                inside.append(log_mine)
                near.append(None)
                continue
            log_prob, log_cdf, log_sf = self.base.evaluate(end)
            inside.append(torch.logaddexp(log_cdf if end is first else log_sf, log_mine))
            close = log_mine < _SMALL + torch.minimum(log_cdf, log_sf)
            near.append(torch.where(close, torch.exp(log_mine - log_prob), torch.nan))
        at = self.base.locate(*inside)
        below = _distance(at.below, near[0], at.value, self.low, 1, self.cut_below)
        above = _distance(at.above, near[1], at.value, self.high, -1, self.cut_above)
        coordinate, _ = self.support_map.coordinate(Position(at.value, below, above))
        low, high = coordinate_limits(self.support_map, noise.dtype)
        coordinate = torch.nan_to_num(coordinate, 0.0).clamp(low, high)
        return torch.full_like(coordinate, low), torch.full_like(coordinate, high), coordinate


def _shifted(distance: Tensor | None, value: Tensor, end: Bound | None, own: Bound | None, side: int) -> Tensor | None:
    """Distance from the base's own end, given that from the truncated one."""
    if own is None:
        return None
    if distance is None or end is None:
        return side * (value - own)
    return distance + side * (end - own)


def _distance(
    known: Tensor | None, near: Tensor | None, value: Tensor, end: Bound | None, side: int, cut: bool
) -> Tensor | None:
    """Distance of a guess from an end, positive."""
    if end is None:
        return None
    distance = side * (value - end) if cut or known is None else known
    if near is not None:
        distance = torch.where(torch.isnan(near), distance, near)
    return distance.clamp(min=torch.finfo(value.dtype).tiny)
