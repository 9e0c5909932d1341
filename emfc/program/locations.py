"""Where in the user's own source something happened."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

__all__ = ["Location", "is_library", "user_location", "where"]

_LIBRARIES = ("emfc.", "pyro.", "torch.", "contextlib", "functools", "numpy.", "typing", "torch", "pyro", "numpy")


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the user's source."""

    filename: str
    line: int

    def __str__(self) -> str:
        return f"{self.shown}:{self.line}"

    @property
    def shown(self) -> str:
        """The file as a person would name it: relative to the working directory where it lies below it."""
        return _shown(self.filename, os.getcwd()) if os.path.isabs(self.filename) else self.filename

    @property
    def source(self) -> str | None:
        """Text of the line, or None where the source cannot be read."""
        return linecache.getline(self.filename, self.line).strip() or None


@lru_cache(maxsize=1024)
def _shown(filename: str, folder: str) -> str:
    relative = os.path.relpath(filename, folder)
    return os.path.basename(filename) if relative.startswith("..") else relative


def is_library(frame: FrameType) -> bool:
    """Whether a frame belongs to the compiler, torch, Pyro or the standard library's plumbing."""
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith(_LIBRARIES) and not name.startswith(("emfc_program_", "torch_", "pyro_"))


def user_location(depth: int = 1) -> Location | None:
    """The innermost frame that is not one of a library."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        if not is_library(frame):
            return Location(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def where() -> dict[str, str | None]:
    """Location and source text of the user's current line, as keyword arguments of `CompileError`."""
    location = user_location(2)
    return {"location": str(location), "source": location.source} if location else {}
