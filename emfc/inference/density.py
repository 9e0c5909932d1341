"""Fitting a flow to any unnormalised log density: reverse KL without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from emfc.compiler import parse_target
from emfc.errors import UserError
from emfc.flows.distribution import FlowDistribution
from emfc.inference.densities_search import MOST_COVERED, Search
from emfc.inference.fitting import FitRecord, fit_variational
from emfc.inference.infer import seeded, weighted_draws
from emfc.inference.variational import VariationalFlow
from emfc.inference.verdict import verdict_on
from emfc.inference.weighted import WeightedDraws
from emfc.options import keywords_of, likely, read_number, read_seconds, read_seed, read_whole
from emfc.program.errors import CompileError
from emfc.program.ir import Program

__all__ = ["FittedDensity", "fit_density"]

LogDensity = Callable[[Tensor], Tensor]

_PROBED = 16
_SITE = "x"


class FittedDensity(nn.Module):
    r"""A flow q that was fitted to an unnormalised density p, with what says how good it is.

    Calling it gives the distribution, which `pyro.sample` takes. The log weights :math:`\log w = \log p(x) - \log q(x)`
    are those of `draws` fresh draws.

    Attributes:
        flow: The flow.
        record: How the fit went.
        points: The draws ``[S, D]``.
        log_weights: Their log weights ``[S]``.
    """

    points: Tensor
    log_weights: Tensor

    def __init__(self, flow: VariationalFlow, record: FitRecord, points: Tensor, log_weights: Tensor) -> None:
        super().__init__()
        self.flow = flow
        self.record = record
        self.register_buffer("points", points)
        self.register_buffer("log_weights", log_weights)

    # ------------------------------------------------------------------ the distribution

    def forward(self) -> FlowDistribution:
        """The distribution, over ``[D]``."""
        held: FlowDistribution = self.flow()
        return held

    @property
    def dim(self) -> int:
        """Number of elements D of a point."""
        return self.flow.dim

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draws ``[*shape, D]``."""
        return self.forward().sample(Size(shape))

    def rsample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draws ``[*shape, D]`` through which gradients flow."""
        return self.forward().rsample(Size(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``[*]`` of the flow, normalised, at points ``[*, D]``; -inf outside the support."""
        return self.forward().log_prob(value)

    def resample(self, number: int, *, seed: int = 0) -> Tensor:
        """Points ``[number, D]`` of equal weight, each as often as its smoothed weight says: nearly draws of p."""
        return self.points[self.weighted.chosen(number, seed)]

    # ------------------------------------------------------------------ how good it is

    @cached_property
    def weighted(self) -> WeightedDraws:
        """The points with their weights."""
        return WeightedDraws(self.points, self.log_weights)

    @property
    def khat(self) -> float:
        """Pareto k-hat of the weights: below 0.5 good, up to 0.7 usable, above not to be trusted."""
        return self.weighted.khat

    @property
    def elbo(self) -> float:
        """Evidence lower bound, the mean of the log weights: below the log normaliser by the divergence of q from p."""
        return self.weighted.elbo

    @property
    def elbo_se(self) -> float:
        """Standard error of the bound."""
        return self.weighted.elbo_se

    @property
    def log_normaliser(self) -> float:
        r"""The importance-weighted estimate of :math:`\log \int p`, with the smoothed weights."""
        return self.weighted.log_evidence

    @property
    def log_normaliser_se(self) -> float:
        """Its standard error (delta method), which means nothing where k-hat is above 0.7."""
        return self.weighted.log_evidence_se

    @property
    def ess(self) -> float:
        """Effective number of the draws, by their smoothed weights."""
        return self.weighted.ess

    @property
    def verdict(self) -> str:
        """Whether to believe the fit, in plain words."""
        held = self.weighted
        return verdict_on(held.khat, len(held.draws), largest=held.largest, stopped=self.record.stopped)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, elbo={self.elbo:.4g}, log_normaliser={self.log_normaliser:.4g} "
            f"(se {self.log_normaliser_se:.2g}), khat={self.khat:.2f}"
        )


def fit_density(
    log_density: LogDensity,
    dim: int,
    *,
    backbone: str = "nsf",
    support: constraints.Constraint = constraints.real_vector,
    seconds: float | None = None,
    steps: int | None = None,
    particles: int | None = None,
    objective: str = "auto",
    start: str = "auto",
    spread: float = 2.0,
    draws: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    flow: dict[str, Any] | None = None,
    fit: dict[str, Any] | None = None,
) -> FittedDensity:
    r"""Fits a flow to an unnormalised log density given as a function.

    It minimises the reverse divergence :math:`KL(q \| p)` with the estimators, starts and schedule of
    `fit_variational`. That divergence seeks modes, and forgets those that it does not see: up to 8 dimensions a second
    start, from a wide flow that first covers the density as it is cooled (by the forward divergence), is tried as well,
    and the better bound kept. No number that is computed from draws of q tells of a mode that q has missed; two starts
    that disagree, in ``record.starts``, do.

    Args:
        log_density: From points ``[S, dim]`` to ``[S]``, in torch, differentiable; -inf where there is no density.
        dim: Number of elements of a point.
        backbone: Of the flow: ``"nsf"``, ``"iaf"``, ``"maf"``, ``"coupling"``, ``"mvn"``, ``"lowrank"`` or
            ``"meanfield"``.
        support: Of a point, or of each of its elements.
        seconds: Most seconds of training; left out with `steps`, 60.
        steps: Most steps of training.
        particles: Draws of each step; left out, by the dimension.
        objective: Name of an estimator of `fit_variational`; other than ``"auto"`` it is used throughout,
            from one start.
        start: ``"auto"`` (all), ``"mode"``, ``"prior"`` (the trials of `fit_variational`) or ``"wide"``.
        spread: Scale of the wide start, in real coordinates.
        draws: How many fresh draws the diagnostics are taken from.
        seed: Of all random numbers.
        progress: Called with the number of steps and an estimate of the ELBO.
        dtype: Of the flow; left out, torch's default.
        device: Of the flow.
        flow: Further options of `VariationalFlow`, such as ``transforms`` and ``hidden_features``.
        fit: Further options of `fit_variational`, such as ``anneal``.

    Raises:
        UserError: The function gives no number for each point, or NaN, or is not differentiable; or an option has no
            meaning.

    Example:
        >>> import torch, emfc
        >>> fitted = emfc.fit_density(lambda x: -0.5 * x.square().sum(-1), 2, backbone="mvn", steps=50)
        >>> abs(fitted.log_normaliser - 1.8379) < 0.01
        True
    """
    dim, draws = read_whole("dim", dim, 1), read_whole("draws", draws, 100)
    spread, seconds, seed = read_number("spread", spread, above=0.0), read_seconds(seconds), read_seed(seed)
    steps = None if steps is None else read_whole("steps", steps, 0)
    for name, given in (("flow", flow), ("fit", fit)):
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"{name} must be a mapping of options, or None, not {given!r}")
    if start not in ("auto", "mode", "prior", "wide"):
        raise UserError(f"start must be 'auto', 'mode', 'prior' or 'wide', not {start!r}")
    rich = {"transforms": 3, "hidden_features": (32, 32)} if dim <= MOST_COVERED else {}
    _check_fit_options(fit or {}, flow or {})
    with seeded(seed):
        family = VariationalFlow(_program(dim, support), **{"backbone": backbone, "gate": None, **rich, **(flow or {})})
        family.to(dtype=dtype or torch.get_default_dtype(), device=device)
        _check(log_density, family.sample((_PROBED,)))
    search = Search(
        family,
        log_density,
        spread,
        {"particles": particles, "seed": seed, "progress": progress, **(fit or {})},
        seconds=60.0 if seconds is None and steps is None else seconds,
        steps=steps,
    )
    record = search.run(objective, start)
    points, log_q, log_p = weighted_draws(family, log_density, draws, seed=seed + 7919)
    log_weights = (log_p - log_q).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return FittedDensity(family, record, points, log_weights)


def _check_fit_options(fit: Mapping[str, Any], flow: Mapping[str, Any]) -> None:
    """Refuse options of the fit that have an argument of their own, and those that there are not.

    Raises:
        UserError: There is one.
    """
    for told, given, function in (("fit", fit, fit_variational), ("flow", flow, VariationalFlow)):
        for name in given:
            if name not in keywords_of(function):
                raise UserError(f"{told} has no option {name!r}{likely(name, keywords_of(function))}")
    for name in ("seconds", "steps", "particles", "objective", "start", "seed", "progress"):
        if name in fit:
            raise UserError(f"fit has {name!r}, which is an argument of fit_density itself; give it there")


def _program(dim: int, support: constraints.Constraint) -> Program:
    """The program of one point: standard normals, carried onto the support.

    Raises:
        UserError: The support is none of so many elements, or has no map from the real numbers.
    """
    if not isinstance(support, constraints.Constraint):
        raise UserError(f"support is a constraint, such as torch.distributions.constraints.positive, not {support!r}")
    if support.event_dim > 1:
        raise UserError("support is one of numbers or vectors; give matrices as vectors of their free elements")

    def model() -> None:
        plain = support is constraints.real or support == constraints.real_vector
        if plain:
            pyro.sample(_SITE, dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        elif support.event_dim:
            pyro.sample(_SITE, dist.ImproperUniform(support, (), (dim,)))
        else:
            pyro.sample(_SITE, dist.ImproperUniform(support, (dim,), ()).to_event(1))

    try:
        return parse_target(model).prior()
    except CompileError as error:
        raise UserError(f"no flow reaches the support {support} with dim={dim}: {error.reason}") from None


def _check(log_density: LogDensity, points: Tensor) -> None:
    """Try a function on some points.

    Raises:
        UserError: It doesn't give a number for each, gives NaN, or no gradient.
    """
    held = points.detach().clone().requires_grad_()
    shape = tuple(points.shape)
    try:
        with torch.enable_grad():
            found = log_density(held)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise UserError(
            f"log_density raised {type(error).__name__} for points of shape {shape}: {error}; "
            "it must take points [S, dim] and give [S]"
        ) from error
    if not isinstance(found, Tensor) or found.shape != points.shape[:-1]:
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"log_density must give one number for each point, shape {tuple(points.shape[:-1])} for points of shape "
            f"{shape}, not {given}"
        )
    if bool(found.isnan().any()):
        place = int(found.isnan().nonzero()[0])
        raise UserError(f"log_density is not a number at {points[place].tolist()}; give -inf where there is no density")
    if not bool(found.isfinite().any()):
        raise UserError("log_density is finite at none of the first points; move it near 0 or give another support")
    if not found.requires_grad:
        raise UserError("log_density is not differentiable: compute it from its argument with torch operations alone")
    (slope,) = torch.autograd.grad(found.sum(), held, allow_unused=True)
    if slope is None or bool(slope[found.isfinite()].isnan().any()):
        raise UserError("the gradient of log_density is not a number where its value is finite")
