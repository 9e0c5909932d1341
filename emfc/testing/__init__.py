"""The laws of a transform as a function: what every family of emfc obeys, run on a user's own."""

from __future__ import annotations

from emfc.testing.check import LAWS, check_transform
from emfc.testing.report import LawResult, TransformError, TransformReport

__all__ = ["LAWS", "LawResult", "TransformError", "TransformReport", "check_transform"]
