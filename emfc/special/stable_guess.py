"""Where to begin the search for the quantile of a stable law.

Source: Nolan, Univariate Stable Distributions, 2020, chapter 1, for the power law; de Bruijn, Asymptotic Methods in
Analysis, 1958, chapter 5, for the saddle point whose depth gives the light tail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emfc.special.normal import log_ndtr
from emfc.special.stable_exponent import angle_of

__all__ = ["guess"]

# Noise below which the guess is a straight line to 0.
_BULK = 1.5


def guess(alpha: Tensor, beta: Tensor, noise: Tensor) -> Tensor:
    """Inverse hyperbolic sine of about the quantile: the power law's, or the light tail's where that is larger."""
    skew, size = torch.copysign(beta, beta * noise), noise.abs()
    far = size.clamp(min=_BULK)
    delta, _, sine, cosine, half, _ = angle_of(alpha)
    weight = (cosine * (1 + skew)).clamp(min=torch.finfo(noise.dtype).tiny)
    heavy = (torch.lgamma(alpha) + weight.log() - math.log(math.pi) - log_ndtr(-far)) / alpha
    # The saddle with depth far^2 / 2 of the law that has no power law on this side.
    place = (0.5 * far.square() * sine / delta).log() / alpha
    light = (alpha * torch.expm1(delta * place) + delta) / sine + half
    height = torch.where(heavy > 20, heavy + math.log(2), torch.asinh(torch.exp(heavy.clamp(max=20))))
    height = torch.maximum(height, torch.asinh(light))
    return torch.copysign(height * (size / _BULK).clamp(max=1), noise)
