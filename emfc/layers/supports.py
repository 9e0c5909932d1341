"""Supports of a program's sites: what lies inside, and the map from R^D onto their product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.layers.components import components
from emfc.layers.kernel import Kernel
from emfc.layers.latents import Gates, configured_environment
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment
from emfc.program.errors import CompileError
from emfc.transforms import (
    CDFTransform,
    LadjTransform,
    NormalTransform,
    UnsupportedFamilyError,
    from_normal,
    mixture_family,
    unconstrained_map,
)

if TYPE_CHECKING:
    from emfc.layers.structured import StructuredLayer

__all__ = ["ProgramConstraintMap", "Supports"]


class Supports:
    """Supports of all sites of a plan, at given values.

    Attributes:
        names: For each kernel the short name of what its sites became.
    """

    def __init__(self, plan: Plan) -> None:
        """Check that every class has a transform, at the values of the watched run.

        Raises:
            CompileError: A family has none (E-NOCDF).
        """
        self.plan = plan
        program = plan.program
        dtype = getattr(torch, program.dtype)
        initial = [held.initial.reshape(-1).to(dtype) for held in program.parameters]
        parameters = torch.cat(initial) if initial else torch.zeros(0, dtype=dtype)
        environment = Environment(self.prototype(parameters), parameters)
        self.names = {kernel.number: self._name(kernel, environment) for kernel in (*plan.ordinary, *plan.mixtures)}

    def _name(self, kernel: Kernel, environment: Environment) -> str:
        program = self.plan.program
        site, family = program.sites[kernel.held.sites[0]], kernel.held.specification.family
        try:
            transform = self.at(kernel, environment)
        except (UnsupportedFamilyError, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            told = isinstance(error, UnsupportedFamilyError)
            raise CompileError(
                "E-NOCDF",
                str(error).rstrip(".") if told else f"the family {family} has no CDF transform",
                site=site.name,
                location=site.location,
                source=site.source,
                advice="write the site with a supported family",
            ) from error
        return f"{family} -> {_constraint_name(transform.codomain)}"

    def prototype(self, like: Tensor) -> Tensor:
        """One example ``[1, D]``, that of the watched run, in the dtype and device of `like`."""
        columns = torch.from_numpy(self.plan.layout.columns)
        kept = columns >= 0
        values = torch.zeros(1, self.plan.dim, dtype=torch.float64)
        values[0, columns[kept]] = self.plan.program.prototype[kept]
        return values.to(dtype=like.dtype, device=like.device)

    def at(self, kernel: Kernel, environment: Environment) -> NormalTransform:
        """The transform of a class at given values; populations count equally, since only the support is wanted."""
        if not kernel.mixed:
            return from_normal(kernel.distribution(environment, kernel.full))
        configured = configured_environment(self.plan, environment)
        own = kernel.full.own(environment.values)
        family = components(kernel, kernel.parameters(configured, kernel.full), own)
        weights = environment.values.new_zeros(len(self.plan.populations.configurations))
        return CDFTransform(mixture_family(weights, family))

    def outside(self, values: Tensor, parameters: Tensor) -> Tensor:
        """Which elements ``[B, D]`` of examples lie outside their site's support, or are no numbers."""
        result = torch.zeros_like(values, dtype=torch.bool)
        environment = Environment(values, parameters)
        for kernel in (*self.plan.ordinary, *self.plan.mixtures):
            own = kernel.full.own(values)
            inside: Tensor = _scalar(self.at(kernel, environment).codomain).check(own) & own.isfinite()
            columns = torch.as_tensor(kernel.own.reshape(-1), device=values.device)
            result[:, columns] = ~inside.flatten(1)
        return result


def _scalar(constraint: constraints.Constraint) -> constraints.Constraint:
    """The support of one element."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _constraint_name(constraint: constraints.Constraint) -> str:
    return type(_scalar(constraint)).__name__.strip("_").replace("_", " ")


class ProgramConstraintMap(LadjTransform):
    """The map from R^D onto the product of the sites' supports, elementwise.

    It is what a layer with closed gates does after the identity, and what carries a constrained example to the real
    line and back between learned layers. Bounds that are parameters are read when it is called.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, layer: StructuredLayer) -> None:
        super().__init__()
        self._layer = layer
        self._check()

    def _check(self) -> None:
        layer, supports = self._layer, self._layer.supports
        like = next(layer.parameters(), torch.zeros(0, dtype=getattr(torch, layer.program.dtype)))
        values = supports.prototype(like)
        first = Environment(values, layer.flat_parameters(values))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(7919)
            noise = torch.randn(first.values.shape, generator=generator, dtype=torch.float64).to(first.values)
            second, _ = layer._sampling(noise, first.parameters, Gates(None))
            both = Environment(torch.cat([first.values, second]), first.parameters)
            for kernel in (*layer.plan.ordinary, *layer.plan.mixtures):
                codomain = supports.at(kernel, both).codomain
                for bound in _bounds(codomain):
                    if bound.ndim and bound.shape[0] == 2 and not bool((bound[0] == bound[1]).all()):
                        site = layer.program.sites[kernel.held.sites[0]]
                        raise CompileError(
                            "E-SUPPORT",
                            "the support of the site depends on other sites' values",
                            site=site.name,
                            location=site.location,
                            source=site.source,
                            advice="use placement='top', or rescale a site of fixed support",
                        )

    def _maps(self, like: Tensor) -> list[tuple[Kernel, LadjTransform]]:
        layer = self._layer
        values = layer.supports.prototype(like)
        environment = Environment(values, layer.flat_parameters(values))
        result = []
        for kernel in (*layer.plan.ordinary, *layer.plan.mixtures):
            codomain = layer.supports.at(kernel, environment).codomain
            result.append((kernel, unconstrained_map(_scalar(codomain))))
        return result

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values in the supports, and the log-Jacobian."""
        return self._apply(x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Real coordinates of values in the supports; log-Jacobian -inf for values outside."""
        return self._apply(y, inverse=True)

    def _apply(self, value: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        flat = value.reshape(-1, self._layer.dim)
        pieces, total = [], flat.new_zeros(len(flat))
        for kernel, held in self._maps(flat):
            own = kernel.full.own(flat)
            moved, ladj = held.inverse_and_ladj(own) if inverse else held.call_and_ladj(own)
            pieces.append(moved.flatten(1))
            total = total + ladj.expand(own.shape).flatten(1).sum(-1)
        joined = self._layer._density._from_class_order(torch.cat(pieces, -1))
        return joined.reshape(value.shape), total.reshape(value.shape[:-1])


def _bounds(constraint: constraints.Constraint) -> list[Tensor]:
    constraint = _scalar(constraint)
    held = (getattr(constraint, name, None) for name in ("lower_bound", "upper_bound"))
    return [bound for bound in held if isinstance(bound, Tensor)]
