"""Eight schools: effects of coaching in eight schools, estimated with known errors, partly pooled.

Coaching raised the scores of school i by an estimated y_i with standard error s_i. The true effects are alike:
theta_i = mu + exp(log tau) theta'_i with theta'_i ~ N(0, 1), mu ~ N(0, 10), log tau ~ N(5, 1) (standard deviations;
the non-centred form and priors of the embedded-model flows paper). The estimates are given, so that the example is
(mu, log tau, theta') and the question is its posterior. The negative log evidence is 36.131.

Source: D. Rubin, "Estimation in parallel randomized experiments", Journal of Educational Statistics 6 (1981); priors
of G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def model(y=EFFECTS):
    """Draws the latent effects of the schools; their estimates ``y`` are observed."""
    errors, estimates = torch.tensor(ERRORS), torch.as_tensor(y)
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    log_tau = pyro.sample("log_tau", dist.Normal(5.0, 1.0))
    with pyro.plate("schools", 8):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + torch.exp(log_tau) * standard)
        pyro.sample("y", dist.Normal(theta, errors), obs=estimates)
    return theta


def data():
    """What the program is conditioned on: the estimated effects, ``{"y": [8]}``."""
    return {"y": torch.tensor(EFFECTS)}
