"""Distributions that torch and Pyro lack, with their transforms: truncated ones and the Gaussian random walk."""

from __future__ import annotations

from emfc.distributions.random_walk import GaussianRandomWalk
from emfc.distributions.truncated import Truncated

__all__ = ["GaussianRandomWalk", "Truncated"]
