"""The density direction: noise from examples, in one stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from emfc.layers.components import components
from emfc.layers.kernel import Kernel
from emfc.layers.latents import Gates, accumulate, configured_environment, latent_log_prob
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.layers.supports import UNCOMPUTABLE, Supports
from emfc.program.ir import Addresses
from emfc.special.precision import eager
from emfc.transforms import CDFTransform, NormalTransform, ScalarFamily, from_normal, mixture_family

__all__ = ["Density"]


class Density:
    """Noise from examples.

    All values are known, so one kernel evaluation per class does, however many sites it has. An element of a site that
    reads a summed-out site has a one-dimensional mixture as its conditional, whose weights are the responsibilities
    of the populations given the elements before it (the Knothe-Rosenblatt map of the joint mixture); these are
    cumulative sums of the components' log densities, over all elements at once.
    """

    def __init__(self, plan: Plan, supports: Supports) -> None:
        self.plan = plan
        self.supports = supports
        if plan.mixtures:
            self._order = torch.from_numpy(np.argsort(self._positions(), kind="stable"))
            self._ranks = torch.argsort(self._order)

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
            if not eager():
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
        return noises, torch.where(rows, -torch.inf, ladj)

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
        if self.plan.mixtures:
            configured = configured_environment(self.plan, plain)
            for kernel, weights, family in self._responsibilities(configured):
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

    def _responsibilities(self, configured: Environment) -> list[tuple[Kernel, Tensor, ScalarFamily]]:
        """For each mixed kernel the log weights ``[B, n, *shape, K]`` of the populations before each element."""
        values = configured.values
        count = len(self.plan.populations.configurations)
        families = []
        increments = []
        for kernel in self.plan.mixtures:
            own = kernel.full.own(values)
            family = components(kernel, kernel.parameters(configured, kernel.full), own)
            families.append(family)
            increments.append(family.log_prob(own.unsqueeze(-1)).expand(*own.shape, count).flatten(1, -2))
        for kernel in self.plan.latents:
            increments.append(
                latent_log_prob(self.plan, kernel, kernel.full, configured).expand(len(values), -1, count)
            )
        sequence = torch.cat(increments, 1)[:, self._order.to(values.device)]
        finite = sequence.clamp(min=torch.finfo(sequence.dtype).min / (4 * sequence.shape[1]))
        before = torch.cat([torch.zeros_like(finite[:, :1]), finite[:, :-1].cumsum(1)], 1)
        weights = before.log_softmax(-1)[:, self._ranks.to(values.device)]
        result: list[tuple[Kernel, Tensor, ScalarFamily]] = []
        offset = 0
        for kernel, family in zip(self.plan.mixtures, families, strict=True):
            held = weights[:, offset : offset + kernel.own.size]
            result.append((kernel, held.reshape(len(values), *kernel.own.shape, count), family))
            offset += kernel.own.size
        return result

    def _positions(self) -> Addresses:
        """Program order of what `_responsibilities` stacks: the mixtures' elements, then the summed-out sites."""
        sites = self.plan.program.sites
        keys = [
            [sites[index].start + place for index in kernel.held.sites for place in range(sites[index].size)]
            for kernel in self.plan.mixtures
        ]
        keys += [[sites[index].start for index in kernel.held.sites] for kernel in self.plan.latents]
        return np.concatenate([np.asarray(held, dtype=np.int64) for held in keys])
