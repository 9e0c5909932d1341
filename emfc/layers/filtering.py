"""Filtering: what is known of the summed-out values before each element, where all elements are known.

The weights of the populations before an element are those of the values alive, given the elements before it. Values
that a component is conditioned on are weighed by what all its parts predicted, in program order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from emfc.layers.kernel import Kernel
from emfc.layers.latents import Enumeration, enumerations
from emfc.layers.part_filter import PartFilter, Stream, known, marginal
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker
from emfc.layers.terms import mixed_terms
from emfc.passes.eliminate import Bundle
from emfc.passes.ordering import Operation
from emfc.program.ir import Addresses
from emfc.transforms import ScalarFamily

__all__ = ["Filter"]


class _BundleFilter:
    """The filters of all parts of a bundle, and what is known of the values that it is conditioned on."""

    def __init__(self, bundle: Bundle, held: Mapping[int, Enumeration]) -> None:
        self.sizes = bundle.conditioned
        grouped: dict[tuple[Operation, ...], list[tuple[Operation, ...]]] = {}
        for part in bundle.parts:
            grouped.setdefault(tuple(operation._replace(event=-1) for operation in part), []).append(part)
        self.parts = [PartFilter(bundle, parts, held) for parts in grouped.values()]
        self.copies = bundle.positions.shape[1]
        self.observed = len(bundle.observed)
        if self.sizes:
            keys = [
                (stream.events[..., None] + len(bundle.kernels) * np.arange(self.copies)).reshape(-1)
                for part in self.parts
                for stream in part.streams
                if stream.operation.kind == "observe"
            ]
            order = np.argsort(np.concatenate(keys))  # by copy, then by event
            self._order, self._back = torch.from_numpy(order), torch.from_numpy(np.argsort(order))

    def total(self, flat: Mapping[int, Tensor]) -> Tensor:
        """Log evidence ``[B or 1]`` of all copies together."""
        result: Tensor | None = None
        for part in self.parts:
            held, _ = part.run(part.factors(flat), seen=False)
            summed = held.unflatten(-2, (part.parts, self.copies)).sum(-3)
            result = summed if result is None else result + summed
        total = known(result)
        if self.sizes:
            total = total.logsumexp(tuple(range(len(self.sizes))))
        return total.sum(0)

    def weights(self, flat: Mapping[int, Tensor], batch: int) -> list[tuple[Stream, Tensor]]:
        """For each stream of elements the log weights of all axes, ``[B, runs, m, lanes, *axes]``."""
        streams: list[Stream] = []
        local: list[Tensor | None] = []
        factors: list[Tensor] = []
        for part in self.parts:
            taken = part.factors(flat)
            for stream, before, factor in zip(part.streams, part.run(taken, seen=True)[1], taken, strict=True):
                if stream.operation.kind == "observe":
                    streams.append(stream)
                    local.append(before)
                    factors.append(factor)
        shared = self._conditioned(local, factors, batch) if self.sizes else [None] * len(streams)
        result = []
        for stream, own, other, factor in zip(streams, local, shared, factors, strict=True):
            if other is not None:
                other = other.reshape(*other.shape, *(1,) * len(stream.operation.live))
            found = own if other is None else other if own is None else own + other
            if found is None:
                found = torch.zeros_like(factor[:1])
            result.append((stream, found.expand(batch, *factor.shape[1:4], *found.shape[4:])))
        return result

    def _conditioned(self, local: list[Tensor | None], factors: list[Tensor], batch: int) -> list[Tensor | None]:
        """Log weights of the conditioned values before each element, ``[B, runs, m, lanes, *conditioned]``."""
        predicted = []
        for before, factor in zip(local, factors, strict=True):
            live = factor.ndim - 4 - len(self.sizes)
            joint = factor if before is None else (before + factor).logsumexp(tuple(range(-live, 0)))
            predicted.append(joint.flatten(4).flatten(1, 3).expand(batch, -1, -1))
        joined = torch.cat(predicted, 1) if len(predicted) > 1 else predicted[0]
        device = joined.device
        ordered = joined.index_select(1, self._order.to(device)).unflatten(1, (self.copies, self.observed))
        earlier = torch.cat([torch.zeros_like(ordered[:, :, :1]), ordered[:, :, :-1].cumsum(2)], 2)
        back = earlier.log_softmax(-1).flatten(1, 2).index_select(1, self._back.to(device))
        pieces = back.split([held.shape[1] for held in predicted], 1)
        return [
            piece.reshape(batch, *factor.shape[1:4], *self.sizes) for piece, factor in zip(pieces, factors, strict=True)
        ]


class Filter:
    """The mixtures of a plan where all values are known."""

    def __init__(self, plan: Plan, *, target: bool = False) -> None:
        """Prepare.

        Args:
            plan: The plan.
            target: Whether it is that of a variational target, of which only the log density is wanted.
        """
        self.plan = plan
        self.target = target
        self.enumerations = enumerations(plan)
        self._bundles = [_BundleFilter(bundle, self.enumerations) for bundle in plan.elimination.bundles]
        self._orders: dict[int, Picker] = {}
        self._events = sum(bundle.positions.size for bundle in plan.elimination.bundles)

    def log_prob(self, environment: Environment) -> Tensor:
        """Log density ``[B]`` of all mixtures together, with everything summed out; -inf outside their supports."""
        flat, _ = self._factors(environment)
        parts = [bundle.total(flat) for bundle in self._bundles]
        total = parts[0] if len(parts) == 1 else torch.stack(torch.broadcast_tensors(*parts)).sum(0)
        total = torch.where(total < self._floor(total.dtype) / 2, -torch.inf, total)
        return total.expand(len(environment.values))

    def responsibilities(self, environment: Environment) -> list[tuple[Kernel, Tensor, ScalarFamily]]:
        """For each mixed kernel the log weights ``[B, n, *shape, K]`` of the populations before each element."""
        flat, families = self._factors(environment)
        batch = len(environment.values)
        pieces: dict[int, list[Tensor]] = {}
        positions: dict[int, list[Addresses]] = {}
        for bundle in self._bundles:
            for stream, weights in bundle.weights(flat, batch):
                number = stream.operation.kernel
                if number in families:
                    held = marginal(weights, stream.operation.axes, self.enumerations[number], 4)
                    pieces.setdefault(number, []).append(held.flatten(1, 3))
                    positions.setdefault(number, []).append(stream.positions)
        result = []
        for kernel in self.plan.mixtures:
            number, count = kernel.number, self.enumerations[kernel.number].count
            if number not in self._orders:
                order = np.argsort(np.concatenate(positions[number]))
                self._orders[number] = Picker(order[:, None] * count + np.arange(count))
            joined = torch.cat(pieces[number], 1) if len(pieces[number]) > 1 else pieces[number][0]
            weights = self._orders[number](joined.flatten(1)).reshape(batch, *kernel.own.shape, count)
            result.append((kernel, weights, families[number]))
        return result

    def _factors(self, environment: Environment) -> tuple[dict[int, Tensor], dict[int, ScalarFamily]]:
        """Flat log densities of each class, ``[B or 1, n * size * K]``, and the components of the mixed ones."""
        flat: dict[int, Tensor] = {}
        families: dict[int, ScalarFamily] = {}
        for kernel in self.plan.mixtures:
            held = self.enumerations[kernel.number]
            own = kernel.full.own(environment.values)
            if self.target:
                given = kernel.held.sites[0] in self.plan.given
                held_terms = mixed_terms(kernel, held.parameters(environment), own, held.count, given=given)
                flat[kernel.number] = self._clamped(held_terms)
                continue
            family = families[kernel.number] = held.family(environment, own)
            flat[kernel.number] = self._clamped(family.log_prob(own.unsqueeze(-1)).expand(*own.shape, held.count))
        for kernel in self.plan.latents:
            flat[kernel.number] = self._clamped(self.enumerations[kernel.number].log_masses(environment))
        return flat, families

    def _clamped(self, log_prob: Tensor) -> Tensor:
        """Finite, however many are added up."""
        return log_prob.flatten(1).clamp(min=self._floor(log_prob.dtype))

    def _floor(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).min / (4 * self._events + 4)
