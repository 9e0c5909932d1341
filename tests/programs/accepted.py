"""The programs that compile: name -> case, from the modules that group them by kind."""

from __future__ import annotations

from tests.programs import families, learned, operations, plated, populations, scalars, series
from tests.programs.case import Case

__all__ = ["PROGRAMS"]

PROGRAMS: dict[str, Case] = {
    **scalars.PROGRAMS,
    **series.PROGRAMS,
    **plated.PROGRAMS,
    **learned.PROGRAMS,
    **operations.PROGRAMS,
    **populations.PROGRAMS,
    **families.PROGRAMS,
}
