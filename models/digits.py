"""Handwritten digits, 8 by 8 pixels of 17 grey levels, as independent ordinal pixels within populations.

The images are the 1797 test digits of NIST's optical recognition set (E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository), as scikit-learn ships them: every pixel counts the dark ones among 4 by 4 bitmap cells, 0 to 16.

With one population every pixel has its own learned level probabilities. With more, an image first draws its
population, and the level probabilities are those of the population. The population is a latent discrete site that is
summed out: the program's density is a mixture of products of categorical distributions (a latent class model).
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

SIDE = 8
LEVELS = 17


def model(populations=1):
    """Draws one image.

    Args:
        populations: Number of populations that the images come from; one means independent pixels.
    """
    if populations == 1:
        logits = pyro.param("logits", lambda: torch.zeros(SIDE, SIDE, LEVELS))
    else:
        weights = pyro.param(
            "weights", lambda: torch.full((populations,), 1 / populations), constraint=constraints.simplex
        )
        table = pyro.param("logits", lambda: _ripples(populations))
        population = pyro.sample("population", dist.Categorical(weights))
        logits = table[population]
    return pyro.sample("pixels", dist.Categorical(logits=logits).to_event(2))


def _ripples(populations):
    """Small different values, since populations that start equal would stay equal."""
    count = populations * SIDE * SIDE * LEVELS
    return 0.1 * torch.sin(torch.arange(count, dtype=torch.get_default_dtype()) ** 2).reshape(-1, SIDE, SIDE, LEVELS)


def data():
    """The 1797 images, ``{"pixels": [1797, 8, 8]}``, integers 0 to 16."""
    from sklearn.datasets import load_digits

    return {"pixels": torch.as_tensor(load_digits().images).round().long()}


def start(data: Mapping[str, torch.Tensor], populations=1, *, smoothing=3.0, restarts=4, steps=40, seed=0):
    """Starting values of the parameters, from training images only.

    One population takes the smoothed frequencies of the levels; several are found by expectation maximisation of the
    latent class model, the best of some seeded restarts.

    Args:
        data: ``{"pixels": [n, 8, 8]}`` with whole numbers (``[n, 64]`` will do).
        populations: Number of populations, as given to the model.
        smoothing: Average images that are added to every population.
        restarts: Number of runs from random starting images.
        steps: Steps of expectation maximisation in each run.
        seed: Seed of the starting images.

    Returns:
        Parameter name -> constrained value.
    """
    pixels = torch.as_tensor(data["pixels"]).reshape(-1, SIDE * SIDE).floor().long()
    dtype = torch.get_default_dtype()
    codes = torch.nn.functional.one_hot(pixels, LEVELS).to(dtype)
    blurred = (codes @ _blur().to(codes)).flatten(1)
    codes = codes.flatten(1)
    prior = smoothing * blurred.mean(0) + 1 / LEVELS
    if populations == 1:
        logits = _logits(blurred.sum(0, keepdim=True) + prior)
        return {"logits": logits.reshape(SIDE, SIDE, LEVELS)}
    generator = torch.Generator().manual_seed(seed)
    grey = pixels.to(dtype)
    best = None
    for _ in range(restarts):
        chosen = torch.randperm(len(grey), generator=generator)[:populations]
        nearest = torch.cdist(grey, grey[chosen.to(grey.device)], p=1.0).argmin(1)
        shares = torch.nn.functional.one_hot(nearest, populations).to(codes)
        for _ in range(steps):
            weights = (shares.sum(0) + 1) / (len(codes) + populations)
            logits = _logits(shares.T @ blurred + prior)
            joint = codes @ logits.T + weights.log()
            shares = joint.softmax(-1)
        score = joint.logsumexp(-1).sum() + (prior * logits).sum()
        if best is None or score > best[0]:
            best = score, weights, logits
    _, weights, logits = best
    return {"weights": weights, "logits": logits.reshape(populations, SIDE, SIDE, LEVELS)}


def _blur(share=0.3, width=2.5):
    """Spreads a share of every count over the levels around it: neighbouring greys are alike, the background is not."""
    level = torch.arange(LEVELS)
    kernel = torch.exp(-0.5 * ((level - level[:, None]) / width) ** 2)
    kernel[0], kernel[:, 0] = 0, 0
    kernel[0, 0] = 1
    return (1 - share) * torch.eye(LEVELS) + share * kernel / kernel.sum(-1, keepdim=True)


def _logits(counts):
    """Log probabilities of the levels, ``[populations, 64 * 17]``, from positive counts of the same shape."""
    counts = counts.unflatten(-1, (-1, LEVELS))
    return (counts / counts.sum(-1, keepdim=True)).log().flatten(-2)
