"""What a guide shows to Pyro: its flow as a distribution, and its map to Pyro's unconstrained coordinates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from emfc.errors import UserError
from emfc.inference.variational import VariationalFlow

__all__ = ["Coordinates", "GuideDistribution", "GuideTransform", "SiteCoordinates"]


class GuideDistribution(TorchDistribution):
    """A variational flow as a distribution of vectors ``[D]``; draws know their own log density.

    Args:
        flow: The flow.
        context: What it is conditioned on, a vector or None.
        batch_shape: Shape of independent copies.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: VariationalFlow, context: Tensor | None, batch_shape: Sequence[int] = ()) -> None:
        self.flow, self.context = flow, context
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size((flow.dim,)), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> GuideDistribution:
        """The same flow with independent copies of another shape."""
        return GuideDistribution(self.flow, self.context, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Differentiable draws ``[*, D]``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        if self.context is None:
            self._drawn = self.flow.rsample_and_log_prob(shape)
        else:
            self._drawn = self.flow.rsample_and_log_prob((), _spread(self.context, shape))
        return self._drawn[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``[*]``; that of this distribution's last draws was computed with them."""
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        return self.flow.log_prob(value, _spread(self.context, value.shape[:-1]))


def _spread(context: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if context is None else context.expand(*shape, context.shape[-1])


@dataclass(frozen=True, eq=False)
class SiteCoordinates:
    """One latent site between its value and Pyro's unconstrained coordinates.

    Attributes:
        name: The site.
        start: First column of its value.
        shape: Shape of its value.
        free_start: First column of its unconstrained coordinates.
        free_shape: Their shape.
        support: Its support, at the values of the prototype.
        moving: Where the support depends on other sites, what gives its bounds at examples ``[B, D]``.
    """

    name: str
    start: int
    shape: torch.Size
    free_start: int
    free_shape: torch.Size
    support: constraints.Constraint
    moving: Callable[[Tensor], constraints.Constraint] | None

    def transform(self, examples: Tensor) -> Transform:
        """The map from unconstrained coordinates to the support at examples ``[B, D]``."""
        support = self.support if self.moving is None else self.moving(examples)
        return biject_to(support)  # type: ignore[no-any-return]

    def value(self, examples: Tensor) -> Tensor:
        """Its columns of examples ``[B, D]``."""
        return examples[:, self.start : self.start + self.shape.numel()].reshape(-1, *self.shape)

    def free(self, coordinates: Tensor) -> Tensor:
        """Its columns of coordinates ``[B, U]``."""
        size = self.free_shape.numel()
        return coordinates[:, self.free_start : self.free_start + size].reshape(-1, *self.free_shape)


class Coordinates:
    """All latent sites of a flow between their values ``[*, D]`` and Pyro's unconstrained coordinates ``[*, U]``."""

    def __init__(self, flow: VariationalFlow, sites: Mapping[str, Any]) -> None:
        """Prepare the sites.

        Args:
            flow: The flow.
            sites: For each latent site of Pyro's prototype trace its distribution and its value.

        Raises:
            UserError: Pyro has no map from the real numbers to a site's support.
        """
        self.sites: list[SiteCoordinates] = []
        self.prototype = flow.layer.supports.prototype(_like(flow))
        free = 0
        moving = dict(_moving(flow))
        for name, (start, shape) in flow.layer.packing.places.items():
            support = sites[name]["fn"].support
            try:
                transform = biject_to(support)
                coordinates = transform.inv(sites[name]["value"])
                known = bool(transform.log_abs_det_jacobian(coordinates, sites[name]["value"]).isfinite().all())
            except NotImplementedError:
                known = False
            if not known:
                raise UserError(
                    f"Pyro has no map from the real numbers to the support of site {name!r} ({support}); the guide "
                    "itself can draw it, but get_transform and NeuTraReparam cannot take it there"
                )
            bounds = moving.get(name)
            held = None if bounds is None else _rebuilt(support, bounds)
            self.sites.append(SiteCoordinates(name, start, torch.Size(shape), free, coordinates.shape, support, held))
            free += coordinates.numel()
        self.dim, self.example_dim = free, flow.dim

    def unconstrain(self, examples: Tensor) -> tuple[Tensor, Tensor]:
        r"""Coordinates u of examples x, and :math:`\log |\det \partial u / \partial x|`."""
        flat = examples.reshape(-1, self.example_dim)
        parts, total = [], flat.new_zeros(len(flat))
        for site in self.sites:
            transform, value = site.transform(flat), site.value(flat)
            free = transform.inv(value)
            ladj = transform.log_abs_det_jacobian(free, value)
            total = total - ladj.reshape(len(flat), -1).sum(-1)
            parts.append(free.reshape(len(flat), -1))
        batch = examples.shape[:-1]
        return torch.cat(parts, -1).reshape(*batch, self.dim), total.reshape(batch)

    def constrain(self, coordinates: Tensor) -> Tensor:
        """Examples of coordinates, site by site, as the support of one may depend on others."""
        flat = coordinates.reshape(-1, self.dim)
        parts: list[Tensor] = []
        for site in self.sites:
            known = flat
            if site.moving is not None:
                rest = self.prototype.to(flat)[:, site.start :].expand(len(flat), -1)
                known = torch.cat([*parts, rest], -1)
            parts.append(site.transform(known)(site.free(flat)).reshape(len(flat), -1))
        return torch.cat(parts, -1).reshape(*coordinates.shape[:-1], self.example_dim)


def _like(flow: VariationalFlow) -> Tensor:
    """A tensor with dtype and device of the program."""
    return next(flow.layer.parameters(), torch.zeros(0, dtype=getattr(torch, flow.layer.program.dtype)))


def _moving(flow: VariationalFlow) -> Iterator[tuple[str, Callable[[Tensor], dict[str, Tensor]]]]:
    """Names of the sites whose support may depend on other sites, with the bounds of their support.

    What reads no site has one row, however many examples there are; so the bounds' rows tell what their parameters
    read, whatever their values.
    """
    layer = flow.layer
    values = layer.supports.prototype(_like(flow))
    with torch.no_grad():
        both = layer.plan.environment(torch.cat([values, values]), layer.flat_parameters(values))
    for kernel in (*layer.plan.ordinary, *layer.plan.mixtures):
        with torch.no_grad():
            bounds = _bounds(layer.supports.at(kernel, both).codomain).values()
        if all(bound.ndim == 0 or bound.shape[0] == 1 for bound in bounds):
            continue
        for row, index in enumerate(kernel.held.sites):

            def at(examples: Tensor, kernel: Any = kernel, row: int = row) -> dict[str, Tensor]:
                environment = layer.plan.environment(examples, layer.flat_parameters(examples))
                shape = (len(kernel.held.sites), *kernel.held.shape)
                bounds = _bounds(layer.supports.at(kernel, environment).codomain)
                return {
                    name: bound.expand(bound.shape[0], *shape)[:, row] if bound.ndim else bound
                    for name, bound in bounds.items()
                }

            yield layer.program.sites[index].name, at


def _scalar(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _bounds(constraint: constraints.Constraint) -> dict[str, Tensor]:
    held = _scalar(constraint)
    bounds = {name: getattr(held, name, None) for name in ("lower_bound", "upper_bound")}
    return {name: torch.as_tensor(bound) for name, bound in bounds.items() if bound is not None}


def _rebuilt(
    support: Any, bounds: Callable[[Tensor], dict[str, Tensor]]
) -> Callable[[Tensor], constraints.Constraint] | None:
    """The support with bounds that depend on the example; None where Pyro says that it has none."""
    dims = 0
    while isinstance(support, constraints.independent):
        dims += support.reinterpreted_batch_ndims
        support = support.base_constraint
    kind, own = type(support), _bounds(support)
    if not own:
        return None

    def at(examples: Tensor) -> constraints.Constraint:
        found = bounds(examples)
        made = kind(*(found.get(name, bound) for name, bound in own.items()))
        return constraints.independent(made, dims) if dims else made

    return at


class GuideTransform(Transform):
    """From standard-normal noise ``[*, N]`` through a flow to Pyro's unconstrained coordinates ``[*, U]``."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: VariationalFlow, coordinates: Coordinates, context: Tensor | None = None) -> None:
        super().__init__()
        self.flow, self.coordinates, self.context = flow, coordinates, context
        self._last: tuple[weakref.ref[Tensor], list[Any], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}  # type: ignore[no-untyped-call]

    def call_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of noise and the log-Jacobian."""
        chain = self.flow.transform(_spread(self.context, noise.shape[:-1]))
        examples, ladj = chain.call_and_ladj(noise)
        free, more = self.coordinates.unconstrain(examples)
        return free, ladj + more

    def _call(self, x: Tensor) -> Tensor:
        value, ladj = self.call_and_ladj(x)
        self._last = weakref.ref(value, self._forget), self._versions(x), ladj
        return value

    def _forget(self, _: Any) -> None:
        self._last = None

    def _versions(self, x: Tensor) -> list[Any]:
        """What changes when the noise is another, or the flow was trained."""
        return [id(x), x._version, *((id(value), value._version) for value in self.flow.parameters())]

    def _inverse(self, y: Tensor) -> Tensor:
        examples = self.coordinates.constrain(y)
        noise: Tensor = self.flow.transform(_spread(self.context, y.shape[:-1])).inv(examples)
        return noise

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-Jacobian ``[*]``; that of the last noise mapped is kept while its value lives and the flow stays."""
        if self._last is not None and self._last[0]() is y and self._last[1] == self._versions(x):
            return self._last[2]
        return self.call_and_ladj(x)[1]

    def with_cache(self, cache_size: int = 1) -> GuideTransform:
        """The transform itself: it keeps what it computed last."""
        return self

    def forward_shape(self, shape: Any) -> torch.Size:
        """Shape of the coordinates of noise."""
        return torch.Size((*shape[:-1], self.coordinates.dim))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Shape of the noise of coordinates."""
        return torch.Size((*shape[:-1], self.flow.noise_dim))
