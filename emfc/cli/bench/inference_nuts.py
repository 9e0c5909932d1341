"""The no-U-turn sampler through a trained density: ours, and Pyro's through its `AutoIAFNormal`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emfc.cli.bench.inference_cells import Cell, compare
from emfc.cli.bench.inference_references import Prepared
from emfc.cli.bench.inference_ways import trained_peer

__all__ = ["NUTS", "PEER_NUTS", "nuts_cell", "peer_nuts_cell"]

NUTS, PEER_NUTS = "nuts", "nuts-AutoIAFNormal"
_SHARE = 1 / 3
"""Of the time of training: a sampler corrects what the guide lacks."""


def nuts_cell(prepared: Prepared, *, seed: int, seconds: float, samples: int) -> Cell:
    """One chain of the sampler through our guide trained for a third of the time, as many steps of warm-up as draws."""
    from emfc.inference.hmc import run_nuts
    from emfc.inference.infer import infer

    began, processor = time.perf_counter(), time.process_time()
    posterior = infer(partial(prepared.model, **prepared.data), seconds=_SHARE * seconds, seed=seed, draws=100)
    if posterior.record.stopped == "interrupted":
        raise KeyboardInterrupt
    if posterior.log_joint is None:
        raise RuntimeError("a posterior that was just inferred has its log joint density")
    chains = run_nuts(posterior.flow, posterior.log_joint, warmup=samples, samples=samples, seed=seed)
    took = (time.perf_counter() - began, time.process_time() - processor)
    values = {name: value.flatten(0, 1) for name, value in chains.draws.items()}
    return _cell(prepared, NUTS, seed, seconds, values, took, chains.divergences, posterior.record.steps)


def peer_nuts_cell(prepared: Prepared, *, seed: int, seconds: float, samples: int) -> Cell:
    """The same of Pyro's sampler and `NeuTraReparam` through Pyro's `AutoIAFNormal`, trained for the same time."""
    from pyro import poutine
    from pyro.infer import MCMC
    from pyro.infer import NUTS as Sampler
    from pyro.infer.reparam import NeuTraReparam

    from emfc.inference.infer import seeded

    began, processor = time.perf_counter(), time.process_time()
    with seeded(seed):
        peer, _, steps = trained_peer(prepared, "AutoIAFNormal", seconds=_SHARE * seconds)
        neutra = NeuTraReparam(peer.guide.requires_grad_(False))
        sampler = Sampler(poutine.reparam(prepared.model, config=lambda _: neutra), max_tree_depth=8)
        run = MCMC(sampler, num_samples=samples, warmup_steps=samples, disable_progbar=True)
        run.run(**prepared.data)
        (free,) = run.get_samples().values()
        with torch.no_grad():
            for transform in peer.guide.get_posterior().transforms:
                free = transform(free)
            values, _ = peer.constrain(free)
        took = (time.perf_counter() - began, time.process_time() - processor)
    divergences = sum(len(held) for held in run.diagnostics()["divergences"].values())
    return _cell(prepared, PEER_NUTS, seed, seconds, values, took, divergences, steps)


def _cell(
    prepared: Prepared,
    way: str,
    seed: int,
    budget: float,
    values: Mapping[str, Tensor],
    took: tuple[float, float],
    divergences: int,
    steps: int,
) -> Cell:
    from emfc.inference.diagnostics import ess_bulk

    quantities = prepared.target.quantities(values)
    flat = torch.cat([value.reshape(len(value), -1) for value in quantities.values()], -1)
    found: dict[str, Any] = {} if prepared.moments is None else compare(quantities, prepared.moments)
    ess = float(torch.stack([ess_bulk(column[None]) for column in flat.unbind(-1)]).min())
    return Cell(
        prepared.target.key,
        way,
        seed,
        budget,
        steps=steps,
        seconds=took[0],
        processor=took[1],
        ess=ess,
        divergences=divergences,
        **found,
    )
