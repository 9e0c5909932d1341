"""Standard normal noise for gradient estimates: independent, or spread evenly."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["NormalNoise", "QuasiNoise", "Source", "make_noise"]


class Source(Protocol):
    """What gives batches of noise ``[count, N]``."""

    def __call__(self, count: int) -> Tensor: ...


class NormalNoise:
    """Independent standard normal numbers from a generator of its own.

    Args:
        width: N.
        seed: Of the generator.
        like: A tensor whose dtype and device the noise has.
    """

    def __init__(self, width: int, *, seed: int, like: Tensor) -> None:
        self.width, self.dtype, self.device = width, like.dtype, like.device
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, count: int) -> Tensor:
        """Returns ``[count, N]``."""
        drawn = torch.randn(count, self.width, generator=self.generator, dtype=self.dtype)
        return drawn.to(self.device)


class QuasiNoise:
    r"""Randomised quasi-Monte Carlo: scrambled Sobol points, moved by a fresh random shift for every batch.

    Each batch is unbiased, and its mean of a smooth function varies less than that of independent numbers.

    Args:
        width: N, at most ``SobolEngine.MAXDIM``.
        seed: Of scrambling and shifts.
        like: A tensor whose dtype and device the noise has.

    Source: Buchholz, Wenzel and Mandt (2018), "Quasi-Monte Carlo variational inference", ICML, arXiv 1807.01604.
    """

    def __init__(self, width: int, *, seed: int, like: Tensor) -> None:
        self.width, self.dtype, self.device = width, like.dtype, like.device
        self.generator = torch.Generator().manual_seed(seed)
        self.points = torch.quasirandom.SobolEngine(width, scramble=True, seed=seed)

    def __call__(self, count: int) -> Tensor:
        """Returns ``[count, N]``."""
        if self.points.num_generated + count >= 2**30:
            self.points.reset()
        spread = self.points.draw(count, dtype=torch.float64)
        shift = torch.rand(self.width, generator=self.generator, dtype=torch.float64)
        uniform = (spread + shift).remainder_(1.0).clamp_(1e-12, 1 - 1e-12)
        noise: Tensor = torch.special.ndtri(uniform)
        return noise.to(dtype=self.dtype, device=self.device)


def make_noise(kind: str, width: int, *, seed: int, like: Tensor) -> Source:
    """Returns a source of ``"normal"`` or ``"quasi"`` noise; beyond the widths of Sobol points always the former."""
    if kind == "quasi" and 0 < width <= torch.quasirandom.SobolEngine.MAXDIM:
        return QuasiNoise(width, seed=seed, like=like)
    return NormalNoise(width, seed=seed, like=like)
