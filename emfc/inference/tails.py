"""Tails that a fit does not reach: what draws that spread wider than it say, where k-hat alone cannot tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emfc.inference.psis import psis

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["Wide", "wide_draws"]

_SCALES, _SHARES = (1.0, 1.5, 2.5), (0.5, 0.25, 0.25)
_AT_ONCE = 1024


@dataclass(frozen=True)
class Wide:
    """What wider draws say of a fit.

    Attributes:
        khat: k-hat of their own weights.
        apart: Largest difference between the fit's results and theirs, of means in standard deviations and of the
            logarithms of standard deviations.
    """

    khat: float
    apart: float


def wide_draws(posterior: Posterior, *, seed: int = 0) -> Wide | None:
    r"""Weighs draws of a density with heavier tails than the fit's, and compares means and standard deviations.

    Half of the noise is standard normal, the rest 1.5 and 2.5 times as wide; with :math:`h` that mixture's density of
    noise e, and T the fit's map, the weights are :math:`p(T(e)) |\det \partial T| / h(e)`, at most twice the fit's own
    and much smaller in its tails. None where the model is not there, or a draw has a weight without end.

    Source: T. Hesterberg, "Weighted average importance sampling and defensive mixture distributions", Technometrics 37
    (1995).

    Args:
        posterior: The posterior, with its model.
        seed: Of the noise.
    """
    flow, log_joint, like = posterior.flow, posterior.log_joint, posterior.draws
    if log_joint is None:
        return None
    generator = torch.Generator(like.device).manual_seed(seed)
    count = len(like)
    noise = torch.randn(count, flow.noise_dim, dtype=like.dtype, device=like.device, generator=generator)
    sizes = [round(share * count) for share in _SHARES[1:]]
    scale = torch.cat([like.new_full((size,), held) for size, held in zip(sizes, _SCALES[1:], strict=True)])
    noise[: len(scale)] *= scale[:, None]
    values, weights = [], []
    with torch.no_grad():
        for held in noise.split(_AT_ONCE):
            value, log_q = flow.rsample_and_log_prob((len(held),), noise=held)
            values.append(value.double())
            weights.append((log_joint(value) - log_q).double() - _excess(held.double()))
    value, log_weights = torch.cat(values), torch.cat(weights).nan_to_num(nan=-math.inf, neginf=-math.inf)
    smoothed, khat = psis(log_weights)
    if khat == math.inf:
        return None
    usable = smoothed > -math.inf
    theirs = _moments(value[usable], smoothed[usable].exp())
    ours = _moments(like.double(), posterior.smoothed.exp())
    mean = (ours[0] - theirs[0]).abs() / theirs[1]
    spread = (ours[1] / theirs[1]).log().abs()
    return Wide(khat, float(torch.maximum(mean, spread).nan_to_num(nan=math.inf).max()))


def _excess(noise: Tensor) -> Tensor:
    """Log density of the wide noise over that of the standard normal ``[S]``."""
    square, width = noise.square().sum(-1), noise.shape[-1]
    parts = [
        math.log(share) - width * math.log(scale) + 0.5 * square * (1 - scale**-2)
        for share, scale in zip(_SHARES, _SCALES, strict=True)
    ]
    return torch.stack(parts).logsumexp(0)


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means and standard deviations ``[D]``."""
    held = weights.double() / weights.sum()
    mean = held @ values
    return mean, (held @ (values - mean).square()).sqrt()
