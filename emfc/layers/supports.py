"""Supports of a program's sites: what lies inside, and the map from R^N onto their product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import constraints

from emfc.layers.kernel import Kernel
from emfc.layers.latents import Gates, enumerations
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment
from emfc.program.constraint import element_constraint
from emfc.program.errors import CompileError
from emfc.program.ir import SiteRecord
from emfc.transforms import (
    CDFTransform,
    LadjTransform,
    NormalTransform,
    UnsupportedFamilyError,
    from_normal,
    gated,
    mixture_family,
    unconstrained_map,
)

if TYPE_CHECKING:
    from emfc.layers.structured import StructuredLayer

__all__ = ["UNCOMPUTABLE", "ProgramConstraintMap", "Supports"]

UNCOMPUTABLE = (ValueError, RuntimeError, ArithmeticError)
"""What constructors and decompositions raise at parameters that no inside value gives."""


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
        self._enumerations = enumerations(plan)
        program = plan.program
        dtype = getattr(torch, program.dtype)
        initial = [held.initial.reshape(-1).to(dtype) for held in program.parameters]
        parameters = torch.cat(initial) if initial else torch.zeros(0, dtype=dtype)
        self._start = plan.environment(self.prototype(parameters), parameters)
        self.names = {kernel.number: self._name(kernel, self._start) for kernel in (*plan.ordinary, *plan.mixtures)}

    def _name(self, kernel: Kernel, environment: Environment) -> str:
        site, family = self._site(kernel), kernel.held.specification.title
        place = {"site": site.name, "location": site.location, "source": site.source}
        try:
            transform = self.at(kernel, environment)
            own = kernel.full.own(environment.values)
            noise = tuple(transform.inverse_shape(own.shape))[1:]
            transform.inverse_and_ladj(own)
        except CompileError as error:
            raise CompileError(error.code, error.reason, advice=error.advice, **place) from error
        except (UnsupportedFamilyError, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            told = isinstance(error, UnsupportedFamilyError)
            raise CompileError(
                "E-NOCDF",
                str(error).rstrip(".") if told else f"the family {family} has no CDF transform ({error})",
                advice="write the site with a supported family",
                **place,
            ) from error
        if noise != kernel.full.noise.positions.shape:
            raise CompileError(
                "E-NOCDF", f"the family {family} takes noise of another shape than was recorded", **place
            )
        return f"{family} -> {_constraint_name(transform.codomain)}"

    def _site(self, kernel: Kernel) -> SiteRecord:
        return self.plan.program.sites[kernel.held.sites[0]]

    def check_gates(self) -> None:
        """Check that every class can be gated.

        Raises:
            CompileError: The transform of a family cannot be mixed with the identity (E-NOCDF).
        """
        environment = self._start
        for kernel in (*self.plan.ordinary, *self.plan.mixtures):
            site = self._site(kernel)
            try:
                gated(self.at(kernel, environment), environment.values.new_full((), 0.5))
            except UnsupportedFamilyError as error:
                raise CompileError(
                    "E-NOCDF",
                    f"the family {kernel.held.specification.title} has no gate: {str(error).rstrip('.')}",
                    site=site.name,
                    location=site.location,
                    source=site.source,
                    advice="compile the program with gate=None",
                ) from error

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
        held = self._enumerations[kernel.number]
        family = held.family(environment, kernel.full.own(environment.values))
        return CDFTransform(mixture_family(environment.values.new_zeros(held.count), family))

    def outside(self, values: Tensor, parameters: Tensor) -> Tensor:
        """Which elements ``[B, D]`` of examples lie outside their site's support, or are no numbers.

        Of a vector that is constrained as a whole, such as one on a simplex, all elements are outside or none.
        """
        result = torch.zeros_like(values, dtype=torch.bool)
        pending: list[Kernel] = [*self.plan.ordinary, *self.plan.mixtures]
        while pending:  # what cannot be computed from values that are outside reads others in their place
            environment = self._environment(torch.where(result, self.prototype(values), values), parameters)
            later = [kernel for kernel in pending if not self._mark(result, kernel, environment, values)]
            if len(later) == len(pending):  # each waits for the others: their supports at the watched run's values
                environment = self.plan.environment(self.prototype(values), parameters)
                for kernel in later:
                    if not self._mark(result, kernel, environment, values):
                        self.at(kernel, environment)
                break
            pending = later
        return result

    def _environment(self, values: Tensor, parameters: Tensor) -> Environment:
        """What kernels read; without the virtual nodes where these cannot be computed."""
        try:
            return self.plan.environment(values, parameters)
        except torch.OutOfMemoryError:
            raise
        except UNCOMPUTABLE:
            return Environment(values, parameters)

    def _mark(self, result: Tensor, kernel: Kernel, environment: Environment, values: Tensor) -> bool:
        """Mark the elements of a class that lie outside; False where its support cannot be computed."""
        try:
            constraint = element_constraint(self.at(kernel, environment).codomain)
        except torch.OutOfMemoryError:
            raise
        except UNCOMPUTABLE:
            return False
        columns = torch.as_tensor(kernel.own.reshape(-1), device=values.device)
        result[:, columns] = ~_inside(constraint, kernel.full.own(values)).flatten(1)
        return True


def _inside(constraint: constraints.Constraint, own: Tensor) -> Tensor:
    """Which elements obey the constraint of an element or, all together, that of a vector or matrix."""
    inside, dims = own.isfinite(), constraint.event_dim
    if not dims:
        return torch.logical_and(inside, constraint.check(own))
    spread = (..., *[None] * dims)
    finite = inside.flatten(-dims).all(-1)
    whole: Tensor = finite & _holds(constraint, torch.where(finite[spread], own, 0))
    return whole[spread].expand(own.shape)


def _holds(constraint: constraints.Constraint, value: Tensor) -> Tensor:
    """Whether vectors or matrices obey a constraint.

    The constraint map is asked as well: torch's own check of positive definite matrices mixes those of a batch up.
    """
    inside: Tensor = constraint.check(value)
    try:
        return inside & unconstrained_map(constraint).inverse_and_ladj(value)[1].isfinite()
    except UnsupportedFamilyError:
        return inside


def _constraint_name(constraint: constraints.Constraint) -> str:
    return type(element_constraint(constraint)).__name__.strip("_").replace("_", " ")


class ProgramConstraintMap(LadjTransform):
    """The map from R^N onto the product of the sites' supports: elementwise, but for supports of vectors.

    A simplex of K elements takes K - 1 real numbers, a Cholesky factor of a correlation matrix one for each pair. It is
    what a layer with closed gates does after the identity, and what carries a constrained example to the real line and
    back between learned layers. Bounds that are parameters are read when it is called.
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
        first = layer.plan.environment(values, layer.flat_parameters(values))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(7919)
            noise = torch.randn(1, layer.noise_dim, generator=generator, dtype=torch.float64).to(first.values)
            second, _ = layer.sampling(noise, first.parameters, Gates(None))
            both = layer.plan.environment(torch.cat([first.values, second]), first.parameters)
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
                            advice="use pyro.deterministic for a computed value"
                            if site.noise_size == 0
                            else "use placement='top', or rescale a site of fixed support",
                        )

    def _maps(self, like: Tensor) -> list[tuple[Kernel, LadjTransform]]:
        layer = self._layer
        values = layer.supports.prototype(like)
        environment = layer.plan.environment(values, layer.flat_parameters(values))
        result = []
        for kernel in (*layer.plan.ordinary, *layer.plan.mixtures):
            codomain = layer.supports.at(kernel, environment).codomain
            result.append((kernel, unconstrained_map(element_constraint(codomain))))
        return result

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values in the supports, and the log-Jacobian."""
        return self._apply(x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Real coordinates of values in the supports; log-Jacobian -inf for values outside."""
        return self._apply(y, inverse=True)

    def _apply(self, value: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        flat, density = value.reshape(value.shape[:-1].numel(), value.shape[-1]), self._layer.density
        order = density._from_class_order if inverse else density._values_from_class_order
        pieces, total = [], flat.new_zeros(len(flat))
        for kernel, held in self._maps(flat):
            own = (kernel.full.own if inverse else kernel.full.noise)(flat)
            moved, ladj = held.inverse_and_ladj(own) if inverse else held.call_and_ladj(own)
            pieces.append(moved.flatten(1))
            dims = (held.codomain if inverse else held.domain).event_dim
            total = total + ladj.expand(own.shape[: own.ndim - dims]).flatten(1).sum(-1)
        joined = order(torch.cat(pieces, -1))
        return joined.reshape(*value.shape[:-1], joined.shape[-1]), total.reshape(value.shape[:-1])

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Shape of the values of real coordinates."""
        return torch.Size((*shape[:-1], self._layer.dim))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Shape of the real coordinates of values."""
        return torch.Size((*shape[:-1], self._layer.noise_dim))


def _bounds(constraint: constraints.Constraint) -> list[Tensor]:
    """What places a support: its ends, or its one value."""
    constraint = element_constraint(constraint)
    held = (getattr(constraint, name, None) for name in ("lower_bound", "upper_bound", "value"))
    return [bound for bound in held if isinstance(bound, Tensor)]
