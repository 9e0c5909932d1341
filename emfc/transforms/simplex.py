"""Points of a simplex: the stick-breaking map, Dirichlet and LogisticNormal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, pad

from emfc.special.precision import wide
from emfc.transforms.affine import NormalAffine, SupportedNormal
from emfc.transforms.base import IndependentNormal, LadjTransform, NormalTransform
from emfc.transforms.family import UnconstrainedCDF
from emfc.transforms.registry import from_normal, scalar_family
from emfc.transforms.rescaled import RescaledNormal
from emfc.transforms.supports import unconstrained_map

__all__ = ["SimplexMap", "sums_after"]


def sums_after(value: Tensor) -> Tensor:
    """Sums over the elements after each one but the last, shape [..., K - 1]: summed from the end, so exact."""
    return value.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def _log_offset(count: int, like: Tensor) -> Tensor:
    """log(K - 1), ..., log 1: with them the origin maps to the middle of the simplex."""
    return torch.arange(count, 0, -1, dtype=like.dtype, device=like.device).log()


class SimplexMap(LadjTransform):
    r"""Real vectors [..., K - 1] to points of the simplex [..., K], by breaking a stick.

    .. math:: z_k = \operatorname{logistic}(y_k - \log(K - k)), \qquad x_k = z_k \prod_{j<k} (1 - z_j)

    for k = 1, ..., K - 1; the last element is what is left. Everything is a sum of logs, and the inverse takes
    :math:`z_k / (1 - z_k)` as :math:`x_k / \sum_{j>k} x_j`, so that a stick nearly used up loses no digits. The
    log-Jacobian is with respect to the first K - 1 elements, as in `torch.distributions.StickBreakingTransform`.

    Source: Stan Reference Manual, "Unit simplex".
    """

    domain = constraints.real_vector
    codomain = constraints.simplex

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """One more element."""
        return Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """One element fewer."""
        return Size((*shape[:-1], shape[-1] - 1))

    def contains(self, value: Tensor) -> Tensor:
        """True where no element is negative and their sum is one to rounding."""
        size = value.shape[-1]
        tolerance = max(1e-6, size * torch.finfo(value.dtype).eps)
        return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() <= tolerance)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Point, with every element positive, and log-Jacobian."""
        logit = wide(x)
        logit = logit - _log_offset(logit.shape[-1], logit)
        log_part, log_left = logsigmoid(logit), logsigmoid(-logit).cumsum(-1)
        log_before = pad(log_left, (1, -1)) if logit.shape[-1] else log_left
        log_last = log_left[..., -1:] if logit.shape[-1] else logit.new_zeros(*logit.shape[:-1], 1)
        value = torch.exp(torch.cat((log_part + log_before, log_last), -1))
        value = value.clamp(min=torch.finfo(value.dtype).tiny)
        value = value / value.detach().sum(-1, keepdim=True)  # one to rounding; ratios, which matter, stay
        return value, self._stretch(logit)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and log-Jacobian, -inf outside the simplex."""
        y = wide(y)
        value = y.clamp(min=torch.finfo(y.dtype).tiny, max=2)
        logit = value[..., :-1].log() - sums_after(value).log()
        ladj = torch.where(self.contains(y), -self._stretch(logit), -torch.inf)
        return logit + _log_offset(logit.shape[-1], logit), ladj

    def _stretch(self, logit: Tensor) -> Tensor:
        """Sum of the logs of :math:`z_k (1 - z_k) \\prod_{j<k} (1 - z_j)`."""
        count = torch.arange(logit.shape[-1], 0, -1, dtype=logit.dtype, device=logit.device)
        return (logsigmoid(logit) + count * logsigmoid(-logit)).sum(-1)

    def __repr__(self) -> str:
        return "SimplexMap()"


@unconstrained_map.register(type(constraints.simplex))
def _simplex(constraint: constraints.Constraint) -> LadjTransform:
    return SimplexMap()


@from_normal.register(td.Dirichlet)
def _dirichlet(dist: td.Dirichlet) -> NormalTransform:
    """Stick-breaking: each part of what is left is Beta, independently of the parts before."""
    concentration = wide(dist.concentration)
    first, rest = concentration[..., :-1], sums_after(concentration)
    parts = UnconstrainedCDF(scalar_family(td.Beta(first, rest, validate_args=False)))
    core = RescaledNormal(parts, _log_offset(first.shape[-1], first))
    return SupportedNormal(IndependentNormal(core, 1), constraints.simplex)


@from_normal.register(td.LogisticNormal)
def _logistic_normal(dist: td.LogisticNormal) -> NormalTransform:
    return SupportedNormal(IndependentNormal(NormalAffine(dist.loc, dist.scale), 1), constraints.simplex)
