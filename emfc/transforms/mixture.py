"""Mixtures of univariate families."""

from __future__ import annotations

import torch
from torch import Tensor, broadcast_shapes
from torch import distributions as td

from emfc.special.normal import log_sum_exp
from emfc.special.precision import wide
from emfc.special.roots import attach_root, increasing_root
from emfc.transforms.base import NormalTransform
from emfc.transforms.discrete import MixedTableFamily, TableFamily
from emfc.transforms.family import CDFTransform, Evaluation, ScalarFamily
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, scalar_family
from emfc.transforms.supports import Position

__all__ = ["ContinuousMixture", "mixture_family"]


class ContinuousMixture(ScalarFamily):
    """Mixture over the last batch dimension of a continuous family.

    Its log tails are log-sum-exps of the components'; the quantile is solved between the components' own.
    """

    def __init__(self, log_weights: Tensor, component: ScalarFamily) -> None:
        self.log_weights = torch.log_softmax(wide(log_weights), -1)
        self.component = component
        self.batch_shape = broadcast_shapes(log_weights.shape, component.batch_shape)[:-1]
        self._map, self._same_support = component.support_map.union()
        self.support = self._map.codomain

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        inner = at.unsqueeze()
        if not self._same_support:
            inner = self.component.support_map.place(inner.value)
        return Evaluation(*(log_sum_exp(self.log_weights + part) for part in self.component.evaluate(inner)))

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Solved on the smaller tail, in logs, with implicit derivatives."""
        lower = log_p < log_q
        target = torch.where(lower, log_p, log_q)
        place = self.support_map.place

        def tail(x: Tensor) -> tuple[Tensor, Tensor]:
            log_prob, log_cdf, log_sf = self.evaluate(place(x))
            log_tail = torch.where(lower, log_cdf, log_sf)
            residual = torch.where(lower, log_tail - target, target - log_tail)
            return residual, torch.exp(log_prob - log_tail)

        with torch.no_grad():
            inner = self.component.quantile(log_p.unsqueeze(-1), log_q.unsqueeze(-1))
            inner = self.component.support_map.nearest(inner)
            start = (self.log_weights.exp() * inner).sum(-1)
            low, high, start, _ = torch.broadcast_tensors(inner.amin(-1), inner.amax(-1), start, target)
            low, high = low - 4 * _spacing(low), high + 4 * _spacing(high)
            tolerance = 16 * torch.finfo(start.dtype).eps * target.abs().clamp(min=1)
            root = increasing_root(tail, low, high, start.clamp(low, high), tolerance=tolerance)
            root = self.support_map.nearest(root)
        return attach_root(root, *tail(root))


def _spacing(value: Tensor) -> Tensor:
    return torch.finfo(value.dtype).eps * value.abs()


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
    return CDFTransform(scalar_family(dist))
