"""Extremes, power tails, skewed families, and those of the unit interval."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import pyro.distributions as pd
import torch
from torch import distributions as td
from torch.distributions.continuous_bernoulli import ContinuousBernoulli
from torch.distributions.generalized_pareto import GeneralizedPareto
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from tests.transforms.case import Case


def _gumbel(x, loc, scale):
    tail = mp.exp(-mp.exp(-(x - mp.mpf(loc)) / scale))
    return tail, 1 - tail


def _weibull(x, scale, concentration):
    hazard = (x / mp.mpf(scale)) ** mp.mpf(concentration)
    return -mp.expm1(-hazard), mp.exp(-hazard)


def _pareto(x, scale, alpha):
    tail = (mp.mpf(scale) / x) ** mp.mpf(alpha)
    return 1 - tail, tail


def _generalized_pareto(x, loc, scale, k):
    z, k = (x - mp.mpf(loc)) / mp.mpf(scale), mp.mpf(k)
    tail = mp.exp(-z) if k == 0 else (1 + k * z) ** (-1 / k)
    return 1 - tail, tail


def _asymmetric_laplace(x, loc, scale, a):
    z, a = (x - mp.mpf(loc)) / mp.mpf(scale), mp.mpf(a)
    low = a * a / (1 + a * a)
    if z < 0:
        tail = low * mp.exp(z / a)
        return tail, 1 - tail
    tail = (1 - low) * mp.exp(-z * a)
    return 1 - tail, tail


def _soft_laplace(x, loc, scale):
    z = (x - mp.mpf(loc)) / mp.mpf(scale)
    return 2 * mp.atan(mp.exp(z)) / mp.pi, 2 * mp.atan(mp.exp(-z)) / mp.pi


def _soft_asymmetric_laplace(x, loc, scale, a, softness):
    z, left, soft = (x - mp.mpf(loc)) / mp.mpf(scale), mp.mpf(a), mp.mpf(softness)
    right, u = 1 / left, z / soft

    def phi(v):
        return mp.erfc(-v / mp.sqrt(2)) / 2

    below = left * mp.exp(soft**2 / (2 * left**2) + z / left) * phi(-u - soft / left)
    above = right * mp.exp(soft**2 / (2 * right**2) - z / right) * phi(u - soft / right)
    share = (below - above) / (left + right)
    return phi(u) + share, phi(-u) - share


def _skew_logistic(x, loc, scale, a):
    low = (1 + mp.exp(-(x - mp.mpf(loc)) / mp.mpf(scale))) ** -mp.mpf(a)
    return low, 1 - low


def _kumaraswamy(x, a, b):
    tail = (1 - mp.mpf(x) ** mp.mpf(a)) ** mp.mpf(b)
    return 1 - tail, tail


def _continuous_bernoulli(x, logits):
    n = mp.mpf(logits)
    if n == 0:
        return x, 1 - x
    low = mp.expm1(n * x) / mp.expm1(n)
    return low, 1 - low


def _logit_relaxed(x, temperature, logits):
    y = x * mp.mpf(temperature) - mp.mpf(logits)
    return 1 / (1 + mp.exp(-y)), 1 / (1 + mp.exp(y))


def _relaxed(x, temperature, logits):
    return _logit_relaxed(mp.log(x) - mp.log1p(-x), temperature, logits)


def _folded(family: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """A mixture of two of the family, its parameters exchanged along the batch."""
    pairs = {name: [[value[k], value[(k + 1) % 3]] for k in range(3)] for name, value in parameters.items()}
    return {"logits": [[0.0, 0.5], [1.0, -2.0], [0.0, -9.0]], **pairs}


def _mixed(tails: Any) -> Any:
    def mixed(x, logits, *parameters):
        weights = [mp.exp(mp.mpf(v)) for v in logits]
        parts = [tails(x, *values) for values in zip(*parameters, strict=True)]
        total = mp.fsum(weights)
        return tuple(mp.fsum(w * part[side] for w, part in zip(weights, parts, strict=True)) / total for side in (0, 1))

    return mixed


def _mixture_of(family: Any) -> Any:
    return lambda logits, *values: td.MixtureSameFamily(td.Categorical(logits=logits), family(*values))


_LOCATION_SCALE = {"loc": [-2.0, 0.3, 4.0], "scale": [0.5, 1.7, 3.0]}
_WEIBULL = {"scale": [0.5, 1.7, 3.0], "concentration": [1.3, 1.0, 7.0]}
_GENERALIZED = {**_LOCATION_SCALE, "concentration": [-0.7, 0.02, 0.4]}
_BOUNDED = {**_LOCATION_SCALE, "concentration": [-0.5, -1.0, -1e-4]}

CASES: dict[str, Case] = {
    "gumbel": Case(td.Gumbel, _LOCATION_SCALE, _gumbel),
    "weibull": Case(td.Weibull, _WEIBULL, _weibull),
    "pareto": Case(td.Pareto, {"scale": [0.5, 1.7, 300.0], "alpha": [0.5, 3.0, 40.0]}, _pareto),
    "generalized pareto": Case(GeneralizedPareto, _GENERALIZED, _generalized_pareto),
    "generalized pareto with an upper end": Case(GeneralizedPareto, _BOUNDED, _generalized_pareto),
    "asymmetric laplace": Case(
        pd.AsymmetricLaplace, {**_LOCATION_SCALE, "asymmetry": [0.4, 1.2, 5.0]}, _asymmetric_laplace
    ),
    "soft asymmetric laplace": Case(
        pd.SoftAsymmetricLaplace,
        {**_LOCATION_SCALE, "asymmetry": [0.3, 1.2, 4.0], "softness": [0.1, 1.0, 5.0]},
        _soft_asymmetric_laplace,
    ),
    "soft laplace": Case(pd.SoftLaplace, _LOCATION_SCALE, _soft_laplace),
    "skew logistic": Case(pd.SkewLogistic, {**_LOCATION_SCALE, "asymmetry": [0.05, 1.2, 200.0]}, _skew_logistic),
    "kumaraswamy": Case(
        td.Kumaraswamy, {"concentration1": [1.5, 2.0, 4.0], "concentration0": [3.0, 1.2, 1.5]}, _kumaraswamy
    ),
    "continuous bernoulli": Case(
        lambda v: ContinuousBernoulli(logits=v), {"logits": [-1.2, 1e-3, 1.5]}, _continuous_bernoulli
    ),
    "logit relaxed bernoulli": Case(
        lambda t, v: LogitRelaxedBernoulli(t, logits=v),
        {"temperature": [0.1, 1.0, 5.0], "logits": [-3.0, 0.2, 6.0]},
        _logit_relaxed,
    ),
    "relaxed bernoulli": Case(
        lambda t, v: td.RelaxedBernoulli(t, logits=v),
        {"temperature": [1.2, 2.0, 5.0], "logits": [-1.0, 0.2, 2.0]},
        _relaxed,
    ),
    "mixture of weibulls": Case(_mixture_of(td.Weibull), _folded(td.Weibull, _WEIBULL), _mixed(_weibull)),
    "mixture of gumbels": Case(_mixture_of(td.Gumbel), _folded(td.Gumbel, _LOCATION_SCALE), _mixed(_gumbel)),
    "affine of a weibull": Case(
        lambda s, k: td.TransformedDistribution(td.Weibull(s, k), [td.AffineTransform(1.0, -2.0)]),
        _WEIBULL,
        lambda x, s, k: _weibull((1 - x) / 2, s, k)[::-1],
    ),
    "expanded gumbel": Case(lambda m, s: td.Gumbel(m, s).expand(torch.Size([2, 3])), _LOCATION_SCALE),
}
