"""Latent sites and data as one program: posterior predictive draws, and data simulated from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.inference.weighted import require_count
from emfc.layers.log_joint import LogJoint
from emfc.layers.structured import StructuredLayer
from emfc.options import read_seed
from emfc.program.condition import condition
from emfc.program.errors import CompileError
from emfc.program.ir import Program
from emfc.program.target import Target, without_adjustment

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["JointProgram", "joint_program", "predictive_at", "predictive_draws"]

_AT_ONCE = 1024


class JointProgram:
    """The program of a target's latent sites and data, all of them drawn.

    Scales and masks count nowhere here: they change what data are worth, not what data look like.

    Args:
        target: The target.

    Raises:
        CompileError: A site of the data has a family from which the compiled program cannot draw.
    """

    def __init__(self, target: Target) -> None:
        self.layer = StructuredLayer(unadjusted(target))
        names = {target.program.sites[index].name for index in target.data}
        layer = self.layer
        self.data_sites = {name: shape for name, shape in layer.example_sites.items() if name in names}
        self.latent_sites = {name: shape for name, shape in layer.example_sites.items() if name not in names}
        self._given = {target.program.sites[index].name: value for index, value in target.data.items()}
        columns: dict[bool, list[int]] = {True: [], False: []}
        for name, (start, shape) in layer.packing.places.items():
            columns[name in names].extend(range(start, start + _size(shape)))
        self.data_columns, self.latent_columns = torch.tensor(columns[True]), torch.tensor(columns[False])
        noise = [
            layer.plan.noise[index] + offset
            for index in layer.plan.example
            if layer.program.sites[index].name in names
            for offset in range(layer.program.sites[index].noise_size)
        ]
        self.data_noise = torch.tensor(noise, dtype=torch.long)
        sites = layer.program.sites
        self.data_first = any(
            sites[parent].name in names
            for index, site in enumerate(sites)
            if site.name not in names
            for parent in layer.plan.parents[index]
        )

    def simulate(self, count: int, *, like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latent values ``[n, D]`` and data ``[n, O]``, drawn together from the program, each in program order."""
        layer = self._layer(like)
        noise = torch.randn(count, layer.noise_dim, dtype=like.dtype, device=like.device, generator=generator)
        with torch.no_grad():
            examples = torch.cat([layer()(part) for part in noise.split(_AT_ONCE)])
        values = layer.unpack(examples)
        data = [values[name].reshape(count, -1).to(like) for name in self.data_sites]
        none = examples.new_zeros(count, 0)
        return examples[:, self.latent_columns.to(like.device)], torch.cat([none, *data], 1)

    def draw_data(self, latent: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Data given latent values ``[n, D]``, by site ``[n, *site_shape]``.

        The latent values' own noise is kept, that of the data is drawn anew; latent sites that read data would change,
        which `data_first` tells.
        """
        layer = self._layer(latent)
        parts = []
        latent_columns, data_noise = self.latent_columns.to(latent.device), self.data_noise.to(latent.device)
        given = {name: value.to(latent) + (0.5 if self._discrete(name) else 0.0) for name, value in self._given.items()}
        data = torch.cat([given[name].reshape(-1) for name in self.data_sites]) if given else latent.new_zeros(0)
        with torch.no_grad():
            for held in latent.split(_AT_ONCE):
                example = held.new_zeros(len(held), layer.dim)
                example[:, latent_columns] = held
                example[:, self.data_columns.to(latent.device)] = data
                noise = layer().inv(example)
                noise[:, data_noise] = torch.randn(
                    len(held), len(data_noise), dtype=held.dtype, device=held.device, generator=generator
                )
                parts.append(layer()(noise))
        values = layer.unpack(torch.cat(parts))
        return {name: values[name] for name in self.data_sites}

    def set_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Takes over the values of the model's own parameters."""
        self.layer.set_values(values)

    def _layer(self, like: Tensor) -> StructuredLayer:
        return self.layer.to(device=like.device, dtype=like.dtype)

    def _discrete(self, name: str) -> bool:
        return any(site.discrete for site in self.layer.program.sites if site.name == name)


def unadjusted(target: Target) -> Program:
    """The program of latent sites and data without scales and masks, factors and computed observations.

    Improper priors are as in `Target.prior`.
    """
    sites = tuple(without_adjustment(site) for site in target.program.sites)
    dropped = [index for index, site in enumerate(sites) if site.observed]
    return condition(replace(target.program, sites=sites), {}, dropped)


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def joint_program(log_joint: LogJoint) -> JointProgram | None:
    """The joint program of a target, or None where the compiled program cannot draw the data."""
    try:
        joint = JointProgram(log_joint.target)
    except CompileError:
        return None
    return joint


def predictive_draws(posterior: Posterior, n: int, *, seed: int) -> dict[str, Tensor]:
    """Draws of new data by site; see `Posterior.predictive`."""
    require_count(n)
    seed = read_seed(seed)
    rows = posterior.chosen(n, seed) if posterior.trusted else _first(posterior, n, seed)
    return predictive_at(posterior, rows, seed=seed)


def predictive_at(posterior: Posterior, rows: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Draws of new data by site, one for each of these rows ``[n]`` of the posterior's draws.

    Raises:
        UserError: The posterior was loaded without its model, or the model has no data.
    """
    if not posterior.data:
        raise UserError("the model has no data, so that there is nothing to predict")
    latent = posterior.draws[rows]
    joint = posterior.joint
    if joint is not None and not joint.data_first and set(joint.data_sites) == set(posterior.data):
        joint.set_parameters(posterior.parameters)
        generator = torch.Generator(latent.device).manual_seed(seed)
        return joint.draw_data(latent, generator=generator)
    return _by_pyro(posterior, latent, seed=seed)


def _first(posterior: Posterior, n: int, seed: int) -> Tensor:
    """Rows of draws of equal weight."""
    if n <= len(posterior.draws):
        return torch.arange(n)
    return torch.randint(len(posterior.draws), (n,), generator=torch.Generator().manual_seed(seed))


def _by_pyro(posterior: Posterior, latent: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Runs the model itself under Pyro, one run per draw."""
    from pyro import poutine

    from emfc.inference.fixed import with_parameters
    from emfc.inference.infer import seeded
    from emfc.program.messenger import isolated_store

    source = posterior.require_source("a posterior predictive draw")
    free: Any = poutine.uncondition(with_parameters(source.model, posterior.parameters))
    values = posterior.flow.layer.unpack(latent)
    drawn: dict[str, list[Tensor]] = {name: [] for name in posterior.data}
    with seeded(seed), torch.no_grad(), isolated_store():
        for row in range(len(latent)):
            held = poutine.condition(free, data={name: value[row] for name, value in values.items()})
            nodes = poutine.trace(held).get_trace(*source.args, **source.kwargs).nodes
            for name in drawn:
                drawn[name].append(torch.as_tensor(nodes[name]["value"]))
    return {name: torch.stack(found) for name, found in drawn.items()}
