"""Mixtures of univariate families."""

from __future__ import annotations

import mpmath as mp
import pyro.distributions as pd
from torch import distributions as td

from tests.accuracy import tails
from tests.accuracy.measure import Family
from tests.accuracy.ranges import Linear, Log, Range
from tests.transforms.tables import basic

# logits of weights down to exp(-27.6) = 1e-12
_LOGITS = Linear(-27.6, 0, (3,))


def _mixture(build, ranges: dict[str, Range], component, **options) -> Family:
    def make(logits, **parameters):
        return td.MixtureSameFamily(td.Categorical(logits=logits), build(**parameters))

    options = {"oracle": 100} | options
    return Family(make, {"logits": _LOGITS} | ranges, tails.mixture(component), **options)


# components up to a thousand standard deviations apart
_APART = {"loc": Linear(-500, 500, (3,)), "scale": Log(1, 3, (3,))}

MIXTURES: dict[str, Family] = {
    "mixture of Normal": _mixture(td.Normal, _APART, tails.normal),
    "mixture of Laplace": _mixture(td.Laplace, _APART, basic._laplace),
    "mixture of Logistic": _mixture(pd.Logistic, _APART, basic._logistic),
    "mixture of Cauchy": _mixture(td.Cauchy, _APART, basic._cauchy),
    "mixture of StudentT": _mixture(
        td.StudentT,
        {"df": Log(1, 1e4, (3,))} | _APART,
        lambda x, df, m, s: tails.student((x - m) / s, df),
        oracle=40,
        gradient=1e-4,
    ),
    "mixture of Exponential": _mixture(td.Exponential, {"rate": Log(1e-3, 1e3, (3,))}, basic._exponential),
    "mixture of LogNormal": _mixture(
        td.LogNormal,
        {"loc": Linear(-3, 3, (3,)), "scale": Log(1e-2, 3, (3,))},
        lambda x, m, s: tails.normal(mp.log(x), m, s),
    ),
    "mixture of Gamma": _mixture(
        td.Gamma,
        {"concentration": Log(0.5, 1e3, (3,)), "rate": Log(1e-2, 1e2, (3,))},
        lambda x, a, r: tails.gamma(r * x, a),
        oracle=60,
        gradient=1e-4,
    ),
    "mixture of Beta": _mixture(
        td.Beta,
        {"concentration1": Log(0.5, 1e3, (3,)), "concentration0": Log(0.5, 1e3, (3,))},
        lambda x, a, b: tails.beta(x, 1 - x, a, b),
        oracle=60,
        gradient=1e-4,
    ),
}
