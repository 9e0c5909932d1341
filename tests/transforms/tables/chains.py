"""Distributions through chains of bijections: elementwise ones that keep exact tails, and ones of vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pyro.distributions.transforms as pt
import torch
from torch import distributions as td
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    IndependentTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
)

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


def _gumbel(x, loc, scale):
    tail = mp.exp(-mp.exp(-(x - mp.mpf(loc)) / scale))
    return tail, 1 - tail


def _uniform(x, low, high):
    low, high = mp.mpf(low), mp.mpf(high)
    return (x - low) / (high - low), (high - x) / (high - low)


def _exponential(x, rate):
    return -mp.expm1(-mp.mpf(rate) * x), mp.exp(-mp.mpf(rate) * x)


def _through(base: Callable[..., td.Distribution], *chain: Any) -> Callable[..., td.Distribution]:
    return lambda *values: td.TransformedDistribution(base(*values), list(chain))


def _vector(base: Callable[..., td.Distribution], *makers: Callable[[torch.dtype], Any]) -> Callable[..., Any]:
    """A distribution over a vector through transforms made for the dtype of its parameters."""
    return lambda *values: td.TransformedDistribution(base(*values), [make(values[0].dtype) for make in makers])


def _seeded(make: Callable[[], Any]) -> Callable[[torch.dtype], Any]:
    """A transform with weights that are always the same."""

    @functools.cache
    def made(dtype: torch.dtype) -> Any:
        before = torch.get_default_dtype()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            torch.set_default_dtype(dtype)
            try:
                return make()
            finally:
                torch.set_default_dtype(before)

    return made


def _unit(dtype: torch.dtype, *parameters: Any) -> Any:
    """torch's uniform of the unit interval with parameters that are tensors, as the batch's shape asks."""
    return td.Uniform(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))


def _standard_logistic(loc, scale):
    return td.TransformedDistribution(_unit(loc.dtype), [SigmoidTransform().inv, AffineTransform(loc, scale)])


def _standard_gumbel(loc, scale):
    chain = [ExpTransform().inv, AffineTransform(0.0, -1.0), ExpTransform().inv, AffineTransform(loc, -scale)]
    return td.TransformedDistribution(_unit(loc.dtype), chain)


def _copula(loc, scale):
    """A normal with the tails of a Laplace distribution."""
    chain = [
        CumulativeDistributionTransform(td.Normal(loc, scale)),
        CumulativeDistributionTransform(_laplace_of(loc)).inv,
    ]
    return td.TransformedDistribution(td.Normal(loc, scale), chain)


def _laplace_of(like):
    return td.Laplace(torch.zeros_like(like), torch.ones_like(like))


def _independent(loc, scale):
    return td.Independent(td.Normal(loc, scale), 1)


_LOC, _SCALE = [-1.0, 0.3, 2.0], [0.5, 1.7, 0.8]
_LOCATION_SCALE = {"loc": _LOC, "scale": _SCALE}
_TRIL = [[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.3, 0.7]]


def _vectors(*makers: Callable[[torch.dtype], Any], half: bool = True) -> Case:
    return Case(_vector(_independent, *makers), _LOCATION_SCALE, event_dim=1, gate=False, half=half)


CASES: dict[str, Case] = {
    "uniform through a logit": Case(_standard_logistic, _LOCATION_SCALE, _logistic),
    "uniform through two logarithms": Case(_standard_gumbel, _LOCATION_SCALE, _gumbel),
    "softplus of laplace": Case(
        _through(td.Laplace, SoftplusTransform()), _LOCATION_SCALE, lambda x, m, s: _laplace(mp.log(mp.expm1(x)), m, s)
    ),
    "inverse softplus of exponential": Case(
        _through(td.Exponential, pt.SoftplusTransform().inv),
        {"rate": _SCALE},
        lambda x, r: _exponential(mp.log1p(mp.exp(x)), r),
    ),
    "tanh of normal": Case(
        _through(td.Normal, TanhTransform()),
        {"loc": [-0.3, 0.1, 0.2], "scale": [0.3, 0.5, 0.4]},
        lambda x, m, s: _normal(mp.atanh(x), m, s),
    ),
    "leaky relu of laplace": Case(
        _through(td.Laplace, pt.LeakyReLUTransform()),
        {"loc": [1.0, 1.3, 2.0], "scale": [0.2, 0.3, 0.4]},
        lambda x, m, s: _laplace(x if x > 0 else 100 * x, m, s),
        gate=False,
    ),
    "power of exponential": Case(
        lambda r, p: td.TransformedDistribution(td.Exponential(r), [PowerTransform(p)]),
        {"rate": _SCALE, "power": [0.5, -0.7, 1.2]},
        lambda x, r, p: (
            _exponential(mp.mpf(x) ** (1 / mp.mpf(p)), r)
            if p > 0
            else _exponential(mp.mpf(x) ** (1 / mp.mpf(p)), r)[::-1]
        ),
    ),
    "signed power of normal": Case(
        lambda m, s: td.TransformedDistribution(td.Normal(m, s), [pt.PositivePowerTransform(1.5)]),
        {"loc": [-7.0, 6.3, 9.0], "scale": [0.5, 1.0, 0.8]},
        lambda x, m, s: _normal(mp.sign(x) * abs(x) ** (mp.mpf(2) / 3), m, s),
        gate=False,
    ),
    "logarithm of exponential": Case(
        _through(td.Exponential, ExpTransform().inv), {"rate": _SCALE}, lambda x, r: _exponential(mp.exp(x), r)
    ),
    "composition": Case(
        lambda m, s: td.TransformedDistribution(
            td.Laplace(m, s),
            [ComposeTransform([AffineTransform(1.0, -0.5), ExpTransform(), AffineTransform(2.0, 3.0)])],
        ),
        _LOCATION_SCALE,
        lambda x, m, s: _laplace((1 - mp.log((x - 2) / 3)) / mp.mpf("0.5"), m, s)[::-1],
    ),
    "distribution function of normal": Case(
        lambda m, s: td.TransformedDistribution(
            td.Normal(m, s), [CumulativeDistributionTransform(td.Normal(torch.zeros_like(m), torch.ones_like(s)))]
        ),
        {"loc": [-0.3, 0.2, 0.5], "scale": [1.1, 1.0, 0.8]},
        lambda x, m, s: _normal(mp.sqrt(2) * mp.erfinv(2 * mp.mpf(x) - 1), m, s),
    ),
    "normal with the tails of laplace": Case(_copula, _LOCATION_SCALE, lambda x, m, s: _laplace(x, 0, 1)),
    "softplus of an independent normal": Case(
        lambda m, s: td.TransformedDistribution(_independent(m, s), [IndependentTransform(SoftplusTransform(), 1)]),
        _LOCATION_SCALE,
        event_dim=1,
    ),
    "exponential of a multivariate normal": Case(
        lambda m, t: td.TransformedDistribution(td.MultivariateNormal(m, scale_tril=torch.tril(t)), [ExpTransform()]),
        {"loc": _LOC, "scale_tril": _TRIL},
        event_dim=1,
        gate=False,
    ),
    "expanded chain": Case(
        lambda m, s: td.TransformedDistribution(
            td.Normal(m, s), [SigmoidTransform(), AffineTransform(-1.0, 3.0)]
        ).expand(torch.Size([2, 3])),
        _LOCATION_SCALE,
    ),
    "lower cholesky affine": Case(
        lambda m, s, t: td.TransformedDistribution(_independent(m, s), [pt.LowerCholeskyAffine(m, torch.tril(t))]),
        {"loc": _LOC, "scale": _SCALE, "tril": _TRIL},
        event_dim=1,
        gate=False,
        half=False,
    ),
    "permuted": _vectors(lambda dtype: pt.Permute(torch.tensor([2, 0, 1]))),
    "discrete cosine": _vectors(lambda dtype: pt.DiscreteCosineTransform()),
    "haar": _vectors(lambda dtype: pt.HaarTransform()),
    "householder": _vectors(_seeded(lambda: pt.Householder(3, count_transforms=2))),
    "matrix exponential": _vectors(_seeded(lambda: pt.MatrixExponential(3, iterations=24)), half=False),
}
