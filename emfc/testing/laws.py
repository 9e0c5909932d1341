"""The laws of values and densities: each looks at one subject and tells its worst place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.special.normal import log_normal_density
from emfc.testing.report import LawResult, worst
from emfc.testing.rounding import round_trip_errors, ulp
from emfc.testing.subject import LIMITS, Subject
from emfc.transforms import NormalTransform, UnsupportedFamilyError, gated, unconstrained_map
from emfc.transforms.base import sum_rightmost

__all__ = ["broadcasting", "density", "gate", "outside", "round_trip", "samples", "support"]

_PRECISIONS = {torch.float32: "float32", torch.float64: "float64"}


def _whole(value: Tensor, dims: int) -> Tensor:
    """The event dimensions as one."""
    return value.flatten(-dims) if dims else value


def _any(wrong: Tensor, dims: int) -> Tensor:
    """True where any element of an event is."""
    return wrong.flatten(-dims).any(-1) if dims else wrong


def round_trip(subject: Subject, dtype: torch.dtype) -> LawResult:
    """Noise makes the round trip e -> x -> e."""
    noise = subject.noise(dtype, LIMITS[dtype], 401)
    with torch.no_grad():
        transform = subject.at(dtype)
        value, error, allowed = round_trip_errors(transform, noise)
    dims = transform.domain.event_dim
    if dims:  # each element of the noise stands beside the whole value
        count = error.flatten(-dims).shape[-1]
        value = _whole(value, transform.codomain.event_dim).unsqueeze(-2)
        value = value.expand(*value.shape[:-2], count, value.shape[-1])
        noise, error, allowed = (_whole(part, dims) for part in (noise, error, allowed))
    return worst(LawResult(f"round trip ({_PRECISIONS[dtype]})"), error, allowed, noise=noise, value=value)


def _inside(constraint: Any, value: Tensor) -> Tensor:
    """Which draws obey a constraint, and are off the ends of an interval."""
    result: Tensor = constraint.check(value)
    if _is_mixture(constraint):
        return result
    inner = getattr(constraint, "base_constraint", constraint)
    for end, sign in (("lower_bound", 1), ("upper_bound", -1)):
        if hasattr(inner, end):
            result = result & ~_any(sign * (value - getattr(inner, end)) <= 0, value.dim() - result.dim())
    return result


def _supports(subject: Subject, transform: NormalTransform, dtype: torch.dtype) -> list[Any]:
    """The transform's codomain, and the support that the distribution tells where draws are not dequantised."""
    found = [transform.codomain]
    support = None if transform.discrete else subject.dist(dtype).support
    if support is None or isinstance(support, type(constraints.dependent)):
        return found
    # torch's support of a mixture is where all components have one, that of the mixture where any has
    return found if _is_mixture(support) else [*found, support]


def _is_mixture(constraint: Any) -> bool:
    base = getattr(constraint, "base_constraint", None)
    return base is not None and base.event_dim == constraint.event_dim


def _samples(subject: Subject, count: int) -> Tensor | None:
    """Draws of the distribution in float64 from a fixed seed, dequantised; None where it does not sample."""
    devices = [subject.device] if subject.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(0)
        try:
            drawn: Tensor = subject.dist(torch.float64).sample(torch.Size((count,)))
        except NotImplementedError:
            return None
        part = torch.rand(drawn.shape, dtype=torch.float64, device=drawn.device)
        return drawn + part if subject.at(torch.float64).discrete else drawn


def support(subject: Subject) -> LawResult:
    """Draws lie strictly inside the support out to twice the range, and so do the distribution's own samples."""
    result = LawResult("support")
    for dtype, limit in LIMITS.items():
        noise = subject.noise(dtype, 2 * limit, 81)
        with torch.no_grad():
            transform = subject.at(dtype)
            value = transform.call_and_ladj(noise)[0]
        finite = ~_any(~torch.isfinite(value), transform.codomain.event_dim)
        shown = _whole(noise, transform.domain.event_dim)
        for constraint in _supports(subject, transform, dtype):
            wrong = ~(_inside(constraint, value) & finite)
            result = worst(result, wrong, 0.0, f"which is outside ({_PRECISIONS[dtype]})", noise=shown, value=value)
    drawn = _samples(subject, 1000)
    if drawn is not None:
        wrong = ~subject.at(torch.float64).codomain.check(drawn)
        result = worst(result, wrong, 0.0, "which the distribution itself drew", value=drawn)
    return result


def density(subject: Subject) -> LawResult:
    """The density through the noise is the distribution's `log_prob`, at draws and at its own samples."""
    result = LawResult("density")
    with torch.no_grad():
        transform = subject.at(torch.float64)
        dist = subject.dist(torch.float64)
        drawn = _samples(subject, 20)
        for value in (transform.call_and_ladj(subject.moderate(4.0, 21))[0], drawn):
            if value is None:
                continue
            noise, ladj = transform.inverse_and_ladj(value)
            ours = sum_rightmost(log_normal_density(noise), transform.domain.event_dim) + ladj
            theirs = dist.log_prob(value.floor() if transform.discrete else value)
            error = torch.where(ours == theirs, 0.0, (ours - theirs).abs())
            permitted = 1e-8 * theirs.abs().clamp(min=1)
            shown = _whole(noise, transform.domain.event_dim)
            result = worst(result, error, permitted, noise=shown, value=value, density=ours, log_prob=theirs)
    return result


def _candidates(value: Tensor, infinite: bool) -> list[Tensor]:
    """Values of which some are outside every support but the real line."""
    far = [torch.full_like(value, x) for x in (-1e3, -1.0, 2.0, 1e3)]
    far += [-value, value + 1, 1.5 * value, value - 1e3]
    return far + ([torch.full_like(value, x) for x in (-math.inf, math.inf)] if infinite else [])


def outside(subject: Subject) -> LawResult:
    """Data outside the support have finite noise and log density -inf, and no gradient is NaN."""
    law, tried = "outside the support", False
    result = LawResult(law)
    for dtype in LIMITS:
        transform = subject.at(dtype)
        dims = transform.codomain.event_dim
        inside = transform.call_and_ladj(subject.noise(dtype, 1.0, 2)[:1])[0][0].detach()
        scalar = dims == 0 and not isinstance(transform.codomain, type(constraints.real))
        for x in _candidates(inside, scalar):
            wrong = ~torch.isfinite(_whole(x, dims)[..., 0] if dims else x)
            for constraint in _supports(subject, transform, dtype):
                wrong = wrong | ~constraint.check(x)
            if not bool(wrong.any()):
                continue
            tried = True
            parameters = [value.requires_grad_() for value in subject.parameters(dtype)]
            leaf = x.clone().requires_grad_()
            noise, ladj = subject.transform(parameters).inverse_and_ladj(leaf)
            result = worst(result, wrong & (ladj != -math.inf), 0.0, _PRECISIONS[dtype], value=x, log_Jacobian=ladj)
            lost = _any(~torch.isfinite(noise), transform.domain.event_dim)
            result = worst(result, wrong & lost, 0.0, "whose noise is not finite", value=x)
            score = noise.sum() + torch.where(ladj == -math.inf, 0.0, ladj).sum()
            leaves = {"the value": leaf, **dict(zip(subject.names, parameters, strict=True))}
            if score.requires_grad:
                gradients = torch.autograd.grad(score, list(leaves.values()), allow_unused=True)
                for name, gradient in zip(leaves, gradients, strict=True):
                    if gradient is not None and bool(torch.isnan(gradient).any()):
                        result = worst(result, wrong, 0.0, f"whose gradient by {name} is NaN", value=x)
    return result if tried else LawResult(law, note="no number is outside the support")


def broadcasting(subject: Subject) -> LawResult:
    """Noise and values with fewer or more batch dimensions than the distribution."""
    result = LawResult("broadcasting")
    transform, batch = subject.at(torch.float64), subject.batch_shape
    event = subject.noise_shape[len(batch) :]
    one = subject.moderate(1.0, 3)[1].reshape(-1, *event)[0]
    for noise in (one, one.expand(4, *(1,) * len(batch), *event)):
        with torch.no_grad():
            value, ladj = transform.call_and_ladj(noise)
            back, inverse_ladj = transform.inverse_and_ladj(value)
            wanted = torch.broadcast_shapes(noise.shape[: noise.dim() - len(event)], batch)
            whole = transform.call_and_ladj(noise.expand(wanted + event))[0]
        shapes = {
            "a value": (value.shape, whole.shape),
            "a log-Jacobian": (ladj.shape, wanted),
            "noise": (back.shape, wanted + event),
            "a log-Jacobian of the inverse": (inverse_ladj.shape, wanted),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                place = f"noise of shape {list(noise.shape)}: {name} of shape {list(found)}, not {list(expected)}"
                return LawResult(result.law, 1.0, 0.0, place)
        result = worst(result, (whole - value).abs(), 1e-9 * value.abs().clamp(min=1), value=value, expanded=whole)
    return result


def samples(subject: Subject, count: int) -> LawResult:
    r"""The noise of the distribution's own samples is standard normal (Kolmogorov-Smirnov, :math:`\sqrt n D < 2.3`)."""
    law = "samples"
    drawn = _samples(subject, count)
    if drawn is None:
        return LawResult(law, note="the distribution does not sample")
    with torch.no_grad():
        noise = subject.at(torch.float64).inverse_and_ladj(drawn)[0].reshape(count, -1)
    ordered = torch.special.ndtr(noise.sort(0).values)
    steps = torch.arange(1, count + 1, dtype=torch.float64, device=noise.device).unsqueeze(-1) / count
    distance = torch.maximum((ordered - steps).abs(), (ordered - steps + 1 / count).abs()).amax(0)
    element = torch.arange(distance.numel(), device=noise.device)
    return worst(LawResult(law), distance * math.sqrt(count), 2.3, element=element)


def gate(subject: Subject) -> LawResult:
    """Gated transforms stay in the support and make the round trip; fully open they are the transform, shut the map."""
    result = LawResult("gate")
    transform = subject.at(torch.float64)
    noise = subject.moderate(8.0, 21)
    try:
        gated(transform, torch.tensor(0.5, dtype=torch.float64, device=noise.device))
    except UnsupportedFamilyError as refusal:
        return LawResult(result.law, note=str(refusal))
    dims = transform.domain.event_dim
    shown = _whole(noise, dims)
    for level in (0.0, 0.4, 1.0):
        with torch.no_grad():
            opened = gated(transform, torch.tensor(level, dtype=torch.float64, device=noise.device))
            value, error, allowed = round_trip_errors(opened, noise)
        at = f"gate {level:g}"
        result = worst(result, error, allowed, f"{at}: no round trip", noise=noise)
        wrong = ~opened.codomain.check(value)
        result = worst(result, wrong, 0.0, f"{at}: outside the support", noise=shown, value=value)
        if level in (0.0, 1.0):
            end = transform if level else unconstrained_map(transform.codomain)
            target = end.call_and_ladj(noise)[0]
            permitted = 1e-9 * target.abs() + 4 * ulp(target)
            name = "the transform" if level else "the constraint map"
            result = worst(result, (value - target).abs(), permitted, f"{at}: not {name}", value=value, expected=target)
    return result
