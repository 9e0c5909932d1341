"""Vectors and matrices: exact tails of each element of the noise, given what comes before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import pyro.distributions as pd
import torch
from torch import Tensor
from torch import distributions as td

from emfc.distributions.random_walk import GaussianRandomWalk
from tests.accuracy import tails
from tests.accuracy.measure import Family
from tests.accuracy.oracle import Pair, phi
from tests.accuracy.ranges import Linear, Log, LowerTriangle, PositiveDefinite

Row = list[Any]
_LOC = Linear(-100, 100, (3,))
_TRIL = LowerTriangle(3, 1e-2, 1e2)
_MATRIX = PositiveDefinite(3, 0.1, 10)
_LOGITS = Linear(-27.6, 0, (3,))


def _solve(factor: list[Row], right: Row) -> Row:
    """Forward substitution."""
    found: Row = []
    for row, value in zip(factor, right, strict=True):
        known = mp.fsum(a * b for a, b in zip(row, found, strict=False))
        found.append((value - known) / row[len(found)])
    return found


def _cholesky(matrix: list[Row]) -> list[Row]:
    """Lower factor; only the lower triangle is read."""
    factor: list[Row] = []
    for i, row in enumerate(matrix):
        new: Row = []
        for j in range(i):
            new.append((row[j] - mp.fsum(a * b for a, b in zip(new, factor[j][:j], strict=True))) / factor[j][j])
        new.append(mp.sqrt(row[i] - mp.fsum(a * a for a in new)))
        factor.append(new)
    return factor


def _normal(x: Row, loc: Row, factor: list[Row]) -> list[Pair]:
    return [phi(z) for z in _solve(factor, [a - b for a, b in zip(x, loc, strict=True)])]


def _by_covariance(x: Row, loc: Row, matrix: list[Row]) -> list[Pair]:
    return _normal(
        x, loc, _cholesky([[(a + matrix[j][i]) / 2 for j, a in enumerate(row)] for i, row in enumerate(matrix)])
    )


def _by_precision(x: Row, loc: Row, matrix: list[Row]) -> list[Pair]:
    symmetric = mp.matrix(matrix)
    inverse = ((symmetric + symmetric.T) / 2) ** -1
    return _normal(x, loc, _cholesky(inverse.tolist()))


def _low_rank(x: Row, loc: Row, factor: list[Row], diagonal: Row) -> list[Pair]:
    matrix = [[mp.fsum(a * b for a, b in zip(one, other, strict=True)) for other in factor] for one in factor]
    for place, value in enumerate(diagonal):
        matrix[place][place] += value
    return _normal(x, loc, _cholesky(matrix))


def _student(x: Row, df: Any, loc: Row, factor: list[Row]) -> list[Pair]:
    found, total = [], df
    for place, z in enumerate(_solve(factor, [a - b for a, b in zip(x, loc, strict=True)])):
        scale = mp.sqrt(total / (df + place))
        found.append(tails.student(z / scale, df + place))
        total += z * z
    return found


def _dirichlet(x: Row, concentration: Row) -> list[Pair]:
    found = []
    for place in range(len(x) - 1):
        rest, after = mp.fsum(x[place + 1 :]), mp.fsum(concentration[place + 1 :])
        total = x[place] + rest
        found.append(tails.beta(x[place] / total, rest / total, concentration[place], after))
    return found


def _logistic_normal(x: Row, loc: Row, scale: Row) -> list[Pair]:
    found = []
    for place, (m, s) in enumerate(zip(loc, scale, strict=True)):
        rest = mp.fsum(x[place + 1 :])
        found.append(phi((mp.log(x[place] / rest) + mp.log(len(loc) - place) - m) / s))
    return found


def _lkj_factor(x: list[Row], concentration: Any) -> list[Pair]:
    side, found = len(x), []
    for i in range(1, side):
        for j in range(i):
            after = mp.fsum(value * value for value in x[i][j + 1 : i + 1])
            total = mp.sqrt(x[i][j] ** 2 + after)
            large = 1 + abs(x[i][j]) / total
            small = after / total**2 / large
            upper, lower = (large, small) if x[i][j] > 0 else (small, large)
            shape = concentration + mp.mpf(side - 2 - j) / 2
            found.append(tails.beta(upper / 2, lower / 2, shape, shape))
    return found


def _lkj(x: list[Row], concentration: Any) -> list[Pair]:
    return _lkj_factor([row + [mp.mpf(0)] * (len(x) - len(row)) for row in _cholesky(x)], concentration)


def _wishart(x: list[Row], df: Any, factor: list[Row]) -> list[Pair]:
    lower, side = _cholesky(x), len(x)
    columns = [_solve(factor, [row[j] if j < len(row) else mp.mpf(0) for row in lower]) for j in range(side)]
    found = []
    for i in range(side):
        found += [phi(columns[j][i]) for j in range(i)]
        found.append(tails.gamma(columns[i][i] ** 2 / 2, (df - i) / 2))
    return found


def _random_walk(x: Row, scale: Any) -> list[Pair]:
    return [phi((b - a) / scale) for a, b in zip([mp.mpf(0), *x[:-1]], x, strict=True)]


def _vector_mixture(conditional: Callable[..., Callable[[int], tuple[mp.mpf, mp.mpf]]]) -> Callable[..., list[Pair]]:
    """Element by element: components' location and scale given what is before, weighted by what they made of it."""

    def mixed(x: Row, logits: Row, *parameters: Any) -> list[Pair]:
        weights = [mp.exp(value) for value in logits]
        found = []
        for place, value in enumerate(x):
            pairs = []
            densities = []
            for component in range(len(weights)):
                loc, scale = conditional(component, place, x, *parameters)
                z = (value - loc) / scale
                pairs.append(phi(z))
                densities.append(mp.exp(-z * z / 2) / scale)
            total = mp.fsum(weights)
            found.append(
                tuple(mp.fsum(w * p[side] for w, p in zip(weights, pairs, strict=True)) / total for side in (0, 1))
            )
            weights = [w * d for w, d in zip(weights, densities, strict=True)]
        return found

    return mixed


def _of_normals(component: int, place: int, x: Row, locs: list[Row], factors: list[list[Row]]) -> Any:
    factor, loc = factors[component], locs[component]
    before = _solve(
        [row[:place] for row in factor[:place]], [a - b for a, b in zip(x[:place], loc[:place], strict=True)]
    )
    known = mp.fsum(a * b for a, b in zip(factor[place][:place], before, strict=True))
    return loc[place] + known, factor[place][place]


def _mixture(build: Callable[..., td.Distribution]) -> Callable[..., td.Distribution]:
    return lambda logits, **parameters: td.MixtureSameFamily(td.Categorical(logits=logits), build(**parameters))


def _diagonal(locs: Tensor, scales: Tensor) -> td.Distribution:
    return td.Independent(td.Normal(locs, scales), 1)


_TRILS = LowerTriangle(3, 1e-1, 10)


class _Stacked(LowerTriangle):
    """Three factors."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.stack([super(_Stacked, self).draw(count, generator) for _ in range(3)], 1)


VECTORS: dict[str, Family] = {
    "MultivariateNormal, by factor": Family(
        lambda loc, scale_tril: td.MultivariateNormal(loc, scale_tril=scale_tril),
        {"loc": _LOC, "scale_tril": _TRIL},
        _normal,
    ),
    "MultivariateNormal, by covariance": Family(
        lambda loc, covariance: td.MultivariateNormal(loc, covariance_matrix=0.5 * (covariance + covariance.mT)),
        {"loc": _LOC, "covariance": _MATRIX},
        _by_covariance,
    ),
    "MultivariateNormal, by precision": Family(
        lambda loc, precision: td.MultivariateNormal(loc, precision_matrix=0.5 * (precision + precision.mT)),
        {"loc": _LOC, "precision": _MATRIX},
        _by_precision,
        oracle=100,
    ),
    "LowRankMultivariateNormal": Family(
        td.LowRankMultivariateNormal,
        {"loc": _LOC, "cov_factor": Linear(-3, 3, (3, 1)), "cov_diag": Log(1e-2, 1e2, (3,))},
        _low_rank,
    ),
    "OMTMultivariateNormal": Family(pd.OMTMultivariateNormal, {"loc": _LOC, "scale_tril": _TRIL}, _normal, single=True),
    "MultivariateStudentT": Family(
        pd.MultivariateStudentT,
        {"df": Log(1, 1e4), "loc": _LOC, "scale_tril": _TRIL},
        _student,
        oracle=100,
        gradient=1e-4,
    ),
    "GaussianRandomWalk": Family(lambda scale: GaussianRandomWalk(scale, 5), {"scale": Log(1e-3, 1e3)}, _random_walk),
    "Dirichlet": Family(td.Dirichlet, {"concentration": Log(1e-2, 1e4, (4,))}, _dirichlet, gradient=1e-4),
    "LogisticNormal": Family(
        td.LogisticNormal, {"loc": Linear(-2, 2, (3,)), "scale": Log(1e-2, 2, (3,))}, _logistic_normal
    ),
    "LKJCholesky": Family(
        lambda concentration: td.LKJCholesky(3, concentration),
        {"concentration": Log(0.1, 1e3)},
        _lkj_factor,
        oracle=100,
        gradient=1e-4,
    ),
    "LKJ": Family(
        lambda concentration: pd.LKJ(3, concentration),
        {"concentration": Log(1, 1e3)},
        _lkj,
        oracle=100,
        gradient=1e-4,
        reach=2.5,
    ),
    "Wishart": Family(
        lambda df, scale_tril: td.Wishart(df, scale_tril=scale_tril),
        {"df": Log(3, 1e3), "scale_tril": LowerTriangle(3, 0.5, 2)},
        _wishart,
        oracle=100,
        gradient=1e-4,
        reach=2.0,
    ),
    "mixture of MultivariateNormal": Family(
        _mixture(lambda loc, scale_tril: td.MultivariateNormal(loc, scale_tril=scale_tril)),
        {"logits": _LOGITS, "loc": Linear(-100, 100, (3, 3)), "scale_tril": _Stacked(3, 0.1, 10)},
        _vector_mixture(_of_normals),
        oracle=60,
    ),
    "mixture of Independent Normal": Family(
        _mixture(_diagonal),
        {"logits": _LOGITS, "locs": Linear(-100, 100, (3, 2)), "scales": Log(0.1, 10, (3, 2))},
        _vector_mixture(lambda k, d, x, locs, scales: (locs[k][d], scales[k][d])),
        oracle=60,
    ),
    "MixtureOfDiagNormals": Family(
        lambda logits, locs, scales: pd.MixtureOfDiagNormals(locs, scales, logits),
        {"logits": _LOGITS, "locs": Linear(-100, 100, (3, 2)), "scales": Log(0.1, 10, (3, 2))},
        _vector_mixture(lambda k, d, x, locs, scales: (locs[k][d], scales[k][d])),
        oracle=60,
    ),
    "MixtureOfDiagNormalsSharedCovariance": Family(
        lambda logits, locs, scale: pd.MixtureOfDiagNormalsSharedCovariance(locs, scale, logits),
        {"logits": _LOGITS, "locs": Linear(-100, 100, (3, 2)), "scale": Log(0.1, 10, (2,))},
        _vector_mixture(lambda k, d, x, locs, scale: (locs[k][d], scale[d])),
        oracle=60,
    ),
    "GaussianScaleMixture": Family(
        lambda logits, coord, component: pd.GaussianScaleMixture(coord, logits, component),
        {"logits": _LOGITS, "coord": Log(0.1, 10, (2,)), "component": Log(1e-2, 1e2, (3,))},
        _vector_mixture(lambda k, d, x, coord, component: (mp.mpf(0), coord[d] * component[k])),
        oracle=60,
        single=True,
    ),
}
