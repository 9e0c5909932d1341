"""Mixtures and their elements as plain tables, taken in blocks: components first, elements second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor, broadcast_shapes

from emfc.special.normal import log_sum_exp
from emfc.transforms.components import evaluate_components, map_parameters, union_of_supports
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.supports import Position, SupportMap

__all__ = ["FlatMixture", "Layout"]

_ROWS = 2**12  # elements that make a loop over different mixtures worth it
_SMALLEST = 2**8  # elements of a block


@dataclass
class FlatMixture:
    """A mixture with its components in the first dimension, and elements in the second or one column for all."""

    log_weights: Tensor
    component: ScalarFamily
    support: SupportMap = field(init=False)
    shared: bool = field(init=False)

    def __post_init__(self) -> None:
        self.support = union_of_supports(self.component.support_map, 0)
        self.shared = self.log_weights.shape[1] == 1

    def take(self, index: Tensor | slice) -> FlatMixture:
        """The mixtures of some elements."""
        if self.shared:
            return self

        def some(value: Tensor) -> Tensor:
            return value[:, index] if value.dim() == 2 and value.shape[1] > 1 else value

        shape = Size((self.component.batch_shape[0], 1))
        return type(self)(some(self.log_weights), map_parameters(self.component, some, shape))

    def components(self, at: Position) -> Evaluation:
        """Log density and log tails of every component, components first."""
        return evaluate_components(self.component, at, self.support, 0)

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails of the mixture."""
        parts = (log_sum_exp(self.log_weights + part, 0) for part in self.components(at))
        return Evaluation(*parts)


class Layout:
    """How the elements of a shape lie beside the mixtures that they belong to.

    Dimensions along which mixtures differ come first, so that the elements of one mixture lie together.

    Args:
        log_weights: Normalised log weights, shape [..., K].
        component: The components, batch shape [..., K].
        parameters: The tensors of `component`, as `parameters_of` gives them.
        shape: Of the elements; the batch shapes of all parameters broadcast against it.
    """

    def __init__(self, log_weights: Tensor, component: ScalarFamily, parameters: list[Tensor], shape: Size) -> None:
        shaped = [value for value in (log_weights, *parameters) if value.dim()]
        self.log_weights, self.component = log_weights, component
        self.rows = broadcast_shapes(*(value.shape[:-1] for value in shaped))
        self.count = max(value.shape[-1] for value in shaped)
        varying = [size > 1 for size in (1,) * (len(shape) - len(self.rows)) + tuple(self.rows)]
        self.order = sorted(range(len(shape)), key=lambda dim: not varying[dim])
        self.lined = Size(shape[dim] for dim in self.order)
        self.size = math.prod(shape)
        self.each = self.size // max(self.rows.numel(), 1)

    def mixture(self, kind: type[FlatMixture] = FlatMixture) -> FlatMixture:
        """All different mixtures, one column each."""

        def flat(value: Tensor) -> Tensor:
            if value.dim() == 0:
                return value
            if value.shape[:-1].numel() == 1:
                return value.reshape(-1, 1)
            return value.expand(*self.rows, value.shape[-1]).reshape(-1, value.shape[-1]).mT.contiguous()

        log_weights = self.log_weights.expand(*self.log_weights.shape[:-1], self.count)
        if self.rows.numel() > 1:
            log_weights = log_weights.expand(*self.rows, self.count)
        return kind(flat(log_weights), map_parameters(self.component, flat, Size((self.count, 1))))

    def flatten(self, value: Tensor) -> Tensor:
        """Elements one after another, those of one mixture together."""
        return value.permute(self.order).reshape(-1)

    def restore(self, value: Tensor) -> Tensor:
        """Flat elements in their own shape."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return value.reshape(self.lined).permute(inverse)

    def apply(
        self, mixture: FlatMixture, function: Callable[..., tuple[Tensor, ...]], numbers: int, *values: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Results of a function of a mixture and some of its elements, block by block.

        Args:
            mixture: All mixtures, as `mixture` gives them.
            function: Of a mixture and as many flat tensors as there are `values`.
            numbers: In a block, components times elements.
            values: Flat tensors, or None.
        """
        block = max(numbers // self.count, _SMALLEST)
        parts = []
        for start in range(0, self.size, block):
            stop = min(start + block, self.size)
            own = mixture
            if not mixture.shared:
                first, last = start // self.each, (stop - 1) // self.each
                index = torch.arange(start, stop, device=mixture.log_weights.device) // self.each
                own = mixture.take(slice(first, last + 1) if first == last else index)
            parts.append(function(own, *(value if value is None else value[start:stop] for value in values)))
        return tuple(torch.cat(results) for results in zip(*parts, strict=True))

    def groups(self, mixture: FlatMixture) -> list[tuple[FlatMixture, slice]] | None:
        """Each mixture with its elements, where these are many; None where they are few."""
        if mixture.shared:
            return [(mixture, slice(0, self.size))]
        if self.each < _ROWS:
            return None
        rows = range(self.size // self.each)
        return [(mixture.take(slice(row, row + 1)), slice(row * self.each, (row + 1) * self.each)) for row in rows]
