r"""Student's t as a transformed normal variable, where it is nearly one: Wallace's transformation made exact.

With :math:`q = \log(1 + t^2 / \nu)` the noise e of t is :math:`\sqrt{\nu q}` times a function of q and
:math:`1 / \nu` that is smooth and nearly 1, and :math:`q \nu / e^2` is such a function of :math:`e^2 / \nu` and
:math:`1 / \nu`. Both are polynomials here, for at least 8 degrees of freedom and q (or :math:`e^2 / \nu`) up to 1.5.
They differ from the factors, computed with 30 digits at the nodes of Chebyshev polynomials in both variables, by less
than a rounding of float64.

Source: Wallace, Bounds on normal approximations to Student's and the chi-square distributions, 1959, for the form.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["LARGEST_NOISE", "LEAST_FREEDOM", "REACH", "noise_factor", "place_factor"]

LEAST_FREEDOM = 8.0
REACH = 1.5
LARGEST_NOISE = {torch.float32: 10.0, torch.float64: 20.0}  # whose tail is a normal number with room to spare

# Coefficients of (8 / nu)^j (u / 1.5)^i in the factor less 1: a row for each j from 1 on, a column for each i from 0.
# fmt: off
_NOISE = (
    (-0.03125000000000004, 0.0039062500000055, -2.09112e-13, -7.3242184270026e-05, -2.6430761e-11,
     2.615923032467e-06, -4.17114928e-10, -1.09464976226e-07, -1.271350869e-09, 6.210898793e-09, -6.88904895e-10,
     -4.0414002e-11),
    (0.000488281250005289, 0.000122070312456073, -5.0354002733123e-05, -2.288834581002e-06, 2.684014371132e-06,
     8.1388100714e-08, -1.50104253913e-07, -4.384945555e-09, 9.255406127e-09, -6.261159e-11, -5.53849012e-10,
     8.0828004e-11),
    (7.6293945084004e-05, -2.4795532002336e-05, -4.720681432348e-06, 2.67453829302e-06, 2.51482353151e-07,
     -2.14690186842e-07, -1.5576920607e-08, 1.7434985264e-08, 3.146511e-12, -1.145225622e-09, 1.75585313e-10),
    (-2.503391051929e-06, -4.470354355979e-06, 1.754510652927e-06, 4.29584970858e-07, -2.42039349571e-07,
     -3.2342462465e-08, 2.3177947285e-08, 3.35325524e-09, -2.857817649e-09, 3.44224138e-10),
    (-1.486427449106e-06, 5.65848226795e-07, 4.3810539474e-07, -1.95531981548e-07, -5.0015573439e-08,
     2.2401908734e-08, 1.3285074387e-08, -8.47805426e-09, 1.411081125e-09),
    (5.077810809e-08, 2.52869698029e-07, -1.01420798778e-07, -5.6725233241e-08, 1.716847261e-08, 2.3171802968e-08,
     -1.5456669669e-08, 3.698752041e-09, -3.27596712e-10),
    (7.0872618876e-08, -2.6628802424e-08, -4.5593654768e-08, 8.388607633e-09, 2.8199914118e-08, -1.9589566478e-08,
     5.146587701e-09, -5.02369683e-10),
    (-9.30965838e-10, -2.5925571483e-08, 4.247786925e-09, 2.6138528168e-08, -1.999539749e-08, 5.926098071e-09,
     -6.48008578e-10),
    (-8.436780553e-09, 4.252450865e-09, 1.3762967784e-08, -1.5976101885e-08, 5.547586374e-09, -6.96225048e-10),
    (2.016412357e-09, 3.224845399e-09, -6.607855185e-09, 4.100424045e-09, -6.11729426e-10),
    (1.19793996e-10, -1.399090741e-09, 1.047523776e-09, -4.26336458e-10),
    (-8.1821081e-11, 1.63642163e-10),
)
_PLACE = (
    (0.062499999999999965, -0.007812499999993956, -8.7744e-14, 0.000146484375056253, 7.545188e-12,
     -5.231656093023e-06, 3.26066116e-10, 2.19818329039e-07, 1.531355978e-09, -1.1699132195e-08, 1.083459948e-09,
     1.32962671e-10),
    (0.0019531250000002, -0.001464843750614867, 0.000207519541670495, 4.5776278370525e-05, -1.1661606096099e-05,
     -2.290472738654e-06, 6.92731077908e-07, 1.17250262801e-07, -3.2610715517e-08, -1.3504700586e-08,
     5.890028474e-09, -7.03388061e-10),
    (-0.000122070312337709, -8.3923328668636e-05, 6.4849718123758e-05, -3.595903006377e-06, -5.105171306527e-06,
     5.12063625625e-07, 3.73851613691e-07, -2.9483322145e-08, -4.3372056877e-08, 1.2797376754e-08, -1.077971432e-09),
    (-9.536747342298e-06, 1.1920828372835e-05, 4.721630771583e-06, -4.081227392666e-06, -1.60568122456e-07,
     4.76957641136e-07, 2.4688201962e-08, -7.1887372391e-08, 1.2803579409e-08, 1.558286347e-09, -5.0285447e-10),
    (2.741858025399e-06, 1.118125113686e-06, -1.485214052955e-06, -3.40997276728e-07, 3.51398856072e-07,
     7.7524282437e-08, -9.1816235553e-08, 1.5116220907e-08, 2.810377116e-09, -8.22348485e-10),
    (1.97182809622e-07, -5.82098420163e-07, -1.26110665833e-07, 1.97768742801e-07, 8.7085180748e-08,
     -1.02347482996e-07, 2.3704571543e-08, 1.161719563e-09, -7.88465453e-10),
    (-1.37158347497e-07, -4.1659677684e-08, 1.05169506496e-07, 6.8665724841e-08, -1.0126514089e-07,
     3.4216164081e-08, -2.443889508e-09, -4.45528818e-10),
    (-1.1438875616e-08, 4.3778944642e-08, 4.2138410606e-08, -8.1964228732e-08, 3.8296934544e-08, -5.919153579e-09),
    (1.5426026106e-08, 1.4030558881e-08, -4.9652133651e-08, 3.2112749036e-08, -7.498792637e-09, 4.37259567e-10),
    (-1.605605773e-09, -1.7050015401e-08, 1.9665503244e-08, -6.527976884e-09, 6.45679691e-10),
    (-9.79266019e-10, 5.819669677e-09, -4.042489093e-09, 5.8478268e-10),
    (2.51490438e-10, -7.76918539e-10, 3.65250218e-10),
)
# fmt: on


@lru_cache
def _table(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A row per power of the first variable; in float32 without what is lost in rounding."""
    least = 2e-8 if dtype == torch.float32 else 0.0
    height = 1 + max(j for j, row in enumerate(rows) if max(map(abs, row)) > least)
    width = max(1 + i for row in rows for i, value in enumerate(row) if abs(value) > least)
    table = torch.zeros(height, width, dtype=torch.float64)
    for j, row in enumerate(rows[:height]):
        table[j, : len(row[:width])] = torch.tensor(row[:width], dtype=torch.float64)
    return table.to(dtype=dtype, device=device)


def _factor(rows: tuple[tuple[float, ...], ...], u: Tensor, df: Tensor) -> Tensor:
    table = _table(rows, u.dtype, u.device)
    u, small = u * (1 / REACH), LEAST_FREEDOM / df
    ladder = torch.empty((table.shape[1], u.numel()), dtype=u.dtype, device=u.device)
    ladder[0] = 1
    for power in range(1, table.shape[1]):
        torch.mul(ladder[power - 1], u, out=ladder[power])
    terms = table @ ladder
    result = terms[-1]
    for row in reversed(range(table.shape[0] - 1)):
        result = torch.addcmul(terms[row], result, small)
    return result.mul_(small).add_(1)


def noise_factor(q: Tensor, df: Tensor) -> Tensor:
    r""":math:`e / \sqrt{\nu q}` of plain flat tensors."""
    return _factor(_NOISE, q, df)


def place_factor(ratio: Tensor, df: Tensor) -> Tensor:
    r""":math:`q \nu / e^2` given :math:`e^2 / \nu`, of plain flat tensors."""
    return _factor(_PLACE, ratio, df)
