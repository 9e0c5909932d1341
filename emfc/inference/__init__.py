"""Variational inference with a program's own structure: guides, posteriors, diagnostics."""

from __future__ import annotations

from emfc.inference.calibration import calibrate
from emfc.inference.density import FittedDensity, fit_density
from emfc.inference.guide import EMFGuide
from emfc.inference.infer import infer
from emfc.inference.posterior import Posterior
from emfc.inference.ranks import Calibration
from emfc.inference.summary import Summary
from emfc.inference.variational import VariationalFlow

__all__ = [
    "Calibration",
    "EMFGuide",
    "FittedDensity",
    "Posterior",
    "Summary",
    "VariationalFlow",
    "calibrate",
    "fit_density",
    "infer",
]
