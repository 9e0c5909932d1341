r"""Test scores of children from their mothers' schooling and IQ, a linear regression with an interaction.

    score_i ~ N(beta_1 + beta_2 hs_i + beta_3 iq_i + beta_4 hs_i iq_i, sigma),    beta flat,    sigma ~ half-Cauchy(2.5)

where hs is 1 if the mother finished high school. The prior of beta is improper, and nothing is centred: correlations
between coefficients reach 0.99. The negative log evidence of the real data is 1872.816.

Source: A. Gelman, J. Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", Cambridge 2007,
chapter 3; posteriordb's "kidscore_interaction".
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

COLUMNS = ("kid_score", "mom_hs", "mom_iq")


def model(mom_hs, mom_iq, kid_score=None):
    """Draws coefficients, a scale and scores, all columns ``[children]``; ``kid_score`` observes the scores."""
    hs, iq = torch.as_tensor(mom_hs), torch.as_tensor(mom_iq)
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    known = torch.stack([torch.ones_like(hs), hs, iq, hs * iq], -1)
    with pyro.plate("children", len(hs)):
        return pyro.sample("kid_score", dist.Normal(known @ beta, sigma), obs=kid_score)


def data(path=None, children=434, seed=0):
    """Children to condition on, ``{"kid_score": [children], "mom_hs": [children], "mom_iq": [children]}``.

    They are simulated, unless ``path`` is a JSON file of columns with those names, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {name: torch.tensor([float(value) for value in held[name]]) for name in COLUMNS}
    generator = torch.Generator().manual_seed(seed)
    hs = (torch.rand(children, generator=generator) < 0.8).to(torch.get_default_dtype())
    iq = 100 + 15 * torch.randn(children, generator=generator)
    score = -11 + 51 * hs + 0.97 * iq - 0.48 * hs * iq + 18 * torch.randn(children, generator=generator)
    return dict(zip(COLUMNS, (score, hs, iq), strict=True))
