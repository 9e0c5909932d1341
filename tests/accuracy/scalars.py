"""Univariate continuous families."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pd
from torch import Tensor
from torch import distributions as td
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from tests.accuracy import tails
from tests.accuracy.measure import Family
from tests.accuracy.ranges import Grid, Linear, Log
from tests.special.stable_oracle import stable_tails
from tests.transforms.tables import basic

_LOC, _SCALE = Linear(-1e3, 1e3), Log(1e-3, 1e3)
_LOCATION_SCALE = {"loc": _LOC, "scale": _SCALE}
_NEAR = {"loc": Linear(-100, 100), "scale": Log(1e-2, 1e2)}  # with parts that are finer than the scale
_SHAPES = 1e-4  # permitted error of gradients by shape parameters of Gamma, Beta, StudentT and their kin


def _uniform(low: Tensor, width: Tensor) -> td.Distribution:
    return td.Uniform(low, low + width)


def _uniform_tails(x: mp.mpf, low: mp.mpf, width: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    return (x - low) / width, (low + width - x) / width


def _generalized_pareto(x, loc, scale, concentration):
    z = (x - loc) / scale
    growth = max(concentration * z, -1 + mp.mpf(10) ** -50)  # an end that is rounded up may lie outside
    log_sf = -z if concentration == 0 else -mp.log1p(growth) / concentration
    return -mp.expm1(log_sf), mp.exp(log_sf)


def _skew_logistic(z, asymmetry):
    log_cdf = -asymmetry * mp.log1p(mp.exp(-z))
    return mp.exp(log_cdf), -mp.expm1(log_cdf)


def _continuous_bernoulli(x, log_odds):
    if log_odds == 0:
        return x, 1 - x
    return mp.expm1(log_odds * x) / mp.expm1(log_odds), mp.expm1(-log_odds * (1 - x)) / mp.expm1(-log_odds)


def _logit_relaxed(x, temperature, log_odds):
    y = x * temperature - log_odds
    return 1 / (1 + mp.exp(-y)), 1 / (1 + mp.exp(y))


def _stable(low: float, high: float) -> Family:
    return Family(
        pd.Stable,
        {
            "stability": Linear(low, high),
            "skew": Linear(-0.99, 0.99),
            "scale": Log(1e-2, 1e2),
            "loc": Linear(-100, 100),
        },
        lambda x, stability, skew, scale, loc: stable_tails((x - loc) / scale, stability, skew),
        oracle=20,
        digits=30,
    )


SCALARS: dict[str, Family] = {
    "Normal": Family(td.Normal, _LOCATION_SCALE, tails.normal),
    "LogNormal": Family(
        td.LogNormal, {"loc": Linear(-5, 5), "scale": Log(1e-3, 10)}, lambda x, m, s: tails.normal(mp.log(x), m, s)
    ),
    "HalfNormal": Family(td.HalfNormal, {"scale": Log(1e-6, 1e6)}, basic._half_normal),
    "Uniform": Family(_uniform, {"low": Grid(-1e3, 1e3), "width": Grid(2**-10, 1e3)}, _uniform_tails, digits=260),
    "Exponential": Family(td.Exponential, {"rate": Log(1e-6, 1e6)}, basic._exponential),
    "Laplace": Family(td.Laplace, _LOCATION_SCALE, basic._laplace),
    "AsymmetricLaplace": Family(pd.AsymmetricLaplace, _NEAR | {"asymmetry": Log(0.1, 10)}, tails.asymmetric_laplace),
    "SoftLaplace": Family(pd.SoftLaplace, _LOCATION_SCALE, tails.location_scale(tails.soft_laplace)),
    "SoftAsymmetricLaplace": Family(
        pd.SoftAsymmetricLaplace,
        _NEAR | {"asymmetry": Log(0.1, 10), "softness": Log(0.1, 10)},
        tails.soft_asymmetric_laplace,
        oracle=300,
    ),
    "Logistic": Family(pd.Logistic, _LOCATION_SCALE, basic._logistic),
    "SkewLogistic": Family(
        pd.SkewLogistic, _LOCATION_SCALE | {"asymmetry": Log(1e-2, 1e2)}, tails.location_scale(_skew_logistic)
    ),
    "Gumbel": Family(td.Gumbel, _LOCATION_SCALE, tails.location_scale(tails.gumbel)),
    "Weibull": Family(td.Weibull, {"scale": _SCALE, "concentration": Log(0.1, 1e3)}, tails.weibull),
    "Cauchy": Family(td.Cauchy, _LOCATION_SCALE, basic._cauchy),
    "HalfCauchy": Family(td.HalfCauchy, {"scale": Log(1e-6, 1e6)}, basic._half_cauchy),
    "Pareto": Family(td.Pareto, {"scale": _SCALE, "alpha": Log(0.5, 1e3)}, tails.pareto),
    "GeneralizedPareto": Family(
        td.GeneralizedPareto,
        {"loc": Linear(0, 1e3), "scale": _SCALE, "concentration": Linear(-2, 2)},
        _generalized_pareto,
    ),
    "StudentT": Family(
        td.StudentT,
        {"df": Log(0.5, 1e4)} | _LOCATION_SCALE,
        lambda x, df, m, s: tails.student((x - m) / s, df),
        oracle=400,
        gradient=_SHAPES,
    ),
    "Gamma": Family(
        td.Gamma,
        {"concentration": Log(1e-3, 1e6), "rate": _SCALE},
        lambda x, a, r: tails.gamma(r * x, a),
        oracle=400,
        gradient=_SHAPES,
    ),
    "InverseGamma": Family(
        td.InverseGamma,
        {"concentration": Log(0.5, 1e6), "rate": _SCALE},
        tails.inverse_gamma,
        oracle=400,
        gradient=_SHAPES,
    ),
    "Chi2": Family(
        td.Chi2,
        {"df": Log(2e-3, 2e6)},
        lambda x, df: tails.gamma(x / 2, df / 2),
        oracle=400,
        gradient=_SHAPES,
    ),
    "FisherSnedecor": Family(
        td.FisherSnedecor,
        {"df1": Log(1, 1e5), "df2": Log(1, 1e5)},
        tails.fisher,
        oracle=400,
        gradient=_SHAPES,
    ),
    "Beta": Family(
        td.Beta,
        {"concentration1": Log(1e-2, 1e5), "concentration0": Log(1e-2, 1e5)},
        lambda x, a, b: tails.beta(x, 1 - x, a, b),
        oracle=400,
        gradient=_SHAPES,
    ),
    "AffineBeta": Family(
        pd.AffineBeta,
        {
            "concentration1": Log(1e-2, 1e5),
            "concentration0": Log(1e-2, 1e5),
            "loc": Grid(1, 10),
            "scale": Grid(2**-6, 100),
        },
        lambda x, a, b, m, s: tails.beta((x - m) / s, (m + s - x) / s, a, b),
        oracle=400,
        gradient=_SHAPES,
    ),
    "Kumaraswamy": Family(
        td.Kumaraswamy, {"concentration1": Log(1e-2, 1e4), "concentration0": Log(1e-2, 1e4)}, tails.kumaraswamy
    ),
    "ContinuousBernoulli": Family(
        lambda logits: td.ContinuousBernoulli(logits=logits), {"logits": Linear(-100, 100)}, _continuous_bernoulli
    ),
    "LogitRelaxedBernoulli": Family(
        lambda temperature, logits: LogitRelaxedBernoulli(temperature, logits=logits),
        {"temperature": Log(1e-2, 1e2), "logits": Linear(-30, 30)},
        _logit_relaxed,
    ),
    "RelaxedBernoulli": Family(
        lambda temperature, logits: td.RelaxedBernoulli(temperature, logits=logits),
        {"temperature": Log(1, 1e2), "logits": Linear(-30, 30)},
        lambda x, t, v: _logit_relaxed(mp.log(x) - mp.log1p(-x), t, v),
    ),
    "Stable, stability below 1": _stable(0.5, 0.9),
    "Stable, stability above 1": _stable(1.1, 2),
    "VonMises": Family(
        td.VonMises,
        {"loc": Linear(-math.pi, math.pi), "concentration": Log(1e-3, 300)},
        tails.von_mises,
        oracle=60,
        digits=250,
    ),
}
