"""The exact transform of each family from standard normal noise, and the special functions behind it.

A new univariate family is one small class, a subclass of `ScalarFamily`, under one decorated line,
`@family_of(TheDistribution)`.
"""

from __future__ import annotations

from emfc.special.normal import log_ndtr, ndtri_exp

# Importing a module registers its families.
from emfc.transforms.affine import MultivariateNormalTransform, NormalAffine
from emfc.transforms.base import InverseTransform, LadjTransform, NormalTransform
from emfc.transforms.family import CDFTransform, Evaluation, LocationScale, ScalarFamily
from emfc.transforms.gates import gated
from emfc.transforms.mixture import mixture_family
from emfc.transforms.registry import UnsupportedFamilyError, family_of, from_normal, scalar_family
from emfc.transforms.scalar import Normal
from emfc.transforms.supports import Position, unconstrained_map
from emfc.transforms.wrappers import TransformedNormal

__all__ = [
    "CDFTransform",
    "Evaluation",
    "InverseTransform",
    "LadjTransform",
    "LocationScale",
    "MultivariateNormalTransform",
    "Normal",
    "NormalAffine",
    "NormalTransform",
    "Position",
    "ScalarFamily",
    "TransformedNormal",
    "UnsupportedFamilyError",
    "family_of",
    "from_normal",
    "gated",
    "log_ndtr",
    "mixture_family",
    "ndtri_exp",
    "scalar_family",
    "unconstrained_map",
]
