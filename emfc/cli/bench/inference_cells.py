"""One cell of the benchmark of inference: how far a fitted density is from the exact posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emfc.cli.bench.inference_references import Moments, Prepared
from emfc.layers.log_joint import LogJoint

__all__ = ["Cell", "Drawn", "compare", "evaluate"]

KHAT_DRAWS = 10_000
_AT_ONCE = 2_500

Draw = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Cell:
    """What one way of inference reached on one target with one seed; what was not measured is None.

    Attributes:
        target: Key of the target.
        way: ``"emfc"``, one of Pyro's guides, or a sampler.
        seed: Seed of everything random.
        budget: Seconds that training was allowed.
        elbo: Evidence lower bound in nats.
        elbo_se: Its standard error.
        evidence: Importance-weighted log evidence in nats.
        gap: Exact log evidence less the ELBO.
        khat: Pareto k-hat of 10,000 draws.
        mean_error: Worst error of a posterior mean, in reference standard deviations.
        worst: The quantity where it is.
        least_ratio: Least standard deviation over the reference's.
        most_ratio: Largest.
        steps: Steps of the optimiser.
        seconds: Wall time of training, compiling included; for a sampler, of training and sampling.
        processor: Seconds of the processor in that time; far fewer, where other programs ran too.
        kept: What was trained: family, start, reason to stop.
        ess: Effective draws of the worst element, of a sampler.
        divergences: Divergent steps of a sampler.
        counts: How many draws were compared, or sampled.
        source: Digest of the target's program file.
    """

    target: str
    way: str
    seed: int
    budget: float
    elbo: float | None = None
    elbo_se: float | None = None
    evidence: float | None = None
    gap: float | None = None
    khat: float | None = None
    mean_error: float | None = None
    worst: str | None = None
    least_ratio: float | None = None
    most_ratio: float | None = None
    steps: int | None = None
    seconds: float | None = None
    processor: float | None = None
    kept: str | None = None
    ess: float | None = None
    divergences: int | None = None
    counts: int = 0
    source: str = ""

    @property
    def ess_per_second(self) -> float | None:
        """Effective draws of the worst element per second, training included."""
        return None if self.ess is None or not self.seconds else self.ess / self.seconds


@dataclass(frozen=True)
class Drawn:
    """Draws of a fitted density and their log weights."""

    examples: Tensor
    log_weights: Tensor


@torch.no_grad()
def draw(sampler: Draw, log_joint: LogJoint, noise_dim: int, count: int, seed: int) -> Drawn:
    """Draw from a fitted density, a part at a time.

    Args:
        sampler: Draws and their log density from noise ``[S, noise_dim]``.
        log_joint: The target.
        noise_dim: Number of noise variables.
        count: How many draws.
        seed: Their seed.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, _AT_ONCE):
        noise = torch.randn(min(_AT_ONCE, count - start), noise_dim, generator=generator)
        examples, log_q = sampler(noise)
        parts.append((examples, log_joint(examples) - log_q))
    examples, log_weights = (torch.cat(part) for part in zip(*parts, strict=True))
    return Drawn(examples, log_weights)


def evaluate(
    prepared: Prepared,
    sampler: Draw,
    log_joint: LogJoint,
    unpack: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    noise_dim: int,
    draws: int,
    seed: int,
) -> dict[str, float | str | None]:
    """Hold a fitted density against the exact posterior.

    Args:
        prepared: The target.
        sampler: Draws and their log density from noise.
        log_joint: Log joint density of the target.
        unpack: Values by site from examples.
        noise_dim: Number of noise variables.
        draws: Draws for the ELBO, means and standard deviations, at least 10,000 (fewer also lessen those of k-hat).
        seed: Their seed.

    Returns:
        Attributes of a `Cell`.
    """
    from emfc.inference.psis import psis

    drawn = draw(sampler, log_joint, noise_dim, draws, seed)
    weights = drawn.log_weights
    elbo = float(weights.mean())
    _, khat = psis(weights[:KHAT_DRAWS])
    exact = prepared.target.evidence
    found: dict[str, float | str | None] = {
        "elbo": elbo,
        "elbo_se": float(weights.std()) / math.sqrt(len(weights)),
        "evidence": float(weights.logsumexp(0)) - math.log(len(weights)),
        "gap": None if exact is None else -elbo - exact,
        "khat": khat,
    }
    if prepared.moments is not None:
        found |= compare(prepared.target.quantities(unpack(drawn.examples)), prepared.moments)
    return found


def compare(values: Mapping[str, Tensor], moments: Mapping[str, Moments]) -> dict[str, float | str | None]:
    """Hold draws of quantities against reference moments.

    Args:
        values: Draws ``[S, *shape]`` by quantity.
        moments: Reference of each quantity.

    Returns:
        Worst error of a mean in reference standard deviations and where it is, and the range of the ratios of
        standard deviations.
    """
    worst, where, ratios = -1.0, "", []
    for name, held in moments.items():
        drawn = values[name]
        errors = (drawn.mean(0) - held.mean).abs() / held.sd
        ratios.append((drawn.std(0) / held.sd).reshape(-1))
        error = float(errors.max())
        if not error <= worst:
            place = int(errors.reshape(-1).argmax())
            index = torch.unravel_index(torch.tensor(place), errors.shape) if errors.ndim else ()
            worst, where = error, name + (f"[{', '.join(str(int(i)) for i in index)}]" if errors.ndim else "")
    ratio = torch.cat(ratios)
    return {
        "mean_error": worst,
        "worst": where,
        "least_ratio": float(ratio.min()),
        "most_ratio": float(ratio.max()),
    }
