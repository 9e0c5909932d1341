"""The programs of inference: their targets are Pyro's, their densities are those that their docstrings state."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from scipy import stats

from emfc.compiler import compile_target
from emfc.layers.structured import StructuredLayer
from models import (
    autoregression_order_k,
    brownian_bridge,
    earnings,
    eight_schools,
    garch,
    gaussian_mixture,
    gaussian_process,
    german_credit,
    hidden_markov_posterior,
    kidscore,
    kilpisjarvi,
    lorenz_bridge,
    nes1980,
    radon_minnesota,
)

NEW = (
    "autoregression_order_k",
    "brownian_bridge",
    "earnings",
    "eight_schools",
    "garch",
    "gaussian_mixture",
    "gaussian_process",
    "german_credit",
    "hidden_markov_posterior",
    "kidscore",
    "kilpisjarvi",
    "lorenz_bridge",
    "nes1980",
    "radon_minnesota",
)


def normal(x, loc, scale):
    """Sum of Normal log densities, written out."""
    z = (np.asarray(x) - loc) / scale
    return float(np.sum(-0.5 * z**2 - np.log(scale * np.ones_like(z)) - 0.5 * np.log(2 * np.pi)))


def half_cauchy(x, scale):
    return math.log(2 / (math.pi * scale)) - math.log1p((x / scale) ** 2)


def half_normal(x, scale):
    return math.log(2) + normal(x, 0.0, scale)


def bernoulli(y, logits):
    return float(np.sum(y * logits - np.logaddexp(0.0, logits)))


def schools(priors, centred):
    def density(z, d):
        if priors == "paper":
            total, tau = normal(z["mu"], 0, 10) + normal(z["log_tau"], 5, 1), math.exp(z["log_tau"])
        else:
            total, tau = normal(z["mu"], 0, 5) + half_cauchy(z["tau"], 5), float(z["tau"])
        if centred:
            theta = z["theta"]
            total += normal(theta, z["mu"], tau)
        else:
            theta = z["mu"] + tau * z["standard"]
            total += normal(z["standard"], 0, 1)
        return total + normal(d["y"], theta, d["sigma"])

    return density


def walk(classes):
    def density(z, d):
        x, y = np.array([z[f"x_{t}"] for t in range(len(d["y"]))]), d["y"]
        seen = ~np.isnan(y)
        total = normal(x[0], 0, 0.1) + normal(np.diff(x), 0, 0.1)
        if classes:
            return total + bernoulli(y[seen], 5 * x[seen])
        return total + normal(y[seen], x[seen], 0.15)

    return density


def storm(classes):
    def density(z, d):
        s, y = np.stack([z[f"s_{t}"] for t in range(len(d["y"]))]), d["y"]
        seen = ~np.isnan(y)
        a, b, c = s[:-1].T
        drift = np.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)
        total = normal(s[0], 0, 1) + normal(s[1:], s[:-1] + 0.02 * drift, 0.1 * math.sqrt(0.02))
        return total + (bernoulli(y[seen], 2 * s[seen, 0]) if classes else normal(y[seen], s[seen, 0], 1.0))

    return density


def houses(z, d):
    s, noise, w = float(z["county_effect_scale"]), float(z["log_radon_scale"]), z["weight"]
    loc = w[0] * d["log_uranium"] + w[1] * d["floor"] + w[2] * d["floor_by_county"] + z["county_effect"][d["county"]]
    prior = normal(z["county_effect_mean"], 0, 1) + normal(w, 0, 1) + half_normal(s, 1) + half_normal(noise, 1)
    return prior + normal(z["county_effect"], z["county_effect_mean"], s) + normal(d["log_radon"], loc, noise)


def credit(z, d):
    return normal(z["weights"], 0, 1) + bernoulli(d["y"], d["x"] @ z["weights"])


def children(z, d):
    b, hs, iq = z["beta"], d["mom_hs"], d["mom_iq"]
    loc = b[0] + b[1] * hs + b[2] * iq + b[3] * hs * iq
    return half_cauchy(float(z["sigma"]), 2.5) + normal(d["kid_score"], loc, z["sigma"])


def parties(z, d):
    b, age = z["beta"], d["age_discrete"]
    loc = (
        b[0] + b[1] * d["real_ideo"] + b[2] * d["race_adj"] + b[3] * (age == 2) + b[4] * (age == 3) + b[5] * (age == 4)
    )
    loc = loc + b[6] * d["educ1"] + b[7] * d["gender"] + b[8] * d["income"]
    return normal(d["partyid7"], loc, z["sigma"])


def summers(z, d):
    prior = normal(z["alpha"], 9.31290322580645, 100) + normal(z["beta"], 0, 0.0333333333333333)
    return prior + normal(d["y"], z["alpha"] + z["beta"] * d["x"], z["sigma"])


def populations(z, d):
    (m1, m2), (s1, s2), theta = z["mu"], z["sigma"], float(z["theta"])
    prior = normal(z["mu"], 0, 2) + half_normal(s1, 2) + half_normal(s2, 2) + stats.beta(5, 5).logpdf(theta)
    each = theta * stats.norm(m1, s1).pdf(d["y"]) + (1 - theta) * stats.norm(m2, s2).pdf(d["y"])
    return prior + float(np.log(each).sum())


def process(z, d):
    rho, alpha, sigma, x = float(z["rho"]), float(z["alpha"]), float(z["sigma"]), d["x"]
    kernel = alpha**2 * np.exp(-((x[:, None] - x) ** 2) / (2 * rho**2)) + sigma * np.eye(len(x))
    prior = stats.gamma(25, scale=1 / 4).logpdf(rho) + half_normal(alpha, 2) + half_normal(sigma, 1)
    return prior + stats.multivariate_normal(np.zeros(len(x)), kernel).logpdf(d["y"])


def series(z, d):
    y, b = d["y"], z["beta"]
    loc = [float(z["alpha"]) + sum(b[k] * y[t - 1 - k] for k in range(5)) for t in range(5, len(y))]
    prior = normal(z["alpha"], 0, 10) + normal(b, 0, 10) + half_cauchy(float(z["sigma"]), 2.5)
    return prior + normal(y[5:], np.array(loc), z["sigma"])


def returns(z, d):
    mu, a0, a1, b1 = (float(z[name]) for name in ("mu", "alpha0", "alpha1", "beta1"))
    assert a0 > 0
    assert 0 < a1 < 1
    assert 0 < b1 < 1 - a1
    sigma = [float(d["sigma1"])]
    for before in d["y"][:-1]:
        sigma.append(math.sqrt(a0 + a1 * (before - mu) ** 2 + b1 * sigma[-1] ** 2))
    return normal(d["y"], mu, np.array(sigma))


def people(z, d):
    return normal(d["earn"], z["beta"][0] + z["beta"][1] * d["height"], z["sigma"])


def chain(z, d):
    z = z | {"mu": np.array([z["first"], z["first"] + z["gap"]])}
    each = stats.norm(z["mu"], 1.0).pdf(d["y"][:, None])
    transitions = np.stack([z["theta1"], z["theta2"]])
    weights, total = np.full(2, 0.5) * each[0], 0.0
    for row in each[1:]:
        total += math.log(weights.sum())
        weights = (weights / weights.sum()) @ transitions * row
    return total + math.log(weights.sum()) + normal(z["mu"], np.array([3.0, 10.0]), 1.0)


CASES = {
    "eight schools, paper": (eight_schools.model, {}, eight_schools.data, schools("paper", False)),
    "eight schools, paper, centred": (
        eight_schools.model,
        {"centred": True},
        eight_schools.data,
        schools("paper", True),
    ),
    "eight schools, posteriordb": (
        eight_schools.model,
        {"priors": "posteriordb"},
        eight_schools.data,
        schools("posteriordb", False),
    ),
    "eight schools, posteriordb, centred": (
        eight_schools.centred,
        {},
        eight_schools.data,
        schools("posteriordb", True),
    ),
    "Brownian bridge": (brownian_bridge.model, {}, brownian_bridge.data, walk(False)),
    "Brownian smoothing": (brownian_bridge.model, {}, lambda: brownian_bridge.data(missing=()), walk(False)),
    "Brownian classes": (
        brownian_bridge.model,
        {"classes": True},
        lambda: brownian_bridge.data(classes=True),
        walk(True),
    ),
    "Lorenz bridge": (lorenz_bridge.model, {}, lorenz_bridge.data, storm(False)),
    "Lorenz smoothing": (lorenz_bridge.model, {}, lambda: lorenz_bridge.data(missing=()), storm(False)),
    "Lorenz classes": (lorenz_bridge.model, {"classes": True}, lambda: lorenz_bridge.data(classes=True), storm(True)),
    "radon": (radon_minnesota.model, {}, radon_minnesota.data, houses),
    "German credit": (german_credit.model, {}, german_credit.data, credit),
    "kidscore": (kidscore.model, {}, kidscore.data, children),
    "nes1980": (nes1980.model, {}, nes1980.data, parties),
    "kilpisjarvi": (kilpisjarvi.model, {}, kilpisjarvi.data, summers),
    "mixture": (gaussian_mixture.model, {}, gaussian_mixture.data, populations),
    "Gaussian process": (gaussian_process.model, {}, gaussian_process.data, process),
    "AR(K)": (autoregression_order_k.model, {}, autoregression_order_k.data, series),
    "GARCH": (garch.model, {}, garch.data, returns),
    "earnings": (earnings.model, {}, earnings.data, people),
    "hidden Markov": (hidden_markov_posterior.model, {}, hidden_markov_posterior.data, chain),
}
ENUMERATED = ("hidden Markov",)


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(3)
    yield
    torch.set_default_dtype(before)


def drawn(name, count=5):
    """The compiled log joint of a case, and points at which to compare it, from a cooled prior."""
    model, keywords, data, _ = CASES[name]
    given = data()
    joint = compile_target(model, **given, **keywords)
    layer = StructuredLayer(joint.target.prior(), gate=None)
    noise = 0.7 * torch.randn(count, layer.noise_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return joint, layer, layer()(noise), given


@pytest.mark.parametrize("name", [name for name in CASES if name not in ENUMERATED])
def test_log_joint_is_that_of_pyro(name):
    model, keywords, _, _ = CASES[name]
    joint, layer, examples, given = drawn(name)
    for example, ours in zip(examples, joint(examples), strict=True):
        sites = {site: value[0] for site, value in layer.unpack(example[None]).items()}
        run = poutine.trace(poutine.condition(model, data=sites)).get_trace(**given, **keywords)
        assert ours.item() == pytest.approx(float(run.log_prob_sum()), rel=1e-12, abs=1e-9)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("name", CASES)
def test_log_joint_is_that_of_the_formula(name):
    joint, layer, examples, given = drawn(name)
    held = {key: value.numpy() for key, value in given.items()}
    for example, ours in zip(examples, joint(examples).detach(), strict=True):
        sites = {site: value[0].numpy() for site, value in layer.unpack(example[None]).items()}
        assert ours.item() == pytest.approx(CASES[name][3](sites, held), rel=1e-10, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite(name):
    joint, _, examples, _ = drawn(name)
    (gradient,) = torch.autograd.grad(joint(examples.requires_grad_()).sum(), examples)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any(0).all()


def test_states_are_summed_out_by_pyro_too():
    given = hidden_markov_posterior.data(steps=12)
    joint = compile_target(hidden_markov_posterior.model, **given)
    layer = StructuredLayer(joint.target.prior(), gate=None)
    with torch.no_grad():
        examples = layer()(torch.randn(3, layer.noise_dim))
    first = {site: value[0] for site, value in layer.unpack(examples[:1]).items()}
    _, potential, transforms, _ = initialize_model(
        hidden_markov_posterior.model,
        model_kwargs=given,
        max_plate_nesting=0,
        init_strategy=init_to_value(values=first),
    )
    for example, ours in zip(examples, joint(examples).detach(), strict=True):
        sites = {site: value[0] for site, value in layer.unpack(example[None]).items()}
        free = {site: transform(sites[site]) for site, transform in transforms.items()}
        inside = sum(
            transform.inv.log_abs_det_jacobian(free[site], sites[site]).sum() for site, transform in transforms.items()
        )
        assert ours.item() == pytest.approx(float(-potential(free) - inside), rel=1e-10)


@pytest.mark.parametrize("name", [name for name in NEW if name != "eight_schools"])
def test_data_repeat_with_the_seed(name):
    module = importlib.import_module(f"models.{name}")
    first, again, other = module.data(seed=1), module.data(seed=1), module.data(seed=2)
    assert all(torch.equal(first[key].nan_to_num(), again[key].nan_to_num()) for key in first)
    assert not all(torch.equal(first[key].nan_to_num(), other[key].nan_to_num()) for key in first)
    assert all(value.dtype in (torch.float64, torch.int64) for value in first.values())


WITHOUT_DATA = {"german_credit": "y", "gaussian_mixture": "y", "gaussian_process": "y", "radon_minnesota": "log_radon"}


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_draws_its_data_where_none_are_given(name):
    module, key = importlib.import_module(f"models.{name}"), WITHOUT_DATA[name]
    given = module.data()
    shape = given.pop(key).shape
    model = poutine.condition(module.model, data={"mu": torch.tensor([-1.0, 2.0])})  # improper in the mixture
    assert poutine.trace(model).get_trace(**given).nodes[key]["value"].shape == shape


@pytest.mark.parametrize("module", [brownian_bridge, lorenz_bridge])
@pytest.mark.parametrize("classes", [False, True])
def test_bridges_draw_paths_and_measurements(module, classes):
    run = poutine.trace(module.model).get_trace(steps=4, classes=classes)
    assert [name for name in run.nodes if name.startswith("y_")] == [f"y_{t}" for t in range(4)]
    assert len(run.nodes["_RETURN"]["value"]) == 4


def test_importing_needs_pyro_torch_and_numpy_only():
    code = "import sys; sys.modules.update(dict.fromkeys(['sklearn', 'emfc', 'statsmodels', 'scipy']))\n"
    code += "\n".join(f"import models.{name} as m; assert m.__doc__ and m.model and m.data" for name in NEW)
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)


FILES = {
    "eight_schools": {"y": [28, 8, -3], "sigma": [15, 10, 16], "J": 3},
    "brownian_bridge": {"OBSERVED_LOC": [0.2, None, -0.1], "INNOVATION_NOISE": 0.1},
    "lorenz_bridge": {"OBSERVED_VALUES": [0.2, 0.0, 0.1], "OBSERVATION_MASK": [True, False, True]},
    "radon_minnesota": {
        "log_radon": [0.7, 1],
        "county": [0, 1],
        "floor": [1, 0],
        "log_uranium": [-0.6, 0.1],
        "floor_by_county": [1, 0],
    },
    "kidscore": {"kid_score": [65, 98], "mom_hs": [1, 0], "mom_iq": [121.1, 90.0], "N": 2},
    "nes1980": {name: [1, 2] for name in nes1980.COLUMNS},
    "kilpisjarvi": {"x": [3952, 3953], "y": [8.3, 10.9]},
    "gaussian_mixture": {"y": [-3.5, 3.1]},
    "gaussian_process": {"x": [-10, -8], "y": [4.7, 1.5], "k": [40, 37]},
    "autoregression_order_k": {"y": [0.7, 0.8, 0.78, 0.7, 0.6, 0.5, 0.4]},
    "garch": {"y": [4.9, 4.8], "sigma1": 0.5},
    "earnings": {"earn": [50000, 60000], "height": [74, 66]},
    "hidden_markov_posterior": {"y": [3.8, 8.2]},
}


@pytest.mark.parametrize("name", FILES)
def test_reads_the_file_that_it_describes(name, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(FILES[name]))
    module = importlib.import_module(f"models.{name}")
    given = module.data(path)
    assert all(value.dtype == (torch.int64 if key == "county" else torch.float64) for key, value in given.items())
    joint = compile_target(module.model, **given)
    assert joint.dim > 0


def test_reads_credit_risks(tmp_path):
    path = tmp_path / "credit.csv"
    path.write_text("a,b,class\n1,2,1\n3,5,2\n5,4,1\n")
    given = german_credit.data(path)
    assert given["y"].tolist() == [0, 1, 0]
    torch.testing.assert_close(given["x"].mean(0), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(given["x"].std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


def test_brownian_bridge_has_the_evidence_of_its_gaussian():
    """The exact evidence of a bridge, by importance sampling with the exact posterior: every weight is the same."""
    y = brownian_bridge.data()["y"]
    seen = ~y.isnan()
    times = torch.arange(1.0, len(y) + 1)
    prior = brownian_bridge.STEP**2 * torch.minimum(times[:, None], times)
    joint = compile_target(brownian_bridge.model, y)
    cross, inner = prior[:, seen], prior[seen][:, seen] + brownian_bridge.NOISE**2 * torch.eye(int(seen.sum()))
    gain = torch.linalg.solve(inner, cross.T).T
    posterior = torch.distributions.MultivariateNormal(gain @ y[seen], prior - gain @ cross.T)
    x = posterior.sample((20,))
    weights = joint(x) - posterior.log_prob(x)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(int(seen.sum())), inner).log_prob(y[seen])
    torch.testing.assert_close(weights, evidence.expand(20), rtol=1e-8, atol=1e-8)


def test_priors_must_be_known():
    with pytest.raises(ValueError, match='"paper" or "posteriordb"'):
        eight_schools.model(priors="flat")
