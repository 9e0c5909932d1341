r"""Blocks of twenty images of one digit, with their mean: the "digits" of the embedded-model flows paper.

A block is the mean of twenty images of one digit, drawn without replacement, and the first nineteen of them. Images are
scikit-learn's 8 by 8 digits, dequantised, on a logarithmic scale: x = (pixel + U) / 17 with uniform U, then
log(1e-6 + (1 - 2e-6) x). The mean is a part of the example, and the program draws it first:

    mean ~ N(0, I),    image_k ~ N(mean, I) for k = 1, ..., 19

with nothing to learn. By itself its expected negative log likelihood is about 2104 nats; a Gaussian for each digit with
independent elements has 1642. `pooled` is the program of twenty images that are alike, whose mean it knows to be
theirs, with learned locations and scales; `by_digit` is that for each digit, which is summed out. `wrong_order` and
`wrong_scale` are wrong on purpose.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021; the data:
E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

PIXELS = 64
LEVELS = 17
MARGIN = 1e-6
TEST, VALIDATION = 40, 30
PARTS = ("train", "validation", "test")


def model(images=19):
    """Draws the mean of a block and its first ``images`` images."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(PIXELS), 1.0).to_event(1))
    for k in range(1, images + 1):
        pyro.sample(f"image_{k}", dist.Normal(mean, 1.0).to_event(1))


def pooled(images=19):
    """Images of N(m, sigma) around N(centre, spread), of which the mean is known: each is drawn from those left.

    Of r values that are alike and have the sum ``rest``, the next is N(rest / r, sigma sqrt(1 - 1 / r)).
    """
    centre = pyro.param("centre", lambda: torch.zeros(PIXELS))
    spread = pyro.param("spread", lambda: torch.ones(PIXELS), constraint=constraints.positive)
    sigma = pyro.param("sigma", lambda: torch.ones(PIXELS), constraint=constraints.positive)
    mean = pyro.sample("mean", dist.Normal(centre, spread).to_event(1))
    rest = (images + 1) * mean
    for k in range(1, images + 1):
        left = images + 2 - k
        image = pyro.sample(f"image_{k}", dist.Normal(rest / left, sigma * math.sqrt(1 - 1 / left)).to_event(1))
        rest = rest - image


def by_digit(images=19, digits=10):
    """`pooled` for each digit by itself; which one a block is of is a latent site that is summed out."""
    weights = pyro.param("weights", lambda: torch.full((digits,), 1 / digits), constraint=constraints.simplex)
    centre = pyro.param("centre", lambda: torch.linspace(-1.0, 1.0, digits)[:, None].repeat(1, PIXELS))
    spread = pyro.param("spread", lambda: torch.ones(digits, PIXELS), constraint=constraints.positive)
    sigma = pyro.param("sigma", lambda: torch.ones(digits, PIXELS), constraint=constraints.positive)
    digit = pyro.sample("digit", dist.Categorical(weights))
    mean = pyro.sample("mean", dist.Normal(centre[digit], spread[digit]).to_event(1))
    rest = (images + 1) * mean
    for k in range(1, images + 1):
        left = images + 2 - k
        scale = sigma[digit] * math.sqrt(1 - 1 / left)
        image = pyro.sample(f"image_{k}", dist.Normal(rest / left, scale).to_event(1))
        rest = rest - image


def start_by_digit(data, images=19, digits=10, *, rows=4000, steps=30, restarts=10, seed=0):
    """Starting values of `by_digit`: clusters of the blocks' means, by k-means from points that are far apart.

    Args:
        data: Blocks, as `data` gives them.
        images: Number of images in a block, as given to the program.
        digits: Number of digits, as given to the program.
        rows: Blocks that are used at most.
        steps: Steps of k-means.
        restarts: Number of seeded first points, of which the closest clusters are taken.
        seed: Seed of the first points.

    Returns:
        Parameter name -> constrained value.
    """
    mean = torch.as_tensor(data["mean"])[:rows]
    members = torch.stack([torch.as_tensor(data[f"image_{k}"])[:rows] for k in range(1, images + 1)], 1)
    points = mean / mean.std(0).clamp(min=1e-6)
    generator = torch.Generator().manual_seed(seed)
    best = None
    for _ in range(restarts):
        centres = points[torch.randint(len(points), (1,), generator=generator).to(points.device)]
        while len(centres) < digits:
            centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
        for _ in range(steps):
            nearest = torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(1), digits).to(points)
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
        "weights": (count[:, 0] + 1) / (len(mean) + digits),
        "centre": centre,
        "spread": spread.clamp(min=1e-8).sqrt(),
        "sigma": (sigma * (images + 1) / images).sqrt(),
    }


def wrong_order(images=19):
    """Wrong order: the last image is taken for the mean, and the mean for the last image."""
    last = pyro.sample(f"image_{images}", dist.Normal(torch.zeros(PIXELS), 1.0).to_event(1))
    for k in range(1, images):
        pyro.sample(f"image_{k}", dist.Normal(last, 1.0).to_event(1))
    pyro.sample("mean", dist.Normal(last, 1.0).to_event(1))


def wrong_scale(images=19, factor=0.01):
    """A mis-scaled prior: `model` with all standard deviations fixed at ``factor``."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(PIXELS), factor).to_event(1))
    for k in range(1, images + 1):
        pyro.sample(f"image_{k}", dist.Normal(mean, factor).to_event(1))


def members(protocol="paper", part="train", split=0):
    """Which images blocks of a part are made of: their numbers, one tensor for each digit."""
    if protocol not in ("paper", "held-out"):
        raise ValueError(f"protocol must be 'paper' or 'held-out', not {protocol!r}")
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    from sklearn.datasets import load_digits

    digits = torch.as_tensor(load_digits().target)
    generator = torch.Generator().manual_seed(split)
    found = []
    for digit in range(10):
        numbers = torch.nonzero(digits == digit).flatten()
        if protocol == "held-out":
            numbers = numbers[torch.randperm(len(numbers), generator=generator)]
            test, validation, train = numbers.tensor_split([TEST, TEST + VALIDATION])
            numbers = {"train": train, "validation": validation, "test": test}[part]
        found.append(numbers)
    return found


def data(n=10_000, seed=0, protocol="paper", part="train", images=19, split=0, space="log"):
    """Blocks of one digit each, ``{"mean": [n, 64], "image_1": [n, 64], ...}``.

    Args:
        n: Number of blocks.
        seed: Seed of the draws; parts draw differently with the same seed.
        protocol: ``"paper"``, where all parts are blocks of the same 1797 images, dequantised once, or ``"held-out"``:
            images are split first, and every image of a block is dequantised afresh.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        images: Number of images in an example, one less than its mean is of.
        split: Seed of the split of images.
        space: ``"log"``, or ``"logit"`` as in a later version of the paper's code.
    """
    if space not in ("log", "logit"):
        raise ValueError(f"space must be 'log' or 'logit', not {space!r}")
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(len(PARTS) * seed + PARTS.index(part) if part in PARTS else seed)
    chosen = _choose(members(protocol, part, split), n, images + 1, generator)
    levels = torch.as_tensor(load_digits().data, dtype=torch.get_default_dtype())
    if protocol == "paper":
        noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))
        values = _scaled(levels + noise, space)[chosen]
    else:
        values = levels[chosen]
        values = _scaled(values + torch.rand(values.shape, generator=generator), space)
    return {"mean": values.mean(1)} | {f"image_{k}": values[:, k - 1] for k in range(1, images + 1)}


def _scaled(pixels, space):
    """Dequantised pixels in [0, 17] on the scale of the examples."""
    inside = MARGIN + (1 - 2 * MARGIN) * pixels / LEVELS
    return inside.log() if space == "log" else inside.log() - (1 - inside).log()


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
