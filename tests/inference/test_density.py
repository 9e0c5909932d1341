"""Fitting flows to unnormalised densities."""

from __future__ import annotations

import copy
import math
import os

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import emfc
from emfc.errors import UserError
from emfc.inference.density import fit_density
from tests.inference.densities_classic import CLASSIC


def integral(name, points=1201):
    held = CLASSIC[name]
    axis = torch.linspace(-held.window, held.window, points)
    values = held.log_density(torch.cartesian_prod(axis, axis))
    return float(values.logsumexp(0) + 2 * torch.log(axis[1] - axis[0]))


COVARIANCE = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)
NORMAL_LOG_NORMALISER = 0.5 * (3 * math.log(2 * math.pi) + float(torch.logdet(COVARIANCE)))


def normal(x):
    difference = x - MEAN.to(x)
    return -0.5 * (difference @ torch.linalg.inv(COVARIANCE).to(x) * difference).sum(-1)


@pytest.fixture(scope="module")
def fitted_normal():
    torch.set_default_dtype(torch.float64)
    return fit_density(normal, 3, backbone="mvn", steps=60)


def test_a_normal_is_found(fitted_normal):
    assert abs(fitted_normal.log_normaliser - NORMAL_LOG_NORMALISER) < 1e-3
    assert abs(fitted_normal.elbo - NORMAL_LOG_NORMALISER) < 5e-3
    assert fitted_normal.elbo <= fitted_normal.log_normaliser + 1e-12
    assert fitted_normal.khat < 0.5
    assert fitted_normal.verdict.startswith("good")
    draws = fitted_normal.sample((4000,))
    torch.testing.assert_close(draws.mean(0), MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), COVARIANCE, atol=0.15, rtol=0)


def test_in_single_precision():
    fitted = fit_density(normal, 3, backbone="mvn", steps=60, dtype=torch.float32)
    assert fitted.sample().dtype is torch.float32
    assert abs(fitted.log_normaliser - NORMAL_LOG_NORMALISER) < 1e-2


def gamma(x):
    return (2.0 * x.log() - 1.5 * x).sum(-1)


def dirichlet(x):
    return ((torch.tensor([2.0, 3.0, 4.0]) - 1) * x.log()).sum(-1)


def beta(x):
    y = (x + 1) / 4
    return (y.log() + 2 * torch.log1p(-y)).sum(-1)


SUPPORTED = {
    "positive": (gamma, 2, constraints.positive, 2 * (math.lgamma(3.0) - 3 * math.log(1.5))),
    "positive, independent": (
        gamma,
        2,
        constraints.independent(constraints.positive, 1),
        2 * (math.lgamma(3.0) - 3 * math.log(1.5)),
    ),
    "interval": (
        beta,
        2,
        constraints.interval(-1.0, 3.0),
        2 * (math.lgamma(2.0) + math.lgamma(3.0) - math.lgamma(5.0) + math.log(4.0)),
    ),
    "simplex": (
        dirichlet,
        3,
        constraints.simplex,
        math.lgamma(2.0) + math.lgamma(3.0) + math.lgamma(4.0) - math.lgamma(9.0),
    ),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_supports(name):
    log_density, dim, support, exact = SUPPORTED[name]
    fitted = fit_density(log_density, dim, support=support, backbone="iaf", steps=300, draws=4000)
    assert abs(fitted.log_normaliser - exact) < 0.05
    assert fitted().support.check(fitted.sample((50,))).all()
    outside = fitted.sample()
    outside[0] = -2.0
    assert fitted.log_prob(outside) == -torch.inf


def test_an_ordered_vector():
    fitted = fit_density(
        lambda x: -0.5 * x.square().sum(-1), 3, support=dist.constraints.ordered_vector, backbone="iaf", steps=200
    )
    exact = 1.5 * math.log(2 * math.pi) - math.log(6.0)
    assert abs(fitted.log_normaliser - exact) < 0.05
    assert (fitted.sample((20,)).diff(dim=-1) > 0).all()


@pytest.mark.parametrize("name", CLASSIC)
def test_normalisers_in_closed_form_are_those_of_quadrature(name):
    exact = CLASSIC[name].log_normaliser
    if exact is not None:
        assert abs(integral(name) - exact) < 5e-3


@pytest.mark.parametrize("name", ["banana", "u1"])
def test_a_classic_density_roughly(name):
    """Both halves of `u1` are found: one is log 2 short."""
    fitted = fit_density(CLASSIC[name].log_density, 2, steps=500, draws=4000)
    assert abs(fitted.log_normaliser - integral(name)) < 0.1
    assert fitted.elbo > integral(name) - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIC)
def test_a_classic_density(name):
    fitted = fit_density(CLASSIC[name].log_density, 2, steps=2400)
    assert abs(fitted.log_normaliser - integral(name)) < 0.05
    assert fitted.elbo > integral(name) - 0.25
    assert fitted.khat < 1.0


def test_what_a_fit_tells(fitted_normal):
    assert fitted_normal.points.shape == (10_000, 3)
    assert fitted_normal.log_weights.shape == (10_000,)
    torch.testing.assert_close(fitted_normal.weighted.smoothed.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(
        fitted_normal.log_weights,
        normal(fitted_normal.points) - fitted_normal.log_prob(fitted_normal.points),
        rtol=1e-6,
        atol=1e-6,
    )
    assert 0 < fitted_normal.ess <= 10_000.5
    assert fitted_normal.elbo_se >= 0
    assert fitted_normal.log_normaliser_se >= 0
    assert "log_normaliser" in repr(fitted_normal)
    again = fitted_normal.resample(2000, seed=0)
    torch.testing.assert_close(again.mean(0), MEAN, atol=0.15, rtol=0)


def test_is_a_distribution(fitted_normal):
    held = fitted_normal()
    assert held.event_shape == (3,)
    assert fitted_normal.rsample((2, 3)).requires_grad
    assert fitted_normal.log_prob(fitted_normal.sample((2, 3))).shape == (2, 3)
    copied = copy.deepcopy(fitted_normal)
    value = fitted_normal.sample((2,))
    torch.testing.assert_close(copied.log_prob(value), fitted_normal.log_prob(value))

    def model():
        x = pyro.sample("x", fitted_normal())
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(29.0))

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step())


def test_density_of_the_flow_integrates_to_one():
    fitted = fit_density(CLASSIC["banana"].log_density, 2, steps=60, draws=200)
    axis = torch.linspace(-9.0, 9.0, 181)
    with torch.no_grad():
        mass = fitted.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 0.02


def test_a_seed_settles_it_and_nothing_else_moves():
    before, state = torch.get_default_dtype(), torch.get_rng_state()
    first = fit_density(CLASSIC["ring"].log_density, 2, steps=30, draws=200, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    second = fit_density(CLASSIC["ring"].log_density, 2, steps=30, draws=200, seed=4)
    assert torch.equal(first.points, second.points)
    assert not torch.equal(first.points, fit_density(CLASSIC["ring"].log_density, 2, steps=30, draws=200).points)
    assert torch.get_default_dtype() is before
    assert not list(pyro.get_param_store().keys())


def test_a_fit_that_cannot_be_trusted_says_so():
    """A Cauchy has tails that no normal covers."""
    fitted = fit_density(lambda x: -torch.log1p(x.square()).sum(-1), 10, backbone="meanfield", steps=200)
    assert fitted.khat > 0.7
    assert fitted.verdict.startswith("not to be trusted")


def test_steps_seconds_and_progress():
    told = []
    fitted = fit_density(
        normal, 3, backbone="iaf", start="prior", steps=120, draws=200, progress=lambda *held: told.append(held)
    )
    assert fitted.record.steps <= 120
    assert told
    assert fit_density(CLASSIC["u2"].log_density, 2, steps=40, draws=200).record.steps <= 40
    quick = fit_density(CLASSIC["u1"].log_density, 2, seconds=1.0, draws=200)
    assert quick.record.seconds < 10 * (os.getloadavg()[0] + 1)
    for start in ("mode", "prior", "wide"):
        assert fit_density(normal, 3, backbone="mvn", start=start, steps=20, draws=200).record.steps <= 20


WRONG = {
    "one number for all": (lambda x: -x.square().sum(), r"one number for each point.*not shape \(\)"),
    "a number for each element": (lambda x: -x.square(), r"not shape \(16, 2\)"),
    "no tensor": (lambda x: 0.0, "not float"),
    "not a number": (lambda x: (x[..., 0] - 1e3).log() - x.square().sum(-1), "is not a number at"),
    "no gradient": (lambda x: -x.detach().square().sum(-1), "not differentiable"),
    "a constant": (lambda x: torch.zeros(len(x)), "not differentiable"),
    "no gradient to x": (lambda x: torch.zeros(len(x), requires_grad=True), "the gradient"),
    "nowhere": (lambda x: x.square().sum(-1) * -torch.inf, "finite at none"),
    "one point only": (lambda x: -x @ torch.eye(3), "log_density raised RuntimeError"),
    "no slope at a value": (lambda x: (0 * x[..., 0]).sqrt() - x.square().sum(-1), "gradient of log_density"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_told(name):
    function, words = WRONG[name]
    with pytest.raises(UserError, match=words) as caught:
        fit_density(function, 2, steps=5)
    assert "\n" not in str(caught.value).strip() or name == "one point only"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim must be a whole number"),
        ({"dim": 2, "support": "positive"}, "support is a constraint"),
        ({"dim": 2, "support": constraints.positive_definite}, "numbers or vectors"),
        ({"dim": 3, "support": dist.constraints.sphere}, "no flow reaches"),
        ({"dim": 2, "backbone": "glow"}, "backbone"),
        ({"dim": 2, "objective": "best"}, "objective must be one of"),
        ({"dim": 2, "start": "middle"}, "start must be"),
        ({"dim": 2, "spread": 0.0}, "spread must be a positive number"),
        ({"dim": 2, "draws": 3}, "draws must be a whole number"),
        ({"dim": 2, "steps": -1}, "steps must be"),
    ],
)
def test_wrong_options_are_told(options, words):
    with pytest.raises(UserError, match=words):
        fit_density(lambda x: -x.square().sum(-1), **{"steps": 5, **options})


def test_is_exported():
    assert emfc.fit_density is fit_density


@pytest.mark.parametrize("name", ["seconds", "steps", "start", "seed"])
def test_options_of_its_own_are_not_options_of_the_fit(name):
    with pytest.raises(UserError, match=name):
        fit_density(lambda x: -x.square().sum(-1), 2, steps=1, fit={name: 1})
