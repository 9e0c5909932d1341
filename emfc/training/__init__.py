"""Maximum-likelihood training of flows, and their evaluation."""

from __future__ import annotations

from emfc.training.evaluation import Evaluation, evaluate, log_prob
from emfc.training.fitting import DivergenceError, FitResult, fit
from emfc.training.progress import (
    BarProgress,
    EpochRow,
    LineProgress,
    SilentProgress,
    TrainingProgress,
    make_progress,
)
from emfc.training.sources import DRAWN_ROWS

__all__ = [
    "DRAWN_ROWS",
    "BarProgress",
    "DivergenceError",
    "EpochRow",
    "Evaluation",
    "FitResult",
    "LineProgress",
    "SilentProgress",
    "TrainingProgress",
    "evaluate",
    "fit",
    "log_prob",
    "make_progress",
]
