r"""Eight schools: effects of coaching in eight schools, estimated with known errors, partly pooled.

Coaching raised the scores of school i by an estimated y_i with standard error sigma_i, and the true effects are alike:

    theta_i ~ N(mu, tau),    y_i ~ N(theta_i, sigma_i).

The estimates are given, so that the question is the posterior of mu, tau and theta. Two sets of priors (standard
deviations) and two parametrisations:

- ``priors="paper"``: mu ~ N(0, 10), log tau ~ N(5, 1), as in the embedded-model flows paper and the inference gym; the
  negative log evidence is 36.131;
- ``priors="posteriordb"``: mu ~ N(0, 5), tau ~ half-Cauchy(5), as in posteriordb; it is 31.311;
- ``centred=False``: theta_i = mu + tau standard_i with standard_i ~ N(0, 1);
- ``centred=True``: theta_i is a site itself.

`model` is the paper's, `centred` posteriordb's centred program.

Source: D. Rubin, "Estimation in parallel randomized experiments", Journal of Educational Statistics 6 (1981); priors
of G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021, and of A.
Gelman, "Prior distributions for variance parameters in hierarchical models", Bayesian Analysis 1 (2006).
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def model(y=EFFECTS, sigma=ERRORS, centred=False, priors="paper"):
    """Draws the latent effects of the schools; their estimates ``y``, with errors ``sigma``, are observed."""
    errors, estimates = torch.as_tensor(sigma), torch.as_tensor(y)
    if priors == "paper":
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = torch.exp(pyro.sample("log_tau", dist.Normal(5.0, 1.0)))
    elif priors == "posteriordb":
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    else:
        raise ValueError(f'priors is "paper" or "posteriordb", not {priors!r}')
    with pyro.plate("schools", len(errors)):
        if centred:
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = pyro.deterministic("theta", mu + tau * pyro.sample("standard", dist.Normal(0.0, 1.0)))
        pyro.sample("y", dist.Normal(theta, errors), obs=estimates)
    return theta


def centred(y=EFFECTS, sigma=ERRORS):
    """The centred program with the priors of posteriordb."""
    return model(y, sigma, centred=True, priors="posteriordb")


def data(path=None):
    """What the program is conditioned on: the estimated effects and their errors, ``{"y": [8], "sigma": [8]}``.

    ``path`` is a JSON file with ``y`` and ``sigma``, such as posteriordb's.
    """
    held = {"y": EFFECTS, "sigma": ERRORS} if path is None else json.loads(Path(path).read_text())
    return {name: torch.tensor([float(value) for value in held[name]]) for name in ("y", "sigma")}
