"""Ways of inference: ours, and Pyro's guides on the same compiled log joint density."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emfc.cli.bench.inference_cells import Cell, evaluate
from emfc.cli.bench.inference_references import Prepared
from emfc.layers.log_joint import LogJoint

__all__ = ["PEERS", "infer_cell", "peer_cell", "trained_peer"]

PEERS = ("AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal")
PEER_PARTICLES, PEER_RATE = 32, 0.01


def infer_cell(prepared: Prepared, *, seed: int, seconds: float, draws: int) -> Cell:
    """Our inference with its default settings."""
    from emfc.inference.infer import infer

    began, processor = time.perf_counter(), time.process_time()
    posterior = infer(partial(prepared.model, **prepared.data), seconds=seconds, seed=seed, draws=100)
    if posterior.record.stopped == "interrupted":
        raise KeyboardInterrupt
    took = (time.perf_counter() - began, time.process_time() - processor)
    flow, record = posterior.flow, posterior.record
    if posterior.log_joint is None:
        raise RuntimeError("a posterior that was just inferred has its log joint density")

    def sampler(noise: Tensor) -> tuple[Tensor, Tensor]:
        examples, log_q = flow.rsample_and_log_prob((len(noise),), noise=noise)
        return examples, log_q

    found = evaluate(
        prepared,
        sampler,
        posterior.log_joint,
        flow.layer.unpack,
        noise_dim=flow.noise_dim,
        draws=draws,
        seed=seed + 1000,
    )
    family = ", ".join(f"{name} {value}" for name, value in posterior.options.items())
    kept = f"{family}; start {record.start}; {record.stopped}"
    return _cell(prepared, "emfc", seed, seconds, found, steps=record.steps, took=took, kept=kept)


def _cell(
    prepared: Prepared,
    way: str,
    seed: int,
    budget: float,
    found: Mapping[str, Any],
    *,
    steps: int,
    took: tuple[float, float],
    kept: str,
) -> Cell:
    seconds, processor = took
    key = prepared.target.key
    return Cell(key, way, seed, budget, steps=steps, seconds=seconds, processor=processor, kept=kept, **found)


class Peer:
    """One of Pyro's guides over unconstrained coordinates, whose values are the compiled log joint's examples.

    Args:
        prepared: The target.
        log_joint: Its log joint density.
        way: Which of `PEERS`.
    """

    def __init__(self, prepared: Prepared, log_joint: LogJoint, way: str) -> None:
        from pyro import poutine
        from pyro.infer import autoguide
        from pyro.infer.autoguide.initialization import InitMessenger, init_to_value

        from emfc.layers.structured import StructuredLayer

        self.layer = StructuredLayer(log_joint.target.prior(), gate=None)
        self.sites = list(self.layer.example_sites)
        with torch.no_grad():
            middle = self.layer()(torch.zeros(1, self.layer.noise_dim))
        self.start = {name: value[0] for name, value in self.layer.unpack(middle).items()}
        latent = poutine.block(prepared.model, expose=self.sites)
        model: Any = InitMessenger(init_to_value(values=self.start))(latent)
        kinds = {
            "AutoNormal": autoguide.AutoDiagonalNormal,  # the same family, of one vector
            "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
            "AutoIAFNormal": autoguide.AutoIAFNormal,
        }
        self.guide = kinds[way](model)
        self.guide._setup_prototype(**prepared.data)
        self.guide._create_plates(**prepared.data)
        self.guide.get_posterior()
        self.guide.to(torch.get_default_dtype())

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws ``[count, D]`` and their log density."""
        posterior = self.guide.get_posterior()
        free = posterior.rsample((count,))
        values, inside = self.constrain(free)
        packed = self.layer.pack({name: values[name] for name in self.sites})
        return packed, posterior.log_prob(free) - inside

    def constrain(self, free: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values by site from the guide's unconstrained coordinates ``[S, U]``, and log-Jacobians ``[S]``."""
        values: dict[str, Tensor] = {}
        total, place, count = torch.zeros(len(free)), 0, len(free)
        for name, site in self.guide.prototype_trace.iter_stochastic_nodes():
            transform = self._transform(site, values)
            shape = self.guide._unconstrained_shapes[name]
            size = math.prod(shape)
            unconstrained = free[:, place : place + size].reshape(count, *shape)
            place += size
            values[name] = transform(unconstrained)
            inside = transform.log_abs_det_jacobian(unconstrained, values[name])
            total = total + inside.reshape(count, -1).sum(-1)
        return values, total

    def _transform(self, site: Mapping[str, Any], values: Mapping[str, Tensor]) -> Any:
        from torch.distributions import biject_to, constraints

        if site["name"] == "beta1" and "alpha1" in values:  # the one support that depends on another site
            return biject_to(constraints.interval(torch.zeros_like(values["alpha1"]), 1 - values["alpha1"]))
        return biject_to(site["fn"].support)


def peer_cell(prepared: Prepared, way: str, *, seed: int, seconds: float, draws: int) -> Cell:
    """One of Pyro's guides, trained on the compiled log joint density for the same time.

    It takes 32 particles a step and Adam at a rate of 0.01 that falls over the last fifth of the time. Pyro's own
    handlers would leave it fewer steps.
    """
    from emfc.inference.infer import seeded

    began, processor = time.perf_counter(), time.process_time()
    with seeded(seed):
        peer, log_joint, steps = trained_peer(prepared, way, seconds=seconds)
        took = (time.perf_counter() - began, time.process_time() - processor)
        found = evaluate(
            prepared,
            lambda noise: peer.sample(len(noise)),
            log_joint,
            peer.layer.unpack,
            noise_dim=1,
            draws=draws,
            seed=seed + 1000,
        )
    return _cell(prepared, way, seed, seconds, found, steps=steps, took=took, kept=f"Adam, {PEER_PARTICLES} particles")


def trained_peer(prepared: Prepared, way: str, *, seconds: float) -> tuple[Peer, LogJoint, int]:
    """A trained guide of Pyro, the target's log joint density and the number of steps."""
    from emfc.compiler import compile_target

    began, steps = time.perf_counter(), 0
    log_joint = compile_target(prepared.model, **prepared.data)
    peer = Peer(prepared, log_joint, way)
    optimiser = torch.optim.Adam(peer.guide.parameters(), lr=PEER_RATE)
    while (spent := (time.perf_counter() - began) / seconds) < 1 or not steps:
        for group in optimiser.param_groups:
            group["lr"] = PEER_RATE * min(1.0, max(5 * (1 - spent), 0.01))
        examples, log_q = peer.sample(PEER_PARTICLES)
        loss = (log_q - log_joint(examples)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return peer, log_joint, steps
