"""What is checked: a distribution that can be built again from other values of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to
from torch.distributions.transforms import Transform
from torch.distributions.utils import lazy_property

from emfc.errors import UserError
from emfc.transforms import NormalTransform, from_normal

__all__ = ["LIMITS", "Subject", "subject_of", "unvalidated"]

# Noise that makes the round trip.
LIMITS = {torch.float32: 8.0, torch.float64: 25.0}


@contextmanager
def unvalidated() -> Iterator[None]:
    """Argument checks of torch and Pyro distributions off for a while: they look at values."""
    before = Distribution._validate_args
    with pyro.validation_enabled(False):
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(before)


@dataclass(frozen=True)
class Subject:
    """A distribution by its constructor and parameters.

    Attributes:
        name: What messages call it.
        build: Makes the distribution from the parameters, in order.
        names: Names of the parameters that may vary.
        values: Their values.
        maps: For each, the map of free coordinates onto its constraint; None is the identity.
        given: Noise that the user wants to be used, or None.
    """

    name: str
    build: Callable[..., Distribution]
    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    maps: tuple[Transform | None, ...]
    given: Tensor | None = None

    def parameters(self, dtype: torch.dtype) -> list[Tensor]:
        """The parameters in a dtype, cut off from any graph."""
        return [value.detach().to(dtype) for value in self.values]

    def free(self) -> list[Tensor]:
        """The parameters in coordinates without a constraint, in float64."""
        values = self.parameters(torch.float64)
        return [value if map is None else map.inv(value) for value, map in zip(values, self.maps, strict=True)]

    def bound(self, free: Sequence[Tensor]) -> list[Tensor]:
        """Parameters of free coordinates."""
        return [value if map is None else map(value) for value, map in zip(free, self.maps, strict=True)]

    def dist(self, dtype: torch.dtype) -> Distribution:
        """The distribution with parameters of a dtype."""
        return self.build(*self.parameters(dtype))

    def transform(self, parameters: Sequence[Tensor]) -> NormalTransform:
        """The transform with these parameters."""
        with unvalidated():
            return from_normal(self.build(*parameters))

    def at(self, dtype: torch.dtype) -> NormalTransform:
        """The transform in a dtype."""
        return self.transform(self.parameters(dtype))

    @cached_property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.values[0].device if self.values else torch.device("cpu")

    @cached_property
    def event_dim(self) -> int:
        """Event dimensions of the noise."""
        return int(self.at(torch.float64).domain.event_dim)

    @cached_property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the distribution."""
        return self.dist(torch.float64).batch_shape

    @cached_property
    def noise_shape(self) -> torch.Size:
        """Shape of the noise of one draw per element of the batch."""
        dist = self.dist(torch.float64)
        return torch.Size(self.at(torch.float64).inverse_shape(dist.batch_shape + dist.event_shape))

    def noise(self, dtype: torch.dtype, limit: float, count: int) -> Tensor:
        """Noise over a range, [rows, *noise shape]: the given one, or a grid with each element at its own place."""
        if self.given is not None:
            given = self.given.to(self.device, dtype)
            rows = given.expand(torch.broadcast_shapes(given.shape, (1, *self.noise_shape)))
            rows = rows.reshape(-1, *self.noise_shape)
            return rows[:: -(-rows.shape[0] // count)].clamp(-limit, limit)
        size = self.noise_shape.numel()
        grid = torch.linspace(-limit, limit, count, dtype=dtype, device=self.device).unsqueeze(-1)
        shift = torch.linspace(0.0, 0.37, size, dtype=dtype, device=self.device)
        return (grid + shift).clamp(-limit, limit).reshape(count, *self.noise_shape)

    def moderate(self, limit: float, count: int) -> Tensor:
        """Float64 noise where nothing is extreme, off the corners between the levels of discrete families."""
        return self.noise(torch.float64, limit, count) + 0.0123


def _map(constraint: Any) -> Transform | None:
    try:
        found: Transform = transform_to(constraint)
        return found
    except NotImplementedError:
        return None


def _is_discrete(constraint: Any) -> bool:
    try:
        return bool(constraint.is_discrete)
    except (AttributeError, NotImplementedError):  # a constraint that depends on other parameters
        return False


def _is_computed(family: type[Distribution], key: str, default: object) -> bool:
    """True for an argument that is one of several ways to say the same, such as probs and logits."""
    held = inspect.getattr_static(family, key, None)
    return isinstance(held, lazy_property) or (isinstance(held, property) and default is None)


def _refuse(name: str, reason: str) -> UserError:
    return UserError(
        f"{name} cannot be built again from its parameters: {reason}; "
        "pass a function that builds it and its parameters, as in check_transform(build, {'scale': scale})."
    )


def _from_instance(dist: Distribution, given: Tensor | None) -> Subject:
    family: Callable[..., Distribution] = type(dist)
    name = type(dist).__name__
    known: Mapping[str, constraints.Constraint] = dist.arg_constraints
    arguments = inspect.signature(family).parameters
    alternatives = [key for key in known if key in arguments and _is_computed(type(dist), key, arguments[key].default)]
    chosen = next((key for key in alternatives if key in vars(dist)), next(iter(alternatives), None))
    free: dict[str, Tensor] = {}
    fixed: dict[str, Any] = {}
    for key in arguments:
        if key == "validate_args" or (key in alternatives and key != chosen):
            continue
        if not hasattr(dist, key):
            raise _refuse(name, f"it does not keep its argument {key!r}")
        value = getattr(dist, key)
        if isinstance(value, Tensor) and key in known and not _is_discrete(known[key]):
            free[key] = value
        elif value is None or isinstance(value, (bool, int, float, str)) or key in known:
            fixed[key] = value
        else:
            raise _refuse(name, f"its argument {key!r} is neither a number nor one of its arg_constraints")

    def build(*values: Tensor) -> Distribution:
        return family(**dict(zip(free, values, strict=True)), **fixed)

    again = build(*free.values())
    if (again.batch_shape, again.event_shape) != (dist.batch_shape, dist.event_shape):
        raise _refuse(name, "its shape changes")
    return Subject(name, build, tuple(free), tuple(free.values()), tuple(_map(known[key]) for key in free), given)


def subject_of(
    dist: Distribution | Callable[..., Distribution],
    parameters: Mapping[str, Tensor] | Sequence[Tensor] | None,
    given: Tensor | None,
) -> Subject:
    """The subject of a check: a distribution, or a function with parameters.

    Raises:
        UserError: If the distribution cannot be built again from what it holds, or parameters lack or are too many.
    """
    if isinstance(dist, Distribution):
        if parameters is not None:
            raise UserError("Parameters go with a function that builds the distribution, not with a distribution.")
        return _from_instance(dist, given)
    if parameters is None:
        raise UserError("A function that builds a distribution needs its parameters, as a mapping or a sequence.")
    build = dist
    named = isinstance(parameters, Mapping)
    pairs = parameters.items() if isinstance(parameters, Mapping) else enumerate(parameters)
    held: dict[Any, Tensor] = dict(pairs)
    wrong = [key for key, value in held.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(f"The parameter {wrong[0]!r} is no tensor.")
    free = [key for key, value in held.items() if value.is_floating_point()]

    def make(*tensors: Tensor) -> Distribution:
        values = held | dict(zip(free, tensors, strict=True))
        return build(**values) if named else build(*values.values())

    values = tuple(held[key] for key in free)
    names = tuple(key if isinstance(key, str) else f"parameter {key}" for key in free)
    return Subject(type(make(*values)).__name__, make, names, values, (None,) * len(free), given)
