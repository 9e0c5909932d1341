"""emfc compiles a probabilistic program into layers of a normalizing flow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from emfc.errors import UserError
from emfc.program.errors import CompileError

if TYPE_CHECKING:
    from emfc.compiler import compile, parse
    from emfc.flows import EmbeddedModelFlow, load, save
    from emfc.layers import StructuredLayer
    from emfc.program.graph import ModelGraph
    from emfc.training import FitResult, fit

__version__ = "0.1.0"

__all__ = [
    "CompileError",
    "EmbeddedModelFlow",
    "FitResult",
    "ModelGraph",
    "StructuredLayer",
    "UserError",
    "__version__",
    "compile",
    "fit",
    "load",
    "parse",
    "save",
]

_HOMES = {
    "EmbeddedModelFlow": "emfc.flows",
    "FitResult": "emfc.training",
    "ModelGraph": "emfc.program.graph",
    "StructuredLayer": "emfc.layers",
    "compile": "emfc.compiler",
    "fit": "emfc.training",
    "load": "emfc.flows",
    "parse": "emfc.compiler",
    "save": "emfc.flows",
    "testing": "emfc.testing",
    "transforms": "emfc.transforms",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for, so that the command line starts quickly."""
    if name not in _HOMES:
        raise AttributeError(f"module 'emfc' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if name in ("testing", "transforms") else getattr(home, name)
