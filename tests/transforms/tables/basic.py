"""Families with closed forms, tables, mixtures and wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import pyro.distributions as pd
import torch
from torch import distributions as td
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

from tests.transforms.case import Case


def _phi(z: Any) -> mp.mpf:
    return mp.erfc(-mp.mpf(z) / mp.sqrt(2)) / 2


def _normal(x, loc, scale):
    z = (x - mp.mpf(loc)) / scale
    return _phi(z), _phi(-z)


def _laplace(x, loc, scale):
    z = (x - mp.mpf(loc)) / scale
    tail = mp.exp(-abs(z)) / 2
    return (tail, 1 - tail) if z < 0 else (1 - tail, tail)


def _logistic(x, loc, scale):
    z = (x - mp.mpf(loc)) / scale
    return 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))


def _cauchy(x, loc, scale):
    z = (x - mp.mpf(loc)) / scale
    return mp.atan2(1, -z) / mp.pi, mp.atan2(1, z) / mp.pi


def _exponential(x, rate):
    return -mp.expm1(-mp.mpf(rate) * x), mp.exp(-mp.mpf(rate) * x)


def _half_normal(x, scale):
    z = x / mp.mpf(scale)
    return mp.erf(z / mp.sqrt(2)), mp.erfc(z / mp.sqrt(2))


def _half_cauchy(x, scale):
    z = x / mp.mpf(scale)
    return 2 * mp.atan(z) / mp.pi, 2 * mp.atan2(1, z) / mp.pi


def _uniform(x, low, high):
    low, high = mp.mpf(low), mp.mpf(high)
    return (x - low) / (high - low), (high - x) / (high - low)


def _table(masses: list[mp.mpf]):
    def tails(x):
        k = min(int(mp.floor(x)), len(masses) - 1)
        part = x - k
        total = mp.fsum(masses)
        return (
            (mp.fsum(masses[:k]) + part * masses[k]) / total,
            (mp.fsum(masses[k + 1 :]) + (1 - part) * masses[k]) / total,
        )

    return tails


def _categorical(x, logits):
    return _table([mp.exp(mp.mpf(v)) for v in logits])(x)


def _bernoulli(x, logits):
    return _table([1 / (1 + mp.exp(mp.mpf(logits))), 1 / (1 + mp.exp(-mp.mpf(logits)))])(x)


def _binomial(total):
    def tails(x, logits):
        p = 1 / (1 + mp.exp(-mp.mpf(logits)))
        return _table([mp.binomial(total, k) * p**k * (1 - p) ** (total - k) for k in range(total + 1)])(x)

    return tails


def _mixture(tails):
    def mixed(x, logits, *parameters):
        weights = [mp.exp(mp.mpf(v)) for v in logits]
        total = mp.fsum(weights)
        parts = [tails(x, *values) for values in zip(*parameters, strict=True)]
        return tuple(mp.fsum(w * part[side] for w, part in zip(weights, parts, strict=True)) / total for side in (0, 1))

    return mixed


def _mixture_of(family: Callable[..., td.Distribution]) -> Callable[..., td.Distribution]:
    return lambda logits, *values: td.MixtureSameFamily(td.Categorical(logits=logits), family(*values))


def _transformed(base: Callable[..., td.Distribution], *chain: Any) -> Callable[..., td.Distribution]:
    return lambda *values: td.TransformedDistribution(base(*values), list(chain))


_LOC = [-2.0, 0.3, 40.0]
_SCALE = [0.5, 1.7, 3.0]
_LOGITS3 = [[0.0, 0.5, -1.0], [1.0, -2.0, 0.3], [0.0, 0.0, -9.0]]
_LOC3 = [[-3.0, 0.0, 2.0], [-30.0, 1.0, 30.0], [-1.0, 0.0, 5.0]]
_SCALE3 = [[0.5, 1.0, 2.0], [1.0, 0.1, 3.0], [1.0, 1.5, 0.02]]
_LEVELS = [[0.0, 1.0, -1.0, 2.0, -3.0], [-5.0, 3.0, 0.0, -8.0, 2.0], [0.1, 0.2, 0.3, 0.4, 0.5]]
_TWO_TABLES = [[_LEVELS[0], _LEVELS[1]], [_LEVELS[1], _LEVELS[2]], [_LEVELS[2], _LEVELS[0]]]
_LOCATION_SCALE = {"loc": _LOC, "scale": _SCALE}
_MIXTURE = {"logits": _LOGITS3, "loc": _LOC3, "scale": _SCALE3}
_TRIL = [[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.3, 0.7]]
_COVARIANCE = [[2.0, 0.5, -0.3], [0.5, 1.5, 0.2], [-0.3, 0.2, 1.0]]

CASES: dict[str, Case] = {
    "normal": Case(td.Normal, _LOCATION_SCALE, _normal),
    "lognormal": Case(
        td.LogNormal, {"loc": [-1.0, 0.0, 2.0], "scale": _SCALE}, lambda x, m, s: _normal(mp.log(x), m, s)
    ),
    "halfnormal": Case(td.HalfNormal, {"scale": _SCALE}, _half_normal),
    "uniform": Case(td.Uniform, {"low": [0.0, -1.0, 5.0], "high": [1.0, 2.5, 5.5]}, _uniform),
    "exponential": Case(td.Exponential, {"rate": _SCALE}, _exponential),
    "laplace": Case(td.Laplace, _LOCATION_SCALE, _laplace),
    "logistic": Case(pd.Logistic, _LOCATION_SCALE, _logistic),
    "cauchy": Case(td.Cauchy, _LOCATION_SCALE, _cauchy),
    "halfcauchy": Case(td.HalfCauchy, {"scale": _SCALE}, _half_cauchy),
    "categorical": Case(lambda v: td.Categorical(logits=v), {"logits": _LEVELS}, _categorical, discrete=True),
    "bernoulli": Case(lambda v: td.Bernoulli(logits=v), {"logits": [-3.0, 0.2, 6.0]}, _bernoulli, discrete=True),
    "binomial": Case(lambda v: td.Binomial(6, logits=v), {"logits": [-1.0, 0.0, 2.0]}, _binomial(6), discrete=True),
    "binomial of three counts": Case(
        lambda v: td.Binomial(torch.tensor([2.0, 5.0, 3.0], dtype=v.dtype, device=v.device), logits=v),
        {"logits": [-1.0, 0.0, 2.0]},
        discrete=True,
    ),
    "mixture of normals": Case(_mixture_of(td.Normal), _MIXTURE, _mixture(_normal)),
    "mixture of laplaces": Case(_mixture_of(td.Laplace), _MIXTURE, _mixture(_laplace)),
    "mixture of logistics": Case(_mixture_of(pd.Logistic), _MIXTURE, _mixture(_logistic)),
    "mixture of cauchys": Case(_mixture_of(td.Cauchy), _MIXTURE, _mixture(_cauchy)),
    "mixture of exponentials": Case(
        _mixture_of(td.Exponential), {"logits": _LOGITS3, "rate": _SCALE3}, _mixture(_exponential)
    ),
    "mixture of lognormals": Case(
        _mixture_of(td.LogNormal),
        {"logits": _LOGITS3, "loc": [[-1.0, 0.0, 1.0]] * 3, "scale": [[0.5, 1.0, 0.3]] * 3},
        _mixture(lambda x, m, s: _normal(mp.log(x), m, s)),
    ),
    "mixture of categoricals": Case(
        lambda w, v: td.MixtureSameFamily(td.Categorical(logits=w), td.Categorical(logits=v)),
        {"weights": [[0.0, 1.0], [-4.0, 0.5], [0.3, 0.2]], "logits": _TWO_TABLES},
        _mixture(_categorical),
        discrete=True,
    ),
    "decreasing affine of laplace": Case(
        _transformed(td.Laplace, AffineTransform(1.0, -2.0)),
        _LOCATION_SCALE,
        lambda x, m, s: _laplace((1 - x) / 2, m, s)[::-1],
    ),
    "affine of uniform": Case(
        _transformed(td.Uniform, AffineTransform(1.0, 2.0)),
        {"low": [0.0, -1.0, 5.0], "high": [1.0, 2.5, 5.5]},
        lambda x, a, b: _uniform((x - 1) / 2, a, b),
    ),
    "exponential of logistic": Case(
        _transformed(pd.Logistic, ExpTransform()),
        {"loc": [0.0, 0.5, -1.0], "scale": [0.2, 0.5, 0.3]},
        lambda x, m, s: _logistic(mp.log(x), m, s),
    ),
    "sigmoid of normal": Case(
        _transformed(td.Normal, SigmoidTransform()),
        {"loc": [0.0, 0.5, -1.0], "scale": [0.2, 1.5, 0.7]},
        lambda x, m, s: _normal(mp.log(x) - mp.log1p(-x), m, s),
    ),
    "reciprocal of lognormal": Case(
        _transformed(td.LogNormal, td.PowerTransform(torch.tensor(-1.0))),
        {"loc": [0.0, 0.5, -1.0], "scale": [0.2, 1.5, 0.7]},
        lambda x, m, s: _normal(mp.log(x), -m, s),
    ),
    "independent normal": Case(lambda m, s: td.Independent(td.Normal(m, s), 1), _LOCATION_SCALE, event_dim=1),
    "independent uniform": Case(
        lambda a, b: td.Independent(td.Uniform(a, b), 1),
        {"low": [0.0, -1.0, 5.0], "high": [1.0, 2.5, 5.5]},
        event_dim=1,
    ),
    "expanded mixture": Case(
        lambda w, m, s: pd.torch_distribution.ExpandedDistribution(
            pd.MixtureSameFamily(pd.Categorical(logits=w), pd.Normal(m, s)), torch.Size([2, 3])
        ),
        _MIXTURE,
    ),
    "masked normal": Case(lambda m, s: pd.Normal(m, s).mask(True), _LOCATION_SCALE, _normal),
    "multivariate normal by cholesky": Case(
        lambda m, t: td.MultivariateNormal(m, scale_tril=torch.tril(t)),
        {"loc": _LOC, "scale_tril": _TRIL},
        event_dim=1,
        half=False,
    ),
    "multivariate normal by covariance": Case(
        lambda m, t: td.MultivariateNormal(m, covariance_matrix=0.5 * (t + t.mT)),
        {"loc": _LOC, "covariance": _COVARIANCE},
        event_dim=1,
        half=False,
    ),
    "multivariate normal by precision": Case(
        lambda m, t: td.MultivariateNormal(m, precision_matrix=0.5 * (t + t.mT)),
        {"loc": _LOC, "precision": _COVARIANCE},
        event_dim=1,
        half=False,
    ),
    "affine of a multivariate normal": Case(
        lambda m, t: td.TransformedDistribution(
            td.MultivariateNormal(m, scale_tril=torch.tril(t)), [AffineTransform(1.0, 0.5, event_dim=1)]
        ),
        {"loc": _LOC, "scale_tril": _TRIL},
        event_dim=1,
        half=False,
        gate=False,
    ),
}
