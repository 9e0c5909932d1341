"""The density direction: noise from examples, in one stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from emfc.layers.filtering import Filter
from emfc.layers.fused import Fused
from emfc.layers.kernel import Kernel
from emfc.layers.latents import Gates, accumulate
from emfc.layers.logdensity import LogDensity
from emfc.layers.mixed_density import MixedLogDensity
from emfc.layers.parameters import Parameters
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.layers.supports import UNCOMPUTABLE, Supports
from emfc.program.ir import Addresses
from emfc.special.precision import eager
from emfc.transforms import CDFTransform, NormalTransform, from_normal, mixture_family

__all__ = ["Density", "connected"]

_DTYPES = frozenset((torch.float32, torch.float64))


class Density:
    """Noise from examples.

    All values are known, so one kernel evaluation per class does, however many sites it has. An element of a site that
    reads a summed-out site has a one-dimensional mixture as its conditional, whose weights are the responsibilities
    of the populations given the elements before it (the Knothe-Rosenblatt map of the joint mixture), which a filter
    finds for all elements at once.
    """

    def __init__(
        self,
        plan: Plan,
        supports: Supports,
        *,
        direct: bool = True,
        compiled: bool = False,
        chunk: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            plan: The plan.
            supports: Its supports.
            direct: Whether log densities may be found without noise.
            compiled: Whether log densities run under `torch.compile`.
            chunk: How many sites of a class a log density takes at a time; None for all.
        """
        self.plan = plan
        self.supports = supports
        self._filter = Filter(plan) if plan.mixtures else None
        self._log_density: Fused | LogDensity | MixedLogDensity | None = None
        if direct:
            self._log_density = (
                LogDensity(plan, chunk=chunk) if self._filter is None else MixedLogDensity(plan, self._filter)
            )
            if compiled:
                self._log_density = Fused(self._log_density)
        self.fused = self._log_density if isinstance(self._log_density, Fused) else None

    def __call__(self, values: Tensor, parameters: Tensor, gates: Gates) -> tuple[Tensor, Tensor]:
        """Noise ``[B, N]`` of examples ``[B, D]`` and the log-Jacobian ``[B]`` of this direction."""
        noises, ladj = self.pieces(values, parameters, gates)
        stacked = noises[0] if len(noises) == 1 else torch.cat(noises, -1)
        return self._from_class_order(stacked), ladj

    def pieces(self, values: Tensor, parameters: Tensor, gates: Gates) -> tuple[list[Tensor], Tensor]:
        """Noise of each class ``[B, n]``, in class order, and the log-Jacobian ``[B]``.

        A value outside its support makes its own log-Jacobian -inf, and must not make NaN of the sites that read it:
        where that shows, they read a value inside instead.
        """
        failure: Exception | None = None
        try:
            noises, ladj = self._evaluate(values, self.plan.environment(values, parameters), gates)
            if not eager() or bool(ladj.isfinite().all()):
                return noises, ladj
        except UNCOMPUTABLE as error:
            if not eager() or isinstance(error, torch.OutOfMemoryError):
                raise
            failure = error
        outside = self.supports.outside(values, parameters)
        rows = outside.any(-1)
        if not bool(rows.any()):
            if failure is not None:
                raise failure
            return noises, ladj
        safe = torch.where(outside, self.supports.prototype(values), values)
        noises, ladj = self._evaluate(values, self.plan.environment(safe, parameters), gates)
        noises = [torch.where(rows[:, None], noise.nan_to_num(), noise) for noise in noises]
        return noises, self._cut(rows, values, ladj)

    def log_prob(self, values: Tensor, parameters: Parameters, gates: Gates) -> Tensor:
        r"""Log density ``[B]`` of examples ``[B, D]``, -inf outside the support.

        .. math:: \sum_j \log f_j(x_j \mid x_{pa(j)}) = \sum_j \log \phi(e_j) + \log |\det \partial e / \partial x|
        """
        held = self._log_density
        if held is None or gates.values is not None or values.dtype not in _DTYPES:
            noises, ladj = self.pieces(values, parameters.flat, gates)
            squares = torch.stack([noise.square().sum(-1) for noise in noises]).sum(0)
            return ladj - 0.5 * (squares + self.plan.noise_dim * math.log(2 * math.pi))
        plain = held.log_density if isinstance(held, Fused) else held
        failure: Exception | None = None
        try:
            if not eager():
                return connected(plain(values, parameters), values)
            if isinstance(held, Fused):
                total, whole = held.with_sum(values, parameters)
            else:
                total = held(values, parameters)
                whole = total.detach().sum()
            if math.isfinite(whole.item()):
                return connected(total, values)
        except UNCOMPUTABLE as error:
            if not eager() or isinstance(error, torch.OutOfMemoryError):
                raise
            failure = error
        outside = self.supports.outside(values, parameters.flat)
        rows = outside.any(-1)
        if not bool(rows.any()):
            if failure is not None:
                raise failure
            return connected(plain(values, parameters), values) if plain is not held else total
        safe = torch.where(outside, self.supports.prototype(values), values)
        return self._cut(rows, values, plain(safe, parameters))

    @staticmethod
    def _cut(rows: Tensor, values: Tensor, found: Tensor) -> Tensor:
        """What was found, -inf in rows with a value outside its support, and no number where a value is none."""
        return torch.where(values.isnan().any(-1), torch.nan, torch.where(rows, -torch.inf, found))

    def _evaluate(self, values: Tensor, plain: Environment, gates: Gates) -> tuple[list[Tensor], Tensor]:
        noises: list[Tensor] = []
        ladj: Tensor | None = None
        for kernel, transform in self._transforms(plain):
            gated = gates.apply(transform, kernel.full.noise)
            own = kernel.full.own(values)
            noise, part = gated.inverse_and_ladj(own)
            noises.append(noise.flatten(1))
            constant = gated.constant_ladj
            ladj = accumulate(ladj, part) if constant is None else accumulate(ladj, -constant, own)
        if ladj is None:
            raise RuntimeError("a plan has at least one kernel")
        return noises, ladj

    def _transforms(self, plain: Environment) -> Iterator[tuple[Kernel, NormalTransform]]:
        for kernel in self.plan.ordinary:
            yield kernel, from_normal(kernel.distribution(plain, kernel.full))
        if self._filter is not None:
            for kernel, weights, family in self._filter.responsibilities(plain):
                yield kernel, CDFTransform(mixture_family(weights, family))

    @cached_property
    def _from_class_order(self) -> Picker:
        """Puts pieces of noise, side by side in class order, into the order of the sites."""
        return self._order_of([kernel.noise for kernel in self._kernels])

    @cached_property
    def _values_from_class_order(self) -> Picker:
        """The same for values."""
        return self._order_of([kernel.own for kernel in self._kernels])

    @property
    def _kernels(self) -> tuple[Kernel, ...]:
        return (*self.plan.ordinary, *self.plan.mixtures)

    @staticmethod
    def _order_of(columns: list[Addresses]) -> Picker:
        return Picker(np.argsort(np.concatenate([held.reshape(-1) for held in columns])))


def connected(total: Tensor, values: Tensor) -> Tensor:
    """A density that is constant within its support has the derivative 0 by its values, not none."""
    if total.requires_grad or not values.requires_grad or not torch.is_grad_enabled():
        return total
    return total + 0 * values.nan_to_num(0, 0, 0).sum(-1)
