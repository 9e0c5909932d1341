"""The gamma distribution, its relatives, and unbounded counts."""

from __future__ import annotations

import mpmath as mp
import pyro.distributions as pd
from torch import distributions as td

from tests.transforms.case import Case


def _lower(a, x):
    """Regularised lower incomplete gamma function by its power series, quick for small x and for large."""
    term = total = mp.mpf(1)
    n = 0
    while abs(term) > abs(total) * mp.mpf(10) ** -mp.mp.dps:
        n += 1
        term *= x / (a + n)
        total += term
    return mp.exp(a * mp.log(x) - x - mp.loggamma(a + 1)) * total


def _gamma(x, concentration, rate):
    a, z = mp.mpf(concentration), mp.mpf(rate) * x
    lower = _lower(a, z)
    return lower, 1 - lower


def _inverse_gamma(x, concentration, rate):
    return _gamma(1 / mp.mpf(x), concentration, rate)[::-1]


def _count(masses):
    """Tails of the dequantised count with these masses: of k in the lower half below, of all others above."""

    def tails(x, *parameters):
        k = int(mp.floor(x))
        below = mp.fsum(masses(j, *parameters) for j in range(k))
        mass = masses(k, *parameters)
        lower = below + (x - k) * mass
        above, j, term = mp.mpf(0), k + 1, mp.mpf(1)
        while term > 0 and (j < 3 or term > above * mp.mpf(10) ** -60):
            term = masses(j, *parameters)
            above, j = above + term, j + 1
        return lower, above + (k + 1 - x) * mass

    return tails


def _poisson(k, rate):
    rate = mp.mpf(rate)
    return mp.exp(k * mp.log(rate) - rate) / mp.factorial(k)


def _geometric(k, probs):
    return mp.mpf(probs) * (1 - mp.mpf(probs)) ** k


def _negative_binomial(k, count, success):
    r, s = mp.mpf(count), mp.mpf(success)
    return mp.exp(mp.loggamma(k + r) - mp.loggamma(r) + k * mp.log(s) + r * mp.log1p(-s)) / mp.factorial(k)


def _gamma_poisson(k, concentration, rate):
    return _negative_binomial(k, concentration, 1 / (1 + mp.mpf(rate)))


def _inflated(masses):
    return lambda k, gate, *parameters: mp.mpf(gate) * (k == 0) + (1 - mp.mpf(gate)) * masses(k, *parameters)


_GATES = [0.1, 0.5, 0.95]
_SHAPES = [1.8, 6.0, 150.0]
_RATES = [2.0, 0.7, 3.0]

CASES: dict[str, Case] = {
    "gamma": Case(td.Gamma, {"concentration": _SHAPES, "rate": _RATES}, _gamma),
    "gamma of wide concentrations": Case(
        td.Gamma, {"concentration": [2.0, 20.0, 3e3], "rate": [1.0, 0.5, 5.0]}, _gamma
    ),
    "inverse gamma": Case(pd.InverseGamma, {"concentration": [1.8, 4.0, 60.0], "rate": _RATES}, _inverse_gamma),
    "chi2": Case(pd.Chi2, {"df": [4.0, 7.0, 70.0]}, lambda x, df: _gamma(x, mp.mpf(df) / 2, 0.5)),
    "poisson": Case(td.Poisson, {"rate": [0.02, 1.3, 40.0]}, _count(_poisson), discrete=True),
    "geometric": Case(td.Geometric, {"probs": [0.05, 0.5, 0.9]}, _count(_geometric), discrete=True),
    "zero-inflated poisson": Case(
        lambda gate, rate: pd.ZeroInflatedPoisson(rate, gate=gate),
        {"gate": _GATES, "rate": [3.0, 0.5, 20.0]},
        _count(_inflated(_poisson)),
        discrete=True,
    ),
    "zero-inflated binomial": Case(
        lambda v, w: pd.ZeroInflatedDistribution(pd.Binomial(4, logits=w), gate_logits=v),
        {"gate_logits": [-2.0, 0.0, 3.0], "logits": [0.3, -1.0, 1.0]},
        discrete=True,
    ),
    "negative binomial": Case(
        td.NegativeBinomial,
        {"total_count": [0.7, 3.0, 20.0], "probs": [0.4, 0.6, 0.3]},
        _count(_negative_binomial),
        discrete=True,
    ),
    "gamma-poisson": Case(
        pd.GammaPoisson,
        {"concentration": [0.7, 3.0, 20.0], "rate": [2.0, 0.5, 1.5]},
        _count(_gamma_poisson),
        discrete=True,
    ),
}
