"""Rewrites and analyses of programs, one to a module, each a pure function."""

from __future__ import annotations

from emfc.passes.classify import SiteClass, classify, slice_sites
from emfc.passes.marginalise import Populations, marginalise

__all__ = ["Populations", "SiteClass", "classify", "marginalise", "slice_sites"]
