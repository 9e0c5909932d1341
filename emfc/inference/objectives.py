"""Objectives of variational inference and the estimators of their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.inference.fit_force import force, run_parts

__all__ = ["OBJECTIVES", "Estimate", "Tempered", "check_objective", "estimate"]

LogDensity = Callable[[Tensor], Tensor]

OBJECTIVES = ("elbo", "stl", "path", "iwae", "alpha", "forward_kl")
"""Names of the estimators."""

STILL = ("iwae", "forward_kl")
"""Those whose weights are right for the family's parameters alone, not for parameters of the target."""


@dataclass
class Estimate:
    """A gradient estimate, as a scalar to differentiate.

    Attributes:
        loss: A scalar whose gradient is the estimate; its value means something for ``"elbo"`` and ``"alpha"`` alone.
        terms: Log weights ``log p(x) - log q(x)`` ``[S]`` of the draws, without gradients.
        dropped: Number of draws left out since a density was not finite there.
    """

    loss: Tensor
    terms: Tensor
    dropped: int = 0


class Tempered:
    r"""A log density on the way from a flat one to a target: :math:`b \log p` with the share b.

    Args:
        log_density: The target.
    """

    def __init__(self, log_density: LogDensity) -> None:
        self.log_density = log_density
        self.share = 1.0

    def __call__(self, value: Tensor) -> Tensor:
        whole = self.log_density(value)
        return whole if self.share >= 1 else self.share * whole


def check_objective(objective: str, *, alpha: float = 0.5, moving: bool = False) -> None:
    """Refuses an objective that means nothing.

    Args:
        objective: Its name.
        alpha: Order of ``"alpha"``.
        moving: Whether the target has parameters that are fitted with the family.

    Raises:
        UserError: No such objective, no order of a lower bound, or one whose weights are wrong for such parameters.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
    if objective == "alpha" and not 0 <= alpha < math.inf:
        raise UserError(f"alpha must be 0 or more, not {alpha}: only then is Renyi's bound a lower one")
    if objective == "alpha" and alpha == 1:
        raise UserError('alpha=1 is the evidence lower bound: use objective="elbo"')
    if moving and objective in STILL:
        raise UserError(
            f"objective={objective!r} does not fit the model's own parameters (pyro.param); use 'auto', 'elbo', "
            "'stl', 'path' or 'alpha'"
        )


def estimate(
    flow: Any,
    log_density: LogDensity,
    noise: Tensor,
    objective: str = "elbo",
    *,
    alpha: float = 0.5,
    context: Tensor | None = None,
) -> Estimate:
    r"""One estimate of an objective's gradient from a batch of noise ``[S, N]``.

    With log weights :math:`w = \log p(x) - \log q(x)` at draws x of the flow:

    - ``"elbo"``: the gradient of the mean of w, through draws and parameters (reparameterised, total);
    - ``"stl"``: the same expectation without the score of q at fixed draws, whose mean is 0 (sticking the landing:
      Roeder, Wu and Duvenaud 2017, arXiv 1703.09194): its variance vanishes where q is the target;
    - ``"path"``: the score is dropped for the learned layers alone, and the program's layer, gates and all, counts as
      part of the target; it needs no inverse of the program;
    - ``"iwae"``: the bound :math:`\log \frac{1}{S} \sum e^w`, doubly reparameterised (Tucker et al. 2019,
      arXiv 1810.04152);
    - ``"alpha"``: Renyi's bound :math:`\frac{1}{1 - a} \log \frac{1}{S} \sum e^{(1 - a) w}` (Li and Turner 2016,
      arXiv 1602.02311), total gradient;
    - ``"forward_kl"``: :math:`-\sum \bar w \log q(x)` at fixed draws with self-normalised weights, whose limit is the
      divergence from the target to q; it covers tails, and refines what fits already.

    Draws at which a density is not finite are left out.

    Args:
        flow: The variational family.
        log_density: Unnormalised log density of examples ``[S, D]``.
        noise: Standard normal numbers.
        objective: One of ``OBJECTIVES``.
        alpha: a of ``"alpha"``, 0 or more, not 1.
        context: Context of the flow.

    Raises:
        UserError: No such objective, alpha is 1 or below 0, or the target has parameters that it would weight wrongly.
    """
    check_objective(objective, alpha=alpha, moving=bool(getattr(flow, "moves_target", False)))
    made = _estimate(flow, log_density, noise, objective, alpha, context)
    good = torch.isfinite(made.terms)
    if bool(good.all()):
        return made
    kept = int(good.sum())
    if kept == 0:
        return Estimate(made.loss * math.nan, made.terms, len(good))
    fitting = None if context is None or context.ndim < 2 else context[good]
    again = _estimate(flow, log_density, noise[good], objective, alpha, context if fitting is None else fitting)
    return Estimate(again.loss, made.terms, len(good) - kept)


def _estimate(
    flow: Any, log_density: LogDensity, noise: Tensor, objective: str, alpha: float, context: Tensor | None
) -> Estimate:
    if objective in ("elbo", "alpha"):
        value, log_q = flow.rsample_and_log_prob(noise.shape[:-1], context, noise=noise)
        terms = log_density(value) - log_q
        held = terms.detach()
        if objective == "elbo":
            return Estimate(-terms.mean(), held)
        bound = torch.logsumexp((1 - alpha) * terms, 0) - math.log(max(len(terms), 1))
        return Estimate(-bound / (1 - alpha), held)
    parts = flow.transform(context).parts
    if objective == "path":
        return _path(parts, log_density, noise)
    made = run_parts(parts, noise)
    pull = force(made)
    log_q = _log_normal(noise) - made.ladj
    if objective == "forward_kl":
        with torch.no_grad():
            terms = log_density(made.value) - log_q
            weights = torch.softmax(terms, 0)
        # Score at fixed draws: the change of log q along with the draw, less the force times the draw's move.
        score = -made.ladj - (pull * made.value).sum(-1)
        return Estimate(-(weights * score).sum(), terms)
    log_p = log_density(made.value)
    terms = (log_p - log_q).detach()
    along = log_p - (pull * made.value).sum(-1)
    if objective == "stl":
        return Estimate(-along.mean(), terms)
    return Estimate(-(torch.softmax(terms, 0).square() * along).sum(), terms)


def _path(parts: Any, log_density: LogDensity, noise: Tensor) -> Estimate:
    made = run_parts(parts[:-1], noise)
    pull = force(made)
    value, ladj = parts[-1].call_and_ladj(made.value)
    target = log_density(value) + ladj
    terms = (target - _log_normal(noise) + made.ladj).detach()
    return Estimate(-(target - (pull * made.value).sum(-1)).mean(), terms)


def _log_normal(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
