"""Every family with the ranges of its parameters and its exact tails."""

from __future__ import annotations

from tests.accuracy.measure import Family
from tests.accuracy.mixtures import MIXTURES
from tests.accuracy.scalars import SCALARS
from tests.accuracy.vectors import VECTORS
from tests.accuracy.wrapped import WRAPPED

FAMILIES: dict[str, Family] = SCALARS | MIXTURES | WRAPPED | VECTORS

# Registered classes that have nothing to measure.
WITHOUT = {
    "Delta": "passes its value and has no noise",
    "RelaxedBernoulliStraightThrough": "is refused",
}
