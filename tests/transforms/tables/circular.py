"""The von Mises family, on the circle cut at plus and minus pi."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import torch
from torch import distributions as td

from tests.transforms.case import Case


class VonMises(td.VonMises):
    """torch's, but with the Bessel function to full precision: its own is a fit to seven digits."""

    def log_prob(self, value):
        scaled = torch.special.i0e(self.concentration).log() + self.concentration
        return self.concentration * torch.cos(value - self.loc) - math.log(2 * math.pi) - scaled


def _integral(concentration, low, high):
    """Of the density, up to a constant; cut at the mode and antimode."""
    places = [low, *(k * mp.pi for k in range(-2, 3) if low < k * mp.pi < high), high]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    with mp.workdps(40):
        return mp.quad(lambda t: mp.exp(concentration * (mp.cos(t) - 1)), sorted([*places, *middle]))


def _von_mises(x, loc, concentration):
    loc, k = mp.mpf(loc), mp.mpf(concentration)
    low, high = _integral(k, -mp.pi - loc, x - loc), _integral(k, x - loc, mp.pi - loc)
    return low / (low + high), high / (low + high)


CASES: dict[str, Case] = {
    "von mises": Case(VonMises, {"loc": [-2.0, 0.3, 3.0], "concentration": [0.5, 20.0, 3.0]}, _von_mises),
    "von mises away from the cut": Case(VonMises, {"loc": [-0.4, 0.0, 0.3], "concentration": [0.02, 1.0, 300.0]}),
}
