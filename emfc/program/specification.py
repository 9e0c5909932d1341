"""Distributions as data: what a distribution object says, and the object again from what was said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from pyro.distributions.torch import Independent as PyroIndependent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints, transforms

from emfc.program.bijections import (
    flatten_transforms,
    make_transform,
    read_transform,
    transform_class,
    transform_event_dims,
)
from emfc.program.errors import CompileError
from emfc.program.families import family_class, family_name, known_arguments, read_family
from emfc.program.ir import Specification
from emfc.program.makers import make_family

__all__ = [
    "Capture",
    "Description",
    "build",
    "describe",
    "describe_data",
    "event_dim",
    "stored_arguments",
    "support_text",
    "unwrapped",
]

T = TypeVar("T")

_WRAPPERS = (torch.distributions.Independent, PyroIndependent, ExpandedDistribution, MaskedDistribution)
_MARKS = ("Adjusted", "Factor", "MixtureSameFamily", "TransformedDistribution")


class Description(Generic[T]):
    """A distribution with tensors replaced by whatever the capture function made of them."""

    __slots__ = ("children", "family", "options", "parameters")

    def __init__(
        self, family: str, parameters: dict[str, T], children: dict[str, Description[T]], options: dict[str, Any]
    ):
        self.family = family
        self.parameters = parameters
        self.children = children
        self.options = options

    def flatten(self, prefix: str = "") -> dict[str, T]:
        """All captured values by dotted path."""
        flat = {prefix + name: value for name, value in self.parameters.items()}
        for name, child in self.children.items():
            flat.update(child.flatten(f"{prefix}{name}."))
        return flat


Capture = Callable[[Tensor, int], T]


def unwrapped(distribution: Distribution) -> Distribution:
    """The distribution inside Independent, Expanded and Masked wrappers."""
    inner: Any = distribution
    while isinstance(inner, _WRAPPERS):
        inner = inner.base_dist
    return inner  # type: ignore[no-any-return]


def describe(distribution: Distribution, capture: Capture[T], missing: int = 0) -> Description[T]:
    """Read a distribution's family, parameters and structure.

    Independent, Expanded and Masked wrappers vanish: their only trace is the shape of the site.

    Args:
        distribution: Any torch or Pyro distribution, or one of a registered class.
        capture: Called with each parameter tensor and the rank that it must be padded to with leading dimensions of
            size one,
            so that parameters of a site all line up with its value.
        missing: Leading dimensions that the wrappers outside have added.

    Raises:
        CompileError: A transform or family cannot be written as data (E-NOCDF).
    """
    inner: Any = unwrapped(distribution)
    missing += _rank(distribution) - _rank(inner)
    family = family_name(inner)
    if family == "MixtureSameFamily":
        weights, component = inner._mixture_distribution, inner._component_distribution
        batch = missing + len(inner.batch_shape)
        children = {
            "mixture": describe(weights, capture, batch - len(weights.batch_shape)),
            "component": describe(component, capture, batch + 1 - len(component.batch_shape)),
        }
        return Description(family, {}, children, _with_events(len(component.event_shape), {"component": component}))
    if family == "TransformedDistribution":
        return _transformed(inner, capture, missing)
    reading = read_family(inner)
    batch_rank = len(inner.batch_shape) + missing
    options = _with_events(len(inner.event_shape), reading.children)
    if reading.options:
        options["arguments"] = reading.options
    return Description(
        family,
        {name: capture(value, batch_rank + extra) for name, (value, extra) in reading.tensors.items()},
        {
            name: describe(child, capture, missing + _rank(inner) - _rank(child))
            for name, child in reading.children.items()
        },
        options,
    )


def _with_events(dims: int, children: Mapping[str, Distribution]) -> dict[str, Any]:
    """Options: event dimensions, and those that wrappers gave to the distributions inside."""
    options: dict[str, Any] = {"event_dim": dims}
    events = {name: len(held.event_shape) - len(unwrapped(held).event_shape) for name, held in children.items()}
    if any(events.values()):
        options["events"] = events
    return options


def describe_data(distribution: Distribution, capture: Capture[T], missing: int = 0) -> Description[T]:
    """Read the distribution of an observed site, which is never built again.

    Of a family of Pyro that cannot be written as data, the parameters that it names are enough.

    Raises:
        CompileError: The class is none that is known (E-NOCDF).
    """
    try:
        return describe(distribution, capture, missing)
    except CompileError:
        inner = unwrapped(distribution)
        family, rank = family_name(inner), _rank(distribution) + missing
        held = {name: getattr(inner, name, None) for name in inner.arg_constraints}
        tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        captured = {name: capture(value, max(rank, value.ndim)) for name, value in tensors.items()}
        return Description(family, captured, {}, {"event_dim": rank})


def _rank(distribution: Distribution) -> int:
    return len(distribution.batch_shape) + len(distribution.event_shape)


def _transformed(inner: Any, capture: Capture[T], missing: int) -> Description[T]:
    """A chain of transforms: steps may change the number of event dimensions, and so the rank of what comes next."""
    flat = list(flatten_transforms(inner.transforms))
    steps = [transform_event_dims(transform) for transform in flat]
    rank = _rank(inner) + missing - sum(after - before for before, after in steps)
    children = {"base": describe(inner.base_dist, capture, rank - _rank(inner.base_dist))}
    for number, (transform, (before, after)) in enumerate(zip(flat, steps, strict=True)):
        children[f"transform{number}"] = _describe_transform(transform, capture, rank, (before, after))
        rank += after - before
    return Description("TransformedDistribution", {}, children, {})


def _describe_transform(
    transform: transforms.Transform, capture: Capture[T], rank: int, events: tuple[int, int]
) -> Description[T]:
    name, inverted, reading = read_transform(transform)
    options: dict[str, Any] = {"inverse": inverted}
    if events != (0, 0):
        options["event_dims"] = list(events)
    if reading.options:
        options["arguments"] = reading.options
    return Description(
        name,
        {argument: capture(value, rank + extra) for argument, (value, extra) in reading.tensors.items()},
        {argument: describe(child, capture, rank - _rank(child)) for argument, child in reading.children.items()},
        options,
    )


def event_dim(specification: Specification) -> int:
    """How many of the last dimensions of a value belong together; dimensions of `to_event` do not count."""
    if specification.family == "Adjusted":
        return event_dim(specification.children["base"])
    if specification.family != "TransformedDistribution":
        return int(specification.options.get("event_dim", 0))
    held = event_dim(specification.children["base"])
    for child in _steps(specification).values():
        before, after = child.options.get("event_dims", (0, 0))
        held = max(held, before) + after - before
    return held


def _steps(specification: Specification) -> dict[str, Specification]:
    return {name: child for name, child in specification.children.items() if name != "base"}


def stored_arguments(name: str) -> frozenset[str] | None:
    """Names that a stored family or transform may be made from; None where the name is one of the compiler's own marks.

    Raises:
        KeyError: The name is no family, no transform and no mark.
    """
    if name in _MARKS:
        return None
    return known_arguments(transform_class(name) or family_class(name))


def build(specification: Specification, values: Mapping[str, Tensor], prefix: str = "") -> Distribution:
    """The distribution object of a specification, with parameter tensors given by dotted path.

    Args:
        specification: What `describe` read.
        values: Parameter tensors; leading batch dimensions beyond the traced ones are allowed.
        prefix: Path of this specification inside the site's.
    """
    if specification.family == "MixtureSameFamily":
        held = _arguments(specification, values, prefix)
        return torch.distributions.MixtureSameFamily(held["mixture"], held["component"], validate_args=False)
    if specification.family == "TransformedDistribution":
        base = build(specification.children["base"], values, prefix + "base.")
        parts = [
            make_transform(
                child.family,
                _arguments(child, values, f"{prefix}{name}."),
                inverse=bool(child.options.get("inverse")),
            )
            for name, child in _steps(specification).items()
        ]
        return torch.distributions.TransformedDistribution(base, parts, validate_args=False)
    return make_family(specification.family, _arguments(specification, values, prefix))


def _arguments(specification: Specification, values: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Arguments of the constructor of a family or transform."""
    arguments: dict[str, Any] = {name: values[prefix + name] for name in specification.parameters}
    events = specification.options.get("events", {})
    for name, child in specification.children.items():
        held = build(child, values, f"{prefix}{name}.")
        if events.get(name):
            held = torch.distributions.Independent(held, events[name], validate_args=False)
        arguments[name] = held
    return {**arguments, **specification.options.get("arguments", {})}


def support_text(support: constraints.Constraint) -> str:
    """Short name of a support, such as ``Real()`` or ``Interval(0, 1)``."""
    inner = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    name = type(inner).__name__.strip("_")
    lower, upper = getattr(inner, "lower_bound", None), getattr(inner, "upper_bound", None)
    bounds = [
        f"{float(b):g}"
        for b in (lower, upper)
        if isinstance(b, (int, float)) or (isinstance(b, Tensor) and b.ndim == 0)
    ]
    return f"{name}({', '.join(bounds)})"
