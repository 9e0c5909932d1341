"""Cases of vectors and matrices."""

from __future__ import annotations

import pyro.distributions as pd
import torch
from torch import distributions as td
from torch.distributions.transforms import StickBreakingTransform

from emfc.distributions.random_walk import GaussianRandomWalk
from tests.transforms.case import CORRELATIONS, SIMPLEX, SYMMETRIC, UNIT_ROWS, Case

_TRIL = [[1.2, 0.0, 0.0], [-0.7, 0.4, 0.0], [0.5, 1.5, 0.9]]
_COVARIANCE = [[1.4, -0.5, 0.3], [-0.5, 0.9, 0.2], [0.3, 0.2, 2.0]]
_LOC = [0.3, -1.0, 2.0]
_LOCATIONS = [[-2.0, 0.5, 1.0], [1.5, 0.0, -4.0]]
_SCALES = [[0.5, 1.0, 0.2], [1.0, 0.3, 2.0]]

CASES: dict[str, Case] = {
    "dirichlet": Case(td.Dirichlet, {"concentration": [2.5, 1.5, 4.0, 3.0]}, event_dim=1, free=SIMPLEX),
    "sparse dirichlet": Case(td.Dirichlet, {"concentration": [2.0, 0.9, 3.0]}, event_dim=1, free=SIMPLEX),
    "logisticnormal": Case(
        lambda m, s: td.LogisticNormal(m, s),
        {"loc": [0.5, -1.0, -0.5], "scale": [0.5, 0.3, 0.8]},
        event_dim=1,
        free=SIMPLEX,
    ),
    "stick breaking of a multivariate normal": Case(
        lambda m, t: td.TransformedDistribution(
            td.MultivariateNormal(m, scale_tril=0.5 * torch.tril(t)), [StickBreakingTransform()]
        ),
        {"loc": [0.5, -0.5, 0.2], "scale_tril": _TRIL},
        event_dim=1,
        free=SIMPLEX,
        half=False,
    ),
    "lkj factor": Case(
        lambda c: td.LKJCholesky(3, c), {"concentration": 1.7}, event_dim=2, free=UNIT_ROWS, sampled=False
    ),
    "lkj": Case(
        lambda c: pd.LKJ(3, c),
        {"concentration": 1.7},
        event_dim=2,
        free=CORRELATIONS,
        reach=2.5,
        half=False,
        sampled=False,
    ),
    "wishart": Case(
        lambda n, t: td.Wishart(n, scale_tril=torch.tril(t)),
        {"df": 7.5, "scale_tril": _TRIL},
        event_dim=2,
        free=SYMMETRIC,
        reach=1.5,
        half=False,
        mapped=False,
        gate=False,
    ),
    "multivariate student": Case(
        lambda n, m, t: pd.MultivariateStudentT(n, m, torch.tril(t)),
        {"df": 3.5, "loc": _LOC, "scale_tril": _TRIL},
        event_dim=1,
        half=False,
    ),
    "low rank multivariate normal": Case(
        td.LowRankMultivariateNormal,
        {"loc": _LOC, "factor": [[1.0], [-0.5], [2.0]], "diagonal": [0.5, 1.0, 0.1]},
        event_dim=1,
        half=False,
    ),
    "omt multivariate normal": Case(
        lambda m, t: pd.OMTMultivariateNormal(m, torch.tril(t)),
        {"loc": _LOC, "scale_tril": _TRIL},
        event_dim=1,
        half=False,
    ),
    "mixture of diagonal normals": Case(
        pd.MixtureOfDiagNormals,
        {"locs": _LOCATIONS, "scales": _SCALES, "logits": [0.3, -0.5]},
        event_dim=1,
    ),
    "mixture of diagonal normals, shared": Case(
        pd.MixtureOfDiagNormalsSharedCovariance,
        {"locs": _LOCATIONS, "scale": [0.5, 1.0, 0.7], "logits": [0.3, -0.5]},
        event_dim=1,
    ),
    "mixture of lognormal vectors": Case(
        lambda w, m, s: td.MixtureSameFamily(td.Categorical(logits=w), td.Independent(td.LogNormal(m, s), 1)),
        {"logits": [0.3, -0.5], "locs": _LOCATIONS, "scales": _SCALES},
        event_dim=1,
    ),
    "mixture of multivariate normals": Case(
        lambda w, m, t: td.MixtureSameFamily(
            td.Categorical(logits=w), td.MultivariateNormal(m, scale_tril=torch.tril(t))
        ),
        {"logits": [0.3, -0.5], "locs": _LOCATIONS, "scale_trils": [_TRIL, _COVARIANCE]},
        event_dim=1,
        half=False,
    ),
    "random walk": Case(lambda s: GaussianRandomWalk(s, 4), {"scale": 0.7}, event_dim=1),
}
