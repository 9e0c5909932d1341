r"""Grey images, pixel by pixel: a mixture for each, the program of the embedded-model flows paper for MNIST.

An image has levels 0 to 255, is dequantised and taken to the real line: x = (level + U) / 256 with uniform U, then the
logit of 1e-6 + (1 - 2e-6) x. Every pixel has by itself a mixture of Gaussians with learned weights, centres and
spreads, which start on a grid. Values are in nats on that line; `bits_per_dimension` brings them back to levels.

Source: G. Silvestri, E. Fertig, D. Moore, L. Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv 2110.06021.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

LEVELS = 256
MARGIN = 1e-6
KEYS = ("x", "pixels", "images")
PARTS = ("train", "validation", "test")


def model(side=28, components=100, width=15.0, scale=3.0):
    """Draws one image on the real line; every pixel is by itself a mixture of many Gaussians on a grid.

    Args:
        side: Height and width of an image.
        components: Number of Gaussians of each pixel.
        width: Largest of their centres, which start on a grid around zero.
        scale: Their standard deviation in the beginning.
    """
    shape = (side, side, components)
    logits = pyro.param("logits", lambda: torch.zeros(shape))
    locs = pyro.param("locs", lambda: torch.linspace(-width, width, components).repeat(side, side, 1))
    scales = pyro.param("scales", lambda: torch.full(shape, scale), constraint=constraints.positive)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, scales))
    return pyro.sample("pixels", mixture.to_event(2))


def start(data, components=100, *, steps=3, rows=2_000):
    """Starting values of the mixtures, from training images.

    Components sit at equally many images each, as wide as the distance to their neighbours, and are moved by
    expectation maximisation, in which each has an image of prior weight so that none is lost.

    Args:
        data: ``{"pixels": [n, side, side]}``.
        components: Number of components, as given to the program.
        steps: Steps of expectation maximisation.
        rows: Images that are used at most.

    Returns:
        Parameter name -> constrained value.
    """
    images = torch.as_tensor(data["pixels"])[:rows]
    found = [_mixture(row.T, components, steps) for row in images.unbind(1)]
    return {name: torch.stack([values[name] for values in found]) for name in ("logits", "locs", "scales")}


def _mixture(x, components, steps):
    """Mixtures ``[pixels, components]`` of values ``[pixels, n]``."""
    shares = (torch.arange(components, dtype=x.dtype, device=x.device) + 0.5) / components
    locs = torch.quantile(x, shares, dim=1).T.contiguous()
    after = torch.cat([locs[:, 1:], locs[:, -1:]], 1) - torch.cat([locs[:, :1], locs[:, :-1]], 1)
    width = after.clamp(min=1e-3 * float(x.std()))
    scales, weights = width, torch.full_like(locs, 1 / components)
    for _ in range(steps):
        height = -0.5 * ((x[..., None] - locs[:, None]) / scales[:, None]) ** 2
        given = (height + (weights / scales).log()[:, None]).softmax(-1)
        mass = given.sum(1)
        total, squares = torch.einsum("dnk,dnp->pdk", given, torch.stack([x, x**2], -1))
        moved = (total + locs) / (mass + 1)
        inner = (squares - 2 * moved * total + mass * moved**2).clamp(min=0)
        square = inner + width**2 + (moved - locs) ** 2
        weights = (mass + 1) / (x.shape[1] + components)
        locs, scales = moved, (square / (mass + 1)).sqrt()
    return {"logits": weights.log(), "locs": locs, "scales": scales}


def data(path=None, n=None, seed=0, side=28, part=None):
    """Images on the real line, ``{"pixels": [n, side, side]}``, dequantised by the seed.

    They are simulated, one soft spot each, unless ``path`` is a file.

    Args:
        path: A ``.npz`` file with an array ``x``, ``pixels`` or ``images`` of whole levels 0 to 255,
            ``[images, side, side]`` or ``[images, side * side]``, such as MNIST.
        n: Number of images; of a file, so many are taken at random, and None means all of them. Where there are fewer,
            all are taken as often as one another, with other noise, but those for validation and test only once.
            10,000 are simulated where it is None.
        seed: Seed of the images that are taken or simulated, and of their noise.
        side: Height and width of an image.
        part: ``"train"``, ``"validation"`` or ``"test"``: five sevenths of a file's images and one seventh for each of
            the others, always the same ones; None for all. Simulated parts draw differently with the same seed.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    generator = torch.Generator().manual_seed(seed if part is None else len(PARTS) * seed + PARTS.index(part))
    levels = _spots(10_000 if n is None else n, side, generator) if path is None else _part(_read(path, side), part)
    if path is not None and n is not None:
        if len(levels) == 0:
            raise ValueError(f"{path} has too few images for a part {part!r}")
        if part in PARTS[1:]:
            n = min(n, len(levels))
        passes = [torch.randperm(len(levels), generator=generator) for _ in range(-(-n // len(levels)))]
        levels = levels[torch.cat(passes)[:n]] if passes else levels[:0]
    inside = (levels.to(torch.get_default_dtype()) + torch.rand(levels.shape, generator=generator)) / LEVELS
    return {"pixels": torch.logit(MARGIN + (1 - 2 * MARGIN) * inside)}


def _read(path, side):
    """Levels ``[images, side, side]`` of a file."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not there or not a file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a .npz file")
    try:
        with np.load(path, allow_pickle=False) as held:
            keys = [key for key in KEYS if key in held.files]
            values = held[keys[0]] if keys else None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or holds Python objects in place of numbers") from error
    if not keys:
        raise ValueError(f"{path} has no array named {', '.join(KEYS[:-1])} or {KEYS[-1]}")
    if not isinstance(values, np.ndarray) or values.ndim < 2:
        raise ValueError(f"{path}: {keys[0]!r} is not an array of images")
    whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool((values == np.floor(values)).all()))
    if not whole or values.size == 0 or values.min() < 0 or values.max() >= LEVELS:
        raise ValueError(f"{path}: {keys[0]!r} must hold whole levels from 0 to {LEVELS - 1}")
    if values.shape[1:] not in ((side, side), (side * side,)):
        raise ValueError(f"{path}: {keys[0]!r} holds {values.shape[1:]} for an image, not ({side}, {side})")
    return torch.as_tensor(values.astype(np.uint8)).reshape(-1, side, side)


def _part(levels, part):
    """The images of a part, or all of them."""
    if part is None:
        return levels
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))
    seventh = len(levels) // 7
    test, validation, train = order.tensor_split([seventh, 2 * seventh])
    return levels[{"train": train, "validation": validation, "test": test}[part]]


def _spots(n, side, generator):
    """Levels ``[n, side, side]`` of soft spots of random place, size and brightness."""
    place, size, brightness = torch.rand(n, 4, generator=generator).split([2, 1, 1], -1)
    grid = (torch.arange(side) + 0.5) / side
    near = torch.exp(-0.5 * ((grid - 0.25 - 0.5 * place[..., None]) / (0.08 + 0.12 * size[..., None])) ** 2)
    return ((0.5 + 0.5 * brightness[..., None]) * LEVELS * near[:, :1].mT * near[:, 1:]).floor().clamp(max=LEVELS - 1)


def bits_per_dimension(log_prob, pixels):
    """Bits per dimension ``[n]`` of levels, from log densities ``[n]`` of images ``[n, ...]`` on the real line.

    -log2 p / D - log2(1 - 2e-6) + 8 + mean(log2 s (1 - s)) with s = 1 / (1 + exp(-x)).
    """
    x = pixels.flatten(1)
    slope = (torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)).mean(1)
    return (slope - log_prob / x.shape[1]) / math.log(2) - math.log2(1 - 2 * MARGIN) + math.log2(LEVELS)
