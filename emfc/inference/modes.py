"""Modes of a posterior that a fit has missed, which no number computed from its own draws tells of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emfc.inference.starts import in_noise_space

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["missed_mode"]

_STARTS, _STEPS, _LARGEST = 32, 120, 64
_AS_HIGH, _UNSEEN = 5.0, 15.0


def missed_mode(posterior: Posterior, *, seed: int = 0) -> dict[str, Tensor] | None:
    r"""A point of high posterior density that the fit gives next to no density, by site; None where none was found.

    From 32 draws of the prior the density is climbed in the program's noise space. An end counts where the density is
    within 5 nats of the highest of the posterior's draws, and its weight, :math:`\log p(x) - \log q(x)`, 15 nats above
    the log evidence. Other modes may be missed still; above 64 dimensions none is looked for.

    Args:
        posterior: The posterior, with its model.
        seed: Of the draws of the prior.
    """
    flow, log_joint = posterior.flow, posterior.log_joint
    if log_joint is None or not 0 < flow.noise_dim <= _LARGEST or not bool(posterior.log_weights.isfinite().any()):
        return None
    like = posterior.draws
    density, transform = in_noise_space(flow, log_joint, like=like[0])
    generator = torch.Generator(like.device).manual_seed(seed)
    points = torch.randn(_STARTS, flow.noise_dim, dtype=like.dtype, device=like.device, generator=generator)
    ends = _climb(density, points)
    with torch.no_grad():
        value = transform(ends)
        weight = log_joint(value) - flow.log_prob(value)
        held = posterior.draws[:1000]
        known = density(transform.inv(held)).nan_to_num(nan=-torch.inf).max()
        high = density(ends) > known - _AS_HIGH
    unseen = (high & (weight > posterior.log_evidence + _UNSEEN)).nonzero()
    if not len(unseen):
        return None
    best = unseen[weight[unseen[:, 0]].argmax(), 0]
    return flow.unpack(value[best])


def _climb(density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Ends ``[S, N]`` of ascents by Adam, whose rate falls to 0; what leaves the density's range stays where it was."""
    held = points.clone().requires_grad_()
    optimiser = torch.optim.Adam([held], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for _ in range(_STEPS):
        with torch.enable_grad():
            value = density(held)
            good = value.isfinite()
            (gradient,) = torch.autograd.grad(torch.where(good, value, 0).sum(), held)
        held.grad = -torch.where(good[:, None], gradient, 0).nan_to_num(0.0, 0.0, 0.0)
        optimiser.step()
        schedule.step()
    return held.detach()
