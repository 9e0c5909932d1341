"""Amortised guides: one pass for new data."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor

from emfc import EMFGuide, UserError
from emfc.inference.amortised import simulator
from emfc.inference.encoders import SetNetwork
from tests.inference.guided import MODELS


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def conjugate(y: Tensor) -> None:
    """A normal mean with three observations."""
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    with pyro.plate("n", 3):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def regression(y: Tensor) -> None:
    """Two weights of known covariates, and an offset observed by itself."""
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, -1.0]])
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(weights @ x.mT, 0.5).to_event(1), obs=y)


def error_of(guide: EMFGuide, generator: torch.Generator) -> tuple[float, float]:
    """Largest error of the posterior mean of the conjugate model over its sd, and of the sd, over data sets."""
    mean = 1 + 2 * torch.randn(20, 1, generator=generator)
    y = mean + torch.randn(20, 3, generator=generator)
    precision = 1 / 4 + 3
    exact = (1 / 4 + y.sum(-1)) / precision
    draws = guide.posterior_for(y, draws=4000)["mean"]
    assert draws.shape == (4000, 20)
    error = ((draws.mean(0) - exact) * precision**0.5).abs().max()
    ratio = (draws.std(0) * precision**0.5 - 1).abs().max()
    return float(error), float(ratio)


@pytest.mark.parametrize("amortize", [True, "set"])
def test_forward_kl_learns_the_conjugate_posterior(amortize: Any) -> None:
    torch.manual_seed(0)
    guide = EMFGuide(conjugate, "mvn", amortize=amortize).setup(torch.zeros(3))
    record = guide.fit(torch.zeros(3), steps=900, seed=1)
    error, ratio = error_of(guide, torch.Generator().manual_seed(5))
    assert error < 0.3, record
    assert ratio < 0.2, record


def test_the_elbo_learns_the_conjugate_posterior() -> None:
    torch.manual_seed(0)
    guide = EMFGuide(conjugate, "mvn", amortize=True).setup(torch.zeros(3))
    generator = torch.Generator().manual_seed(3)
    sets = (1 + 2 * torch.randn(2000, 1, generator=generator)) + torch.randn(2000, 3, generator=generator)
    guide.fit(torch.zeros(3), steps=1000, seed=1, objective="elbo", datasets=sets)
    error, ratio = error_of(guide, torch.Generator().manual_seed(5))
    assert error < 0.3
    assert ratio < 0.2


def test_a_multivariate_posterior() -> None:
    torch.manual_seed(0)
    guide = EMFGuide(regression, "mvn", amortize=True).setup(torch.zeros(4))
    guide.fit(torch.zeros(4), steps=900, seed=1)
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, -1.0]])
    covariance = torch.linalg.inv(torch.eye(2) + 4 * x.mT @ x)
    y = torch.tensor([0.5, 1.0, 1.8, -0.6])
    draws = guide.posterior_for({"y": y}, draws=8000)["weights"]
    exact = 4 * covariance @ x.mT @ y
    assert float(((draws.mean(0) - exact) / covariance.diagonal().sqrt()).abs().max()) < 0.3
    torch.testing.assert_close(torch.cov(draws.mT), covariance, rtol=0.35, atol=0.01)


def two_modes(y: Tensor) -> None:
    """Data that do not tell the sign."""
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=y)


def mixture(y: Tensor) -> None:
    """A mixture whose indicators are summed out."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("n", 6):
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mean + 4 * z, 0.5), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_modes", "mixture"])
def test_mixtures(name: str) -> None:
    model: Any = {"two_modes": two_modes, "mixture": mixture}[name]
    y = torch.tensor(1.5) if name == "two_modes" else torch.tensor([0.3, 0.1, 4.4, -0.2, 0.4, 4.0])
    torch.manual_seed(0)
    guide = EMFGuide(model, "nsf" if name == "two_modes" else "mvn", amortize=True if name == "two_modes" else "set")
    guide.setup(y).fit(y, steps=1200, seed=1)
    grid = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        weights = torch.softmax(guide.log_joint(y)(grid), 0)
    site = "x" if name == "two_modes" else "mean"
    draws = guide.posterior_for(y.reshape(-1), draws=8000)[site]
    exact = (weights * grid[:, 0]).sum()
    sd = (weights * (grid[:, 0] - exact).square()).sum().sqrt()
    assert abs(float(draws.mean() - exact)) < 0.5 * float(sd)
    assert float(draws.std() / sd) == pytest.approx(1, abs=0.35)
    if name == "two_modes":
        assert 0.25 < float((draws > 0).double().mean()) < 0.75


def test_a_guide_takes_new_data_as_arguments() -> None:
    first, second = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([4.0, 5.0, 6.0])
    guide = EMFGuide(conjugate, "mvn", amortize=True).setup(first)
    guide.fit(first, steps=300, seed=1)
    held = [guide.median(data)["mean"] for data in (first, second)]
    assert float(held[1]) > float(held[0]) + 2
    torch.testing.assert_close(guide.median()["mean"], held[0])
    assert Predictive(conjugate, guide=guide, num_samples=7)(second)["mean"].shape[0] == 7
    losses = [Trace_ELBO(num_particles=8, vectorize_particles=True).loss(conjugate, guide, y) for y in (first, second)]
    assert all(math.isfinite(loss) for loss in losses)
    SVI(conjugate, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(second)
    assert any("network" in name for name in pyro.get_param_store())
    state = EMFGuide(conjugate, "mvn", amortize=True).setup(first)
    state.load_state_dict(guide.state_dict())
    torch.testing.assert_close(state.median(second), guide.median(second))
    chains = guide.nuts(second, warmup=60, samples=100, chains=4)
    precision = 1 / 4 + 3
    exact = (1 / 4 + float(second.sum())) / precision
    assert float(chains.draws["mean"].mean()) == pytest.approx(exact, abs=0.15)


def test_a_network_of_ones_own() -> None:
    network = torch.nn.Linear(3, 5)
    guide = EMFGuide(conjugate, "iaf", amortize=network).setup(torch.zeros(3))
    assert guide.flow.context_features == 5
    guide.fit(torch.zeros(3), steps=5)
    assert guide.posterior_for(torch.zeros(2, 3), draws=4)["mean"].shape == (4, 2)


def test_a_set_network_does_not_see_the_order() -> None:
    network = SetNetwork([(4, 2), (1, 3)], 8, torch.float64)
    data = torch.randn(5, 11)
    turned = torch.cat([data[:, :8].reshape(5, 4, 2)[:, [2, 0, 3, 1]].reshape(5, 8), data[:, 8:]], -1)
    torch.testing.assert_close(network(torch.cat([data, data], -1)), network(torch.cat([turned, turned], -1)))


def test_simulations_are_those_of_the_model() -> None:
    guide = EMFGuide(MODELS["gamma_poisson"].model).setup(*MODELS["gamma_poisson"].args())
    joint = simulator(guide.log_joint(*MODELS["gamma_poisson"].args()).target)
    values, data = joint.simulate(20_000, like=torch.zeros(()), generator=torch.Generator().manual_seed(0))
    assert values.shape == (20_000, 1)
    assert data.shape == (20_000, 3)
    assert bool((data == data.round()).all())
    assert float(data.mean()) == pytest.approx(2.0, abs=0.05)
    assert float(torch.cov(data[:, :2].mT)[0, 1]) == pytest.approx(2.0, rel=0.1)
    assert float(((data[:, 0] - values[:, 0]) ** 2).mean()) == pytest.approx(2.0, rel=0.1)


def untrained(**options: Any) -> EMFGuide:
    """A guide of the conjugate model."""
    torch.manual_seed(0)
    return EMFGuide(conjugate, "meanfield", amortize=16, **options).setup(torch.zeros(3))


class Spoilt(torch.nn.Module):
    """A network whose slope is infinite at some of its calls, or always."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.inner, self.always, self.calls = torch.nn.Linear(3, 4), always, 0

    def forward(self, data: Tensor) -> Tensor:
        self.calls += 1
        held = self.inner(data)
        if torch.is_grad_enabled() and (self.always or self.calls % 7 == 0):
            held.register_hook(lambda slope: slope * math.inf)
        return held  # type: ignore[no-any-return]


@pytest.mark.parametrize("objective", ["forward", "elbo"])
def test_a_slope_that_is_not_finite_is_left_out(objective: str) -> None:
    torch.manual_seed(0)
    guide = EMFGuide(conjugate, "meanfield", amortize=Spoilt(always=False)).setup(torch.zeros(3))
    record = guide.fit(torch.zeros(3), steps=60, seed=1, objective=objective)
    assert math.isfinite(record.elbo)
    assert all(bool(value.isfinite().all()) for value in guide.parameters())
    hopeless = EMFGuide(conjugate, "meanfield", amortize=Spoilt(always=True)).setup(torch.zeros(3))
    with pytest.raises(UserError, match="never finite"):
        hopeless.fit(torch.zeros(3), steps=10, objective=objective)


def test_the_best_weights_are_kept_when_it_is_interrupted() -> None:
    guide = untrained()

    def spoil(number: int, value: float) -> None:
        if number == 100:
            with torch.no_grad():
                for held in guide.flow.parameters():
                    held.add_(3.0)
            raise KeyboardInterrupt

    record = guide.fit(torch.zeros(3), steps=200, seed=1, progress=spoil)
    assert record.stopped == "interrupted"
    assert record.steps == 100
    whole = untrained().fit(torch.zeros(3), steps=100, seed=1)
    assert whole.stopped == "budget"
    assert record.elbo > whole.elbo - 1


def test_no_steps() -> None:
    guide = untrained()
    before = [value.detach().clone() for value in guide.parameters()]
    record = guide.fit(torch.zeros(3), steps=0)
    assert record.steps == 0
    assert math.isfinite(record.elbo)
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("objective", ["forward", "elbo"])
def test_the_seed_fixes_the_result(objective: str) -> None:
    found = []
    for other in (5, 6):
        guide = untrained()
        torch.manual_seed(other)
        found.append((guide.fit(torch.zeros(3), steps=60, seed=1, objective=objective).elbo, guide.median()["mean"]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"seconds": -1.0}, "seconds must be a positive number"),
        ({"steps": -1}, "steps must be a whole number"),
        ({"steps": 2, "particles": 0}, "particles must be a whole number"),
        ({"steps": 2, "datasets": torch.zeros(0, 3)}, r"\[S, 3\]"),
        ({"steps": 2, "datasets": torch.zeros(5, 2)}, r"\[S, 3\]"),
        ({"steps": 2, "datasets": torch.full((5, 3), math.nan)}, "not finite"),
        ({"steps": 2, "datasets": torch.zeros(5, 3), "objective": "forward"}, "objective='elbo'"),
    ],
)
def test_options_that_mean_nothing(option: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        untrained().fit(torch.zeros(3), **option)


def test_improper_priors_cannot_be_simulated() -> None:
    y = torch.tensor([0.5, 1.0, -0.3])
    guide = EMFGuide(MODELS["improper"].model, amortize=True).setup(y)
    with pytest.raises(UserError, match="cannot be simulated"):
        guide.fit(y, steps=2)


def test_refusals() -> None:
    y = torch.tensor([0.5, 1.0])
    with pytest.raises(UserError, match="observes nothing"):
        EMFGuide(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), amortize=True).setup()
    with pytest.raises(UserError, match="amortize"):
        EMFGuide(conjugate, amortize="mlp").setup(torch.zeros(3))
    for name in ("weighted", "masked"):
        guide = EMFGuide(MODELS[name].model, amortize=True).setup(y)
        with pytest.raises(UserError, match="datasets"):
            guide.fit(y, steps=2)
        guide.fit(y, steps=2, datasets=torch.randn(10, 2))
    guide = EMFGuide(conjugate, amortize=True).setup(torch.zeros(3))
    with pytest.raises(UserError, match="objective"):
        guide.fit(torch.zeros(3), steps=2, objective="iwae")
    with pytest.raises(UserError, match="data site"):
        guide.posterior_for({"y": torch.zeros(4)})
    with pytest.raises(UserError, match="3 numbers of data"):
        guide.posterior_for(torch.zeros(4))
    with pytest.raises(UserError, match="data site 'y'"):
        guide.median(torch.zeros(3, 1).expand(3, 3))
