"""Ranks of simulation-based calibration, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emfc.inference.rank_tests import chi_square, ecdf_band, outside_band
from emfc.inference.verdict import USABLE

__all__ = ["Calibration", "ElementRanks"]

LEVEL = 0.05
_BINS = (50, 25, 20, 10, 5, 4, 2)


@dataclass(frozen=True)
class ElementRanks:
    """What the ranks of one element say.

    Attributes:
        name: ``"site"`` or ``"site[i,j]"``.
        p_value: Of a chi-square test of the histogram of ranks.
        inside: Whether the distribution function of the ranks stays in its simultaneous band.
        mean: Mean of rank / L: 0.5 where calibrated, less where posteriors lie too high.
        spread: Variance of the ranks over that of calibrated ones: more than 1 where posteriors are too narrow.
        fault: What is wrong, in words; empty where nothing is.
    """

    name: str
    p_value: float
    inside: bool
    mean: float
    spread: float
    fault: str


@dataclass(frozen=True)
class Calibration:
    """Ranks of prior draws among the posterior draws of the data simulated from them.

    Attributes:
        names: Names of the elements.
        ranks: Numbers of posterior draws below the truth, 0 to L, ``[N, D]``.
        draws: L.
        khats: k-hat of each fit ``[N]``.
        failed: How many simulations could not be fitted and are left out.
        interrupted: Whether Ctrl-C ended it early.
    """

    names: tuple[str, ...]
    ranks: Tensor
    draws: int
    khats: Tensor
    failed: int = 0
    interrupted: bool = False

    @property
    def simulations(self) -> int:
        """Number of simulations that count."""
        return len(self.ranks)

    @property
    def bins(self) -> int:
        """Number of bins of the histograms: at least five ranks are expected in each."""
        fitting = [bins for bins in _BINS if (self.draws + 1) % bins == 0 and self.simulations >= 5 * bins]
        return fitting[0] if fitting else 2

    def histogram(self) -> Tensor:
        """Numbers of ranks in each bin ``[D, bins]``."""
        width = (self.draws + 1) // self.bins
        places = (self.ranks // width).clamp(max=self.bins - 1)
        return torch.stack([torch.bincount(column, minlength=self.bins) for column in places.T])

    def band(self) -> tuple[Tensor, Tensor]:
        """Simultaneous 95 % band, for all elements together, of the distribution function at j / (L + 1) ``[L]``."""
        return ecdf_band(self.simulations, self.draws, level=LEVEL / len(self.names))

    def elements(self) -> list[ElementRanks]:
        """What the ranks of each element say."""
        band = self.band()
        shares = (self.ranks.double() + 0.5) / (self.draws + 1)
        counts = self.histogram()
        found = []
        for column, name in enumerate(self.names):
            mean = float(shares[:, column].mean())
            spread = float((shares[:, column] - 0.5).square().mean()) * 12
            inside = not outside_band(self.ranks[:, column], self.draws, band)
            fault = "" if inside else _fault(mean, spread, self.simulations)
            p_value = chi_square(counts[column])
            found.append(ElementRanks(name, p_value, inside, mean, spread, fault))
        return found

    @property
    def calibrated(self) -> bool:
        """Whether no element leaves the band; the p-values of the histograms, one per element, do not decide."""
        return all(element.inside for element in self.elements())

    @property
    def verdict(self) -> str:
        """What the ranks say, in plain words."""
        faults: dict[str, list[str]] = {}
        for element in self.elements():
            if element.fault:
                faults.setdefault(element.fault, []).append(element.name)
        if not faults:
            few = "" if self.simulations >= 100 else "; so few show gross faults only"
            told = f"calibrated: in {self.simulations} simulations no ranks leave their 95 % band{few}"
        else:
            parts = [f"{fault} for {_listed(names)}" for fault, names in faults.items()]
            told = f"not calibrated: in {self.simulations} simulations the posterior is {'; '.join(parts)}"
        bad = int((self.khats > USABLE).sum())
        if bad:
            told += f"; k-hat was above 0.7 in {bad} of {self.simulations} fits"
        if self.failed:
            told += f"; {self.failed} simulated data sets could not be fitted and are left out"
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "simulations": self.simulations,
            "draws": self.draws,
            "calibrated": self.calibrated,
            "verdict": self.verdict,
            "failed": self.failed,
            "interrupted": self.interrupted,
            "khats": self.khats.tolist(),
            "elements": {
                held.name: {
                    "p_value": held.p_value,
                    "inside": held.inside,
                    "mean": held.mean,
                    "spread": held.spread,
                    "histogram": counts.tolist(),
                }
                for held, counts in zip(self.elements(), self.histogram(), strict=True)
            },
        }

    def __str__(self) -> str:
        return f"Calibration: {self.verdict}."


def _fault(mean: float, spread: float, count: int) -> str:
    """What ranks outside their band say."""
    shift = (mean - 0.5) * math.sqrt(12 * count)
    if abs(shift) > 3:
        return "too high" if shift < 0 else "too low"
    if spread > 1:
        return "too narrow (sure of too much)"
    return "too wide (sure of too little)"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
