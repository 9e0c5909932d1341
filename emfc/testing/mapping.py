"""The law of `vmap`: a mapped transform is the loop of it, and its gradients are finite."""

from __future__ import annotations

import torch
from torch import Tensor

from emfc.testing.report import LawResult, worst
from emfc.testing.subject import Subject, unvalidated

__all__ = ["vmap"]


def vmap(subject: Subject) -> LawResult:
    """`torch.func.vmap` over noise and parameters together, in both directions, with gradients."""
    result = LawResult("vmap")
    noise = subject.moderate(2.0, 3)
    moved = []
    for part, map in zip(subject.free(), subject.maps, strict=True):
        step = 0.01 * (part if map is None else torch.ones_like(part))
        moved.append(torch.stack([part, part + step, part - step])[: noise.shape[0]])

    def builds(*parts: Tensor) -> tuple[Tensor, ...]:
        with unvalidated():
            subject.build(*subject.bound(parts))
        return parts

    try:
        torch.func.vmap(builds)(*moved)
    except RuntimeError:
        return LawResult(result.law, note="the distribution itself cannot be built inside vmap")

    def both(e: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        transform = subject.transform(subject.bound(parts))
        value, ladj = transform.call_and_ladj(e)
        return (value, ladj, *transform.inverse_and_ladj(value))

    looped = [both(e, *(part[row] for part in moved)) for row, e in enumerate(noise)]
    mapped = torch.func.vmap(both)(noise, *moved)
    names = ("value", "log-Jacobian", "noise", "log-Jacobian of the inverse")
    for name, part, *rows in zip(names, mapped, *looped, strict=True):
        expected = torch.stack(rows)
        permitted = 1e-7 * expected.abs().clamp(min=1)
        result = worst(result, (part - expected).abs(), permitted, name, mapped=part, looped=expected)
    slopes = torch.func.vmap(torch.func.grad(lambda e, *p: sum(part.sum() for part in both(e, *p))))(noise, *moved)
    return worst(result, ~torch.isfinite(slopes), 0.0, "the mapped gradient", noise=noise, gradient=slopes)
