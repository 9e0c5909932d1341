"""Families of the real line with exponential tails: skewed, smoothed, or both."""

from __future__ import annotations

import math

import pyro.distributions as pd
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from emfc.special.hazard import log_hazard_from_tails, tails_from_log_hazard
from emfc.special.normal import exact_tails, log1mexp
from emfc.special.precision import wide
from emfc.special.ratios import side_of
from emfc.transforms.family import Evaluation, LocationScale
from emfc.transforms.registry import family_of

__all__ = ["AsymmetricLaplace", "SkewLogistic", "SoftLaplace"]

_LOG_TWO = math.log(2)
_LOG_PI = math.log(math.pi)


@family_of(pd.AsymmetricLaplace)
class AsymmetricLaplace(LocationScale):
    r"""Two exponentials back to back, with scales :math:`s a` below and :math:`s / a` above the mode.

    The lower one has probability :math:`a^2 / (1 + a^2)`.
    """

    def __init__(self, dist: pd.AsymmetricLaplace) -> None:
        super().__init__(dist)
        self.asymmetry = wide(dist.asymmetry)

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        odds = 2 * self.asymmetry.log()
        lower = z < 0
        steps = torch.where(lower, z / self.asymmetry, -z * self.asymmetry)
        tail = torch.where(lower, logsigmoid(odds), logsigmoid(-odds)) + steps
        other = log1mexp(tail)
        total = (self.asymmetry + 1 / self.asymmetry).log()
        return Evaluation(steps - total, torch.where(lower, tail, other), torch.where(lower, other, tail))

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Logarithm of the share of the side's probability."""
        odds = 2 * self.asymmetry.log()
        log_p, log_q = exact_tails(log_p, log_q)
        below, above = log_p - logsigmoid(odds), log_q - logsigmoid(-odds)
        return torch.where(below < 0, below * self.asymmetry, -above / self.asymmetry)


@family_of(pd.SoftLaplace)
class SoftLaplace(LocationScale):
    r"""Hyperbolic secant: :math:`F(z) = \frac{2}{\pi} \operatorname{atan} e^z`."""

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        side = side_of(z)
        distance = side * z
        w = torch.exp(-distance).clamp(min=torch.finfo(z.dtype).eps ** 2)
        tail = (_LOG_TWO - _LOG_PI) - distance + torch.log(torch.atan(w) / w)
        body = torch.log1p(-torch.exp(tail))
        lower = 0.5 - 0.5 * side
        return Evaluation(
            (_LOG_TWO - _LOG_PI) - distance - torch.log1p(w * w),
            torch.lerp(body, tail, lower),
            torch.lerp(tail, body, lower),
        )

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log tangent of the smaller tail."""
        lower = log_p < log_q
        tail = torch.where(lower, log_p, log_q)
        p = torch.exp(tail).clamp(min=torch.finfo(tail.dtype).eps ** 2)
        z = tail + torch.log(torch.tan((0.5 * math.pi) * p) / p)
        return torch.where(lower, z, -z)


def _log_softplus(v: Tensor) -> Tensor:
    r""":math:`\log \log(1 + e^v)`, far below 0 too."""
    w = torch.exp(v.clamp(max=0)).clamp(min=torch.finfo(v.dtype).eps ** 2)
    low = v + torch.log(torch.log1p(w) / w)
    return torch.lerp(low, (-logsigmoid(-v.clamp(min=0))).log(), (v > 0).to(v.dtype))


@family_of(pd.SkewLogistic)
class SkewLogistic(LocationScale):
    r""":math:`F(z) = (1 + e^{-z})^{-a}`, the generalised logistic family of type I."""

    def __init__(self, dist: pd.SkewLogistic) -> None:
        super().__init__(dist)
        self.asymmetry = wide(dist.asymmetry)

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        log_a = self.asymmetry.log()
        log_sf, log_cdf = tails_from_log_hazard(log_a + _log_softplus(-z))
        return Evaluation(log_a + log_cdf + logsigmoid(-z), log_cdf, log_sf)

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        r"""With :math:`h = -\log(F) / a`, :math:`z = -\log(e^h - 1)`."""
        log_small, minus_h = tails_from_log_hazard(log_hazard_from_tails(log_q, log_p) - self.asymmetry.log())
        return minus_h - log_small
