r"""Party identification in the American national election study of 1980, a linear regression.

    party_i ~ N(x_i beta, sigma),    beta, sigma flat

where x holds a constant, ideology, race, three indicators of age (30 to 44, 45 to 64, 65 and over), education, sex and
income. Both priors are improper. The negative log evidence of the real data is 1425.172.

Source: A. Gelman, J. Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", Cambridge 2007,
chapter 4; posteriordb's "nes1980".
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

COLUMNS = ("partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income")
BETA = (1.8, 0.5, -1.1, -0.2, -0.3, -0.3, 0.3, 0.0, 0.2)
SIGMA = 1.8


def features(real_ideo, race_adj, age_discrete, educ1, gender, income):
    """What the answers are regressed on, ``[people, 9]``; of the four ages the youngest has no column."""
    age = torch.as_tensor(age_discrete)
    ages = [(age == group).to(torch.get_default_dtype()) for group in (2, 3, 4)]
    ideology, race, *others = (torch.as_tensor(column) for column in (real_ideo, race_adj, educ1, gender, income))
    return torch.stack([torch.ones_like(ideology), ideology, race, *ages, *others], -1)


def model(real_ideo, race_adj, age_discrete, educ1, gender, income, partyid7=None):
    """Draws coefficients, a scale and answers, all columns ``[people]``; ``partyid7`` observes the answers."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (9,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    known = features(real_ideo, race_adj, age_discrete, educ1, gender, income)
    with pyro.plate("people", len(known)):
        return pyro.sample("partyid7", dist.Normal(known @ beta, sigma), obs=partyid7)


def data(path=None, people=701, seed=0):
    """People to condition on, every column ``[people]``: partyid7, real_ideo, race_adj, age_discrete, ...

    They are simulated, unless ``path`` is a JSON file of columns with those names, such as posteriordb's.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        return {name: torch.tensor([float(value) for value in held[name]]) for name in COLUMNS}
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    ranges = ((1, 8), (1, 3), (1, 5), (1, 5), (1, 3), (1, 6))
    known = [torch.randint(low, high, (people,), generator=generator).to(dtype) for low, high in ranges]
    noise = torch.randn(people, generator=generator)
    party = features(*known) @ torch.tensor(BETA) + SIGMA * noise
    return dict(zip(COLUMNS, (party, *known), strict=True))
