"""A full-covariance Gaussian as a layer: the Gaussian copula of the program that stands on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from emfc.flows.univariate import LOG_SCALE_BOUND, soft_bound

__all__ = ["GaussianLayer"]


class TriangularTransform(Transform):
    r"""The affine map whose inverse is :math:`e = U\,(\exp(-s) \odot (x - m))` with :math:`U` unit lower-triangular.

    The density direction has the parameters, since there the log-likelihood is concave in them and no system is solved.

    Args:
        mean: :math:`m`, shape ``[*, D]``.
        log_scale: :math:`s`, shape ``[*, D]``.
        lower: :math:`U`, shape ``[D, D]``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, mean: Tensor, log_scale: Tensor, lower: Tensor) -> None:
        super().__init__()
        self.mean = mean
        self.log_scale = log_scale
        self.lower = lower

    def _call(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        solved = torch.linalg.solve_triangular(self.lower, flat.mT, upper=False, unitriangular=True)
        value: Tensor = self.mean + self.log_scale.exp() * solved.mT.reshape(x.shape)
        return value

    def _inverse(self, y: Tensor) -> Tensor:
        return ((y - self.mean) * torch.exp(-self.log_scale)) @ self.lower.mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale.sum(dim=-1).expand(x.shape[:-1])


class GaussianLayer(nn.Module):
    r"""The map :math:`x = m + L e` with a lower-triangular L of positive diagonal, whose inverse is learned.

    Starts as the identity. Under a program it is the Gaussian copula of the program's noise. With a context, mean and
    log-scales are shifted linearly by it.

    Args:
        features: Number of elements D.
        context_features: Width of the context; 0 for none.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, features: int, *, context_features: int = 0) -> None:
        super().__init__()
        self.features = features
        rows, columns = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(rows.numel()))
        self.from_context: nn.Linear | None = None
        if context_features:
            self.from_context = nn.Linear(context_features, 2 * features)
            nn.init.zeros_(self.from_context.weight)
            nn.init.zeros_(self.from_context.bias)

    def forward(self, context: Tensor | None = None) -> TriangularTransform:
        """Returns the map from noise ``[*, D]`` to data ``[*, D]`` given a context ``[*, C]``."""
        mean, log_scale = self.mean, self.log_scale
        if self.from_context is not None and context is not None:
            shift, log_factor = self.from_context(context).chunk(2, dim=-1)
            mean, log_scale = mean + shift, log_scale + log_factor
        eye = torch.eye(self.features, dtype=self.lower.dtype, device=self.lower.device)
        lower = eye.index_put((self.rows, self.columns), self.lower)
        return TriangularTransform(mean, soft_bound(log_scale, LOG_SCALE_BOUND, LOG_SCALE_BOUND), lower)
