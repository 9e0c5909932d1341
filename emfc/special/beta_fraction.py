r"""The tail of a beta distribution over its density, by a continued fraction.

Best where one of the concentrations is at most about 20: then few levels are enough, however large the other one.
All functions here take plain tensors, and their tail is the lower one.

Source: the even part of DLMF 8.17.22, as by Didonato and Morris, Algorithm 708, 1992, evaluated from the innermost
level outwards.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["fraction_levels", "tail_by_fraction"]


def fraction_levels(alpha: Tensor, beta: Tensor, n: Tensor) -> Tensor:
    """How many levels a tail takes that ends at about the mean; fewer are enough farther out.

    Up to 17 levels, what is left out is a few roundings of the tail in float64; up to 28, at most 1e-10 of it, most
    of all where alpha is far larger than beta.
    """
    levels = torch.sqrt(torch.minimum(alpha, beta) * (torch.maximum(alpha, beta) / n)).mul_(2.2)
    narrow = torch.sqrt(alpha / (1 + alpha / 150)) / (1 + 0.28 * (beta * beta))
    return levels.add_(narrow, alpha=6.3).add_(7)


@lru_cache
def _levels(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Powers 0 to 4 of the levels from 0 on, and what is added to alpha in their denominators."""
    level = torch.arange(0, count + 1, dtype=torch.float64).unsqueeze(-1)
    odd = torch.arange(-1, 2 * count + 2, 2, dtype=torch.float64).unsqueeze(-1)
    return (level ** torch.arange(5)).to(dtype=dtype, device=device), odd.to(dtype=dtype, device=device)


def tail_by_fraction(alpha: Tensor, beta: Tensor, zeta: Tensor, rest: Tensor, slope: Tensor, *, levels: int) -> Tensor:
    r"""The lower tail over the density in the logit.

    Its inverse is :math:`b_0 + a_1 / (b_1 + a_2 / (b_2 + \dots))`, where numerators and denominators of
    :math:`a_m, b_m` are polynomials in m, evaluated at all levels by one matrix product.

    Args:
        alpha: Parameter of the tail.
        beta: The other one.
        zeta: Where the tail ends, at most about the mean.
        rest: 1 minus it.
        slope: :math:`\alpha (1 - \zeta) - \beta \zeta`.
        levels: Number of levels.
    """
    powers, odd = _levels(levels, zeta.dtype, zeta.device)
    inverse = (alpha + odd).reciprocal_()
    inner, outer = inverse[1:-1], inverse[1:]
    n, square = alpha + beta, zeta * zeta
    product, total, under = alpha * n, alpha + n, beta - 1
    above = powers[:-1] @ torch.stack(  # in powers of m - 1, where a small alpha stays exact
        (
            product * under * square,
            (product * (under - 1) + total * under) * square,
            (total * (under - 1) - product + under) * square,
            (under - 1 - total) * square,
            -square,
        )
    )
    above.mul_(inner).mul_(inner)
    first, width = slope + 1, rest + 1
    below = powers[:, :3] @ torch.stack((alpha * first, torch.addcmul(first, alpha, width), width))
    below.mul_(outer).add_(powers[:, 1:2])
    below[1:].addcmul_(powers[1:, 1:3] @ torch.stack((beta * zeta, -zeta)), inner)
    value = below[-1]
    for place in range(levels - 1, -1, -1):
        value = torch.div(above[place], value).add_(below[place])
    return value.reciprocal()
