"""Chains of elementwise bijections: which steps torch's and Pyro's transforms are, and a chain with its ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions.transforms import ELUTransform, PositivePowerTransform
from pyro.distributions.transforms import SoftplusTransform as PyroSoftplusTransform
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    IndependentTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
    Transform,
    _InverseTransform,
)

from emfc.transforms.base import InverseTransform, LadjTransform
from emfc.transforms.ends import OPEN, Ends, within
from emfc.transforms.further_parts import CDFPart, ELUPart, PowerPart, ReversedPart, SignedPowerPart, SoftplusPart
from emfc.transforms.parts import AffinePart, ExpPart, GeneralPart, LogitPart, LogPart, Part, SigmoidPart
from emfc.transforms.registry import scalar_family
from emfc.transforms.supports import Position

__all__ = ["Chain", "flattened", "is_elementwise", "parts_of"]


class LadjPart(GeneralPart):
    """A transform of this package, which gives its log-Jacobian with its value."""

    transform: LadjTransform

    def forward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Value and log-Jacobian."""
        y, ladj = self.transform.call_and_ladj(at.value)
        return within(self.image(ends), y), ladj

    def backward(self, at: Position, ends: Ends) -> tuple[Position, Tensor]:
        """Inverse, and minus its log-Jacobian."""
        x, ladj = self.transform.inverse_and_ladj(at.value)
        return within(ends, x), -ladj


def flattened(chain: Iterable[Transform]) -> list[Transform]:
    """The chain without compositions, and without wrappers that only count event dimensions."""
    result: list[Transform] = []
    for transform in chain:
        if isinstance(transform, ComposeTransform):
            result += flattened(transform.parts)
        elif type(transform) is IndependentTransform and is_elementwise(transform.base_transform):
            result += flattened([transform.base_transform])
        else:
            result.append(transform)
    return result


def is_elementwise(transform: Transform) -> bool:
    """True for a bijection of single elements that stays one for any shape of its input."""
    if isinstance(transform, ComposeTransform):
        return all(is_elementwise(part) for part in transform.parts)
    if type(transform) is IndependentTransform:
        return is_elementwise(transform.base_transform)
    if isinstance(transform, _InverseTransform):
        return is_elementwise(transform.inv)
    if type(transform) is AffineTransform:
        return True
    try:
        event_dims = transform.domain.event_dim, transform.codomain.event_dim
    except NotImplementedError:  # ends that depend on the length of a dimension
        return False
    return event_dims == (0, 0) and not hasattr(transform, "dim")


def _forward_parts(transform: Any) -> list[Part]:
    kind = type(transform)
    if kind is ExpTransform:
        return [ExpPart()]
    if kind is SigmoidTransform:
        return [SigmoidPart()]
    if kind is AffineTransform:
        return [AffinePart(transform.loc, transform.scale)]
    if kind is TanhTransform:
        return [AffinePart(0.0, 2.0), SigmoidPart(), AffinePart(-1.0, 2.0)]
    if kind in (SoftplusTransform, PyroSoftplusTransform):
        return [SoftplusPart()]
    if kind is PowerTransform:
        return [PowerPart(transform.exponent)]
    if kind is PositivePowerTransform:
        return [SignedPowerPart(transform.exponent)]
    if kind is ELUTransform:
        return [ELUPart()]
    if kind is CumulativeDistributionTransform:
        return [CDFPart(scalar_family(transform.distribution))]
    if isinstance(transform, LadjTransform):
        return [LadjPart(transform)]
    return [GeneralPart(transform)]


def _inverse_parts(transform: Any) -> list[Part]:
    kind = type(transform)
    if kind is ExpTransform:
        return [LogPart()]
    if kind is SigmoidTransform:
        return [LogitPart()]
    if kind is AffineTransform:
        loc, scale = transform.loc, transform.scale
        return [AffinePart(-loc / scale, 1 / scale)]
    if kind is TanhTransform:
        return [AffinePart(0.5, 0.5), LogitPart(), AffinePart(0.0, 0.5)]
    if kind is PowerTransform:
        return [PowerPart(transform.exponent, reciprocal=True)]
    if kind is PositivePowerTransform:
        return [SignedPowerPart(transform.exponent, reciprocal=True)]
    if kind in (SoftplusTransform, PyroSoftplusTransform, ELUTransform):
        return [ReversedPart(_forward_parts(transform)[0], OPEN, f"{kind.__name__}.inv")]
    if kind is CumulativeDistributionTransform:
        part = CDFPart(scalar_family(transform.distribution))
        return [ReversedPart(part, part.ends, f"{kind.__name__}.inv")]
    return [GeneralPart(transform.inv)]


def parts_of(chain: Iterable[Transform]) -> list[Part]:
    """The steps of a chain of elementwise transforms."""
    parts: list[Part] = []
    for transform in flattened(chain):
        if isinstance(transform, _InverseTransform):
            parts += _inverse_parts(transform.inv)
        elif isinstance(transform, InverseTransform):
            parts.append(GeneralPart(transform))
        else:
            parts += _forward_parts(transform)
    return parts


class Chain:
    """Steps one after another from a support with given ends.

    Args:
        parts: The steps, in the order of use.
        ends: Of the first step's inputs.

    Raises:
        UnsupportedFamilyError: If a step has no value for what comes before it.
    """

    def __init__(self, parts: Sequence[Part], ends: Ends) -> None:
        self.parts = tuple(parts)
        self.sign: int | Tensor = 1
        self.ends = [ends]
        for part in self.parts:
            self.sign = self.sign * part.sign
            self.ends.append(part.image(self.ends[-1]))

    def support(self) -> constraints.Constraint:
        """Constraint of the values."""
        low, high = self.ends[-1]
        if low is None and high is None:
            return constraints.real
        if high is None:
            return constraints.greater_than(low)
        if low is None:
            return constraints.less_than(high)
        return constraints.interval(low, high)

    def forward(self, at: Position) -> tuple[Position, Tensor]:
        """Value of an input, and the log of the derivative's size."""
        total: Tensor | None = None
        for part, ends in zip(self.parts, self.ends, strict=False):
            at, step = part.forward(at, ends)
            total = step if total is None else total + step
        return at, torch.zeros_like(at.value) if total is None else total

    def backward(self, at: Position) -> tuple[Position, Tensor]:
        """Input of a value, and the log of the size of the derivative there of `forward`."""
        total: Tensor | None = None
        for part, ends in zip(reversed(self.parts), reversed(self.ends[:-1]), strict=True):
            at, step = part.backward(at, ends)
            total = step if total is None else total + step
        return at, torch.zeros_like(at.value) if total is None else total
