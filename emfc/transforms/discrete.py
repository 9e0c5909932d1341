"""Discrete families by tables of masses, dequantised: x = k + u with u uniform on [0, 1)."""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Size, Tensor, broadcast_shapes
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.utils import lazy_property
from torch.nn.functional import logsigmoid, pad, softplus

from emfc.special.normal import log_sum_exp
from emfc.special.precision import wide
from emfc.transforms.family import Evaluation, ScalarFamily
from emfc.transforms.registry import family_of
from emfc.transforms.supports import Position

__all__ = ["Bernoulli", "Binomial", "Categorical", "MixedTableFamily", "TableFamily", "lookup"]


def lookup(table: Tensor, level: Tensor) -> Tensor:
    """Rows of a table at levels, without expanding the table to the levels' shape.

    Args:
        table: Shape [*batch, levels, columns].
        level: Integer levels, of a shape that broadcasts against [*batch].

    Returns:
        Shape [*broadcast, columns].
    """
    batch, (levels, columns) = table.shape[:-2], table.shape[-2:]
    first = torch.arange(math.prod(batch), device=table.device).reshape(batch) * levels
    rows = (level + first).reshape(-1)
    return (
        table.reshape(-1, columns).index_select(0, rows).reshape(*torch.broadcast_shapes(level.shape, batch), columns)
    )


def _cumulative(masses: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities strictly below and strictly above each level."""
    below = pad(masses[..., :-1], (1, 0)).cumsum(-1)
    above = pad(masses[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
    return below, above


class TableFamily(ScalarFamily):
    """A discrete family with a table of log masses, dequantised.

    Its distribution function is linear within each level, so that both directions are closed forms.

    Args:
        log_masses: Log masses, shape [..., levels]; normalised here.
        levels: How many levels each element has, where elements differ; the others' masses are 0.
    """

    discrete = True

    def __init__(self, log_masses: Tensor, levels: Tensor | None = None) -> None:
        self.log_masses = torch.log_softmax(wide(log_masses), -1)
        self.batch_shape = self.log_masses.shape[:-1]
        self.levels: int | Tensor = self.log_masses.shape[-1] if levels is None else levels
        self.support = constraints.half_open_interval(0, self.levels)

    def expand(self, batch_shape: Size) -> ScalarFamily:
        """The same family with a larger batch shape."""
        new = copy(self)
        new.__dict__.pop("table", None)
        new.batch_shape = batch_shape
        new.log_masses = self.log_masses.expand(*batch_shape, self.log_masses.shape[-1])
        return new

    @lazy_property
    def table(self) -> Tensor:
        """Log mass, probability below and probability above of each level, shape [..., levels, 3]."""
        return torch.stack((self.log_masses, *_cumulative(self.log_masses.exp())), -1)

    def _parts(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_mass, below, above = lookup(self.table, level).unbind(-1)
        return log_mass, below, above

    def _top(self) -> int | Tensor:
        return self.levels - 1

    def evaluate(self, at: Position) -> Evaluation:
        """Log mass of the floor and log tails."""
        top = self._top()
        with torch.no_grad():
            level = at.value.floor().clamp(min=0)
            level = torch.minimum(level, top.to(level.dtype)) if isinstance(top, Tensor) else level.clamp(max=top)
        part = (at.value - level).clamp(0, 1)
        rest = level + 1 - at.value
        if at.above is not None:
            rest = torch.where(level == top, at.above, rest)
        rest = rest.clamp(0, 1)
        log_mass, below, above = self._parts(level.long())
        mass, tiny = log_mass.exp(), torch.finfo(log_mass.dtype).tiny
        return Evaluation(
            log_mass,
            (below + part * mass).clamp(min=tiny).log(),
            (above + rest * mass).clamp(min=tiny).log(),
        )

    def _cumulative_masses(self) -> tuple[Tensor, Tensor, Tensor]:
        masses = self.log_masses.exp()
        return masses, *_cumulative(masses)

    def knots(self) -> tuple[Position, Tensor, Tensor] | None:
        """The levels' lower ends, without the first; none where elements differ in how many they have."""
        if isinstance(self.levels, Tensor) or self.levels < 2:
            return None
        _, below, above = self._cumulative_masses()
        tiny = torch.finfo(below.dtype).tiny
        value = torch.arange(1, self.levels, dtype=below.dtype, device=below.device)
        log_p, log_q = below[..., 1:].clamp(min=tiny).log(), above[..., :-1].clamp(min=tiny).log()
        return Position(value, value, self.levels - value), log_p, log_q

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Level found by counting, place in it by linear interpolation."""
        return self.locate(log_p, log_q).value

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """Quantile with an exact distance to the upper end."""
        masses, below, above = self._cumulative_masses()
        tiny = torch.finfo(masses.dtype).tiny
        lower = log_p < log_q
        p, q = log_p.exp().clamp(min=tiny), log_q.exp().clamp(min=tiny)
        top = self._top()
        with torch.no_grad():
            passed_below = below[..., 1:] <= p.unsqueeze(-1)
            passed_above = above[..., :-1] >= q.unsqueeze(-1)
            count = torch.where(lower.unsqueeze(-1), passed_below, passed_above).sum(-1)
            count = torch.minimum(count, top) if isinstance(top, Tensor) else count
        mass, low, high = lookup(torch.stack((masses, below, above), -1), count).unbind(-1)
        mass = mass.clamp(min=tiny**0.5)  # its square is divided by in derivatives
        part, rest = (p - low) / mass, (q - high) / mass
        level = count.to(part.dtype)
        value = torch.where(lower, level + part, level + (1 - rest))
        with torch.no_grad():
            zero = torch.zeros_like(value)
            first = torch.maximum(level, torch.nextafter(zero, zero + 1))
            last = torch.nextafter(level + 1, zero)
            shift = value.maximum(first).minimum(last) - value
        value = value + shift
        above_value = torch.where(level == top, torch.where(lower, 1 - part, rest).clamp(min=tiny), self.levels - value)
        return Position(value, value, above_value)


class MixedTableFamily(TableFamily):
    """Mixture over the last batch dimension of discrete families, in closed form.

    The density direction looks the components' cumulative tables up at the observed level and then mixes.
    """

    def __init__(self, log_weights: Tensor, component: TableFamily) -> None:
        self.log_weights = torch.log_softmax(wide(log_weights), -1)
        self.component = component
        self.batch_shape = broadcast_shapes(log_weights.shape, component.batch_shape)[:-1]
        levels = component.levels
        self.levels = levels.amax(-1) if isinstance(levels, Tensor) and levels.dim() > 0 else levels
        self.support = constraints.half_open_interval(0, self.levels)

    @lazy_property
    def table(self) -> Tensor:
        """Tables of all components side by side, shape [..., levels, 3 K], without the weights."""
        return self.component.table.movedim(-3, -2).flatten(-2)

    def _parts(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = lookup(self.table, level).unflatten(-1, (-1, 3))
        log_mass = log_sum_exp(self.log_weights + parts[..., 0])
        weights = self.log_weights.exp()
        return log_mass, (weights * parts[..., 1]).sum(-1), (weights * parts[..., 2]).sum(-1)

    @property
    def log_masses(self) -> Tensor:  # type: ignore[override]
        """Log masses of the mixture, shape [..., levels]."""
        return log_sum_exp((self.log_weights.unsqueeze(-1) + self.component.log_masses).movedim(-2, -1))

    def _cumulative_masses(self) -> tuple[Tensor, Tensor, Tensor]:
        component = self.component.log_masses.exp()
        weights = self.log_weights.exp()
        masses = torch.einsum("...k,...kl->...l", *_same_rank(weights, component))
        return masses, *_cumulative(masses)


def _same_rank(weights: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many batch dimensions, so that none is expanded."""
    missing = weights.dim() - (tables.dim() - 1)
    if missing > 0:
        tables = tables.reshape((1,) * missing + tables.shape)
    if missing < 0:
        weights = weights.reshape((1,) * -missing + weights.shape)
    if weights.shape[-1] != tables.shape[-2]:
        count = max(weights.shape[-1], tables.shape[-2])
        weights = weights.expand(*weights.shape[:-1], count)
        tables = tables.expand(*tables.shape[:-2], count, tables.shape[-1])
    return weights, tables


@family_of(td.Categorical)
class Categorical(TableFamily):
    """Any masses on 0, ..., levels - 1."""

    def __init__(self, dist: td.Categorical) -> None:
        super().__init__(dist.logits)


@family_of(td.Bernoulli)
class Bernoulli(TableFamily):
    """Masses on 0 and 1."""

    def __init__(self, dist: td.Bernoulli) -> None:
        logits = wide(dist.logits)
        super().__init__(torch.stack((logsigmoid(-logits), logsigmoid(logits)), -1))


@family_of(td.Binomial)
class Binomial(TableFamily):
    """Counts of successes; `total_count` may differ between elements."""

    def __init__(self, dist: td.Binomial) -> None:
        logits, count = torch.broadcast_tensors(wide(dist.logits), wide(dist.total_count))
        highest = int(count.max()) if count.numel() > 0 else 0
        k = torch.arange(highest + 1, device=logits.device, dtype=logits.dtype)
        n = count.unsqueeze(-1)
        inside = k <= n
        rest = torch.where(inside, n - k, 0)
        ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(rest + 1)
        logit = logits.unsqueeze(-1)
        log_masses = ways + k * logit - n * softplus(logit)
        same = bool((count == highest).all())
        super().__init__(torch.where(inside, log_masses, -math.inf), None if same else (count + 1).long())
