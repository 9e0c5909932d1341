"""A univariate family restricted to an interval."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Size, Tensor, broadcast_shapes
from torch.distributions import constraints
from torch.utils._python_dispatch import _get_current_dispatch_mode

from emfc.special.normal import tails_from_noise
from emfc.special.precision import eager, wide
from emfc.transforms.excess import excess, knows_excess, log_within
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.interval import check_mass, log_mass
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.solved import SolvedFamily, coordinate_limits
from emfc.transforms.supports import Bound, Interval, LowerBounded, Position, RealLine, UpperBounded

__all__ = ["TruncatedFamily", "watched"]

_SMALL = math.log(1e-3)
_FAR = -4.0  # log probability of a tail, beyond an end in which all is told by the distance from that end

_Ends = tuple[Position | None, Position | None]
_Known = tuple[Evaluation | None, Evaluation | None]


def watched() -> bool:
    """Whether something follows every operation, such as the compiler of programs: then no value is looked at."""
    return not torch.compiler.is_compiling() and _get_current_dispatch_mode() is not None


def _tighter(bound: Tensor | None, end: Bound | None, *, lower: bool) -> tuple[Bound | None, bool]:
    """The inner one of a bound and the support's own end, and whether the bound has a say at all."""
    if bound is None or end is None:
        return (end if bound is None else bound), bound is not None
    end = torch.as_tensor(end, dtype=bound.dtype, device=bound.device)
    if eager() and not watched() and bool((bound <= end if lower else bound >= end).all()):
        return end, False
    return torch.maximum(bound, end) if lower else torch.minimum(bound, end), True


class TruncatedFamily(SolvedFamily):
    r""":math:`F(x) = (F_0(x) - F_0(a)) / (F_0(b) - F_0(a))`, in logs and by the distances from a and b.

    Beyond an end far in a tail, density and tails of the families that `knows_excess` names are found from the distance
    from that end. Those of others are differences of logs, whose error there is a rounding of the log tail at the end.

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

    def _ends(self, like: Tensor) -> _Ends:
        """Lower and upper end as positions in the base's support; None where the interval is not cut there."""
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

    def _known(self, ends: _Ends) -> _Known:
        """The base's density and tails at the ends that are cut."""
        first, last = (None if end is None else self.base.evaluate(end) for end in ends)
        return first, last

    def _log_total(self, ends: _Ends, known: _Known) -> Tensor | float:
        (first, last), (at_first, at_last) = ends, known
        if first is not None and last is not None:
            return log_mass(self.base, first, last, last.value - first.value, known)
        if at_first is not None:
            return at_first.log_sf
        return 0.0 if at_last is None else at_last.log_cdf

    def _far(self, known: _Known) -> list[tuple[Tensor, bool]]:
        """Of each end whose tail `excess` knows: where it lies far out, and whether that tail is the upper one."""
        found = []
        for evaluation, upward in zip(known, (True, False), strict=True):
            if evaluation is None or not knows_excess(self.base, upward=upward):
                continue
            far = (evaluation.log_sf if upward else evaluation.log_cdf) < _FAR
            if not eager() or bool(far.any()):
                found.append((far, upward))
        return found

    def _beyond(self, at: Position, ends: _Ends, upward: bool, *, tails: bool = True) -> Evaluation:
        """Log density and log tails by the distance from a far end: the lower one, in the upper tail, if `upward`."""
        end, other = ends if upward else ends[::-1]
        distance, rest = self._distances(at, ends, upward)
        near = cast(Position, end)
        here = excess(self.base, near, cast(Tensor, distance), upward)
        total: Tensor | float = 0.0
        if other is not None:
            total = log_within(self.base, near, (other.value - near.value).abs(), upward)
        log_prob = here.log_density + here.log_hazard - total
        if not tails:
            return Evaluation(log_prob, log_prob, log_prob)
        inner = log_within(self.base, near, cast(Tensor, distance), upward) - total
        outer = here.log_tail - total
        if rest is not None:
            outer = outer + log_within(self.base, self._inner(at), rest, upward)
        return Evaluation(log_prob, *((inner, outer) if upward else (outer, inner)))

    @staticmethod
    def _distances(at: Position, ends: _Ends, upward: bool) -> tuple[Tensor | None, Tensor | None]:
        """Distances from the lower and from the upper end, in the other order unless `upward`."""
        first, last = ends
        below = None if first is None else (at.value - first.value if at.below is None else at.below)
        above = None if last is None else (last.value - at.value if at.above is None else at.above)
        return (below, above) if upward else (above, below)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        ends = first, last = self._ends(at.value)
        known = self._known(ends)
        inner = self._inner(at)
        total = self._log_total(ends, known)
        here = self.base.evaluate(inner)
        log_prob, log_cdf, log_sf = here
        below, above = self._distances(at, ends, True)
        if first is not None and below is not None:
            log_cdf = log_mass(self.base, first, inner, below, (known[0], here))
        if last is not None and above is not None:
            log_sf = log_mass(self.base, inner, last, above, (here, known[1]))
        result = Evaluation(log_prob - total, log_cdf - total, log_sf - total)
        for far, upward in self._far(known):
            parts = zip(self._beyond(at, ends, upward), result, strict=True)
            result = Evaluation(*(torch.where(far, beyond, plain) for beyond, plain in parts))
        return result._replace(log_cdf=result.log_cdf.clamp(max=0), log_sf=result.log_sf.clamp(max=0))

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        ends = self._ends(at.value)
        known = self._known(ends)
        result = self.base.log_density(self._inner(at)) - self._log_total(ends, known)
        for far, upward in self._far(known):
            result = torch.where(far, self._beyond(at, ends, upward, tails=False).log_prob, result)
        return result

    def tolerance(self, noise: Tensor) -> Tensor:
        """Wider in a tail, where the base's logs are large, unless all is told by the distance from the end."""
        known = self._known(self._ends(noise))
        ordinary = super().tolerance(noise)
        sizes = [torch.maximum(-tails.log_cdf, -tails.log_sf) for tails in known if tails is not None]
        if not sizes:
            return ordinary
        size = torch.stack(torch.broadcast_tensors(*sizes)).amax(0)
        for far, _ in self._far(known):
            size = torch.where(far, 0, size)
        return ordinary + 3 * torch.finfo(noise.dtype).eps * size

    def _guess_beyond(self, log_tails: tuple[Tensor, Tensor], ends: _Ends, upward: bool) -> list[Tensor | None]:
        """Distances from both ends, as if the hazard did not change."""
        end, other = ends if upward else ends[::-1]
        near, (inner, outer) = cast(Position, end), log_tails if upward else log_tails[::-1]
        log_hazard = excess(self.base, near, torch.zeros_like(inner), upward).log_hazard
        width = None if other is None else (other.value - near.value).abs()
        if width is not None:
            tail = excess(self.base, near, width, upward).log_tail
            outer = torch.logaddexp(outer, inner + tail)
            inner = inner + log_within(self.base, near, width, upward)
        fall = torch.where(inner < outer, -torch.log1p(-torch.exp(inner.clamp(max=-0.5))), -outer)
        distance = fall * torch.exp(-log_hazard)
        if width is None:
            return [distance, None] if upward else [None, distance]
        rest = torch.maximum(width - distance, torch.finfo(width.dtype).eps * width)
        return [distance, rest] if upward else [rest, distance]

    def guess(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The base's quantile of its restricted probabilities; beside an end, the distance by the density there."""
        ends = self._ends(noise)
        known = self._known(ends)
        total = self._log_total(ends, known)
        tails = tails_from_noise(noise)
        log_p, log_q = (tail + total for tail in tails)
        inside: list[Tensor] = []
        near: list[Tensor | None] = []
        for end, log_mine in zip(known, (log_p, log_q), strict=True):
            if end is None:
                inside.append(log_mine)
                near.append(None)
                continue
            log_prob, log_cdf, log_sf = end
            inside.append(torch.logaddexp(log_cdf if end is known[0] else log_sf, log_mine))
            close = log_mine < _SMALL + torch.minimum(log_cdf, log_sf)
            near.append(torch.where(close, torch.exp(log_mine - log_prob), torch.nan))
        for far, upward in self._far(known):
            for place, guess in enumerate(self._guess_beyond(tails, ends, upward)):
                before = near[place]
                if guess is not None and before is not None:
                    near[place] = torch.where(far, guess, before)
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
