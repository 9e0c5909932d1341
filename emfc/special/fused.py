"""The normal distribution function as one formula for every argument, which a compiler fuses with what is around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emfc.special.elementwise import differentiable
from emfc.special.normal import log_normal_density
from emfc.special.polynomials import differentiable_polynomial
from emfc.special.precision import wide

__all__ = ["normal_probability"]

_CENTRE = 2.0  # the distance that is mapped to 0
_LARGEST = {torch.float32: 10.0, torch.float64: 27.0}  # beyond which a tail is no normal number

# Of the polynomial in t = (x - 2) / (x + 2) that is (x + 2) exp(x^2) erfc(x) / 2: its Chebyshev series, cut off below
# rounding and written in powers of t.
_POLYNOMIAL = {
    torch.float32: (
        0.510791357,
        -0.343580319,
        0.139735734,
        -0.0182216694,
        -0.0107516262,
        0.00324345192,
        0.00152915716,
        -0.000430670488,
        -0.000299382712,
        3.66018769e-05,
        4.21611972e-05,
    ),
    torch.float64: (
        0.5107913526210115,
        -0.3435803422069067,
        0.13973604627801475,
        -0.01822111575329492,
        -0.010755330944036532,
        0.0032395925295271534,
        0.0015453060141013286,
        -0.0004186479710660508,
        -0.0003315365766901461,
        1.71852541704069e-05,
        7.223418829504806e-05,
        1.7076638145079572e-05,
        -1.084298532996441e-05,
        -8.06710621122023e-06,
        -5.776423611511427e-07,
        1.835078540898153e-06,
        1.0305699215291105e-06,
        -1.5720540066794157e-08,
        -3.262460935296672e-07,
        -1.497143526022312e-07,
        3.6000845292079935e-08,
        5.145629434357736e-08,
        6.52043461440154e-09,
        -6.597367302900275e-09,
        -1.911173728607894e-09,
    ),
}


def _straight(noise: Tensor) -> tuple[Tensor, ...]:
    """The smaller tail by a polynomial, and its complement."""
    x = (math.sqrt(0.5) * noise.abs()).clamp(max=_LARGEST[noise.dtype])
    inverse = 1 / (x + _CENTRE)
    t = 1 - 2 * _CENTRE * inverse
    tail = torch.exp(-x * x) * inverse * differentiable_polynomial(_POLYNOMIAL[noise.dtype], t)
    return (torch.where(noise < 0, tail, 1 - tail),)


def _partials(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[tuple[Tensor, ...], ...]:
    limit = torch.finfo(inputs[0].dtype).max ** 0.5 / 4  # whose square does not overflow
    return ((torch.exp(log_normal_density(inputs[0].clamp(-limit, limit))),),)


_differentiable = differentiable(_straight, _partials)


def normal_probability(noise: Tensor) -> Tensor:
    r"""The standard normal distribution function :math:`\Phi(e)`, relatively exact in the lower tail.

    The complementary error function; inside a compiled region, where that would be computed element by element, one
    polynomial that serves all arguments.

    Args:
        noise: Any shape; half precision is computed in float32.

    Returns:
        A tensor of the same shape.

    Source: Shepherd and Laframboise, Chebyshev approximation of (1 + 2x) exp(x^2) erfc x, 1981, for the variable.
    """
    noise = wide(noise)
    if torch.compiler.is_compiling():
        return _differentiable(noise)[0]
    return 0.5 * torch.erfc(-math.sqrt(0.5) * noise)
