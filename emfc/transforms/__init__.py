"""The exact transform of each family from standard normal noise, and the special functions behind it.

A new univariate family is one small class, a subclass of `ScalarFamily`, under one decorated line,
`@family_of(TheDistribution)`.
"""

from __future__ import annotations

from emfc.special.normal import log_ndtr, ndtri_exp

# Importing a module registers its families.
from emfc.transforms.affine import MultivariateNormalTransform, NormalAffine
from emfc.transforms.base import InverseTransform, LadjTransform, NormalTransform
from emfc.transforms.beta import Beta, FisherSnedecor
from emfc.transforms.beta_binomial import BetaBinomial
from emfc.transforms.circular import VonMises
from emfc.transforms.correlation import CorrCholeskyMap, CorrelationMap
from emfc.transforms.counts import CountFamily, Geometric, Poisson
from emfc.transforms.extremes import Gumbel, Weibull
from emfc.transforms.family import CDFTransform, Evaluation, LocationScale, ScalarFamily
from emfc.transforms.folded import Folded
from emfc.transforms.gamma import Gamma, InverseGamma
from emfc.transforms.gates import gated
from emfc.transforms.matrices import LowerCholeskyMap, PositiveDefiniteMap
from emfc.transforms.mixture import mixture_family
from emfc.transforms.negative_binomial import GammaPoisson, NegativeBinomial
from emfc.transforms.ordered import OrderedMap
from emfc.transforms.point import PointMap
from emfc.transforms.registry import UnsupportedFamilyError, family_of, from_normal, scalar_family
from emfc.transforms.scalar import Normal
from emfc.transforms.simplex import SimplexMap
from emfc.transforms.skewed import AsymmetricLaplace, SkewLogistic, SoftLaplace
from emfc.transforms.soft import SoftAsymmetricLaplace
from emfc.transforms.stable import Stable
from emfc.transforms.student import StudentT
from emfc.transforms.supports import Position, unconstrained_map
from emfc.transforms.tails import GeneralizedPareto, Pareto
from emfc.transforms.transformed import ElementwiseNormal
from emfc.transforms.triangular import TriangularTransform
from emfc.transforms.unit import ContinuousBernoulli, Kumaraswamy, RelaxedBernoulli
from emfc.transforms.vector_mixture import VectorMixture
from emfc.transforms.vectors import LowRankNormalTransform, MultivariateStudentTTransform
from emfc.transforms.wrappers import TransformedNormal

__all__ = [
    "AsymmetricLaplace",
    "Beta",
    "BetaBinomial",
    "CDFTransform",
    "ContinuousBernoulli",
    "CorrCholeskyMap",
    "CorrelationMap",
    "CountFamily",
    "ElementwiseNormal",
    "Evaluation",
    "FisherSnedecor",
    "Folded",
    "Gamma",
    "GammaPoisson",
    "GeneralizedPareto",
    "Geometric",
    "Gumbel",
    "InverseGamma",
    "InverseTransform",
    "Kumaraswamy",
    "LadjTransform",
    "LocationScale",
    "LowRankNormalTransform",
    "LowerCholeskyMap",
    "MultivariateNormalTransform",
    "MultivariateStudentTTransform",
    "NegativeBinomial",
    "Normal",
    "NormalAffine",
    "NormalTransform",
    "OrderedMap",
    "Pareto",
    "PointMap",
    "Poisson",
    "Position",
    "PositiveDefiniteMap",
    "RelaxedBernoulli",
    "ScalarFamily",
    "SimplexMap",
    "SkewLogistic",
    "SoftAsymmetricLaplace",
    "SoftLaplace",
    "Stable",
    "StudentT",
    "TransformedNormal",
    "TriangularTransform",
    "UnsupportedFamilyError",
    "VectorMixture",
    "VonMises",
    "Weibull",
    "family_of",
    "from_normal",
    "gated",
    "log_ndtr",
    "mixture_family",
    "ndtri_exp",
    "scalar_family",
    "unconstrained_map",
]
