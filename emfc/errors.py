"""The error that every room raises for bad data, files and flags."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """Bad data, file or flag: one clear sentence that says what, where, and what to do."""
