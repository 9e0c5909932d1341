"""Families as data: which of a distribution's attributes say what it is.

The rule is the constructor's signature: each of its arguments is read back from the attribute of the same name. A
tensor becomes a parameter of the program, a distribution a part, and a plain number, string or list an option. The
tables below hold what the rule does not cover.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyro.distributions as pyro_distributions
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from emfc.program.errors import CompileError
from emfc.transforms.registry import from_normal

__all__ = [
    "Reading",
    "family_class",
    "family_event_dims",
    "family_name",
    "known_arguments",
    "read_arguments",
    "read_family",
    "takes_validation",
]

_GROUPS = (
    ({"probs", "logits"}, "logits"),
    ({"gate", "gate_logits"}, "gate_logits"),
    ({"covariance_matrix", "precision_matrix", "scale_tril"}, "scale_tril"),
)
_SKIPPED = frozenset(("self", "validate_args", "cache_size"))
_ATTRIBUTES: dict[str, dict[str, str | None]] = {  # argument -> attribute of another name; None: not part of the law
    "AVFMultivariateNormal": {"control_var": None},
    "ContinuousBernoulli": {"lims": "_lims"},
    "LKJCorrCholesky": {"d": "dim", "eta": "concentration"},
    "Poisson": {"is_sparse": None},
}
_BASES = ("base", "base_distribution")  # kept as `base_dist` everywhere in torch and Pyro
_EVENT_DIMS: dict[str, dict[str, int]] = {  # event dimensions of parameters where `arg_constraints` do not tell them
    "AVFMultivariateNormal": {"loc": 1},
    "GaussianScaleMixture": {"coord_scale": 1, "component_logits": 1, "component_scale": 1},
    "LogisticNormal": {"loc": 1, "scale": 1},
    "MixtureOfDiagNormals": {"locs": 2, "coord_scale": 2, "component_logits": 1},
    "MixtureOfDiagNormalsSharedCovariance": {"locs": 2, "coord_scale": 1, "component_logits": 1},
    "OMTMultivariateNormal": {"loc": 1, "scale_tril": 2},
    "RelaxedBernoulli": {"temperature": 0},
    "RelaxedOneHotCategorical": {"temperature": 0},
    "Wishart": {"df": 0, "scale_tril": 2},
}


@dataclass
class Reading:
    """What was read of an object.

    Attributes:
        tensors: Parameters, each with its number of event dimensions.
        children: Distributions that it is made from.
        options: Everything else that its constructor takes.
    """

    tensors: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    children: dict[str, Distribution] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def family_name(distribution: Distribution) -> str:
    """The name under which a family is stored: that in `pyro.distributions`, or the dotted one of a registered class.

    Raises:
        CompileError: The class is neither (E-NOCDF).
    """
    family = type(distribution)
    if family in (
        getattr(pyro_distributions, family.__name__, None),
        getattr(torch.distributions, family.__name__, None),
    ):
        return family.__name__
    name = f"{family.__module__}.{family.__qualname__}"
    if _registered().get(name) is family:
        return name
    if name == "emfc.flows.distribution.FlowDistribution":
        raise CompileError(
            "E-NOCDF",
            "a flow has no place in a compiled program, whose families are known by their parameters",
            advice="use Pyro's own inference, such as SVI with AutoNormal, or NUTS, which take a flow as they take any "
            "other distribution, or write the program that the flow was made of",
        )
    raise CompileError(
        "E-NOCDF",
        f"the class {name} is none of pyro.distributions, and no transform is registered for it",
        advice="use a family of pyro.distributions, or register the class with emfc.transforms.family_of",
    )


def _registered() -> dict[str, type]:
    """Classes that have a transform, by dotted name; of two with one name the later."""
    return {f"{family.__module__}.{family.__qualname__}": family for family in from_normal.registry}


def family_class(name: str) -> type[Distribution]:
    """The class of a stored family, looked up in `pyro.distributions` or among the registered classes.

    Raises:
        KeyError: There is no such distribution.
    """
    found = (
        _registered().get(name)
        if "." in name
        else getattr(pyro_distributions, name, None) or getattr(torch.distributions, name, None)
    )
    if not (isinstance(found, type) and issubclass(found, Distribution)):
        raise KeyError(name)
    return found


@cache
def _signature(made: Any) -> dict[str, inspect.Parameter]:
    """Named arguments of a constructor."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(made.__init__).parameters
    return {name: held for name, held in parameters.items() if held.kind not in variadic}


@cache
def family_event_dims(family: Any) -> dict[str, int]:
    """Event dimensions of the parameters of a class, as far as the class knows them."""
    held = family.arg_constraints
    known: dict[str, int] = {}
    if isinstance(held, dict):  # otherwise it is a property of instances
        known = {name: int(found.event_dim) for name, found in held.items()}
    return {**known, **_EVENT_DIMS.get(family.__name__, {})}


def takes_validation(made: type) -> bool:
    """Whether a constructor can be told not to check its arguments."""
    return "validate_args" in _signature(made)


def known_arguments(made: type) -> frozenset[str]:
    """All names that a constructor takes, but for those that change no law."""
    return frozenset(_signature(made)) - _SKIPPED


def read_arguments(made: type) -> list[str]:
    """Names of a constructor's arguments; of several parametrisations only the one that is stored."""
    names = [name for name in _signature(made) if name not in _SKIPPED]
    for group, preferred in _GROUPS:
        if preferred in names:
            names = [name for name in names if name == preferred or name not in group]
    return names


def read_family(distribution: Distribution) -> Reading:
    """Read what a distribution was made from.

    Raises:
        CompileError: An argument of its constructor cannot be read back or written as data (E-NOCDF).
    """
    family = type(distribution)
    renamed = _ATTRIBUTES.get(family.__name__, {})
    constrained = _constraints(distribution)
    reading = Reading()
    for name in read_arguments(family):
        attribute = renamed.get(name, name)
        if attribute is None:
            continue
        if name in _BASES and not hasattr(distribution, attribute):
            attribute = "base_dist"
        try:
            value = getattr(distribution, attribute)
        except AttributeError:
            raise _unreadable(family, f"does not keep its argument {name!r} as an attribute of that name") from None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and name in constrained:
            value = torch.tensor(float(value), dtype=torch.float64)
        if isinstance(value, Tensor):
            reading.tensors[name] = value, _event_dim(distribution, name, value, constrained)
        elif isinstance(value, Distribution):
            reading.children[name] = value
        elif value is not None:
            reading.options[name] = _plain(family, name, value)
    return reading


def _constraints(distribution: Distribution) -> Mapping[str, constraints.Constraint]:
    try:
        return dict(distribution.arg_constraints)
    except NotImplementedError:
        return {}


def _event_dim(
    distribution: Distribution, name: str, value: Tensor, constrained: Mapping[str, constraints.Constraint]
) -> int:
    known = _EVENT_DIMS.get(type(distribution).__name__, {}).get(name)
    if known is not None:
        return known
    batch = tuple(distribution.batch_shape)
    try:
        return int(constrained[name].event_dim)
    except (KeyError, NotImplementedError):
        if value.ndim >= len(batch) and tuple(value.shape[: len(batch)]) == batch:
            return value.ndim - len(batch)
        if value.ndim == 0:
            return 0
    raise _unreadable(type(distribution), f"does not name the tensor {name!r} in its arg_constraints")


def _plain(family: type, name: str, value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(family, name, item) for item in value]
    raise _unreadable(family, f"was made with {name} = a {type(value).__name__}, which cannot be written as data")


def _unreadable(family: type, what: str) -> CompileError:
    return CompileError(
        "E-NOCDF",
        f"the family {family.__name__} {what}",
        advice="keep tensors, numbers, strings or distributions, each under the name of the constructor's argument",
    )
