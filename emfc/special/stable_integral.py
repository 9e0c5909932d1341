"""The upper tail of a stable law and its density by quadrature, with their derivatives from the same nodes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from emfc.special.stable_exponent import Exponent, Slopes, complex_exp, exponent_of, slopes_of
from emfc.special.stable_paths import Nodes, along_axis, between, deepest, descent, peak, plan_of

__all__ = ["upper_tail", "upper_tail_slopes"]

_LOG_PI = math.log(math.pi)
# Elements that are integrated together, which bounds the memory for their nodes: per thread, and on a GPU.
_GROUP, _LARGE_GROUP = 2048, 65536


class _Part(NamedTuple):
    r"""Sums over one piece of the path: of the tail, of the density, and of their derivatives if wanted.

    What multiplies v is relative to :math:`e^{place}`, and everything to :math:`e^{shift}`.
    """

    shift: Tensor
    place: Tensor
    sums: tuple[Tensor, ...]


def _sum(
    e: Exponent, slopes: Slopes | None, nodes: Nodes, shift: Tensor, place: Tensor, *, centre: Tensor | None = None
) -> _Part:
    """Sums over nodes. With a centre the tail is integrated by parts, which a path from another angle needs."""
    columns = e.columns()
    w = nodes.w
    v, power, middle, value = columns(w)
    weight = nodes.weight
    if weight.shape[-1] > 1:  # else the one node is where the shift is taken from
        weight = weight * complex_exp(value - shift.unsqueeze(-1))
    relative = v * torch.exp(-place.unsqueeze(-1))
    tail = weight
    if centre is not None:
        tail = weight * (centre.unsqueeze(-1) - w) * columns.derivative(v, power, middle)
    density = weight * relative
    terms = [tail, density]
    if slopes is not None:
        by_alpha, by_beta = slopes.columns()(columns, w, v, power, middle)
        terms += [weight * by_alpha, weight * by_beta, -density * relative, density * by_alpha, density * by_beta]
    return _Part(shift, place, tuple(term.imag.sum(-1) for term in terms))


# How many factors of v each of the sums has.
_ORDERS = (0, 1, 0, 0, 2, 1, 1)


def _moderate_exp(exponent: Tensor) -> Tensor:
    """Exponential of at most the largest number to the power of 3/4, for terms that are multiplied and summed."""
    return torch.exp(exponent.clamp(max=0.75 * math.log(torch.finfo(exponent.dtype).max)))


def _logs(parts: list[_Part]) -> tuple[Tensor, ...]:
    """Logs of tail and density, and derivatives of these by stability, skew, and of the density by the position."""
    results: list[Tensor] = []
    limit = torch.finfo(parts[0].shift.dtype).max
    for number, order in enumerate(_ORDERS[: len(parts[0].sums)]):
        scales = [part.shift + order * part.place for part in parts]
        if number < 2:
            known = [part.sums[number].abs().log() + scale for part, scale in zip(parts, scales, strict=True)]
            top = torch.stack(known).amax(0).clamp(min=-limit / 32)
            pairs = zip(parts, scales, strict=True)
            total = sum(part.sums[number] * _moderate_exp(scale - top) for part, scale in pairs)
            results.append(top + torch.as_tensor(total).clamp(min=torch.finfo(top.dtype).tiny).log() - _LOG_PI)
            continue
        base = results[0 if number in (2, 3) else 1] + _LOG_PI
        pairs = zip(parts, scales, strict=True)
        ratio = sum(part.sums[number] * _moderate_exp(scale - base) for part, scale in pairs)
        bound = limit**0.45
        results.append(torch.as_tensor(ratio).nan_to_num(0, bound, -bound).clamp(-bound, bound))
    return tuple(results)


def _put(whole: _Part, places: Tensor, part: _Part) -> None:
    whole.shift[places], whole.place[places] = part.shift, part.place
    for old, new in zip(whole.sums, part.sums, strict=True):
        old[places] = new


def _on_axis(e: Exponent, slopes: Slopes | None, leave: Tensor, last: Tensor, has: Tensor) -> tuple[Tensor, ...]:
    """Along the axis, and down from the saddle where that matters beside the power law."""
    nothing = torch.zeros_like(last)
    axis = _sum(e, slopes, along_axis(e, last), nothing, last)
    depth = e.real(leave)
    light = has & (depth > axis.sums[0].abs().log() - 45)
    count = len(axis.sums)
    below = _Part(nothing - torch.inf, nothing.clone(), tuple(nothing.clone() for _ in range(count)))
    resolved = depth > -deepest(last.dtype)
    for mask, path in ((light & resolved, descent), (light & ~resolved, peak)):
        places = mask.nonzero().squeeze(-1)
        if places.numel():
            some, out = e.take(places), leave[places]
            inner = None if slopes is None else slopes.take(places)
            _put(below, places, _sum(some, inner, path(some, out), depth[places], out))
    return _logs([axis, below])


def _between(e: Exponent, slopes: Slopes | None) -> tuple[Tensor, ...]:
    nothing = torch.zeros_like(e.x)
    return _logs([_sum(e, slopes, between(e), nothing, nothing, centre=-torch.log1p(e.x))])


def _power_law(e: Exponent, slopes: Slopes | None) -> tuple[Tensor, ...]:
    r"""The leading term :math:`\frac{b \Gamma(\alpha)}\pi (x - \zeta)^{-\alpha}`, where rounding hides the next one."""
    log_end = e.end.log()
    tail = torch.lgamma(e.alpha) + e.rise.log() - _LOG_PI - e.alpha * log_end
    results = [tail, tail + e.alpha.log() - log_end]
    if slopes is not None:
        by_alpha = torch.digamma(e.alpha) + slopes.rise[0] / e.rise - log_end
        by_beta = slopes.rise[1] / e.rise
        results += [by_alpha, by_beta, -(e.alpha + 1) / e.end, by_alpha + 1 / e.alpha, by_beta]
    return tuple(results)


def _group(alpha: Tensor, beta: Tensor, x: Tensor, derivatives: bool) -> tuple[Tensor, ...]:
    info = torch.finfo(x.dtype)
    e = exponent_of(alpha, beta, x)
    slopes = slopes_of(alpha, beta) if derivatives else None
    size = torch.hypot(e.merged, e.rise)
    ratio = e.alpha * e.end.clamp(min=info.tiny).log() - size.log()
    far = (e.rise > 0) & (ratio > 3 - math.log(info.eps))
    plan = plan_of(e)
    results = tuple(torch.empty_like(x) for _ in range(len(_ORDERS) if derivatives else 2))
    masks = (far, plan.on_axis & ~far, ~plan.on_axis & ~far)
    for number, mask in enumerate(masks):
        places = mask.nonzero().squeeze(-1)
        if not places.numel():
            continue
        some, inner = e.take(places), None if slopes is None else slopes.take(places)
        if number == 0:
            parts = _power_law(some, inner)
        elif number == 1:
            parts = _on_axis(some, inner, plan.exit[places], plan.last[places], plan.has_saddle[places])
        else:
            parts = _between(some, inner)
        for result, part in zip(results, parts, strict=True):
            result[places] = part
    return results


def _groups(alpha: Tensor, beta: Tensor, x: Tensor, derivatives: bool) -> tuple[Tensor, ...]:
    size = _GROUP * torch.get_num_threads() if x.device.type == "cpu" else _LARGE_GROUP
    if x.numel() <= size:
        return _group(alpha, beta, x, derivatives)
    groups = zip(alpha.split(size), beta.split(size), x.split(size), strict=True)
    parts = [_group(*some, derivatives) for some in groups]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def upper_tail(alpha: Tensor, beta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logs of the upper tail and of the density at flat positions that are at least 0."""
    tail, density = _groups(alpha, beta, x, False)
    return tail, density


def upper_tail_slopes(alpha: Tensor, beta: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Both of `upper_tail`; derivatives of the log tail by stability and skew; of the log density by position,
    stability and skew."""
    return _groups(alpha, beta, x, True)
