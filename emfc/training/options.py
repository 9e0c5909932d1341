"""Options of a training: read strictly, and refused in one sentence where they mean nothing."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from emfc.errors import UserError

__all__ = ["read_flag", "read_number", "read_seed", "read_share", "read_whole"]

_SEEDS = 2**32


def read_whole(name: str, value: Any, least: int) -> int:
    """A whole number that is not too small.

    Raises:
        UserError: It is another type, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} is {value!r}; it must be a whole number, {least} or more")
    if value < least:
        raise UserError(f"{name} is {value}; it must be {'positive' if least == 1 else f'{least} or more'}")
    return int(value)


def read_number(name: str, value: Any, *, zero: bool = False) -> float:
    """A positive number, which may be infinite, or 0 too.

    Raises:
        UserError: It is another type, no number, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"{name} is {value!r}; it must be a number")
    number = float(value)
    if not (number >= 0 if zero else number > 0):
        raise UserError(f"{name} is {value}; it must {'not be negative' if zero else 'be positive'}")
    return number


def read_share(name: str, value: Any) -> float:
    """A number from 0 on and below 1.

    Raises:
        UserError: It is another type, or outside.
    """
    number = read_number(name, value, zero=True) if value is not None else math.nan
    if not number < 1:
        raise UserError(f"{name} is {value}; it must be at least 0 and below 1")
    return number


def read_seed(value: Any) -> int:
    """A seed for torch's and numpy's generators, from any whole number.

    Raises:
        UserError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"seed is {value!r}; it must be a whole number")
    return int(value) % _SEEDS


def read_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        UserError: It is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; it must be True or False")
    return value
