"""emfc compiles a probabilistic program into layers of a normalizing flow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from emfc.errors import UserError
from emfc.program.errors import CompileError

if TYPE_CHECKING:
    from emfc.compiler import compile, parse
    from emfc.flows import EmbeddedModelFlow, load, save
    from emfc.inference import EMFGuide, FittedDensity, Posterior, fit_density
    from emfc.inference.infer import infer
    from emfc.layers import StructuredLayer
    from emfc.program.graph import ModelGraph
    from emfc.training import FitResult, fit

__version__ = "0.1.0"

__all__ = [
    "CompileError",
    "EMFGuide",
    "EmbeddedModelFlow",
    "FitResult",
    "FittedDensity",
    "ModelGraph",
    "Posterior",
    "StructuredLayer",
    "UserError",
    "__version__",
    "compile",
    "fit",
    "fit_density",
    "infer",
    "load",
    "parse",
    "save",
]

_HOMES = {
    "EMFGuide": "emfc.inference",
    "EmbeddedModelFlow": "emfc.flows",
    "FitResult": "emfc.training",
    "FittedDensity": "emfc.inference",
    "ModelGraph": "emfc.program.graph",
    "Posterior": "emfc.inference",
    "StructuredLayer": "emfc.layers",
    "compile": "emfc.compiler",
    "fit": "emfc.training",
    "fit_density": "emfc.inference",
    "infer": "emfc.inference",
    "inference": "emfc.inference",
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
    return home if name in ("inference", "testing", "transforms") else getattr(home, name)
