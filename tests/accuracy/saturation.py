"""`python -m tests.accuracy.saturation`: the picture of what a saturating distribution function does, for the pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import scipy.special
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch import distributions as td

from emfc.report.canvas import new_figure, save_figure
from emfc.transforms import from_normal
from tests.accuracy import page, tails
from tests.accuracy.oracle import Truth
from tests.transforms.tables import basic

PICTURE = page.ROOT / "docs" / "images" / "saturation.svg"
LIMIT = 9.0
POINTS = 241


@dataclass(frozen=True)
class Panel:
    """One family: its distribution in a dtype, the quantile of a probability as one writes it, its exact tails.

    Drawn from a noise on, on a scale of values.
    """

    build: Callable[[torch.dtype], td.Distribution]
    icdf: Callable[[Tensor], Tensor]
    tails: Callable[..., Any]
    parameters: list[Any]
    low: float = 3.0
    scale: str = "linear"


_LOGITS, _LOCS, _SCALES = [0.0, 0.0, -2.0], [-3.0, 1.0, 4.0], [0.5, 1.0, 0.3]


def _mixture(dtype: torch.dtype) -> td.Distribution:
    logits, locs, scales = (torch.tensor(values, dtype=dtype) for values in (_LOGITS, _LOCS, _SCALES))
    return td.MixtureSameFamily(td.Categorical(logits=logits), td.Normal(locs, scales))


def _halved(p: Tensor) -> Tensor:
    """Quantile of the mixture by halving a bracket of its distribution function, in the dtype of the probability."""
    dist = _mixture(p.dtype)
    low, high = torch.full_like(p, -60.0), torch.full_like(p, 60.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = dist.cdf(middle) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(p >= 1, torch.inf, torch.where(p <= 0, -torch.inf, high))


def _scipy(function: Callable[..., Any], *parameters: float) -> Callable[[Tensor], Tensor]:
    return lambda p: torch.from_numpy(function(*(np.asarray(v, dtype=p.numpy().dtype) for v in parameters), p.numpy()))


PANELS = {
    "Exponential": Panel(
        lambda dtype: td.Exponential(torch.ones((), dtype=dtype)),
        lambda p: -torch.log1p(-p),
        basic._exponential,
        [1.0],
    ),
    "Gamma, concentration 3": Panel(
        lambda dtype: td.Gamma(torch.tensor(3.0, dtype=dtype), torch.ones((), dtype=dtype)),
        _scipy(scipy.special.gammaincinv, 3.0),
        lambda x, a: tails.gamma(x, a),
        [3.0],
    ),
    "StudentT, 5 degrees of freedom": Panel(
        lambda dtype: td.StudentT(torch.tensor(5.0, dtype=dtype)),
        _scipy(scipy.special.stdtrit, 5.0),
        tails.student,
        [5.0],
        scale="log",
    ),
    "mixture of three Normal": Panel(
        _mixture, _halved, tails.mixture(tails.normal), [_LOGITS, _LOCS, _SCALES], low=-LIMIT
    ),
}


def truth(panel: Panel, noise: Tensor) -> Tensor:
    """Exact values: those of float64, moved to where mpmath finds the noise."""
    transform = from_normal(panel.build(torch.float64))
    value, ladj = transform.call_and_ladj(noise.double())
    moved = []
    for x, slope, e in zip(value.tolist(), ladj.exp().tolist(), noise.tolist(), strict=True):
        moved.append(x - slope * Truth(panel.tails, x, panel.parameters, 60).error(0, e))
    return torch.tensor(moved, dtype=torch.float64)


def draw() -> Figure:
    """The figure."""
    figure = new_figure(9, 6.2)
    for axes, (name, panel) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        noise = torch.linspace(panel.low, LIMIT, POINTS)
        ours = from_normal(panel.build(torch.float32)).call_and_ladj(noise)[0]
        naive = panel.icdf(torch.special.ndtr(noise))
        exact = truth(panel, noise)
        top = noise[torch.isinf(naive)]
        axes.plot(noise, exact, color="0.75", linewidth=6, label="exact (mpmath)", solid_capstyle="round")
        axes.plot(noise, ours, color="tab:blue", linewidth=1.5, label="emfc, float32")
        finite = torch.isfinite(naive) & (naive.abs() > 0)
        axes.plot(
            noise[finite], naive[finite], color="tab:red", linewidth=1.2, linestyle="--", label="F⁻¹(Φ(e)), float32"
        )
        for side, label in ((top[top > 0], "∞"), (top[top < 0], "−∞")):
            if side.numel():
                start, end = side.min().item(), side.max().item()
                axes.axvspan(start, end, color="tab:red", alpha=0.12, linewidth=0)
                axes.text(
                    0.5 * (start + end), 0.04, label, transform=axes.get_xaxis_transform(), color="tab:red", ha="center"
                )
        axes.set_yscale(panel.scale)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("noise e")
        axes.set_ylabel("value x")
    figure.axes[0].legend(loc="upper left", fontsize=8, frameon=False)
    return figure


def main() -> None:
    """Write the picture."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "emfc", "svg.fonttype": "path"}):
        save_figure(draw(), PICTURE)
    print(f"wrote {PICTURE.relative_to(page.ROOT)}")


if __name__ == "__main__":
    main()
