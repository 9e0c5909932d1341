"""Mixtures of univariate families."""

from __future__ import annotations

from typing import cast

import torch
from torch import Size, Tensor, broadcast_shapes
from torch import distributions as td
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from emfc.special.normal import log_sum_exp
from emfc.special.precision import eager, wide
from emfc.transforms.base import NormalTransform
from emfc.transforms.components import evaluate_components, locate_in_union, parameters_of
from emfc.transforms.discrete import MixedTableFamily, TableFamily
from emfc.transforms.family import CDFTransform, Evaluation, ScalarFamily
from emfc.transforms.layout import FlatMixture, Layout
from emfc.transforms.mixture_quantile import mixture_quantiles
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, scalar_family
from emfc.transforms.solved import SolvedFamily, coordinate_limits
from emfc.transforms.supports import Position

__all__ = ["ContinuousMixture", "mixture_family"]

# Elements times components: more are evaluated in blocks of that size, and in small ones where nothing is recorded.
_WHOLE, _RECORDED, _PLAIN = 2**18, 2**23, 2**16


class ContinuousMixture(SolvedFamily):
    """Mixture over the last batch dimension of a continuous family.

    Its log tails are log-sum-exps of the components'; the quantile is solved between the components' own.
    """

    def __init__(self, log_weights: Tensor, component: ScalarFamily) -> None:
        self.log_weights = torch.log_softmax(wide(log_weights), -1)
        self.component = component
        self.discrete = component.discrete  # unbounded counts
        self.batch_shape = broadcast_shapes(log_weights.shape, component.batch_shape)[:-1]
        self.same_support = component.support_map.union()[1]
        self.support = component.support_map.union()[0].codomain

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        shape = self._shape(at.value.shape)
        if eager():
            known = self._known(at.value)
            size = shape.numel() * self._count()
            if known is not None and size > (_RECORDED if self.recorded(at.value) else _WHOLE):
                return self._evaluate_in_blocks(at, shape, known)
        parts = evaluate_components(self.component, at.unsqueeze(), self.support_map, -1)
        return Evaluation(*(log_sum_exp(self.log_weights + part, -1) for part in parts))

    def _evaluate_in_blocks(self, at: Position, shape: Size, known: list[Tensor]) -> Evaluation:
        """The same, with the memory of a block; where derivatives are recorded, blocks are computed anew for them."""
        layout = Layout(self.log_weights, self.component, known, shape)
        recorded = self.recorded(at.value)

        def evaluate(mixture: FlatMixture, *parts: Tensor) -> Evaluation:
            return mixture.evaluate(Position(*parts))

        def again(mixture: FlatMixture, *parts: Tensor) -> Evaluation:
            result: Evaluation = checkpoint(evaluate, mixture, *parts, use_reentrant=False)
            return result

        function = again if recorded and forward_ad._current_level < 0 else evaluate
        flat = [None if part is None else layout.flatten(part.expand(shape)) for part in at]
        results = layout.apply(layout.mixture(), function, _RECORDED if recorded else _PLAIN, *flat)
        return Evaluation(*(layout.restore(part) for part in results))

    def log_density(self, at: Position) -> Tensor:
        """Log density."""
        if not self.same_support or self._shape(at.value.shape).numel() * self._count() > _WHOLE:
            return self.evaluate(at).log_prob
        return log_sum_exp(self.log_weights + self.component.log_density(at.unsqueeze()), -1)

    def _solve(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """In blocks, but for function transforms and for components that can't be taken apart."""
        known = self._known(noise) if eager() else None
        if known is None:
            return super()._solve(noise)
        return mixture_quantiles(self.log_weights, self.component, known, noise.expand(self._shape(noise.shape)))

    def guess(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The components' own quantiles enclose the mixture's."""
        own, support = self.component.support_map, self.support_map
        inner = locate_in_union(self.component.draw(noise.unsqueeze(-1))[0], own, support, -1)
        value, below, above = (None if part is None else part.movedim(-1, 0) for part in inner)
        first = Position(cast(Tensor, value), below, above)
        limits = coordinate_limits(support, noise.dtype)
        coordinate = support.coordinate(first)[0].clamp(*limits).movedim(0, -1)
        weighed = self.log_weights > -torch.inf
        low = torch.where(weighed, coordinate, torch.inf).amin(-1)
        high = torch.where(weighed, coordinate, -torch.inf).amax(-1)
        return low, high, (self.log_weights.exp() * coordinate).sum(-1)

    def parameters(self) -> list[Tensor] | None:
        """Those of the weights and components."""
        known = parameters_of(self.component)
        return None if known is None else [self.log_weights, *known]

    def _shape(self, shape: Size) -> Size:
        return Size(broadcast_shapes(shape, self.batch_shape))

    def _count(self) -> int:
        return max(self.log_weights.shape[-1], self.component.batch_shape[-1])

    def _known(self, like: Tensor) -> list[Tensor] | None:
        """The components' tensors where they can be taken apart and are all of one dtype and device."""
        known = parameters_of(self.component)
        tensors = (self.log_weights, *(known or ()))
        return known if all(t.dtype == like.dtype and t.device == like.device for t in tensors) else None


def mixture_family(log_weights: Tensor, component: ScalarFamily) -> ScalarFamily:
    r"""The mixture :math:`\sum_k w_k f_k(x)` as a univariate family.

    Discrete components are mixed in closed form, continuous ones by a bracketed solve of the quantile. Derivatives
    with respect to weights and component parameters are exact in both directions.

    Args:
        log_weights: Log weights up to a constant, shape [..., K]; may broadcast against the components.
        component: The components, batch shape [..., K].

    Returns:
        The family with batch shape [...].

    Raises:
        ValueError: If `log_weights` or `component` has no component dimension.
    """
    if log_weights.dim() == 0 or len(component.batch_shape) == 0:
        raise ValueError("A mixture needs its components in the last dimension of log_weights and of the component.")
    if isinstance(component, TableFamily):
        return MixedTableFamily(log_weights, component)
    return ContinuousMixture(log_weights, component)


@scalar_family.register(td.MixtureSameFamily)
def _mixture(dist: td.MixtureSameFamily) -> ScalarFamily:
    if len(dist.event_shape) > 0:
        name = type(dist.component_distribution).__name__
        raise UnsupportedFamilyError(
            f"MixtureSameFamily with vector components ({name}) has no transform; the nearest supported is "
            "MixtureSameFamily of a univariate family, or a Categorical site that selects the parameters."
        )
    return mixture_family(dist.mixture_distribution.logits, scalar_family(dist.component_distribution))


@from_normal.register(td.MixtureSameFamily)
def _mixture_transform(dist: td.MixtureSameFamily) -> NormalTransform:
    if len(dist.event_shape) > 0:
        from emfc.transforms.vector_mixture import mixture_of_vectors

        return mixture_of_vectors(dist)
    return CDFTransform(scalar_family(dist))
