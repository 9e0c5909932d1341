"""Which distribution has which transform: two registries and the refusal that names the nearest families."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch.distributions import Distribution, constraints

from emfc.transforms.dispatch import class_dispatch

if TYPE_CHECKING:
    from emfc.transforms.base import NormalTransform
    from emfc.transforms.family import ScalarFamily

__all__ = ["UnsupportedFamilyError", "family_of", "from_normal", "nearest_families", "refusing", "scalar_family"]

_Family = TypeVar("_Family", bound="type[ScalarFamily]")
_Refusal = TypeVar("_Refusal", bound=Callable[..., object])


class UnsupportedFamilyError(NotImplementedError):
    """The distribution has no exact transform from normal noise here; the message names the nearest that have."""


@class_dispatch
def from_normal(dist: Distribution) -> NormalTransform:
    r"""The transform that carries standard normal noise to draws of `dist`.

    For a scalar family with distribution function F it is :math:`x = F^{-1}(\Phi(e))`, exact in both tails;
    a discrete family is dequantised: :math:`x = k + u` with u uniform on [0, 1).

    Args:
        dist: A torch or Pyro distribution.

    Returns:
        The transform; its parameters stay connected to those of `dist` for gradients.

    Raises:
        UnsupportedFamilyError: If the family has no transform; the message names the nearest that have.

    Example:
        >>> import torch
        >>> transform = from_normal(torch.distributions.Exponential(2.0))
        >>> value, ladj = transform.call_and_ladj(torch.zeros(()))
        >>> round(float(value), 4)
        0.3466
    """
    raise UnsupportedFamilyError(_refusal(dist))


@class_dispatch
def scalar_family(dist: Distribution) -> ScalarFamily:
    """The univariate family of `dist`: its log density, both log tails and quantile.

    Raises:
        UnsupportedFamilyError: If `dist` is not a univariate family with a transform.
    """
    if from_normal.dispatch(type(dist)) is not from_normal.registry[object]:
        raise UnsupportedFamilyError(
            f"{type(dist).__name__} has a transform but no `ScalarFamily`, whose tails mixtures and truncated families "
            "need; a univariate one is registered with `family_of`."
        )
    raise UnsupportedFamilyError(_refusal(dist))


def family_of(*distributions: type[Distribution]) -> Callable[[_Family], _Family]:
    """Class decorator: the family of these distribution classes, built from an instance of one of them."""

    def register(family: _Family) -> _Family:
        from emfc.transforms.family import CDFTransform

        def transform(dist: Distribution) -> NormalTransform:
            return CDFTransform(scalar_family(dist))

        for distribution in distributions:
            scalar_family.register(distribution, family)
            if distribution not in from_normal.registry:
                from_normal.register(distribution, transform)
        return family

    return register


def refusing(refusal: _Refusal) -> _Refusal:
    """Decorator of a function that is registered to refuse its families with a reason of their own."""
    refusal.__dict__["refuses"] = True
    return refusal


def _kind(support: object) -> tuple[bool, int, bool]:
    """Discrete or not, event dimensions, bounded below or not."""
    discrete, event_dim = True, 0
    try:
        discrete, event_dim = bool(getattr(support, "is_discrete", False)), int(getattr(support, "event_dim", 0))
    except NotImplementedError:  # a support that depends on parameters and declares nothing
        discrete = False
    unbounded = support is constraints.real or "Real" in type(support).__name__
    return discrete, event_dim, not unbounded


def nearest_families(family: type[Distribution], count: int = 4) -> list[str]:
    """Names of the supported families nearest to a class: first by kind of support, then by name."""
    wanted = _kind(getattr(family, "support", None))
    known: dict[str, tuple[int, float]] = {}
    wrappers = {
        "ZeroInflatedDistribution",
        "Delta",
        "Independent",
        "ExpandedDistribution",
        "MaskedDistribution",
        "TransformedDistribution",
    }
    for candidate in from_normal.registry:
        name = candidate.__name__
        if candidate is object or candidate is Distribution or name in wrappers:
            continue
        if getattr(from_normal.registry[candidate], "refuses", False):
            continue
        kind = _kind(getattr(candidate, "support", None))
        same = sum(a != b for a, b in zip(kind[:2], wanted[:2], strict=True)) * 2 + (kind[2] != wanted[2])
        known[name] = (same, -difflib.SequenceMatcher(None, name, family.__name__).ratio())
    return sorted(known, key=lambda name: known[name])[:count]


def _refusal(dist: Distribution) -> str:
    family = type(dist)
    names = ", ".join(nearest_families(family))
    return f"{family.__name__} has no exact transform from normal noise; the nearest supported families are {names}."
