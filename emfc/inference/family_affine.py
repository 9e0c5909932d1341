"""Affine layers of a variational family: the whitening next to the program, and a low-rank update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.flows.composition import Chain
from emfc.transforms import LadjTransform

__all__ = ["Affine", "LowRank", "diagonal_of", "low_rank_of"]


class _Triangular(LadjTransform):
    """y = m + L z, with a lower-triangular L ``[N, N]`` or the diagonal of one ``[N]``."""

    def __init__(self, loc: Tensor, scale: Tensor, log_det: Tensor) -> None:
        super().__init__()
        self.loc, self.scale, self.log_det = loc, scale, log_det

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale.ndim == 1:
            return torch.addcmul(self.loc, x, self.scale), self.log_det.expand(x.shape[:-1])
        flat = torch.addmm(self.loc, x.reshape(-1, x.shape[-1]), self.scale.mT)
        return flat.reshape(x.shape), self.log_det.expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        ladj = (-self.log_det).expand(y.shape[:-1])
        if self.scale.ndim == 1:
            return (y - self.loc) / self.scale, ladj
        flat = (y - self.loc).reshape(-1, y.shape[-1])
        solved = torch.linalg.solve_triangular(self.scale, flat.mT, upper=False)
        return solved.mT.reshape(y.shape), ladj


class _Elementwise(LadjTransform):
    """y = m + exp(s) z with m and s for every row."""

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.loc, self.log_scale = loc, log_scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self.loc + x * self.log_scale.exp()
        return value, self.log_scale.sum(-1).expand(value.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        value = (y - self.loc) * torch.exp(-self.log_scale)
        return value, (-self.log_scale).sum(-1).expand(value.shape[:-1])


class Affine(nn.Module):
    r"""The map :math:`y = m + L z` with a lower-triangular L of positive diagonal, which may be a diagonal matrix.

    It is learned relative to a fixed start :math:`(m_0, L_0)`: :math:`m = m_0 + L_0 \delta` and
    :math:`L = L_0 (\mathrm{diag}(e^s) + U)` with U strictly lower-triangular, so that steps are in units of the start's
    own spread. With a context, z is first moved and scaled elementwise by numbers that are linear in it.

    Args:
        features: Number of elements N.
        diagonal: Whether L is diagonal.
        context_features: Width of the context; 0 for none.
        mask: Entries ``[N, N]`` of L that may differ from zero; None for the whole lower triangle. The relation must be
            transitive, so that products and inverses stay in it.
    """

    start_loc: Tensor
    start_scale: Tensor
    mask: Tensor

    def __init__(self, features: int, *, diagonal: bool, context_features: int = 0, mask: Tensor | None = None) -> None:
        super().__init__()
        self.features, self.diagonal = features, diagonal
        self.register_buffer("start_loc", torch.zeros(features))
        self.register_buffer("start_scale", torch.ones(features) if diagonal else torch.eye(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.lower: nn.Parameter | None = None
        if not diagonal:
            whole = torch.ones(features, features, dtype=torch.bool)
            self.register_buffer("mask", (whole if mask is None else mask.bool()).tril(-1), persistent=False)
            self.lower = nn.Parameter(torch.zeros(features, features))
        self.from_context: nn.Linear | None = None
        if context_features:
            self.from_context = nn.Linear(context_features, 2 * features)
            self._close_context()

    def _close_context(self) -> None:
        if self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)
            nn.init.zeros_(self.from_context.bias)

    @property
    def loc(self) -> Tensor:
        """m ``[N]``, without a context."""
        if self.diagonal:
            return self.start_loc + self.start_scale * self.shift
        return self.start_loc + self.start_scale @ self.shift

    @property
    def scale(self) -> Tensor:
        """L ``[N, N]``, or its diagonal ``[N]`` where it is diagonal."""
        if self.lower is None:
            return self.start_scale * self.log_scale.exp()
        learned = self.lower * self.mask + torch.diag_embed(self.log_scale.exp())
        scale: Tensor = self.start_scale @ learned
        return scale

    @torch.no_grad()
    def set(self, loc: Tensor, scale: Tensor) -> None:
        """Starts at m = loc and L = scale ``[N, N]`` or ``[N]``; everything learned goes back to zero."""
        self.start_loc.copy_(loc)
        self.start_scale.copy_(scale)
        for parameter in (self.shift, self.log_scale, self.lower):
            if parameter is not None:
                parameter.zero_()
        self._close_context()

    def forward(self, context: Tensor | None = None) -> LadjTransform | Chain:
        """Returns the map of vectors ``[*, N]`` given a context ``[*, C]``."""
        start = self.start_scale if self.diagonal else self.start_scale.diagonal()
        log_det = start.log().sum() + self.log_scale.sum()
        whole = _Triangular(self.loc, self.scale, log_det)
        if self.from_context is None or context is None:
            return whole
        shift, log_factor = self.from_context(context).chunk(2, dim=-1)
        return Chain(_Elementwise(shift, log_factor), whole)


class _LowRankUpdate(LadjTransform):
    r"""y = z + V W^T z, with :math:`\log |\det| = \log |\det(I_r + W^T V)|` and Woodbury's inverse."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.left, self.right = left, right
        eye = torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
        self.core = eye + right.mT @ left

    def _log_det(self) -> Tensor:
        log_det: Tensor = torch.linalg.slogdet(self.core).logabsdet
        return log_det

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + (x @ self.right) @ self.left.mT, self._log_det().expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        held = torch.linalg.solve(self.core, (y @ self.right).reshape(-1, self.right.shape[-1]).mT)
        value = y - (held.mT @ self.left.mT).reshape(y.shape)
        return value, (-self._log_det()).expand(y.shape[:-1])


class LowRank(nn.Module):
    r"""The map :math:`y = (I + V W^T) z` of rank-r update, the identity before training (V = 0).

    Under a diagonal scale D it gives every Gaussian with covariance :math:`D (I + F F^T) D`, F of r columns, among
    others. The log-determinant is that of an r x r matrix; it keeps its sign in training, since the density has a
    barrier where it vanishes.

    Args:
        features: Number of elements N.
        rank: r.
    """

    def __init__(self, features: int, *, rank: int) -> None:
        super().__init__()
        self.features, self.rank = features, rank
        self.left = nn.Parameter(torch.zeros(features, rank))
        self.right = nn.Parameter(torch.randn(features, rank) / features**0.5)

    @torch.no_grad()
    def set(self, factor: Tensor) -> None:
        r"""Starts at the symmetric square root of :math:`I + F F^T`, F ``[N, r]``; a zero column stays learnable."""
        values, vectors = torch.linalg.eigh(factor.mT @ factor)
        kept = values > 1e-8 * values.max().clamp(min=1e-30)
        directions = factor @ vectors / values.clamp(min=1e-30).sqrt()
        fresh = torch.randn_like(self.right) / self.features**0.5
        self.right.copy_(torch.where(kept, directions, fresh))
        self.left.copy_(torch.where(kept, directions * ((1 + values.clamp(min=0)).sqrt() - 1), 0))

    def forward(self, context: Tensor | None = None) -> LadjTransform:
        """Returns the map of vectors ``[*, N]``; a context changes nothing."""
        return _LowRankUpdate(self.left, self.right)


def diagonal_of(scale_tril: Tensor) -> Tensor:
    """The scales ``[N]`` of the independent normal nearest to a normal with a Cholesky factor ``[N, N]``.

    Nearest by the reverse KL divergence: conditional standard deviations.
    """
    eye = torch.eye(len(scale_tril), dtype=scale_tril.dtype, device=scale_tril.device)
    inverse = torch.linalg.solve_triangular(scale_tril, eye, upper=False)
    spread: Tensor = inverse.square().sum(0).rsqrt()
    return spread


def low_rank_of(scale_tril: Tensor, rank: int, *, rounds: int = 50) -> tuple[Tensor, Tensor]:
    r"""D ``[N]`` and F ``[N, rank]`` with :math:`D (I + F F^T) D` close to a covariance, by principal factors.

    Raises:
        UserError: The matrix is no Cholesky factor.
    """
    covariance = scale_tril @ scale_tril.mT
    spread = diagonal_of(scale_tril)
    if not bool(spread.isfinite().all()):
        raise UserError("scale_tril must be lower-triangular with a positive diagonal")
    factor = covariance.new_zeros(len(covariance), rank)
    least = 1e-4 * covariance.diagonal()
    for _ in range(rounds):
        values, vectors = torch.linalg.eigh(covariance / spread.unsqueeze(-1) / spread)
        factor = vectors[:, -rank:] * (values[-rank:] - 1).clamp(min=0).sqrt()
        common = (spread.unsqueeze(-1) * factor).square().sum(-1)
        spread = (covariance.diagonal() - common).clamp(min=least).sqrt()
    return spread, factor
