"""Mixtures that are hard to solve, truncated and folded families."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import pyro.distributions as pd
from torch import distributions as td

from emfc.distributions import Truncated
from tests.transforms.case import Case
from tests.transforms.tables.basic import (
    _exponential,
    _laplace,
    _logistic,
    _mixture,
    _mixture_of,
    _normal,
    _uniform,
)

_LOC = [0.0, 0.3, -20.0]
_SCALE = [1.0, 0.3, 1.0]


def _truncated(tails: Any) -> Any:
    """Tails of a truncated family whose last two parameters are its ends."""

    def cut(x, *parameters):
        *inner, low, high = parameters
        first, x, last = (tails(mp.mpf(end), *inner) for end in (low, x, high))
        side = 1 if first[1] < last[0] else 0  # the smaller tails don't cancel
        between = abs(last[side] - first[side])
        return abs(x[side] - first[side]) / between, abs(last[side] - x[side]) / between

    return cut


def _above(tails: Any) -> Any:
    def cut(x, *parameters):
        *inner, low = parameters
        first, x = tails(mp.mpf(low), *inner), tails(x, *inner)
        side = 1 if first[1] < first[0] else 0
        return abs(x[side] - first[side]) / first[1], x[1] / first[1]

    return cut


def _folded(tails: Any) -> Any:
    def absolute(x, *parameters):
        left, right = tails(-x, *parameters), tails(x, *parameters)
        return right[0] - left[0], left[0] + right[1]

    return absolute


_ENDS = {"low": [-10.0, 30.0, -80.0], "high": [20.0, 50.0, -60.0]}
_STANDARD = {"loc": [2.0, 0.0, 0.0], "scale": [11.0, 10.0, 10.0]}
_BASES = {"loc": [0.2, 0.0, 5.0], "scale": [1.1, 2.0, 1.0], "low": [-1.0, 3.0, -40.0], "high": [2.0, 3.5, 50.0]}

CASES: dict[str, Case] = {
    "mixture of uniforms": Case(
        lambda w, a, b: td.MixtureSameFamily(
            td.Categorical(logits=w), td.Uniform(a, b, validate_args=False), validate_args=False
        ),
        {
            "logits": [[0.0, 0.3, -1.0], [1.0, 0.0, 0.2], [0.0, 0.0, -9.0]],
            "low": [[0.0, 2.0, 7.0], [0.0, -0.5, 0.2], [-5.0, -3.0, 4.0]],
            "high": [[1.0, 3.5, 9.0], [1.0, 2.0, 3.0], [-2.0, 4.0, 5.0]],
        },
        _mixture(lambda x, a, b: _uniform(min(max(x, a), b), a, b)),
    ),
    "truncated normal": Case(
        lambda m, s, a, b: Truncated(td.Normal(m, s), a, b), _STANDARD | _ENDS, _truncated(_normal)
    ),
    "normal above": Case(
        lambda m, s, a: Truncated(td.Normal(m, s), low=a), _STANDARD | {"low": [5.0, 40.0, -300.0]}, _above(_normal)
    ),
    "truncated laplace": Case(lambda m, s, a, b: Truncated(td.Laplace(m, s), a, b), _BASES, _truncated(_laplace)),
    "exponential below": Case(
        lambda r, b: Truncated(td.Exponential(r), high=b),
        {"rate": [0.5, 0.1, 3.0], "high": [1.0, 2.0, 20.0]},
        lambda x, r, b: _truncated(_exponential)(x, r, 0.0, b),
    ),
    "truncated lognormal": Case(
        lambda m, s, a, b: Truncated(td.LogNormal(m, s), a, b),
        {"loc": [2.0, 0.5, 1.0], "scale": [0.5, 1.0, 0.3], "low": [3.5, 0.3, 6.0], "high": [9.5, 9.0, 9.0]},
        _truncated(lambda x, m, s: _normal(mp.log(x), m, s)),
    ),
    "mixture of truncated normals": Case(
        lambda w, m, s, a, b: td.MixtureSameFamily(
            td.Categorical(logits=w), Truncated(td.Normal(m, s), a, b, validate_args=False), validate_args=False
        ),
        {
            "logits": [[0.0, 0.5], [1.0, -2.0], [0.0, -4.0]],
            "loc": [[-1.0, 2.0], [0.0, 3.0], [0.0, 0.1]],
            "scale": [[0.5, 1.0], [1.0, 1.0], [1.0, 0.05]],
            "low": [[-1.0, -1.5], [4.0, 3.0], [0.0, -0.5]],
            "high": [[2.5, 3.5], [6.0, 6.5], [1.0, 0.5]],
        },
        _mixture(lambda x, m, s, a, b: _truncated(_normal)(min(max(x, mp.mpf(a)), mp.mpf(b)), m, s, a, b)),
        gate=False,
    ),
    "folded normal": Case(
        lambda m, s: pd.FoldedDistribution(td.Normal(m, s)), {"loc": _LOC, "scale": _SCALE}, _folded(_normal)
    ),
    "folded mixture of logistics": Case(
        lambda w, m, s: pd.FoldedDistribution(_mixture_of(pd.Logistic)(w, m, s)),
        {"logits": [[0.0, 1.0]] * 3, "loc": [[-1.0, 2.0], [0.0, 0.0], [3.0, 9.0]], "scale": [[0.5, 1.0]] * 3},
        _folded(_mixture(_logistic)),
    ),
}
