"""``emfc bench``: programs, the same by hand, and what both cost."""

from __future__ import annotations

from emfc.cli.bench.command import register

__all__ = ["register"]
