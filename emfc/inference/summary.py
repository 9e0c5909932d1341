"""The table of a posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from emfc.inference.diagnostics import mean_ess, weighted_khat, weighted_quantiles
from emfc.inference.verdict import USABLE

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["PROBABILITIES", "Row", "Summary", "make_summary"]

PROBABILITIES = (0.05, 0.5, 0.95)
HEADINGS = ("mean", "sd", "5 %", "50 %", "95 %", "ESS", "k-hat")


@dataclass(frozen=True)
class Row:
    """One element of a latent site.

    Attributes:
        name: ``"site"`` or ``"site[i,j]"``.
        mean: Posterior mean.
        sd: Posterior standard deviation.
        q05: 5 % quantile.
        q50: Median.
        q95: 95 % quantile.
        ess: Effective number of draws for the mean.
        khat: Pareto k-hat of the weighted mean, at least that of the weights.
    """

    name: str
    mean: float
    sd: float
    q05: float
    q50: float
    q95: float
    ess: float
    khat: float

    def cells(self) -> list[str]:
        """The numbers as text."""
        numbers = [_number(value) for value in (self.mean, self.sd, self.q05, self.q50, self.q95)]
        return [*numbers, f"{self.ess:.0f}", f"{self.khat:.2f}"]


@dataclass(frozen=True)
class Summary:
    """Rows for the elements of the latent sites, and what holds for all.

    Attributes:
        rows: One row per element, in the order of the example.
        sites: Shapes of the sites.
        elbo: Evidence lower bound, nats.
        elbo_se: Its standard error.
        log_evidence: Importance-weighted log evidence, nats.
        log_evidence_se: Its standard error.
        khat: Pareto k-hat of the weights.
        ess: Effective number of draws of the weights.
        reweighted: Whether the rows are reweighted by importance.
        verdict: What k-hat says, in words.
        conflicts: Sites whose prior contradicts the data, and their distance in prior standard deviations.
        parameters: Point estimates of the model's own parameters.
    """

    rows: tuple[Row, ...]
    sites: dict[str, tuple[int, ...]]
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    khat: float
    ess: float
    reweighted: bool
    verdict: str
    conflicts: dict[str, float]
    parameters: dict[str, Any]

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values: figures, and for each site its numbers nested as its shape."""
        document = {key: value for key, value in asdict(self).items() if key not in ("rows", "sites")}
        sites: dict[str, Any] = {}
        start = 0
        for name, shape in self.sites.items():
            size = math.prod(shape)
            rows = self.rows[start : start + size]
            start += size
            sites[name] = {
                key: _nested([getattr(row, key) for row in rows], shape)
                for key in ("mean", "sd", "q05", "q50", "q95", "ess", "khat")
            }
        return {**document, "sites": sites}

    def figures(self) -> list[str]:
        """Lines about the whole posterior."""
        lines = [
            f"ELBO {_nats(self.elbo)} ± {_nats(self.elbo_se)} nats, "
            f"log evidence {_nats(self.log_evidence)} ± {_nats(self.log_evidence_se)} nats, "
            f"{self.ess:.0f} effective draws",
            f"The result is {self.verdict}.",
        ]
        poor = [row for row in self.rows if row.khat >= USABLE > self.khat]
        if poor:
            names = ", ".join(row.name for row in poor[:3]) + (", ..." if len(poor) > 3 else "")
            largest = max(row.khat for row in poor)
            lines.append(
                f"But not the mean and sd of {names}: the k-hat of their tails is up to {largest:.2f}; "
                "use their quantiles."
            )
        for name, distance in self.conflicts.items():
            lines.append(
                f"Beware: the prior of {name} contradicts the data; its posterior lies {distance:.1f} prior standard "
                "deviations out. Check both before using the result."
            )
        for name, value in self.parameters.items():
            lines.append(f"parameter {name} = {_told(value)} (point estimate)")
        return lines

    def __str__(self) -> str:
        cells = [["", *HEADINGS], *([row.name, *row.cells()] for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = []
        for first, *rest in cells:
            padded = [text.rjust(width + 2) for text, width in zip(rest, widths[1:], strict=True)]
            lines.append(first.ljust(widths[0]) + "".join(padded))
        return "\n".join([*lines, "", *self.figures()])


def make_summary(posterior: Posterior) -> Summary:
    """The table of a posterior; reweighted where the weights can be trusted."""
    draws, weights = posterior.draws.double(), posterior.weights.double()
    levels = draws.new_tensor(PROBABILITIES)
    low, middle, high = weighted_quantiles(draws, weights, levels)
    mean = weights @ draws
    sd = (weights @ (draws - mean).square()).sqrt()
    size = mean_ess(draws, posterior.smoothed)
    khats = [max(posterior.khat, weighted_khat(column, posterior.log_weights)) for column in draws.T]
    columns = torch.stack([mean, sd, low, middle, high, size, draws.new_tensor(khats)], 1)
    names = posterior.flow.layer.element_names()
    rows = [Row(name, *numbers) for name, numbers in zip(names, columns.tolist(), strict=True)]
    return Summary(
        tuple(rows),
        posterior.sites,
        posterior.elbo,
        posterior.elbo_se,
        posterior.log_evidence,
        posterior.log_evidence_se,
        posterior.khat,
        posterior.ess,
        posterior.trusted,
        posterior.verdict,
        posterior.conflicts,
        {name: value.tolist() for name, value in posterior.parameters.items()},
    )


def _number(value: float) -> str:
    """A number to four figures, without an exponent where that is short."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.3e}"


def _told(value: Any) -> str:
    return f"[{', '.join(_told(item) for item in value)}]" if isinstance(value, list) else _number(value)


def _nested(values: list[float], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    step = math.prod(shape[1:])
    return [_nested(values[first * step : (first + 1) * step], shape[1:]) for first in range(shape[0])]


def _nats(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.4g}"
