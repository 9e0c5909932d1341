"""From a model and its data to a posterior, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import transform_to

from emfc.compiler import compile_target
from emfc.errors import UserError
from emfc.inference.fitting import FitRecord, default_options, fit_variational
from emfc.inference.posterior import Posterior, Source
from emfc.inference.variational import VariationalFlow
from emfc.layers.log_joint import LogJoint
from emfc.options import (
    keywords_of,
    read_flag,
    read_function,
    read_keywords,
    read_seconds,
    read_seed,
    read_whole,
)
from emfc.program.constraint import constraint_from_data

__all__ = ["infer"]

Progress = Callable[[int, float], None]

_AT_ONCE = 1024
_FEWEST_DRAWS = 100


def infer(
    model: Callable[..., Any],
    *args: Any,
    backbone: str = "auto",
    informed: bool | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    particles: int | None = None,
    draws: int = 4000,
    seed: int = 0,
    progress: Progress | None = None,
    **kwargs: Any,
) -> Posterior:
    """Infers the latent sites of a model from its data.

    The model is compiled with its data into one log joint density. A flow that has the prior program on top of learned
    layers is fitted to it by reverse Kullback-Leibler divergence. Draws of the fit get importance weights, which say
    how good it is, and correct it.

    Args:
        model: Any callable that calls Pyro's primitives; its data are sites with ``obs=``, or given by
            `pyro.condition`.
        *args: The model's own arguments.
        backbone: Learned layers: ``"auto"``, ``"meanfield"``, ``"mvn"``, ``"lowrank"``, ``"iaf"``, ``"maf"``, ``"nsf"``
            or ``"coupling"``.
        informed: Whether the learned layers see the program's own conditional parameters; None for the default.
        seconds: Longest time to train.
        steps: Most steps to train.
        particles: Draws per step; None for the default.
        draws: Draws that the result holds, at least 100; k-hat and the evidence come from these.
        seed: Seed of everything random; the same seed gives the same posterior, where no time limit ends the training.
        progress: Called with step and ELBO while it trains.
        **kwargs: The model's own keyword arguments; one that clashes with an option is given through
            `functools.partial`.

    Returns:
        The posterior: its `Posterior.verdict` says whether to trust it.

    Raises:
        CompileError: The model cannot be compiled.
        UserError: There is nothing to infer, or an option has a value that it cannot have.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, emfc
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> posterior = emfc.infer(model, torch.tensor([1.0, 2.0, 3.0]), steps=200)
        >>> round(float(posterior.mean["mean"]), 1)
        1.5
    """
    seconds, steps, particles, draws = check_options(seconds=seconds, steps=steps, particles=particles, draws=draws)
    seed = read_seed(seed)
    read_function("progress", progress)
    read_keywords("infer", keywords_of(infer), model, kwargs)
    with seeded(seed):
        log_joint = compile_posterior(model, *args, **kwargs)
        options = choose_options(log_joint, backbone=backbone, informed=informed)
        flow = VariationalFlow(log_joint.target.prior(), **options.flow)
        given = options.fit if particles is None else {**options.fit, "particles": particles}
        family: Any = _WithModel(flow, log_joint) if len(log_joint.unconstrained) else flow
        record = fit_variational(family, log_joint, seconds=seconds, steps=steps, seed=seed, progress=progress, **given)
        source = Source(model, args, dict(kwargs))
        return make_posterior(flow, log_joint, record, options.flow, draws=draws, seed=seed, source=source)


def check_options(
    *, seconds: float | None, steps: int | None, particles: int | None, draws: int
) -> tuple[float | None, int | None, int | None, int]:
    """The budgets in this order; refuses those that mean nothing.

    Raises:
        UserError: One is of another type or out of range.
    """
    steps = None if steps is None else read_whole("steps", steps, 1)
    particles = None if particles is None else read_whole("particles", particles, 1)
    return read_seconds(seconds), steps, particles, read_whole("draws", draws, _FEWEST_DRAWS)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lets torch's own generators start from a seed while the block runs, and go on as before after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Options:
    """Options of the family and of its fit.

    Attributes:
        flow: Those of `VariationalFlow`.
        fit: Those of `fit_variational`.
    """

    flow: dict[str, Any]
    fit: dict[str, Any]


def choose_options(log_joint: LogJoint, *, backbone: str, informed: bool | None) -> Options:
    """Those asked for, the rest by default for the target.

    Raises:
        UserError: There is nothing to infer, or an option is of another type.
    """
    check_latent(log_joint)
    defaults = default_options(log_joint.target)
    chosen = Options(dict(defaults["flow"]), dict(defaults["fit"]))
    if backbone != "auto":
        chosen.flow["backbone"] = backbone
    if informed is not None:
        chosen.flow["informed"] = read_flag("informed", informed)
    return chosen


def compile_posterior(model: Callable[..., Any], *args: Any, **kwargs: Any) -> LogJoint:
    """The compiled log joint density of a model whose posterior can be normalised.

    Sites with ``obs_mask=`` have their own distribution at all elements (`Target.imputed`).

    Raises:
        CompileError: The model cannot be compiled.
        UserError: A mask takes the prior of a latent site away.
    """
    log_joint = compile_target(model, *args, **kwargs)
    flat = log_joint.target.flat()
    if flat:
        raise UserError(
            f"a mask takes the prior of the latent site {flat[0]!r} away, so that it has no posterior where nothing "
            "else tells of it; leave the masked elements out of the site, mask the data alone, or give missing data by "
            "obs_mask= (for a flat prior on purpose, write dist.ImproperUniform)"
        )
    imputed = log_joint.target.imputed()
    held = zip(imputed.program.sites, log_joint.target.program.sites, strict=True)
    return log_joint if all(ours is theirs for ours, theirs in held) else LogJoint(imputed)


def check_latent(log_joint: LogJoint) -> None:
    """Refuses a target that a flow cannot be fitted to.

    Raises:
        UserError: No latent site, or a discrete one that is not summed out.
    """
    target = log_joint.target
    for index in log_joint.plan.example:
        site = target.program.sites[index]
        if site.discrete and index not in target.data:
            raise UserError(
                f"the latent site {site.name!r} is discrete and nothing depends on it, so that it cannot be inferred; "
                "observe it, or leave it out and draw it afterwards"
            )
    if log_joint.dim == 0:
        raise UserError("the model has no latent site, so that there is nothing to infer")


class _WithModel(nn.Module):
    """A family whose parameters are its own and those of the model, which are fitted together with it.

    Args:
        flow: The family.
        log_joint: The target.
    """

    moves_target = True

    def __init__(self, flow: VariationalFlow, log_joint: LogJoint) -> None:
        super().__init__()
        self.family, self.model = flow, log_joint.unconstrained

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("family"), name)


def make_posterior(
    flow: VariationalFlow,
    log_joint: LogJoint,
    record: FitRecord,
    options: Mapping[str, Any],
    *,
    draws: int,
    seed: int,
    source: Source | None,
) -> Posterior:
    """Draws from a fitted family and weighs the draws."""
    values, log_q, log_p = weighted_draws(flow, log_joint, draws, seed=seed)
    return Posterior(
        flow,
        record,
        draws=values,
        log_joint_values=log_p,
        log_weights=log_p - log_q,
        parameters=model_parameters(log_joint),
        data=data_values(log_joint),
        options=options,
        improper=[log_joint.target.program.sites[index].name for index in log_joint.target.improper()],
        source=source,
        log_joint=log_joint,
    )


def weighted_draws(
    flow: VariationalFlow, log_density: Callable[[Tensor], Tensor], count: int, *, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ``[S, D]`` of a family, their log density under it and under the target, each ``[S]``."""
    like = next(flow.parameters())
    generator = torch.Generator(like.device).manual_seed(seed)
    noise = torch.randn(count, flow.noise_dim, dtype=like.dtype, device=like.device, generator=generator)
    parts = []
    with torch.no_grad():
        for held in noise.split(_AT_ONCE):
            values, log_q = flow.rsample_and_log_prob((len(held),), noise=held)
            parts.append((values, log_q, log_density(values)))
    values, log_q, log_p = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, log_q, log_p


def model_parameters(log_joint: LogJoint) -> dict[str, Tensor]:
    """The model's own parameters, constrained, by name."""
    return {
        held.name: transform_to(constraint_from_data(held.constraint))(value.detach())
        for held, value in zip(log_joint.target.program.parameters, log_joint.unconstrained, strict=True)
    }


def data_values(log_joint: LogJoint) -> dict[str, Tensor]:
    """The data that the model was conditioned on, by site."""
    target = log_joint.target
    return {target.program.sites[index].name: target.data[index] for index in sorted(target.data)}
