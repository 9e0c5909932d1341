"""Wrappers of other families, and discrete families, whose draws are dequantised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import pyro.distributions as pd
import torch
from torch import distributions as td
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

from emfc.distributions import Truncated
from tests.accuracy import tails
from tests.accuracy.measure import Family
from tests.accuracy.ranges import Grid, Linear, Log
from tests.transforms.tables import basic

_LOCATION_SCALE = {"loc": Linear(-1e3, 1e3), "scale": Log(1e-3, 1e3)}
_SMALL = {"loc": Linear(-3, 3), "scale": Log(1e-2, 1)}
_LEVELS = Linear(-12, 0, (5,))


def _through(base: Callable[..., td.Distribution], *chain: Any) -> Callable[..., td.Distribution]:
    return lambda **parameters: td.TransformedDistribution(base(**parameters), list(chain))


def _each(one: Callable[..., Any]) -> Callable[..., Any]:
    """Tails of independent elements."""
    return lambda x, *parameters: [one(*values) for values in zip(x, *parameters, strict=True)]


def _binomial(count: int) -> Callable[..., Any]:
    def of(x, log_odds):
        return tails.table([mp.binomial(count, k) * mp.exp(k * log_odds) for k in range(count + 1)], x)

    return of


def _beta_binomial(count: int) -> Callable[..., Any]:
    def of(x, a, b):
        return tails.table([mp.binomial(count, k) * mp.beta(k + a, count - k + b) for k in range(count + 1)], x)

    return of


def _truncated(base: Callable[..., Any]) -> Callable[..., Any]:
    """Tails between two ends, given the lower one and the width, by those of the base on the interval's side."""

    def of(x: mp.mpf, low: mp.mpf, width: mp.mpf, *parameters: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
        start, here, end = (base(place, *parameters) for place in (low, x, low + width))
        side = 0 if start[1] > start[0] else 1
        total = abs(end[side] - start[side])
        return abs(here[side] - start[side]) / total, abs(end[side] - here[side]) / total

    return of


def _between(base: Callable[..., td.Distribution]) -> Callable[..., td.Distribution]:
    return lambda low, width, **parameters: Truncated(base(**parameters), low, low + width)


def _folded(base: Callable[..., Any]) -> Callable[..., Any]:
    def of(x: mp.mpf, *parameters: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
        plus, minus = base(x, *parameters), base(-x, *parameters)
        return plus[0] - minus[0], plus[1] + minus[0]

    return of


def _inflated(base: Callable[..., Any]) -> Callable[..., Any]:
    """Dequantised with an excess of zeros."""

    def of(x: mp.mpf, log_odds: mp.mpf, *parameters: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
        lower, upper = base(x, *parameters)
        share, rest = 1 / (1 + mp.exp(-log_odds)), 1 / (1 + mp.exp(log_odds))
        part = min(x, mp.mpf(1))
        return share * part + rest * lower, share * (1 - part) + rest * upper

    return of


_ENDS = {"low": Grid(-10, 10), "width": Grid(2**-6, 20)}

WRAPPED: dict[str, Family] = {
    "Independent Normal": Family(
        lambda loc, scale: td.Independent(td.Normal(loc, scale), 1),
        {"loc": Linear(-1e3, 1e3, (3,)), "scale": Log(1e-3, 1e3, (3,))},
        _each(tails.normal),
        oracle=100,
    ),
    "ExpandedDistribution of Laplace": Family(
        lambda loc, scale: pd.torch_distribution.ExpandedDistribution(td.Laplace(loc, scale), loc.shape),
        _LOCATION_SCALE,
        basic._laplace,
        oracle=100,
    ),
    "MaskedDistribution of Cauchy": Family(
        lambda loc, scale: pd.Cauchy(loc, scale).mask(True), _LOCATION_SCALE, basic._cauchy, oracle=100
    ),
    "exponential of Logistic": Family(
        _through(pd.Logistic, ExpTransform()), _SMALL, lambda x, m, s: basic._logistic(mp.log(x), m, s)
    ),
    "decreasing affine of Gumbel": Family(
        _through(td.Gumbel, AffineTransform(1.0, -2.0)),
        _SMALL,
        lambda x, m, s: tails.gumbel(((1 - x) / 2 - m) / s)[::-1],
    ),
    "sigmoid of Normal": Family(
        _through(td.Normal, SigmoidTransform()),
        _SMALL,
        lambda x, m, s: tails.normal(mp.log(x) - mp.log1p(-x), m, s),
    ),
    "reciprocal of LogNormal": Family(
        _through(td.LogNormal, td.PowerTransform(torch.tensor(-1.0))),
        _SMALL,
        lambda x, m, s: tails.normal(mp.log(x), -m, s),
    ),
    "Categorical": Family(
        lambda logits: td.Categorical(logits=logits),
        {"logits": _LEVELS},
        lambda x, logits: tails.table([mp.exp(v) for v in logits], x),
    ),
    "Bernoulli": Family(
        lambda logits: td.Bernoulli(logits=logits),
        {"logits": Linear(-12, 12)},
        lambda x, v: tails.table([mp.mpf(1), mp.exp(v)], x),
    ),
    "Binomial": Family(lambda logits: td.Binomial(20, logits=logits), {"logits": Linear(-10, 10)}, _binomial(20)),
    "Poisson": Family(td.Poisson, {"rate": Log(1e-2, 1e5)}, tails.poisson, oracle=100),
    "Geometric": Family(lambda logits: td.Geometric(logits=logits), {"logits": Linear(-10, 6)}, tails.geometric),
    "NegativeBinomial": Family(
        lambda total_count, logits: td.NegativeBinomial(total_count, logits=logits),
        {"total_count": Log(0.1, 1e3), "logits": Linear(-5, 5)},
        tails.negative_binomial,
        oracle=100,
        gradient=1e-4,
    ),
    "GammaPoisson": Family(
        pd.GammaPoisson,
        {"concentration": Log(0.1, 1e3), "rate": Log(1e-2, 1e2)},
        lambda x, a, r: tails.negative_binomial(x, a, -mp.log(r)),
        oracle=100,
        gradient=1e-4,
    ),
    "BetaBinomial": Family(
        lambda concentration1, concentration0: pd.BetaBinomial(concentration1, concentration0, 20),
        {"concentration1": Log(0.1, 1e3), "concentration0": Log(0.1, 1e3)},
        _beta_binomial(20),
        oracle=200,
    ),
    "ZeroInflatedPoisson": Family(
        lambda gate_logits, rate: pd.ZeroInflatedPoisson(rate, gate_logits=gate_logits),
        {"gate_logits": Linear(-10, 10), "rate": Log(1e-2, 1e3)},
        _inflated(tails.poisson),
        oracle=100,
    ),
    "ZeroInflatedDistribution of Geometric": Family(
        lambda gate_logits, logits: pd.ZeroInflatedDistribution(td.Geometric(logits=logits), gate_logits=gate_logits),
        {"gate_logits": Linear(-10, 10), "logits": Linear(-10, 6)},
        _inflated(tails.geometric),
        oracle=100,
    ),
    "Truncated Normal": Family(
        _between(td.Normal),
        _ENDS | {"loc": Linear(-5, 5), "scale": Log(1, 10)},
        _truncated(tails.normal),
        oracle=100,
        digits=260,
    ),
    "Truncated Laplace": Family(
        _between(td.Laplace),
        _ENDS | {"loc": Linear(-5, 5), "scale": Log(1, 10)},
        _truncated(basic._laplace),
        oracle=100,
        digits=260,
    ),
    "Truncated Gamma": Family(
        _between(td.Gamma),
        {"low": Grid(2**-6, 20), "width": Grid(2**-6, 40), "concentration": Log(0.1, 100), "rate": Log(0.1, 10)},
        _truncated(lambda x, a, r: tails.gamma(r * x, a)),
        oracle=40,
        digits=260,
        gradient=1e-4,
    ),
    "FoldedDistribution of Normal": Family(
        lambda loc, scale: pd.FoldedDistribution(td.Normal(loc, scale)),
        {"loc": Linear(-10, 10), "scale": Log(0.1, 10)},
        _folded(tails.normal),
        oracle=100,
        digits=260,
    ),
    "FoldedDistribution of Cauchy": Family(
        lambda loc, scale: pd.FoldedDistribution(td.Cauchy(loc, scale)),
        {"loc": Linear(-10, 10), "scale": Log(0.1, 10)},
        _folded(basic._cauchy),
        oracle=100,
        digits=260,
    ),
}
