"""Options that several commands share, with their help, and the reading of their values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emfc.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DeviceOption",
    "DtypeName",
    "DtypeOption",
    "ImageOption",
    "JsonOption",
    "ProgramArgument",
    "RunArgument",
    "SeedOption",
    "SetOption",
    "dtype_name",
    "numeric_defaults",
    "read_device",
    "read_settings",
    "read_widths",
    "refuse_inputs",
    "require_named",
]

WIDEST = 16_384
"""Widest hidden layer: two of these have a gigabyte of weights in single precision."""

ProgramArgument = Annotated[
    str, typer.Argument(metavar="PROGRAM", help="FILE.py (its `model`) or FILE.py:NAME.", show_default=False)
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder that `emfc train` wrote.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Keyword argument of the program; VALUE is JSON. Repeatable."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**63 - 1)]
DeviceOption = Annotated[str, typer.Option("--device", help="Device to compute on, such as cpu or cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ImageOption = Annotated[
    str | None,
    typer.Option("--image", metavar="HxW", help="Examples are images of this size; `none` for no images."),
]


class DtypeName(Enum):
    """Floating-point types to compute in."""

    float32 = "float32"
    float64 = "float64"


DtypeOption = Annotated[DtypeName, typer.Option("--dtype", help="Floating-point type to compute in.")]


def read_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read the values of ``--set``.

    Args:
        texts: Each ``KEY=VALUE`` with a JSON value.

    Returns:
        The program's keyword arguments.

    Raises:
        UserError: One is not of that form, is not JSON, or comes twice.
    """
    settings: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UserError(f"--set needs KEY=VALUE, such as --set steps=30; it was given {text!r}")
        if key in settings:
            raise UserError(f"--set {key} is given twice")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(
                f"the value of --set {key} is not JSON: {value!r}; write numbers and true or false bare, "
                f"and text in double quotes: --set '{key}=\"text\"'"
            ) from error
    return settings


def read_widths(text: str) -> tuple[int, ...]:
    """Read comma-separated widths of hidden layers, such as ``128,128``.

    Raises:
        UserError: They are not positive whole numbers, or a layer so wide could not be held.
    """
    try:
        widths = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--hidden needs whole numbers with commas between, such as 128,128; not {text!r}") from error
    if min(widths) < 1:
        raise UserError(f"--hidden needs positive widths; it was given {text!r}")
    if max(widths) > WIDEST:
        raise UserError(f"--hidden takes widths of at most {WIDEST:,}; it was given {text!r}")
    return widths


def read_device(text: str) -> torch.device:
    """Find a device by its name, and make sure that it is there.

    Raises:
        UserError: There is no such device.
    """
    import torch

    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UserError(f"there is no device {text!r}; use cpu, cuda, or cuda:1 for the second of several") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is not there"
        raise UserError(f"the device {text!r} cannot be used: {reason}") from error
    if device.type == "meta":
        raise UserError("the device 'meta' holds no numbers; use cpu or cuda")
    return device


def dtype_name(flow: Any) -> str:
    """Give the name of a flow's floating-point type, such as ``float32``."""
    return str(flow.noise_reference.dtype).removeprefix("torch.")


@contextmanager
def numeric_defaults(dtype: DtypeName | str, seed: int) -> Iterator[torch.dtype]:
    """Seed the generators and let new tensors have a dtype while the block runs; programs rely on both.

    Args:
        dtype: The floating-point type.
        seed: The seed.

    Yields:
        The floating-point type.
    """
    import pyro
    import torch

    chosen: torch.dtype = getattr(torch, str(dtype.value if isinstance(dtype, DtypeName) else dtype))
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    pyro.set_rng_seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield chosen
    finally:
        torch.set_default_dtype(before)


def refuse_inputs(output: Path | None, *inputs: Path | None) -> None:
    """Refuse to write over a file that the same command reads.

    Raises:
        UserError: The output is one of the inputs.
    """
    if output is None or not output.exists():
        return
    for path in inputs:
        if path is not None and path.exists() and output.samefile(path):
            raise UserError(f"the output {output} is the file that is read; give another name, so that it is kept")


def require_named(given: Sequence[str], known: Sequence[str], *, what: str) -> None:
    """Refuse a name that is not among the known ones, and name the nearest.

    Raises:
        UserError: A name is unknown.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known) or 'none'}"
            raise UserError(f"{what} {name!r} is unknown{hint}")
