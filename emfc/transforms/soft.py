"""SoftAsymmetricLaplace: an asymmetric Laplace variable plus a normal one."""

from __future__ import annotations

import pyro.distributions as pd
import torch
from torch import Tensor

from emfc.special.precision import wide
from emfc.special.roots import attach_root
from emfc.special.soft_laplace import soft_laplace_log_density, soft_laplace_quantile, soft_laplace_tails
from emfc.transforms.family import Evaluation, LocationScale
from emfc.transforms.registry import family_of

__all__ = ["SoftAsymmetricLaplace"]


@family_of(pd.SoftAsymmetricLaplace)
class SoftAsymmetricLaplace(LocationScale):
    """Closed tails, and a quantile solved between those of the two parts."""

    def __init__(self, dist: pd.SoftAsymmetricLaplace) -> None:
        super().__init__(dist)
        self.asymmetry, self.softness = wide(dist.asymmetry), wide(dist.softness)

    def standard_log_density(self, z: Tensor) -> Tensor:
        """Log density alone."""
        return soft_laplace_log_density(self.asymmetry, self.softness, z)

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        return Evaluation(self.standard_log_density(z), *soft_laplace_tails(self.asymmetry, self.softness, z))

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Solved on the smaller tail, in logs, with implicit derivatives."""
        root = soft_laplace_quantile(self.asymmetry, self.softness, log_p, log_q)
        lower = log_p < log_q
        low, high = soft_laplace_tails(self.asymmetry, self.softness, root)
        residual = torch.where(lower, low - log_p, log_q - high)
        slope = torch.exp(self.standard_log_density(root) - torch.where(lower, low, high))
        return attach_root(root, residual, slope)
