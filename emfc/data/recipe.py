"""Preprocessing as users type it: ``dequantise,scale:0:256,logit:1e-6``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from emfc.data.columns import nearest_name
from emfc.data.preprocess import Chain, Dequantise, Logit, Scale, Standardise, Step
from emfc.errors import UserError

__all__ = ["Recipe", "parse_recipe"]

_USAGE = {
    "dequantise": "dequantise",
    "scale": "scale:LOW:HIGH",
    "logit": "logit or logit:ALPHA",
    "standardise": "standardise",
}
_COUNTS = {"dequantise": (0,), "scale": (2,), "logit": (0, 1), "standardise": (0,)}


@dataclass(frozen=True)
class Recipe:
    """Steps that were read and checked, but have not seen data yet.

    Attributes:
        text: What the user typed.
        makers: One for each step: from the data as the steps before leave them to the step.
    """

    text: str
    makers: tuple[Callable[[Tensor], Step], ...]

    def build(self, data: Tensor) -> Chain:
        """Make the steps, each from the data as the steps before it leave them.

        Args:
            data: Raw data of the training part, shape ``[rows, D]``.

        Returns:
            The chain, on the device and in the dtype of ``data``.

        Raises:
            UserError: A step cannot be made from these data, or the data lie outside its domain.
        """
        steps: list[Step] = []
        for make in self.makers:
            step = make(data)
            data, ladj = step.call_and_ladj(step.pack(data))
            if not bool(ladj.isfinite().all()):
                rows = (~ladj.isfinite()).nonzero().flatten().tolist()
                raise UserError(
                    f"the preprocessing step {step.kind!r} does not take all the data: training row {rows[0]} "
                    "(counted from 0) lies outside its domain; scale the data first"
                )
            steps.append(step)
        return Chain(steps)


def parse_recipe(text: str) -> Recipe:
    """Read preprocessing steps, comma-separated, numbers after colons.

    Args:
        text: For instance ``"dequantise,scale:0:256,logit:1e-6"``.

    Returns:
        The steps, ready to be built from data.

    Raises:
        UserError: A step is unknown or has the wrong numbers.
    """
    makers = [_maker(part.strip(), text) for part in text.split(",")]
    return Recipe(text, tuple(makers))


def _maker(part: str, text: str) -> Callable[[Tensor], Step]:
    name, *words = part.split(":")
    if name == "standardize":
        name = "standardise"
    if name == "dequantize":
        name = "dequantise"
    if name not in _USAGE:
        hint = nearest_name(name, _USAGE) or f"; the steps are {', '.join(_USAGE.values())}"
        raise UserError(f"unknown preprocessing step {name!r} in {text!r}{hint}")
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"the preprocessing step {part!r} needs numbers: {_USAGE[name]}") from error
    if len(numbers) not in _COUNTS[name]:
        raise UserError(f"the preprocessing step {part!r} must be written {_USAGE[name]}")
    if name == "standardise":
        return Standardise.from_data
    step: Step
    if name == "dequantise":
        step = Dequantise()
    elif name == "scale":
        step = Scale(*numbers)
    else:
        step = Logit(*numbers)
    return lambda data: step
