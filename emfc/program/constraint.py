"""Constraints of parameters as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions.constraints as pyro_constraints
import torch
from torch.distributions import constraints

from emfc.program.errors import CompileError

__all__ = ["constraint_from_data", "constraint_to_data", "element_constraint"]

_BOUNDED = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
    "half_open_interval": ("lower_bound", "upper_bound"),
}
_NAMED = (
    "real real_vector positive nonnegative unit_interval simplex lower_cholesky corr_cholesky positive_definite "
    "lower_triangular "
    "ordered_vector positive_ordered_vector softplus_positive softplus_lower_cholesky sphere"
).split()


def constraint_to_data(constraint: constraints.Constraint, parameter: str) -> dict[str, Any]:
    """Write a constraint as JSON data.

    Raises:
        CompileError: The constraint is none that can be stored (E-MODEL).
    """
    for name in _NAMED:
        if constraint is getattr(pyro_constraints, name, None):
            return {"name": name}
    if isinstance(constraint, constraints.independent):
        return {
            "name": "independent",
            "base": constraint_to_data(constraint.base_constraint, parameter),
            "dims": constraint.reinterpreted_batch_ndims,
        }
    for name, bounds in _BOUNDED.items():
        if type(constraint) is getattr(constraints, name):
            data: dict[str, Any] = {"name": name}
            for bound in bounds:
                value = torch.as_tensor(getattr(constraint, bound))
                if value.numel() != 1:
                    raise CompileError(
                        "E-MODEL",
                        f"the constraint of parameter {parameter!r} has bounds that are not single numbers",
                        advice="use numbers as bounds, or scale the parameter afterwards",
                    )
                data[bound] = float(value)
            return data
    raise CompileError(
        "E-MODEL",
        f"the constraint {constraint} of parameter {parameter!r} cannot be stored",
        advice=f"use one of {', '.join([*_NAMED, *_BOUNDED])}",
    )


def constraint_from_data(data: Mapping[str, Any]) -> constraints.Constraint:
    """The constraint that `constraint_to_data` wrote.

    Raises:
        KeyError: No such constraint.
    """
    name = data["name"]
    if name == "independent":
        return constraints.independent(constraint_from_data(data["base"]), int(data["dims"]))
    if name in _BOUNDED:
        return getattr(constraints, name)(*(float(data[bound]) for bound in _BOUNDED[name]))  # type: ignore[no-any-return]
    if name not in _NAMED:
        raise KeyError(name)
    return getattr(pyro_constraints, name)  # type: ignore[no-any-return]


def element_constraint(constraint: constraints.Constraint) -> constraints.Constraint:
    """The constraint of one element, where the elements are independent."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint
