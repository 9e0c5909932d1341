"""Random programs of labels and what reads them: chains, plates, sums, in any order."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch

__all__ = ["random_populations"]

_BITS = 8.5  # of all labels together, which the reference enumerates


@dataclass(frozen=True)
class _Site:
    name: str
    kind: str
    size: int
    plated: bool
    parents: tuple[str, ...]
    slopes: tuple[float, ...]
    summed: tuple[bool, ...]


def _read(value: torch.Tensor, size: int, summed: bool) -> torch.Tensor:
    """A parent's value, row by row where it has as many rows, else all rows or the last one."""
    value = 1.0 * (value[:, 0] if value.ndim == 2 else value)
    if len(value) == size:
        return value
    return value.sum() if summed else value[-1]


def _distribution(kind: str, loc: torch.Tensor) -> Any:
    if kind == "bernoulli":
        return dist.Bernoulli(logits=loc)
    if kind == "three":
        return dist.Categorical(logits=torch.stack([0.1 * level + 0.7 * level * loc for level in range(3)], -1))
    if kind == "leaf":
        return dist.Categorical(logits=torch.stack([loc, -loc, 0.3 * loc], -1))
    if kind == "vector":
        tril = torch.tensor([[1.0, 0.0], [0.4, 0.6]]) * torch.exp(0.1 * loc)[..., None, None]
        return dist.MultivariateNormal(torch.stack([loc, -loc], -1), scale_tril=tril)
    if kind == "spread":
        tril = torch.tensor([[1.0, 0.0], [0.4, 0.6]]) * torch.exp(0.5 * loc)[..., None, None]
        return dist.MultivariateNormal(torch.zeros(2), scale_tril=tril)
    return dist.Normal(loc, 0.7) if kind == "normal" else dist.Laplace(loc, torch.exp(0.2 * loc))


def random_populations(seed: int) -> Callable[[], None]:
    """A random program of two to nine sites, about half of them labels."""
    chance = random.Random(seed)
    sites: list[_Site] = []
    labels: list[str] = []
    values: list[str] = []
    bits = 0.0
    for number in range(chance.randint(2, 9)):
        plated = chance.random() < 0.3
        size = chance.randint(2, 3) if plated else 1
        kind = chance.choice(("normal", "vector", "spread", "laplace", "leaf"))
        pool, most = labels[-3:] * 2 + values[-2:], 3
        if chance.random() < 0.5 and bits + 1.6 * size <= _BITS:
            kind, pool, most = chance.choice(("bernoulli", "three")), labels + values, 2
            bits += size * math.log2(2 if kind == "bernoulli" else 3)
        chosen = tuple(chance.choice(pool) for _ in range(min(len(pool), chance.randint(0, most))))
        slopes = tuple(chance.uniform(-1.0, 1.0) for _ in range(len(chosen) + 1))
        summed = tuple(chance.random() < 0.5 for _ in chosen)
        name = f"{'z' if most == 2 else 'x'}_{number}"
        (labels if most == 2 else values).append(name)
        sites.append(_Site(name, kind, size, plated, chosen, slopes, summed))
    if not values:
        sites.append(_Site("x", "normal", 1, False, tuple(labels[-1:]), (0.3, 1.0), (True,)))

    def model() -> None:
        found: dict[str, torch.Tensor] = {}
        for site in sites:
            loc = torch.zeros(site.size) + site.slopes[0]
            for parent, slope, summed in zip(site.parents, site.slopes[1:], site.summed, strict=True):
                value = _read(found[parent], site.size, summed)
                loc = loc + (3 * slope * value if parent[0] == "z" else torch.tanh(slope * value))
            with pyro.plate(f"rows of {site.name}", site.size) if site.plated else contextlib.nullcontext():
                value = pyro.sample(site.name, _distribution(site.kind, loc if site.plated else loc[0]))
            found[site.name] = value if site.plated else value[None]

    return model
