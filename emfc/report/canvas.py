"""One place where pictures are begun and written: no global plotting state, files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from emfc.data.atomic import check_target, replacing
from emfc.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DATA_COLOUR", "PICTURE_ENDINGS", "SAMPLE_COLOUR", "check_picture_target", "new_figure", "save_figure"]

PICTURE_ENDINGS = (".png", ".svg", ".pdf")
DATA_COLOUR = "#3b5b7e"
SAMPLE_COLOUR = "#b5533c"


def check_picture_target(path: str | os.PathLike[str]) -> Path:
    """Check, before any work is done, that a picture can be written at ``path``.

    Args:
        path: The file to be written.

    Returns:
        The same path.

    Raises:
        UserError: The ending is none of ours, or the file cannot be written there.
    """
    target = Path(path)
    if target.suffix.lower() not in PICTURE_ENDINGS:
        raise UserError(f"cannot draw {target}: the ending must be one of {', '.join(PICTURE_ENDINGS)}")
    return check_target(target)


def new_figure(width: float, height: float) -> Figure:
    """Begin a picture that belongs to nobody else.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        An empty figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 130) -> None:
    """Write a picture aside, then rename it.

    Args:
        figure: The picture.
        path: Its file; the ending says the format.
        dpi: Dots per inch of a ``.png``.

    Raises:
        UserError: The ending is none of ours, or the file cannot be written there.
    """
    target = check_picture_target(path)
    kind = target.suffix.lower().lstrip(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with replacing(target) as aside:
        figure.savefig(aside, format=kind, dpi=dpi, metadata=undated)
