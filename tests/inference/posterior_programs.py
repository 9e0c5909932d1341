"""Models with known posteriors, for tests of what inference reports."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

PRIOR_SD, NOISE = 2.0, 0.7


def normal(y: Tensor) -> None:
    """A conjugate normal mean."""
    mean = pyro.sample("mean", dist.Normal(0.5, PRIOR_SD))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def normal_answer(y: Tensor) -> tuple[float, float, float]:
    """Posterior mean, standard deviation and log evidence of `normal`."""
    precision = 1 / PRIOR_SD**2 + len(y) / NOISE**2
    mean = (0.5 / PRIOR_SD**2 + float(y.sum()) / NOISE**2) / precision
    covariance = NOISE**2 * torch.eye(len(y), dtype=torch.float64) + PRIOR_SD**2
    evidence = MultivariateNormal(torch.full((len(y),), 0.5, dtype=torch.float64), covariance).log_prob(y.double())
    return mean, precision**-0.5, float(evidence)


def regression(x: Tensor, y: Tensor) -> None:
    """A conjugate regression with two coefficients."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def regression_answer(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Posterior mean, covariance and log evidence of `regression`."""
    x, y = x.double(), y.double()
    covariance = (x.T @ x / 0.25 + torch.eye(2).double() / 2.25).inverse()
    evidence = MultivariateNormal(torch.zeros(len(y)).double(), 2.25 * x @ x.T + 0.25 * torch.eye(len(y)).double())
    return covariance @ x.T @ y / 0.25, covariance, float(evidence.log_prob(y))


def counts(y: Tensor) -> None:
    """Conjugate counts: rate ~ Gamma(3, 2), y ~ Poisson(rate)."""
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def counts_answer(y: Tensor) -> tuple[float, float, float]:
    """Posterior mean, standard deviation and log evidence of `counts`."""
    shape, rate = 3.0 + float(y.sum()), 2.0 + len(y)
    evidence = 3 * math.log(2.0) - math.lgamma(3.0) + math.lgamma(shape) - shape * math.log(rate)
    return shape / rate, shape**0.5 / rate, evidence - float(torch.lgamma(y.double() + 1).sum())


def funnel() -> None:
    """Neal's funnel, which the prior program does not know."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
    pyro.factor("funnel", (dist.Normal(0.0, (v / 2).exp()).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)).sum())


def scaled(y: Tensor) -> None:
    """A normal mean whose noise is a parameter of the model."""
    noise = pyro.param("noise", torch.tensor(1.0, dtype=y.dtype), constraint=constraints.positive)
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


def mixture(y: Tensor) -> None:
    """Two populations; which one a row is of is summed out."""
    centre = pyro.sample("centre", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("y", dist.Normal(centre[z], 0.5), obs=y)


def improper(y: Tensor) -> None:
    """Flat priors on mean and standard deviation."""
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    sd = pyro.sample("sd", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, sd), obs=y)


def draws(seed: int, *shape: int, **options: Any) -> Tensor:
    """Standard normal numbers of the default dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)
