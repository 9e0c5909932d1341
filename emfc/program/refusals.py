"""The refusals that several watchers share."""

from __future__ import annotations

from emfc.program.errors import CompileError
from emfc.program.locations import where
from emfc.program.shadow import Noise

__all__ = ["impure", "unknown"]


def impure(noise: Noise) -> CompileError:
    """The refusal of noise drawn outside a sample site."""
    location = noise.location
    return CompileError(
        "E-IMPURE",
        "draws randomness outside pyro.sample",
        location=str(location) if location else None,
        source=location.source if location else None,
        advice="make the draw a pyro.sample site (or call .eval() on a module with dropout)",
    )


def unknown(name: str, advice: str) -> CompileError:
    """The refusal of an operation that is not on the allow-list."""
    return CompileError(
        "E-OPERATION", f"the operation {name} on a random value is not supported", advice=advice, **where()
    )
