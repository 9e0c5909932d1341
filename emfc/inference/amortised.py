"""Amortised inference: a flow that is conditioned on the data, trained for all data that the model can draw."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.inference.encoders import SetNetwork, perceptron, rows_of
from emfc.inference.fitting import FitRecord
from emfc.inference.variational import VariationalFlow
from emfc.layers.log_joint import LogJoint
from emfc.layers.structured import StructuredLayer
from emfc.program.errors import CompileError
from emfc.program.target import Target

__all__ = ["Amortiser", "Simulator", "data_vector", "fit_amortised"]


class Amortiser(nn.Module):
    """From the data of a model to what its flow is conditioned on.

    Data are centred and scaled as simulations of the model are, once `standardise` has seen some.

    Args:
        network: True or a width for a perceptron of the flat data, ``"set"`` for a network that does not depend on the
            order of rows, or an `nn.Module` from flat data ``[*, O]`` to ``[*, C]``.
        target: The model; its own data are the default.

    Raises:
        UserError: The model has no data, or the network is none of these.
    """

    def __init__(self, network: bool | int | str | nn.Module, target: Target) -> None:
        super().__init__()
        sites = target.program.sites
        self.sites = {sites[index].name: tuple(sites[index].shape) for index in sorted(target.data)}
        if not self.sites:
            raise UserError("an amortised guide needs data: the model observes nothing")
        dtype = getattr(torch, target.program.dtype)
        held = torch.cat([value.reshape(-1).to(dtype) for _, value in sorted(target.data.items())])
        self.data: Tensor
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("data", held, persistent=False)
        self.register_buffer("centre", torch.zeros_like(held))
        self.register_buffer("spread", torch.ones_like(held))
        self.own = not isinstance(network, nn.Module)
        if isinstance(network, nn.Module):
            self.network = network
        elif network == "set":
            self.network = SetNetwork([rows_of(sites[index]) for index in sorted(target.data)], 64, dtype)
        elif isinstance(network, int) and network > 0:
            width = 64 if network is True else network
            self.network = perceptron(2 * len(held), width, width, dtype)
        else:
            raise UserError(f"amortize is True, a width, 'set' or an nn.Module, not {network!r}")
        with torch.no_grad():
            self.features = int(self(None).shape[-1])

    def forward(self, data: Tensor | None) -> Tensor:
        """Context ``[*, C]`` of flat data ``[*, O]``; of the model's own where None."""
        held = self.data if data is None else data.to(self.data)
        if held.shape[-1] != len(self.data):
            raise UserError(f"the model has {len(self.data)} numbers of data, not {held.shape[-1]}")
        scaled = (held - self.centre) / self.spread
        if self.own:
            scaled = torch.cat([scaled.clamp(-8, 8), scaled.asinh()], -1)
        return self.network(scaled)  # type: ignore[no-any-return]

    def standardise(self, data: Tensor) -> None:
        """Centre and scale by medians and interquartile ranges of simulated data ``[S, O]``."""
        low, middle, high = torch.quantile(data[:10_000], data.new_tensor([0.25, 0.5, 0.75]), dim=0)
        spread = torch.where(high > low, (high - low) / 1.349, data.std(0))
        self.centre.copy_(middle)
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def flat(self, data: Tensor | Mapping[str, Any]) -> Tensor:
        """Flat data ``[*, O]`` of values by site.

        Raises:
            UserError: A site is missing, unknown or of another shape.
        """
        if isinstance(data, Tensor):
            return data
        if set(data) != set(self.sites):
            raise UserError(f"the data sites are {', '.join(self.sites)}, not {', '.join(map(str, data)) or 'none'}")
        parts = []
        for name, shape in self.sites.items():
            value = torch.as_tensor(data[name]).to(self.data)
            batch = value.ndim - len(shape)
            if batch < 0 or tuple(value.shape[batch:]) != shape:
                raise UserError(f"data site {name!r} has shape {list(shape)}, not {list(value.shape)}")
            parts.append(value.reshape(*value.shape[:batch], -1))
        shapes = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shapes, part.shape[-1]) for part in parts], -1)


def data_vector(
    model: Callable[..., Any], sites: Mapping[str, tuple[int, ...]], latent: Mapping[str, Tensor],
    args: tuple[Any, ...], kwargs: Mapping[str, Any],
) -> Tensor | None:  # fmt: skip
    """The flat data ``[O]`` that a model observes, given its arguments; None where it observes nothing.

    Args:
        model: The model.
        sites: Shapes of the data sites, in order.
        latent: Values of the latent sites, which are not drawn.
        args: The model's own arguments.
        kwargs: The model's own keyword arguments.

    Raises:
        UserError: A data site is missing or has another shape.
    """
    with poutine.block(), torch.no_grad():
        nodes = poutine.trace(poutine.condition(model, data=dict(latent))).get_trace(*args, **kwargs).nodes
    seen = [name for name in sites if name in nodes and nodes[name]["is_observed"]]
    found: dict[str, Any] = {name: nodes[name]["value"] for name in seen}
    if not found:
        return None
    for name, shape in sites.items():
        if name not in found:
            raise UserError(f"the model observes no value for data site {name!r} with these arguments")
        if tuple(found[name].shape) != shape:
            raise UserError(f"data site {name!r} has shape {list(shape)}, not {list(found[name].shape)}")
    return torch.cat([found[name].reshape(-1).to(torch.get_default_dtype()) for name in sites])


class Simulator:
    """Joint draws of a model's latent sites and data, through its compiled program.

    Args:
        target: The model.

    Raises:
        UserError: The model cannot be simulated: it has factors, masks, scales, improper priors or computed data, or a
            family without a transform.
    """

    def __init__(self, target: Target) -> None:
        program = target.program
        for site in program.sites:
            if site.observed or site.adjustment is not None or site.specification.family == "Adjusted":
                told = site.adjustment or "a computed or weighted observation"
                raise UserError(
                    f"the model cannot be simulated: site {site.name!r} has {told}; train the guide with "
                    "objective='elbo' on data sets of your own (datasets=...)"
                )
        try:
            self.layer = StructuredLayer(replace(program)).requires_grad_(False)
        except CompileError as error:
            raise UserError(
                f"the model cannot be simulated by its compiled program ({error}); train the guide with "
                "objective='elbo' on data sets of your own (datasets=...)"
            ) from error
        self.data = [program.sites[index].name for index in sorted(target.data)]
        self.latent = [name for name in self.layer.example_sites if name not in self.data]

    def __call__(self, count: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
        """Latent values ``[count, D]`` and data ``[count, O]``."""
        noise = torch.randn(count, self.layer.noise_dim, generator=generator, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            held = self.layer.unpack(self.layer()(noise))
        flat = {name: value.reshape(count, -1).to(like) for name, value in held.items()}
        return torch.cat([flat[name] for name in self.latent], -1), torch.cat([flat[name] for name in self.data], -1)


def fit_amortised(
    flow: VariationalFlow,
    amortiser: Amortiser,
    log_joint: LogJoint,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    particles: int = 256,
    objective: str = "auto",
    seed: int = 0,
    datasets: Tensor | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FitRecord:
    r"""Train a conditional flow q(x | y) for all data.

    ``"forward"`` minimises :math:`E_{p(x, y)}[-\log q(x \mid y)]` over simulations of the model, ``"elbo"`` maximises
    :math:`E_y E_{q(x \mid y)}[\log p(x, y) - \log q(x \mid y)]` over simulated or given data sets; ``"auto"`` is the
    first, or the second where data sets are given.

    Args:
        flow: The flow, with a context.
        amortiser: From data to context.
        log_joint: The model's log joint density.
        seconds: Wall time at most.
        steps: Number of optimiser steps at most; 3,000 where neither is given.
        particles: Simulations per step.
        objective: ``"auto"``, ``"forward"`` or ``"elbo"``.
        seed: Of the random numbers.
        datasets: Flat data sets ``[S, O]``, for the ELBO.
        progress: Called with the step and minus the loss there.

    Raises:
        UserError: Another objective, or a model that cannot be simulated without data sets.
    """
    if objective not in ("auto", "forward", "elbo"):
        raise UserError(f"the objective of an amortised guide is 'auto', 'forward' or 'elbo', not {objective!r}")
    if objective == "auto":
        objective = "forward" if datasets is None else "elbo"
    if datasets is not None and objective == "forward":
        raise UserError("the forward objective simulates its data; give datasets with objective='elbo'")
    like = next(flow.parameters())
    generator = torch.Generator(device=like.device).manual_seed(seed)
    simulator = Simulator(log_joint.target) if datasets is None else None
    if simulator is not None:
        simulator.layer.to(like.device)

    def draw(count: int) -> tuple[Tensor | None, Tensor]:
        if simulator is not None:
            return simulator(count, generator, like)
        held = torch.zeros(0) if datasets is None else datasets.to(like)
        rows = torch.randint(len(held), (count,), generator=generator, device=like.device)
        return None, held[rows]

    def bound(data: Tensor) -> Tensor:
        value, log_q = flow.rsample_and_log_prob((), amortiser(data))
        held: Tensor = log_joint(value, data)
        return held - log_q

    began, history = time.perf_counter(), []
    amortiser.standardise(draw(4096)[1])
    parameters = [*flow.parameters(), *amortiser.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    total = steps if steps is not None else (3000 if seconds is None else None)
    number, done, stopped = 0, 0.0, "budget"
    while done < 1:
        number += 1
        values, data = draw(particles)
        gain = bound(data) if values is None or objective == "elbo" else flow.log_prob(values, amortiser(data))
        kept = gain[gain.isfinite()]
        loss = -kept.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        spent = time.perf_counter() - began
        done = max(number / total if total is not None else 0.0, spent / seconds if seconds is not None else 0.0)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * max(0.5 * (1 + math.cos(math.pi * min(done, 1.0))), 1e-2)
        optimiser.step()
        if number % 50 == 0:
            history.append((number, -float(loss)))
            if progress is not None:
                progress(number, -float(loss))
    with torch.no_grad():
        terms = bound(draw(4096)[1])
    return FitRecord(
        elbo=float(terms.mean()),
        elbo_se=float(terms.std() / math.sqrt(len(terms))),
        steps=number,
        seconds=time.perf_counter() - began,
        start="prior",
        stopped=stopped,
        history=history,
    )
