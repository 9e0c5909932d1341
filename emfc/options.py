"""Options that a user gives: read strictly, and refused in one sentence where they mean nothing."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn

from emfc.errors import UserError

__all__ = [
    "folder_of",
    "keywords_of",
    "likely",
    "read_flag",
    "read_function",
    "read_keywords",
    "read_number",
    "read_probabilities",
    "read_seconds",
    "read_seed",
    "read_whole",
]

_SEEDS = 2**32


def read_whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """A whole number in a range, both ends included.

    Raises:
        UserError: It is another type, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        span = f"{least} or more" if most == math.inf else f"from {least:,} to {most:,}"
        raise UserError(f"{name} must be a whole number, {span}, not {value!r}")
    return int(value)


def read_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float | None = None,
    below: float = math.inf,
    infinite: bool = False,
) -> float:
    """A number in a range.

    Args:
        name: Name of the option.
        value: What was given.
        above: It must be more than this.
        least: It must be at least this, instead.
        below: It must be less than this.
        infinite: Whether it may be infinite where nothing else limits it.

    Raises:
        UserError: It is another type, no number or outside.
    """
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:
        number = math.nan
    enough = number > above if least is None else number >= least
    if not enough or not (number < below or (infinite and below == math.inf)):
        raise UserError(f"{name} must be {_range(above, least, below)}, not {value!r}")
    return number


def _range(above: float, least: float | None, below: float) -> str:
    """What numbers are allowed, in words."""
    if least is not None:
        return f"a number, {least:g} or more" + ("" if below == math.inf else f" and below {below:g}")
    if below == math.inf:
        return "a finite number" if above == -math.inf else "a positive number" if above == 0 else f"above {above:g}"
    return f"a number between {above:g} and {below:g}"


def read_seconds(value: Any) -> float | None:
    """A time limit, which may be infinite or None.

    Raises:
        UserError: It is no number above 0.
    """
    if value is None or value is math.inf:
        return None if value is None else math.inf
    return read_number("seconds", value, above=0.0)


def read_seed(value: Any) -> int:
    """A seed for torch's generators, from any whole number.

    Raises:
        UserError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"seed must be a whole number, not {value!r}")
    return int(value) % _SEEDS


def read_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        UserError: It is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {value!r}")
    return value


def read_function(name: str, value: Any) -> None:
    """Refuses what cannot be called and is not None.

    Raises:
        UserError: It is such a thing.
    """
    if value is not None and not callable(value):
        raise UserError(f"{name} must be a function or None, not {value!r}")


def read_probabilities(values: Any) -> list[float]:
    """Probabilities, which are numbers from 0 to 1.

    Raises:
        UserError: One is none.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise UserError(f"quantiles takes probabilities, numbers from 0 to 1, not {value!r}")
    return [float(value) for value in values]


def read_keywords(what: str, options: Collection[str], model: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuses keywords that neither a function nor the model that it hands them to knows.

    Args:
        what: The function, in words.
        options: Names of its own options.
        model: The model; where its arguments cannot be told, nothing is refused.
        kwargs: The keywords for the model.

    Raises:
        UserError: There is such a keyword.
    """
    if not kwargs or not callable(model):
        return
    called = model.forward if isinstance(model, nn.Module) else model
    try:
        held = inspect.signature(called, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in held):
        return
    takes = [one.name for one in held if one.kind is not inspect.Parameter.POSITIONAL_ONLY]
    for name in kwargs:
        if name not in takes:
            hint = likely(name, [*options, *takes])
            raise UserError(f"{name!r} is neither an option of {what} nor an argument of the model{hint}")


def likely(name: str, known: Collection[str]) -> str:
    """A hint at the known name that is nearest to an unknown one, or all known names."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def keywords_of(function: Callable[..., Any]) -> list[str]:
    """Names of the keyword-only options of a function."""
    held = inspect.signature(function).parameters.values()
    return [one.name for one in held if one.kind is inspect.Parameter.KEYWORD_ONLY]


def folder_of(path: Any) -> Path:
    """A folder's path.

    Raises:
        UserError: It is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"the folder must be a path, such as 'runs/posterior', not {path!r}")
    return Path(path)
