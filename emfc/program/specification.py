"""Distributions as data: what a distribution object says, and the object again from what was said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import pyro.distributions as pyro_distributions
import torch
from pyro.distributions.torch import Independent as PyroIndependent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints, transforms

from emfc.program.errors import CompileError
from emfc.program.ir import Specification

__all__ = ["Description", "build", "describe", "family_class", "is_known_family", "support_text"]

T = TypeVar("T")

_WRAPPERS = (torch.distributions.Independent, PyroIndependent, ExpandedDistribution, MaskedDistribution)
_PREFERRED = (
    ({"probs", "logits"}, "logits"),
    ({"covariance_matrix", "precision_matrix", "scale_tril"}, "scale_tril"),
)
_TRANSFORMS: dict[str, tuple[type[transforms.Transform], tuple[str, ...]]] = {
    "AffineTransform": (transforms.AffineTransform, ("loc", "scale")),
    "ExpTransform": (transforms.ExpTransform, ()),
    "SigmoidTransform": (transforms.SigmoidTransform, ()),
    "TanhTransform": (transforms.TanhTransform, ()),
    "SoftplusTransform": (transforms.SoftplusTransform, ()),
    "PowerTransform": (transforms.PowerTransform, ("exponent",)),
}


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


def describe(distribution: Distribution, capture: Capture[T], missing: int = 0) -> Description[T]:
    """Read a distribution's family, parameters and structure.

    Independent, Expanded and Masked wrappers vanish: their only trace is the shape of the site.

    Args:
        distribution: Any torch or Pyro distribution.
        capture: Called with each parameter tensor and the rank that it must be padded to with leading dimensions of
            size one,
            so that parameters of a site all line up with its value.
        missing: Leading dimensions that the wrappers outside have added.

    Raises:
        CompileError: A transform or family cannot be written as data (E-NOCDF).
    """
    inner: Any = distribution
    while isinstance(inner, _WRAPPERS):
        inner = inner.base_dist
    missing += _rank(distribution) - _rank(inner)
    family = type(inner).__name__
    if type(inner) not in (getattr(pyro_distributions, family, None), getattr(torch.distributions, family, None)):
        raise CompileError(
            "E-NOCDF",
            f"the class {type(inner).__module__}.{family} is none of pyro.distributions",
            advice="use a family of pyro.distributions",
        )
    if family == "MixtureSameFamily":
        children = {
            "mixture": describe(inner._mixture_distribution, capture, missing),
            "component": describe(inner._component_distribution, capture, missing),
        }
        event_dim = len(inner._component_distribution.event_shape)
        if event_dim and isinstance(inner, torch.distributions.MixtureSameFamily):
            raise CompileError(
                "E-NOCDF",
                "a MixtureSameFamily with vector components has no CDF transform",
                advice="draw z = pyro.sample('z', Categorical(...)) and then the vector with table[z]: z is summed out",
            )
        return Description(family, {}, children, {"event_dim": event_dim})
    if type(inner) in (torch.distributions.TransformedDistribution, pyro_distributions.TransformedDistribution):
        rank = _rank(inner) + missing
        children = {"base": describe(inner.base_dist, capture, rank - _rank(inner.base_dist))}
        flat = _flatten_transforms(inner.transforms)
        for number, transform in enumerate(flat):
            children[f"transform{number}"] = _describe_transform(transform, capture, rank)
        return Description(family, {}, children, {"base_event_dim": len(inner.base_dist.event_shape)})
    batch_rank = len(inner.batch_shape) + missing
    return Description(family, _parameters(inner, capture, batch_rank), {}, {"event_dim": len(inner.event_shape)})


def _rank(distribution: Distribution) -> int:
    return len(distribution.batch_shape) + len(distribution.event_shape)


def _parameters(inner: Distribution, capture: Capture[T], batch_rank: int) -> dict[str, T]:
    try:
        names = dict(inner.arg_constraints)
    except NotImplementedError:
        names = {}
    for group, preferred in _PREFERRED:
        if preferred in names:
            for name in group - {preferred}:
                names.pop(name, None)
    captured: dict[str, T] = {}
    for name, constraint in names.items():
        value = getattr(inner, name, None)
        if isinstance(value, (int, float)):
            value = torch.tensor(float(value))
        if isinstance(value, Tensor):
            try:
                event_dim = constraint.event_dim
            except NotImplementedError:
                raise CompileError(
                    "E-NOCDF",
                    f"the family {type(inner).__name__} has no CDF transform",
                    advice="use pyro.deterministic for a computed value" if type(inner).__name__ == "Delta" else None,
                ) from None
            captured[name] = capture(value, batch_rank + event_dim)
    return captured


def _flatten_transforms(parts: list[transforms.Transform]) -> list[transforms.Transform]:
    flat: list[transforms.Transform] = []
    for part in parts:
        if isinstance(part, transforms.ComposeTransform):
            flat.extend(_flatten_transforms(part.parts))
        elif isinstance(part, transforms.IndependentTransform):
            flat.extend(_flatten_transforms([part.base_transform]))
        else:
            flat.append(part)
    return flat


def _describe_transform(transform: transforms.Transform, capture: Capture[T], rank: int) -> Description[T]:
    inverted = isinstance(transform, transforms._InverseTransform)
    inner = transform.inv if inverted else transform
    name = type(inner).__name__
    if name not in _TRANSFORMS or type(inner) is not _TRANSFORMS[name][0]:
        raise CompileError(
            "E-NOCDF",
            f"a TransformedDistribution through {name} is not supported",
            advice=f"supported transforms are {', '.join(_TRANSFORMS)}, their inverses and compositions",
        )
    captured: dict[str, T] = {}
    for attribute in _TRANSFORMS[name][1]:
        value = getattr(inner, attribute)
        value = value if isinstance(value, Tensor) else torch.tensor(float(value))
        captured[attribute] = capture(value, rank)
    return Description(name, captured, {}, {"inverse": inverted})


def family_class(family: str) -> type[Distribution]:
    """The class of a family by its name in `pyro.distributions`.

    Raises:
        KeyError: There is no such distribution.
    """
    found = getattr(pyro_distributions, family, None) or getattr(torch.distributions, family, None)
    if not (isinstance(found, type) and issubclass(found, Distribution)):
        raise KeyError(family)
    return found


_PLAIN = frozenset(("Normal", "Laplace", "Logistic", "Cauchy", "Gumbel"))


def _unexpanded(family: type[Distribution], arguments: Mapping[str, Tensor]) -> Distribution:
    """A distribution whose parameters keep their own shapes, where the constructor would expand them to a common one.

    A scale shared by all steps and examples then stays one number, and so does its gradient.
    """
    made = family.__new__(family)
    for name, value in arguments.items():
        setattr(made, name, value)
    sizes = zip(*(value.shape for value in arguments.values()), strict=True)  # all of one rank
    shape = torch.Size([next((size for size in held if size != 1), 1) for held in sizes])
    Distribution.__init__(made, shape, validate_args=False)
    return made


def is_known_family(name: str) -> bool:
    """Whether a stored name is a family, a transform or one of the compiler's own marks."""
    if name in _TRANSFORMS or name in ("Factor", "MixtureSameFamily", "TransformedDistribution"):
        return True
    try:
        family_class(name)
    except KeyError:
        return False
    return True


def build(specification: Specification, values: Mapping[str, Tensor], prefix: str = "") -> Distribution:
    """The distribution object of a specification, with parameter tensors given by dotted path.

    Args:
        specification: What `describe` read.
        values: Parameter tensors; leading batch dimensions beyond the traced ones are allowed.
        prefix: Path of this specification inside the site's.
    """
    family = specification.family
    if family == "MixtureSameFamily":
        mixture: Any = build(specification.children["mixture"], values, prefix + "mixture.")
        component = build(specification.children["component"], values, prefix + "component.")
        shape = torch.broadcast_shapes((*mixture.batch_shape, mixture.logits.shape[-1]), component.batch_shape)
        return torch.distributions.MixtureSameFamily(
            mixture.expand(shape[:-1]), component.expand(shape), validate_args=False
        )
    if family == "TransformedDistribution":
        base = build(specification.children["base"], values, prefix + "base.")
        parts = []
        for name, child in specification.children.items():
            if name.startswith("transform"):
                made: Any
                made, attributes = _TRANSFORMS[child.family]
                part = made(*(values[f"{prefix}{name}.{attribute}"] for attribute in attributes))
                parts.append(part.inv if child.options.get("inverse") else part)
        return torch.distributions.TransformedDistribution(base, parts, validate_args=False)
    arguments: dict[str, Any] = {name: values[prefix + name] for name in specification.parameters}
    if family in _PLAIN:
        return _unexpanded(family_class(family), arguments)
    if family == "LogNormal":
        normal = _unexpanded(torch.distributions.Normal, arguments)
        lognormal: Any = torch.distributions.LogNormal.__new__(torch.distributions.LogNormal)
        lognormal.base_dist, lognormal.transforms = normal, [transforms.ExpTransform()]
        Distribution.__init__(lognormal, normal.batch_shape, validate_args=False)
        return lognormal  # type: ignore[no-any-return]
    made_family: Any = family_class(family)
    return made_family(**arguments, validate_args=False)  # type: ignore[no-any-return]


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
