r"""Radon in the houses of a state, partly pooled by county, with what is known of counties and floors.

    m ~ N(0, 1),  s, noise ~ N+(1),  w_1, w_2, w_3 ~ N(0, 1),  effect_j ~ N(m, s),
    log radon_i ~ N(w_1 log uranium_i + w_2 floor_i + w_3 floor_by_county_i + effect_{county i}, noise)

(standard deviations; N+ is half-normal). The floor is 0 in a basement and 1 above it; log uranium and the mean of the
floors belong to the county. The negative log evidence of Minnesota's 919 houses in 85 counties is 1076.952.

Source: A. Gelman, J. Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", Cambridge 2007,
chapter 12; priors of the inference gym ("radon contextual effects", half-normal scales).
"""

from __future__ import annotations

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

COLUMNS = ("log_radon", "county", "floor", "log_uranium", "floor_by_county")
WEIGHTS = (0.7, -0.7, 0.4)


def model(county, floor, log_uranium, floor_by_county, log_radon=None, counties=None):
    """Draws effects of counties and levels of houses, all columns ``[houses]``; ``log_radon`` observes the levels."""
    county = torch.as_tensor(county).long()
    counties = int(county.max()) + 1 if counties is None else counties
    mean = pyro.sample("county_effect_mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("county_effect_scale", dist.HalfNormal(1.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("log_radon_scale", dist.HalfNormal(1.0))
    with pyro.plate("counties", counties):
        effect = pyro.sample("county_effect", dist.Normal(mean, scale))
    known = torch.stack([torch.as_tensor(column) for column in (log_uranium, floor, floor_by_county)], -1)
    with pyro.plate("houses", len(county)):
        return pyro.sample("log_radon", dist.Normal(known @ weight + effect[county], noise), obs=log_radon)


def data(path=None, counties=85, houses=919, seed=0):
    """Houses to condition on, every column ``[houses]``: log_radon, county (whole numbers), floor, log_uranium, ...

    They are simulated, unless ``path`` is a JSON file of columns with those names.
    """
    if path is not None:
        held = json.loads(Path(path).read_text())
        columns = {name: torch.tensor([float(value) for value in held[name]]) for name in COLUMNS}
        return columns | {"county": columns["county"].long()}
    generator = torch.Generator().manual_seed(seed)
    first, more = torch.arange(counties), torch.randint(counties, (houses - counties,), generator=generator)
    county = torch.cat([first, more]).sort().values
    floor = (torch.rand(houses, generator=generator) < 1 / 6).to(torch.get_default_dtype())
    log_uranium = 0.4 * torch.randn(counties, generator=generator)[county]
    share = torch.zeros(counties).index_add(0, county, floor) / torch.bincount(county)
    effect = 1.5 + 0.1 * torch.randn(counties, generator=generator)
    known = torch.stack([log_uranium, floor, share[county]], -1)
    level = known @ torch.tensor(WEIGHTS) + effect[county] + 0.75 * torch.randn(houses, generator=generator)
    values = (level, county, floor, log_uranium, share[county])
    return dict(zip(COLUMNS, values, strict=True))
