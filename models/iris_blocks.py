r"""Blocks of ten iris flowers of one species, with their mean: the "IRIS" of the embedded-model flows paper.

A block is the mean of ten flowers of one species, drawn without replacement, and the first nine of them; a flower has
four lengths in centimetres. The mean is a part of the example, and the program draws it first:

    mean ~ N(0, I),    flower_k ~ N(mean, I) for k = 1, ..., 9

with nothing to learn. By itself its expected negative log likelihood is 70.8 nats; a Gaussian for each species with
independent elements has 6.9. `pooled` is the program of ten flowers that are alike, whose mean it knows to be theirs,
with learned locations and scales; `by_species` is that for each species, which is summed out. `wrong_order` and
`wrong_scale` are wrong on purpose.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021; the data:
R. Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7 (1936), as scikit-learn ships
them.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

LENGTHS = 4
RESOLUTION = 0.1
TEST, VALIDATION = 12, 12
PARTS = ("train", "validation", "test")


def model(flowers=9):
    """Draws the mean of a block and its first ``flowers`` flowers."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(LENGTHS), 1.0).to_event(1))
    for k in range(1, flowers + 1):
        pyro.sample(f"flower_{k}", dist.Normal(mean, 1.0).to_event(1))


def pooled(flowers=9):
    """Flowers of N(m, sigma) around N(centre, spread), of which the mean is known: each is drawn from those left.

    Of r values that are alike and have the sum ``rest``, the next is N(rest / r, sigma sqrt(1 - 1 / r)).
    """
    centre = pyro.param("centre", lambda: torch.zeros(LENGTHS))
    spread = pyro.param("spread", lambda: torch.ones(LENGTHS), constraint=constraints.positive)
    sigma = pyro.param("sigma", lambda: torch.ones(LENGTHS), constraint=constraints.positive)
    mean = pyro.sample("mean", dist.Normal(centre, spread).to_event(1))
    rest = (flowers + 1) * mean
    for k in range(1, flowers + 1):
        left = flowers + 2 - k
        flower = pyro.sample(f"flower_{k}", dist.Normal(rest / left, sigma * math.sqrt(1 - 1 / left)).to_event(1))
        rest = rest - flower


def by_species(flowers=9, species=3):
    """`pooled` for each species by itself; which one a block is of is a latent site that is summed out."""
    weights = pyro.param("weights", lambda: torch.full((species,), 1 / species), constraint=constraints.simplex)
    centre = pyro.param("centre", lambda: torch.linspace(-1.0, 1.0, species)[:, None].repeat(1, LENGTHS))
    spread = pyro.param("spread", lambda: torch.ones(species, LENGTHS), constraint=constraints.positive)
    sigma = pyro.param("sigma", lambda: torch.ones(species, LENGTHS), constraint=constraints.positive)
    species = pyro.sample("species", dist.Categorical(weights))
    mean = pyro.sample("mean", dist.Normal(centre[species], spread[species]).to_event(1))
    rest = (flowers + 1) * mean
    for k in range(1, flowers + 1):
        left = flowers + 2 - k
        scale = sigma[species] * math.sqrt(1 - 1 / left)
        flower = pyro.sample(f"flower_{k}", dist.Normal(rest / left, scale).to_event(1))
        rest = rest - flower


def start_by_species(data, flowers=9, species=3, *, rows=4000, steps=30, restarts=10, seed=0):
    """Starting values of `by_species`: clusters of the blocks' means, by k-means from points that are far apart.

    Args:
        data: Blocks, as `data` gives them.
        flowers: Number of flowers in a block, as given to the program.
        species: Number of species, as given to the program.
        rows: Blocks that are used at most.
        steps: Steps of k-means.
        restarts: Number of seeded first points, of which the closest clusters are taken.
        seed: Seed of the first points.

    Returns:
        Parameter name -> constrained value.
    """
    mean = torch.as_tensor(data["mean"])[:rows]
    members = torch.stack([torch.as_tensor(data[f"flower_{k}"])[:rows] for k in range(1, flowers + 1)], 1)
    points = mean / mean.std(0).clamp(min=1e-6)
    generator = torch.Generator().manual_seed(seed)
    best = None
    for _ in range(restarts):
        centres = points[torch.randint(len(points), (1,), generator=generator).to(points.device)]
        while len(centres) < species:
            centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
        for _ in range(steps):
            nearest = torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(1), species).to(points)
            count = nearest.sum(0)[:, None]
            centres = torch.where(count > 0, nearest.T @ points / count.clamp(min=1), centres)
        far = torch.cdist(points, centres).amin(1).square().sum()
        if best is None or far < best[0]:
            best = far, nearest
    share = best[1]
    count = share.sum(0)[:, None]
    overall = (mean.mean(0), mean.var(0), ((members - mean[:, None]) ** 2).mean((0, 1)))
    centre = (share.T @ mean + overall[0]) / (count + 1)
    spread = (share.T @ mean**2 + overall[1] + overall[0] ** 2) / (count + 1) - centre**2
    sigma = (share.T @ ((members - mean[:, None]) ** 2).mean(1) + overall[2]) / (count + 1)
    return {
        "weights": (count[:, 0] + 1) / (len(mean) + species),
        "centre": centre,
        "spread": spread.clamp(min=1e-8).sqrt(),
        "sigma": (sigma * (flowers + 1) / flowers).sqrt(),
    }


def wrong_order(flowers=9):
    """Wrong order: the last flower is taken for the mean, and the mean for the last flower."""
    last = pyro.sample(f"flower_{flowers}", dist.Normal(torch.zeros(LENGTHS), 1.0).to_event(1))
    for k in range(1, flowers):
        pyro.sample(f"flower_{k}", dist.Normal(last, 1.0).to_event(1))
    pyro.sample("mean", dist.Normal(last, 1.0).to_event(1))


def wrong_scale(flowers=9, factor=0.01):
    """A mis-scaled prior: `model` with all standard deviations fixed at ``factor``."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(LENGTHS), factor).to_event(1))
    for k in range(1, flowers + 1):
        pyro.sample(f"flower_{k}", dist.Normal(mean, factor).to_event(1))


def members(protocol="paper", part="train", split=0):
    """Which flowers blocks of a part are made of: their numbers, one tensor for each species."""
    if protocol not in ("paper", "held-out"):
        raise ValueError(f"protocol must be 'paper' or 'held-out', not {protocol!r}")
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    from sklearn.datasets import load_iris

    species = torch.as_tensor(load_iris().target)
    generator = torch.Generator().manual_seed(split)
    found = []
    for label in species.unique():
        numbers = torch.nonzero(species == label).flatten()
        if protocol == "held-out":
            numbers = numbers[torch.randperm(len(numbers), generator=generator)]
            test, validation, train = numbers.tensor_split([TEST, TEST + VALIDATION])
            numbers = {"train": train, "validation": validation, "test": test}[part]
        found.append(numbers)
    return found


def data(n=10_000, seed=0, protocol="paper", part="train", flowers=9, split=0):
    """Blocks of one species each, ``{"mean": [n, 4], "flower_1": [n, 4], ...}``.

    Args:
        n: Number of blocks.
        seed: Seed of the draws; parts draw differently with the same seed.
        protocol: ``"paper"``, where all parts are blocks of the same 150 flowers as they were measured, or
            ``"held-out"``: flowers are split first, and every flower of a block gets fresh noise, uniform within the
            0.1 cm of the measurement.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        flowers: Number of flowers in an example, one less than its mean is of.
        split: Seed of the split of flowers.
    """
    from sklearn.datasets import load_iris

    generator = torch.Generator().manual_seed(len(PARTS) * seed + PARTS.index(part) if part in PARTS else seed)
    chosen = _choose(members(protocol, part, split), n, flowers + 1, generator)
    values = torch.as_tensor(load_iris().data, dtype=torch.get_default_dtype())[chosen]
    if protocol == "held-out":
        values = values + RESOLUTION * (torch.rand(values.shape, generator=generator) - 0.5)
    return {"mean": values.mean(1)} | {f"flower_{k}": values[:, k - 1] for k in range(1, flowers + 1)}


def _choose(groups, n, size, generator):
    """Members of blocks ``[n, size]``: of a random group each, without replacement."""
    smallest = min(len(group) for group in groups)
    if size > smallest:
        raise ValueError(f"a block takes {size} members, but there are only {smallest} in a group")
    widest = max(len(group) for group in groups)
    table = torch.stack([torch.nn.functional.pad(group, (0, widest - len(group)), value=-1) for group in groups])
    rows = table[torch.randint(len(groups), (n,), generator=generator)]
    order = torch.rand(n, widest, generator=generator).masked_fill(rows < 0, 2.0)
    return rows.gather(1, order.topk(size, largest=False).indices)
