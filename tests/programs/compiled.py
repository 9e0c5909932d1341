"""Compiled programs of the corpus, and the density of a bare layer, as the law tests need them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch

import emfc
from tests.programs.accepted import PROGRAMS
from tests.programs.watch import Model, draw, run

__all__ = ["compiled", "density", "draws", "examples", "perturb"]


def perturb(layer: torch.nn.Module, seed: int = 0) -> None:
    """Moves every learnable number of a layer a little, so that no law holds by the starting values alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


@cache
def _compiled(name: str, dtype: torch.dtype, optimize: bool) -> torch.nn.Module:
    model, args, kwargs = PROGRAMS[name].build()
    layer = emfc.compile(model, *args, optimize=optimize, **kwargs).to(dtype)
    perturb(layer)
    return layer


def compiled(name: str, *, optimize: bool = True) -> torch.nn.Module:
    """A program of the corpus compiled in the default dtype, parameters a little off their start; tests share it."""
    layer = _compiled(name, torch.get_default_dtype(), optimize)
    layer.zero_grad(set_to_none=True)
    return layer


def density(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Log density of examples under a bare layer: that of their noise, plus the inverse's log-Jacobian."""
    noise, ladj = layer().inv.call_and_ladj(x)
    return -0.5 * (noise**2 + math.log(2 * math.pi)).sum(-1) + ladj


def draws(
    model: Model, args, kwargs, *, number: int, seed: int, parameters: Mapping[str, torch.Tensor], slow_number: int
) -> dict[str, torch.Tensor]:
    """The program's own draws: all at once where torch vectorises its random numbers, else only ``slow_number``."""

    def once(_: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: site.value for name, site in run(model, args, kwargs, parameters=parameters).sites.items()}

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            return torch.vmap(once, randomness="different")(torch.zeros(number))
        except RuntimeError:
            pass
    return draw(model, args, kwargs, number=slow_number, seed=seed, parameters=parameters)


def examples(name: str, layer, *, number: int, seed: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Draws of a program at a layer's parameters: packed ``[number, D]``, and as the mapping that was packed."""
    case = PROGRAMS[name]
    model, args, kwargs = case.build()
    values = {key: value.detach() for key, value in layer.values().items()}
    found = draw(model, args, kwargs, number=number, seed=seed, parameters=values)
    mapping = {site: found[site] for site in case.example_sites}
    return layer.pack(mapping, generator=torch.Generator().manual_seed(seed)), mapping
