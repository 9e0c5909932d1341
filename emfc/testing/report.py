"""What a check of a transform found: one result per law, and the error that names the broken ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LawResult", "TransformError", "TransformReport", "number", "worst"]


@dataclass(frozen=True)
class LawResult:
    """The worst place of one law.

    Attributes:
        law: Its name.
        error: The worst error, or 1 where a law without a number is broken.
        permitted: What the law permits at that place.
        place: Where that is: precision, noise, value, and what was found.
        note: Why the law was not run, empty where it was.
    """

    law: str
    error: float = 0.0
    permitted: float = 0.0
    place: str = ""
    note: str = ""

    @property
    def ratio(self) -> float:
        """The error as a multiple of what is permitted: the law holds up to 1."""
        if math.isnan(self.error):
            return math.inf
        if self.permitted == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.permitted

    @property
    def holds(self) -> bool:
        """True where the law was obeyed everywhere, or could not be run."""
        return self.ratio <= 1

    def __str__(self) -> str:
        if self.note:
            return f"{self.law}: not run, {self.note}"
        if self.permitted == 0 and self.holds:
            return f"{self.law}: holds"
        if self.permitted == 0:
            found = "broken"
        else:
            found = f"error {self.error:.2g} where {self.permitted:.2g} is permitted"
        return f"{self.law}: {found}" + (f", at {self.place}" if self.place else "")


@dataclass(frozen=True)
class TransformReport:
    """The worst error of each law; printed, one line per law.

    Attributes:
        family: Name of the distribution.
        results: One result per law, in the order in which they ran.
    """

    family: str
    results: tuple[LawResult, ...]

    @property
    def broken(self) -> tuple[LawResult, ...]:
        """Results of the laws that do not hold."""
        return tuple(result for result in self.results if not result.holds)

    def __getitem__(self, law: str) -> LawResult:
        """The result of a law by its name."""
        return next(result for result in self.results if result.law == law)

    def __str__(self) -> str:
        return "\n".join([self.family, *(f"  {result}" for result in self.results)])


class TransformError(AssertionError):
    """A transform breaks a law; the message names each broken law with its worst place.

    Attributes:
        report: The results of all laws.
        laws: Names of the broken ones.
    """

    def __init__(self, report: TransformReport) -> None:
        self.report = report
        self.laws = tuple(result.law for result in report.broken)
        count = f"{len(self.laws)} laws" if len(self.laws) > 1 else "a law"
        lines = "\n".join(f"  {result}" for result in report.broken)
        super().__init__(f"{report.family} breaks {count} of transforms:\n{lines}")


def number(value: Tensor) -> str:
    """A number, or the first few of a vector."""
    if value.dim() == 0:
        return f"{value.item():.6g}"
    shown = ", ".join(f"{part:.4g}" for part in value.flatten()[:6].tolist())
    return f"[{shown}{', ...' if value.numel() > 6 else ''}]"


def worst(before: LawResult, error: Tensor, permitted: Tensor | float, text: str = "", **shown: Tensor) -> LawResult:
    """The worse one of a result so far and the worst element of these errors.

    Args:
        before: The result so far.
        error: Errors, or truth values of what must not be.
        permitted: What is permitted, of a shape that broadcasts against `error`; 0 where there is no number.
        text: What the errors are.
        shown: What the message tells of the place, by name: tensors whose first dimensions are those of `error`.
    """
    if error.numel() == 0:
        return before
    error = error.detach().double()
    bound = torch.as_tensor(permitted, dtype=error.dtype, device=error.device).detach().expand(error.shape)
    ratio = torch.where(bound > 0, error / bound.clamp(min=torch.finfo(error.dtype).tiny), error * math.inf)
    ratio = torch.where(error == 0, 0.0, torch.where(torch.isnan(ratio), math.inf, ratio))
    if before.place and float(ratio.max()) <= before.ratio:
        return before
    index = tuple(int(i) for i in torch.unravel_index(ratio.argmax().cpu(), error.shape))
    words = [
        f"{name if name == 'log_prob' else name.replace('_', ' ')} {number(tensor.detach()[index])}"
        for name, tensor in shown.items()
    ]
    return LawResult(before.law, float(error[index]), float(bound[index]), ", ".join([*words, text] if text else words))
