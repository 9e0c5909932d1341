"""The paper's tasks: densities of their programs by hand, simulators, best possible values, protocols."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import emfc
from emfc.cli.loader import load_program
from models import (
    brownian,
    checkerboard,
    digits_blocks,
    eight_gaussians,
    iris_blocks,
    lorenz,
    ornstein_uhlenbeck,
    pixels,
    two_spirals,
    van_der_pol,
)
from tests.programs.compiled import density, perturb

SERIES = {"brownian": brownian, "ornstein_uhlenbeck": ornstein_uhlenbeck, "lorenz": lorenz, "van_der_pol": van_der_pol}
RIGHT = {"brownian": "walk", "ornstein_uhlenbeck": "equation", "lorenz": "equations", "van_der_pol": "equations"}
FLOORS = {"brownian": -26.509, "ornstein_uhlenbeck": 24.076, "lorenz": -242.793, "van_der_pol": -563.962}
PLANE = {"eight_gaussians": eight_gaussians, "checkerboard": checkerboard, "two_spirals": two_spirals}
BLOCKS = {"iris_blocks": iris_blocks, "digits_blocks": digits_blocks}


# ---------------------------------------------------------------------- densities by hand


def normal(x, loc, scale):
    """Log density of independent Normals, summed over all but the first dimension."""
    z = (x - loc) / scale
    each = -0.5 * z**2 - np.log(scale * np.ones_like(z)) - 0.5 * np.log(2 * np.pi)
    return each.reshape(len(x), -1).sum(1)


def chain(x, order, root, move, scale):
    """Log density of a chain through the steps of ``x`` [n, steps, ...] in an order."""
    total = normal(x[:, order[0]], 0.0, root)
    for before, now in itertools.pairwise(order):
        total = total + normal(x[:, now], move(x[:, before]), scale)
    return total


def line(x, sigma):
    return normal(x[:, 0], 0.0, 1.0) + normal(x[:, 1], 0.0, 1.0) + normal(x[:, 2:], 2 * x[:, 1:-1] - x[:, :-2], sigma)


def storm(s, sigma=10.0, rho=28.0, beta=8 / 3):
    x, y, z = np.moveaxis(s, -1, 0)
    return s + 0.02 * np.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -1)


def roessler(s):
    x, y, z = np.moveaxis(s, -1, 0)
    return s + 0.02 * np.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], -1)


def oscillator(s, mu=1.0):
    x, y = np.moveaxis(s, -1, 0)
    return s + 0.05 * np.stack([y, mu * (1 - x**2) * y - x], -1)


def runaway(s):
    x, y = np.moveaxis(s, -1, 0)
    return s + 0.05 * np.stack([-y, -x * (1 + y**2)], -1)


def logs(formula):
    """The density of positive series from that of their logarithms."""
    return lambda x, p: formula(np.log(x), p) - np.log(x).sum(1)


def series(root, move, scale, order=None):
    """A formula of a chain; ``move`` and ``scale`` are taken at the program's parameters."""

    def formula(x, p):
        steps = list(range(x.shape[1])) if order is None else order(x.shape[1])
        scales = scale(p) if callable(scale) else scale
        start = root(p) if callable(root) else root
        return chain(x, steps, start, lambda before: move(before, p), scales)

    return formula


def sigma(p):
    return p["sigma"]


def noise(p):
    return p["noise"]


def shuffled(steps):
    return random.Random(0).sample(range(steps), steps)


def reverse(steps):
    return list(range(steps))[::-1]


LORENZ_STEP, VAN_STEP = 0.1 * math.sqrt(0.02), 0.1 * math.sqrt(0.05)
FORMULAS = {
    ("brownian", "model"): logs(series(1.0, lambda x, p: x, sigma)),
    ("brownian", "continuity"): series(1.0, lambda x, p: x, sigma),
    ("brownian", "smoothness"): lambda x, p: line(x, p["sigma"]),
    ("brownian", "walk"): logs(series(lambda p: p["start"], lambda x, p: x, lambda p: p["step"])),
    ("brownian", "process"): logs(series(0.1, lambda x, p: x, 0.1)),
    ("brownian", "wrong_dynamics"): logs(series(1.0, lambda x, p: -x, sigma)),
    ("brownian", "wrong_order"): logs(series(1.0, lambda x, p: x, sigma, shuffled)),
    ("brownian", "wrong_scale"): logs(series(0.001, lambda x, p: x, 0.001)),
    ("ornstein_uhlenbeck", "continuity"): series(1.0, lambda x, p: x, sigma),
    ("ornstein_uhlenbeck", "smoothness"): lambda x, p: line(x, p["sigma"]),
    ("ornstein_uhlenbeck", "equation"): series(lambda p: p["start"], lambda x, p: p["decay"] * x, lambda p: p["step"]),
    ("ornstein_uhlenbeck", "process"): series(5.0, lambda x, p: 0.8 * x, 0.5),
    ("ornstein_uhlenbeck", "wrong_dynamics"): series(1.0, lambda x, p: -0.8 * x, sigma),
    ("ornstein_uhlenbeck", "wrong_order"): series(5.0, lambda x, p: 0.8 * x, sigma, shuffled),
    ("ornstein_uhlenbeck", "wrong_scale"): series(0.05, lambda x, p: 0.8 * x, 0.005),
    ("lorenz", "continuity"): series(1.0, lambda x, p: x, sigma),
    ("lorenz", "smoothness"): lambda x, p: line(x, p["sigma"]),
    ("lorenz", "equations"): series(1.0, lambda x, p: storm(x, p["sigma"], p["rho"], p["beta"]), noise),
    ("lorenz", "process"): series(1.0, lambda x, p: storm(x), LORENZ_STEP),
    ("lorenz", "wrong_dynamics"): series(1.0, lambda x, p: roessler(x), noise),
    ("lorenz", "wrong_order"): series(1.0, lambda x, p: storm(x), noise, shuffled),
    ("lorenz", "wrong_scale"): series(0.01, lambda x, p: storm(x), 0.01 * LORENZ_STEP),
    ("van_der_pol", "continuity"): series(1.0, lambda x, p: x, sigma),
    ("van_der_pol", "smoothness"): lambda x, p: line(x, p["sigma"]),
    ("van_der_pol", "equations"): series(1.0, lambda x, p: oscillator(x, p["mu"]), noise),
    ("van_der_pol", "process"): series(1.0, lambda x, p: oscillator(x), VAN_STEP),
    ("van_der_pol", "wrong_dynamics"): series(1.0, lambda x, p: runaway(x), noise),
    ("van_der_pol", "wrong_order"): series(1.0, lambda x, p: oscillator(x), noise, shuffled),
    ("van_der_pol", "wrong_scale"): series(0.01, lambda x, p: oscillator(x), 0.01 * VAN_STEP),
}
BACKWARDS = {
    "brownian": logs(series(1.0, lambda x, p: x, sigma, reverse)),
    "ornstein_uhlenbeck": series(5.0, lambda x, p: 0.8 * x, sigma, reverse),
    "lorenz": series(1.0, lambda x, p: storm(x), noise, reverse),
    "van_der_pol": series(1.0, lambda x, p: oscillator(x), noise, reverse),
}


def compare(layer, data, formula, dtype):
    """Holds a compiled program's density of data against a formula of stacked sites and parameters."""
    perturb(layer)
    found = density(layer, layer.pack(data)).detach().double().numpy()
    values = {name: value.detach().double().numpy() for name, value in layer.values().items()}
    expected = formula(np.stack([site.double().numpy() for site in data.values()], 1), values)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if dtype is torch.float64 else 2e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "program"), FORMULAS, ids=str)
def test_density_of_series(name, program, dtype):
    module = SERIES[name]
    layer = emfc.compile(getattr(module, program))
    compare(layer, module.data(n=5, seed=2), FORMULAS[name, program], dtype)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("steps", [3, 8])
def test_density_of_series_said_backwards(name, steps, dtype):
    module = SERIES[name]
    layer = emfc.compile(module.wrong_order, steps=steps, backwards=True)
    assert next(iter(layer.example_sites)).endswith(f"_{steps - 1}")
    compare(layer, module.data(n=5, steps=steps), BACKWARDS[name], dtype)


@pytest.mark.parametrize("name", PLANE)
def test_density_of_mixtures_by_dimension(name):
    def formula(x, p):
        x = x[:, 0]
        weights = np.exp(p["logits"]) / np.exp(p["logits"]).sum(-1, keepdims=True)
        z = (x[..., None] - p["locs"]) / p["scales"]
        return np.log((weights * np.exp(-0.5 * z**2) / p["scales"] / math.sqrt(2 * math.pi)).sum(-1)).sum(-1)

    module = PLANE[name]
    layer = emfc.compile(module.by_dimension)
    values = {key: value.detach() for key, value in layer.values().items()}
    assert {key: tuple(value.shape) for key, value in values.items()} == dict.fromkeys(values, (2, 100))
    assert values["locs"].amin() == -4
    assert values["locs"].amax() == 4
    assert (values["scales"] == 1).all()
    compare(layer, module.data(n=50), formula, torch.get_default_dtype())
    wide = emfc.compile(module.by_dimension, components=5, width=10.0, scale=3.0).values()
    assert torch.equal(wide["locs"][1], torch.linspace(-10.0, 10.0, 5))
    torch.testing.assert_close(wide["scales"], torch.full((2, 5), 3.0))


def pooled(x, p):
    """The mean of exchangeable Normals, and all but the last of them given it, by the covariance of the whole."""
    count = x.shape[1]
    cov = np.eye(count - 1) - 1 / count
    inverse, logdet = np.linalg.inv(cov), np.linalg.slogdet(cov)[1]
    off = (x[:, 1:] - x[:, :1]) / p["sigma"]
    inner = np.einsum("nkd,kl,nld->n", off, inverse, off)
    constant = x.shape[2] * (logdet + (count - 1) * math.log(2 * math.pi)) + 2 * (count - 1) * np.log(p["sigma"]).sum()
    return normal(x[:, 0], p["centre"], p["spread"]) - 0.5 * (inner + constant)


BLOCK_FORMULAS = {
    "model": lambda x, p: normal(x[:, 0], 0.0, 1.0) + normal(x[:, 1:], x[:, :1], 1.0),
    "pooled": pooled,
    "wrong_order": lambda x, p: normal(x[:, -1], 0.0, 1.0) + normal(x[:, :-1], x[:, -1:], 1.0),
    "wrong_scale": lambda x, p: normal(x[:, 0], 0.0, 0.01) + normal(x[:, 1:], x[:, :1], 0.01),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("program", BLOCK_FORMULAS)
def test_density_of_blocks(name, program, dtype):
    layer = emfc.compile(getattr(BLOCKS[name], program))
    assert layer.dim == {"iris_blocks": 40, "digits_blocks": 1280}[name]
    compare(layer, BLOCKS[name].data(n=5), BLOCK_FORMULAS[program], dtype)


@pytest.mark.parametrize(("name", "program"), [("iris_blocks", "by_species"), ("digits_blocks", "by_digit")])
def test_blocks_by_class(name, program):
    def formula(x, p):
        each = [
            np.log(p["weights"][k]) + pooled(x, {key: p[key][k] for key in ("centre", "spread", "sigma")})
            for k in range(len(p["weights"]))
        ]
        return np.logaddexp.reduce(each)

    module = BLOCKS[name]
    layer = emfc.compile(getattr(module, program))
    values = getattr(module, f"start_{program}")(module.data(n=2000, seed=1, protocol="held-out"))
    assert values["weights"].min() > 0.5 / len(values["weights"])  # no class is lost, and none is two
    layer.set_values(values)
    test = layer.pack(module.data(n=100, seed=2, protocol="held-out", part="test"))
    assert -density(layer, test).mean() < {"iris_blocks": 10, "digits_blocks": 1600}[name]
    compare(layer, module.data(n=5), formula, torch.get_default_dtype())


# ---------------------------------------------------------------------- simulators and best possible values


def error(values):
    return values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("name", SERIES)
def test_best_possible_value_and_truth(name):
    module = SERIES[name]
    process, right = emfc.compile(module.process), emfc.compile(getattr(module, RIGHT[name]))
    x = process.pack(module.data(n=10_000, seed=5))
    with torch.no_grad():
        exact, before = density(process, x), density(right, x)
        right.set_values(module.TRUTH)
        after = density(right, x)
    assert abs(-exact.mean() - FLOORS[name]) < 4 * error(exact)
    torch.testing.assert_close(after, exact, rtol=1e-4, atol=1e-4)
    assert set(module.TRUTH) == set(right.values())
    assert -before.mean() > FLOORS[name] + 30


def fit(layer, x, rounds=40):
    """Maximum likelihood of a bare program, in double precision; its negative log likelihood."""
    x = x.double()
    layer.double()
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=rounds, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -density(layer, x).mean()
        value.backward()
        return value

    for _ in range(3):
        optimiser.step(loss)
    with torch.no_grad():
        return -density(layer, x).mean().item()


@pytest.mark.parametrize("name", SERIES)
def test_right_programs_find_the_truth_from_where_they_start(name):
    module = SERIES[name]
    data = module.data(n=500, seed=6)
    process, right = emfc.compile(module.process), emfc.compile(getattr(module, RIGHT[name]))
    found = fit(right, right.pack(data))
    assert found <= -density(process, process.pack(data)).mean() + 1e-3
    for key, value in right.values().items():
        assert value.item() == pytest.approx(module.TRUTH[key], rel=0.1)


BARE = {
    ("brownian", "continuity"): -19.39,
    ("brownian", "smoothness"): -7.69,
    ("ornstein_uhlenbeck", "continuity"): 40.11,
    ("ornstein_uhlenbeck", "smoothness"): 55.28,
    ("lorenz", "continuity"): 243.6,
    ("lorenz", "smoothness"): 164.7,
}


@pytest.mark.parametrize(("name", "program"), BARE, ids=str)
def test_programs_by_themselves(name, program):
    layer = emfc.compile(getattr(SERIES[name], program))
    found = fit(layer, layer.pack(SERIES[name].data(n=4000, seed=9)), rounds=20)
    assert found == pytest.approx(BARE[name, program], abs=1.5 if name == "lorenz" else 0.5)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("program", ["wrong_dynamics", "wrong_order", "wrong_scale"])
def test_wrong_programs_are_wrong_and_their_draws_finite(name, program):
    module = SERIES[name]
    layer = emfc.compile(getattr(module, program))
    x = layer.pack(module.data(n=500, seed=8))
    found = fit(layer, x, rounds=15) if layer.values() else -density(layer, x).mean().item()
    assert found > FLOORS[name] + 5
    assert torch.isfinite(layer()(3 * torch.randn(200, layer.noise_dim))).all()
    if program == "wrong_scale":
        wide = emfc.compile(getattr(module, program), factor=100.0)
        x = wide.pack(module.data(n=500, seed=8))
        assert -density(wide, x).mean() > FLOORS[name] + 100
        assert torch.isfinite(wide()(3 * torch.randn(200, wide.noise_dim))).all()


def test_wrong_programs_agree_where_data_are():
    for module in (lorenz, van_der_pol):
        path = torch.stack(list(module.data(n=50_000, seed=3).values()))
        assert torch.equal(module.near(path), path)


def test_moments_of_series():
    n = 50_000
    walk = torch.stack(list(brownian.data(n=n, seed=1).values()), -1).log()
    ou = torch.stack(list(ornstein_uhlenbeck.data(n=n, seed=1).values()), -1)
    storm = lorenz.data(n=n, seed=1)["s_1"]
    turn = van_der_pol.data(n=n, seed=1)["s_1"]
    time = torch.arange(30)
    fallen = 0.64**time * 25 + 0.25 * (1 - 0.64**time) / 0.36
    variances = [
        (walk, 0.01 * (time + 1)),
        (ou, fallen),
        (storm, torch.tensor([0.68 + 2e-4, 0.98**2 + 0.56**2 + 4e-4 + 2e-4, (1 - 0.16 / 3) ** 2 + 4e-4 + 2e-4])),
        (turn, torch.tensor([1.0025 + 5e-4, 1.05**2 - 0.105 + 0.0075 + 0.0025 + 5e-4])),
    ]
    for values, variance in variances:
        assert (values.mean(0).abs() < 5 * (variance / n).sqrt()).all()
        torch.testing.assert_close(values.var(0), variance.to(values), rtol=0.03, atol=0.0)


@pytest.mark.parametrize("name", SERIES)
def test_simulators_take_steps_and_seeds(name):
    module = SERIES[name]
    data = module.data(n=7, steps=4, seed=1)
    assert len(data) == 4
    assert {len(values) for values in data.values()} == {7}
    assert all(torch.equal(data[key], value) for key, value in module.data(n=7, steps=4, seed=1).items())
    other = module.data(n=7, steps=4, seed=2)
    assert not any(torch.equal(data[key], value) for key, value in other.items())
    for program in ("model", "continuity", "smoothness", RIGHT[name], "wrong_dynamics", "wrong_order", "wrong_scale"):
        assert emfc.compile(getattr(module, program), steps=4).pack(data).shape[0] == 7


def test_points_of_the_plane():
    n = 100_000
    for module, entropy, second in (
        (eight_gaussians, 2.8319, 8 / 1.414**2 + 0.125),
        (checkerboard, math.log(32), 16 / 3),
        (two_spirals, 2.6453, None),
    ):
        x = module.data(n=n, seed=1)["x"]
        given = torch.cat([module.log_density(part) for part in x[:10_000].split(2000)])
        assert abs(-given.mean() - entropy) < 4 * error(given) + 1e-4
        assert (x.mean(0).abs() < 5 * x.std(0) / math.sqrt(n)).all()
        if second is not None:
            torch.testing.assert_close((x**2).mean(0), torch.full((2,), second), rtol=0.01, atol=0.0)


def test_eight_populations_contain_the_truth():
    layer = emfc.compile(eight_gaussians.model)
    centres, spreads = eight_gaussians.ring(8, eight_gaussians.RADIUS), torch.full((8,), eight_gaussians.SPREAD)
    layer.set_values({"centres": centres, "spreads": spreads})
    x = eight_gaussians.data(n=100)["x"]
    torch.testing.assert_close(density(layer, x), eight_gaussians.log_density(x))


@pytest.mark.parametrize("name", PLANE)
def test_densities_of_the_plane_integrate_to_one(name):
    side = (torch.arange(80) + 0.5) / 8 - 5  # squares of the checkerboard end on cells
    grid = torch.cartesian_prod(side, side)
    total = sum(PLANE[name].log_density(part).exp().sum() for part in grid.split(2000)) / 64
    assert total.item() == pytest.approx(1.0, abs=2e-3)


# ---------------------------------------------------------------------- starts from data


@pytest.mark.parametrize(("name", "best"), [("eight_gaussians", 3.47), ("checkerboard", 4.159), ("two_spirals", 3.52)])
@pytest.mark.parametrize("components", [20, 100])
def test_mixtures_start_from_points(name, best, components):
    program = load_program(f"{Path(__file__).parents[2] / 'models' / name}.py:by_dimension", {"components": components})
    values = program.call_start({"x": PLANE[name].data(n=5000, seed=1)["x"]})
    layer = emfc.compile(PLANE[name].by_dimension, components=components)
    layer.set_values(values)
    x = PLANE[name].data(n=5000, seed=2)["x"]
    assert -density(layer, x).mean().item() == pytest.approx(best, abs=0.08)
    assert values["logits"].exp().min() > 0.1 / components
    torch.testing.assert_close(values["logits"].logsumexp(-1), torch.zeros(2))


def test_eight_populations_have_no_start_of_mixtures():
    assert load_program(f"{Path(__file__).parents[2] / 'models'}/eight_gaussians.py").start is None


# ---------------------------------------------------------------------- blocks

BARE_BLOCKS = {"iris_blocks": (70.8, 0.5), "digits_blocks": (2102.0, 8.0)}


@pytest.mark.parametrize("name", BLOCKS)
def test_hierarchical_program_by_itself(name):
    value, tolerance = BARE_BLOCKS[name]
    layer = emfc.compile(BLOCKS[name].model)
    for part in ("train", "test"):
        x = layer.pack(BLOCKS[name].data(n=2500, seed=4, part=part))
        assert -density(layer, x).mean().item() == pytest.approx(value, abs=tolerance)


def test_logit_space_of_digits():
    layer = emfc.compile(digits_blocks.model)
    x = layer.pack(digits_blocks.data(n=2000, space="logit"))
    assert -density(layer, x).mean().item() == pytest.approx(2938, abs=25)


def whole(name, **keywords):
    """All members of blocks, the last found from the mean, as rows of measurements: ``[n, members, values]``."""
    found = torch.stack(list(BLOCKS[name].data(**keywords).values()), 1).double()
    count = found.shape[1]
    last = count * found[:, 0] - found[:, 1:].sum(1)
    values = torch.cat([found[:, 1:], last[:, None]], 1)
    if name == "iris_blocks":
        return (10 * values).round()
    return (((values.exp() - 1e-6) / (1 - 2e-6)) * 17).floor()


def measured(name):
    from sklearn.datasets import load_digits, load_iris

    found = load_iris() if name == "iris_blocks" else load_digits()
    return torch.as_tensor(found.data * (10 if name == "iris_blocks" else 1)).round(), torch.as_tensor(found.target)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("protocol", "part"), [("paper", "train"), ("held-out", "train"), ("held-out", "test")])
def test_blocks_are_of_one_class_and_of_their_part(name, protocol, part, dtype):
    if dtype is not torch.float64:
        pytest.skip("the last member is found by subtraction")
    rows = whole(name, n=60, seed=2, protocol=protocol, part=part)
    table, target = measured(name)
    same = (rows[:, :, None, :] == table).all(-1)
    assert same.any(-1).all()
    number = same.int().argmax(-1)
    assert (target[number] == target[number[:, :1]]).all()
    assert len(set(target[number[:, 0]].tolist())) == len(target.unique())
    duplicates = len(table) - len({tuple(row) for row in table.tolist()})
    repeated = sum(len(set(block.tolist())) < len(block) for block in number)
    assert repeated == 0 or (name == "iris_blocks" and duplicates > 0)
    allowed = {tuple(row) for row in table[torch.cat(BLOCKS[name].members(protocol, part))].tolist()}
    assert {tuple(row) for row in rows.flatten(0, 1).tolist()} <= allowed


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("split", [0, 1])
def test_held_out_parts_share_nothing(name, split):
    module = BLOCKS[name]
    parts = [set(torch.cat(module.members("held-out", part, split)).tolist()) for part in module.PARTS]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == len(measured(name)[0])
    sizes = [len(group) for group in module.members("held-out", "test", split)]
    assert set(sizes) == {module.TEST}
    other = set(torch.cat(module.members("held-out", "test", split + 1)).tolist())
    assert other != parts[2]


@pytest.mark.parametrize("name", BLOCKS)
def test_dequantisation(name):
    last = {"iris_blocks": "flower_1", "digits_blocks": "image_1"}[name]
    fixed = [BLOCKS[name].data(n=2000, seed=seed)[last] for seed in (1, 2)]
    fresh = [BLOCKS[name].data(n=2000, seed=seed, protocol="held-out")[last] for seed in (1, 2)]

    def shared(first, second):
        return len({tuple(row) for row in first.tolist()} & {tuple(row) for row in second.tolist()})

    assert shared(*fixed) > 50
    assert shared(*fresh) == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_parts_and_seeds_draw_differently(name):
    module = BLOCKS[name]
    draws = [module.data(n=20, seed=seed, part=part)["mean"] for seed in (0, 1) for part in module.PARTS]
    for i, first in enumerate(draws):
        assert all(not torch.equal(first, other) for other in draws[i + 1 :])
    assert torch.equal(draws[0], module.data(n=20)["mean"])


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("keywords", [{"protocol": "mine"}, {"part": "rest"}, {"space": "sqrt"}], ids=str)
def test_blocks_refuse(name, keywords):
    if name == "iris_blocks" and "space" in keywords:
        keywords = {"flowers": 50}
    with pytest.raises(ValueError, match=r"must be|only 50"):
        BLOCKS[name].data(n=2, **keywords)


# ---------------------------------------------------------------------- pixels


@pytest.fixture
def images(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (70, 6, 6), dtype=np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, x=levels)
    return path, levels


def levels_of(data):
    return (((data["pixels"].sigmoid() - 1e-6) / (1 - 2e-6)) * 256).floor().int()


def test_pixels_reads_a_file(images, dtype):
    path, levels = images
    data = pixels.data(path, side=6)
    if dtype is torch.float64:
        assert (levels_of(data).numpy() == levels).all()
    assert not torch.equal(data["pixels"], pixels.data(path, side=6, seed=1)["pixels"])
    parts = [levels_of(pixels.data(path, side=6, part=part)) for part in pixels.PARTS]
    assert [len(part) for part in parts] == [50, 10, 10]
    assert len({tuple(row) for part in parts for row in part.flatten(1).tolist()}) == 70
    assert len(pixels.data(path, n=20, side=6, part="train")["pixels"]) == 20
    np.savez(path, pixels=levels.reshape(70, 36).astype(float))
    torch.testing.assert_close(pixels.data(path, side=6)["pixels"], data["pixels"])


def test_pixels_repeats_training_images_only(images):
    path, _ = images
    data = pixels.data(path, n=125, side=6, part="train")
    rows, counts = levels_of(data).flatten(1).unique(dim=0, return_counts=True)
    assert len(rows) == 50
    assert sorted(set(counts.tolist())) == [2, 3]
    assert len(data["pixels"].flatten(1).unique(dim=0)) == 125
    assert len(pixels.data(path, n=125, side=6, part="validation")["pixels"]) == 10
    assert len(pixels.data(path, n=0, side=6, part="train")["pixels"]) == 0


@pytest.mark.parametrize(
    ("arrays", "keywords", "message"),
    [
        ({"y": np.zeros((2, 6, 6))}, {}, "no array named"),
        ({"x": np.full((2, 6, 6), 0.5)}, {}, "whole levels"),
        ({"x": np.full((2, 6, 6), 256)}, {}, "whole levels"),
        ({"x": np.zeros((2, 5, 6))}, {}, "for an image"),
        ({"x": np.zeros((2, 6, 6))}, {"n": 3, "part": "test"}, "too few images"),
        ({"x": np.zeros((2, 6, 6))}, {"part": "rest"}, "must be one of"),
    ],
)
def test_pixels_refuses(tmp_path, arrays, keywords, message):
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        pixels.data(path, side=6, **keywords)


def test_pixels_refuses_what_is_no_archive(tmp_path):
    path = tmp_path / "images.npz"
    path.write_text("junk")
    with pytest.raises(ValueError, match=r"images.npz is not a .npz file"):
        pixels.data(path)


def test_pixels_program_and_start():
    data, fresh = pixels.data(n=1000, side=8, part="train"), pixels.data(n=200, side=8, part="test")
    layer = emfc.compile(pixels.model, side=8, components=30)
    x = layer.pack(fresh)
    values = {key: value.detach() for key, value in layer.values().items()}
    assert values["locs"].shape == (8, 8, 30)
    grid = torch.distributions.Normal(torch.linspace(-15.0, 15.0, 30), 3.0)
    by_hand = (grid.log_prob(fresh["pixels"][..., None]).logsumexp(-1) - math.log(30)).sum((1, 2))
    before = density(layer, x)
    torch.testing.assert_close(before, by_hand)
    start = pixels.start(data, components=30)
    assert start["logits"].exp().min() > 0
    layer.set_values(start)
    after = density(layer, x)
    assert after.mean() > before.mean() + 64
    bits = [pixels.bits_per_dimension(given, fresh["pixels"]).mean() for given in (before, after)]
    assert bits[1] < bits[0]


def test_bits_of_uniform_levels_are_eight(dtype):
    data = pixels.data(n=50, side=8)["pixels"]
    inside = data.sigmoid()
    uniform = (inside * (1 - inside) / (1 - 2e-6)).log().sum((1, 2))
    torch.testing.assert_close(pixels.bits_per_dimension(uniform, data), torch.full((50,), 8.0), rtol=1e-4, atol=0.0)


def test_importing_needs_pyro_torch_and_numpy_only():
    names = [*SERIES, *PLANE, *BLOCKS, "pixels"]
    code = "import sys; sys.modules.update(dict.fromkeys(['sklearn', 'emfc', 'scipy']))\n"
    code += "\n".join(f"import models.{name} as m; assert m.__doc__ and m.model and m.data" for name in names)
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)
