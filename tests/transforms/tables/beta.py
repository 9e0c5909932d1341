"""The beta distribution, its relatives, and Student's t."""

from __future__ import annotations

import mpmath as mp
import pyro.distributions as pd
from torch import distributions as td

from tests.transforms.case import Case


def _power_series(a, b, x):
    """Regularised incomplete beta function by DLMF 8.17.8, whose terms are positive; quick for x below the mean."""
    term = total = mp.mpf(1)
    n = 0
    while term > total * mp.mpf(10) ** -mp.mp.dps:
        term *= x * (a + b + n) / (a + 1 + n)
        total += term
        n += 1
    return mp.exp(a * mp.log(x) + b * mp.log1p(-x) + mp.loggamma(a + b) - mp.loggamma(a + 1) - mp.loggamma(b)) * total


def beta_tails(x, a, b):
    """Both tails by the series that converges faster; the other tail has digits enough to be its complement."""
    x, a, b = mp.mpf(x), mp.mpf(a), mp.mpf(b)
    if x <= 0.5:
        lower = _power_series(a, b, x)
        return lower, 1 - lower
    upper = _power_series(b, a, 1 - x)
    return 1 - upper, upper


def _fisher(x, df1, df2):
    odds = mp.mpf(df1) * x / df2
    return beta_tails(odds / (1 + odds), mp.mpf(df1) / 2, mp.mpf(df2) / 2)


def student_tails(x, df, loc=0, scale=1):
    """Both tails, by the incomplete beta function of the smaller one."""
    df, t = mp.mpf(df), (mp.mpf(x) - loc) / scale
    share = df / (df + t * t)
    tail = beta_tails(share, df / 2, mp.mpf(1) / 2)[0] / 2
    return (tail, 1 - tail) if t < 0 else (1 - tail, tail)


CASES: dict[str, Case] = {
    "beta": Case(td.Beta, {"concentration1": [2.5, 4.0, 30.0], "concentration0": [3.0, 2.2, 12.0]}, beta_tails),
    "beta of large concentrations": Case(
        pd.Beta, {"concentration1": [300.0, 2e3, 50.0], "concentration0": [200.0, 90.0, 900.0]}, beta_tails
    ),
    "affine beta": Case(
        lambda a, b, m, s: pd.AffineBeta(a, b, m, s),
        {
            "concentration1": [2.5, 3.0, 9.0],
            "concentration0": [3.0, 2.4, 2.2],
            "loc": [-1.0, 0.5, 4.0],
            "scale": [2.0, 3.0, 7.0],
        },
        lambda x, a, b, m, s: beta_tails((x - mp.mpf(m)) / s, a, b),
    ),
    "fisher-snedecor": Case(td.FisherSnedecor, {"df1": [3.0, 10.0, 40.0], "df2": [4.0, 6.0, 200.0]}, _fisher),
    "student-t": Case(
        td.StudentT, {"df": [3.0, 1.3, 40.0], "loc": [-2.0, 0.3, 4.0], "scale": [0.5, 1.7, 3.0]}, student_tails
    ),
    "student-t of few and many degrees of freedom": Case(
        pd.StudentT, {"df": [0.8, 200.0, 1e4], "loc": [0.0, 0.3, -4.0], "scale": [1.0, 1.7, 0.5]}, student_tails
    ),
}
