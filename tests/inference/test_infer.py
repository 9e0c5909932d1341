"""`emfc.infer`: right where the answer is known, honest where it is not, the same for the same seed."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

import emfc
from emfc import CompileError, UserError
from emfc.inference.predictive import _by_pyro
from tests.inference import posterior_programs as programs

SHORT = {"steps": 350}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normal_mean(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    y = programs.draws(1, 12) + 1
    posterior = emfc.infer(programs.normal, y, **SHORT)
    mean, sd, evidence = programs.normal_answer(y)
    assert posterior.mean["mean"].dtype == dtype
    assert abs(float(posterior.mean["mean"]) - mean) < 0.05 * sd
    assert abs(float(posterior.sd["mean"]) / sd - 1) < 0.04
    assert abs(posterior.log_evidence - evidence) < 5 * posterior.log_evidence_se + 2e-3
    assert posterior.elbo <= evidence + 5 * posterior.elbo_se + 1e-3
    assert posterior.khat < 0.5
    assert posterior.trusted
    assert posterior.verdict.startswith("good")
    assert posterior.resample(50)["mean"].dtype == posterior.predictive(20)["y"].dtype == dtype


def test_regression() -> None:
    x, noise = programs.draws(2, 30, 2), programs.draws(3, 30)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 * noise
    posterior = emfc.infer(programs.regression, x, y=y, backbone="mvn", **SHORT)
    mean, covariance, evidence = programs.regression_answer(x, y)
    sd = covariance.diagonal().sqrt()
    assert torch.allclose(posterior.mean["w"].double(), mean, atol=0.06 * float(sd.max()))
    assert torch.allclose(posterior.sd["w"].double(), sd, rtol=0.05)
    assert abs(posterior.log_evidence - evidence) < 0.01
    drawn = posterior.sample(4000, seed=0)["w"]
    assert abs(float(torch.corrcoef(drawn.T)[0, 1]) - float(covariance[0, 1] / sd.prod())) < 0.06


def test_counts() -> None:
    y = torch.tensor([1.0, 0.0, 4.0, 2.0, 1.0])
    posterior = emfc.infer(programs.counts, y, **SHORT)
    mean, sd, evidence = programs.counts_answer(y)
    assert abs(float(posterior.mean["rate"]) - mean) < 0.06 * sd
    assert abs(float(posterior.sd["rate"]) / sd - 1) < 0.05
    assert abs(posterior.log_evidence - evidence) < 0.01
    assert bool((posterior.draws > 0).all())


def test_funnel_that_no_mean_field_fits() -> None:
    posterior = emfc.infer(programs.funnel, backbone="meanfield", steps=700)
    assert posterior.khat > 0.7
    assert not posterior.trusted
    assert "not to be trusted" in posterior.verdict
    assert "do not use these means and intervals" in str(posterior.summary())
    assert torch.allclose(posterior.weights, posterior.weights[:1])


def test_prior_that_contradicts_the_data() -> None:
    y = 60 + 0.1 * programs.draws(4, 10)
    told = str(emfc.infer(programs.normal, y, **SHORT).summary())
    assert "the prior of mean contradicts the data" in told
    assert not emfc.infer(programs.normal, y - 59, steps=50).conflicts


def test_parameters_of_the_model_are_fitted() -> None:
    y = 1.4 * programs.draws(5, 25) + 1
    posterior = emfc.infer(programs.scaled, y, steps=800)

    def evidence(noise: float) -> float:
        covariance = noise**2 * torch.eye(25) + 9.0
        return float(torch.distributions.MultivariateNormal(torch.zeros(25), covariance).log_prob(y))

    grid = [1.0 + 0.005 * step for step in range(200)]
    best = max(grid, key=evidence)
    assert abs(float(posterior.parameters["noise"]) - best) < 0.05
    assert abs(posterior.log_evidence - evidence(best)) < 0.02
    assert "parameter noise" in str(posterior.summary())
    assert not pyro.get_param_store().keys()
    assert abs(float(posterior.predictive(4000)["y"].std()) / best - 1) < 0.08


class Regression(PyroModule):
    """Learned slopes and noise under a latent offset."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](1, 1, bias=False)
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        line, noise = self.linear(x[:, None])[:, 0], self.noise
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(offset + line, noise), obs=y)


def test_parameters_of_a_module_are_fitted_and_the_module_stays_as_it_is() -> None:
    x = programs.draws(8, 60)
    y = 2.0 * x + 0.5 + 0.3 * programs.draws(9, 60)
    model = Regression()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    posterior = emfc.infer(model, x, y, steps=900)
    assert abs(float(posterior.parameters["linear.weight"]) - 2.0) < 0.15
    assert abs(float(posterior.parameters["noise"]) - 0.3) < 0.06
    compiled = posterior.predictive(2000)["y"]
    theirs = _by_pyro(posterior, posterior.draws[:200], seed=0)["y"]
    assert torch.allclose(compiled.mean(0), theirs.mean(0), atol=0.15)
    guide = posterior.guide
    assert (
        abs(float(guide.nuts(warmup=100, samples=150, chains=2).draws["offset"].mean() - posterior.mean["offset"]))
        < 0.03
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_same_seed_same_posterior() -> None:
    y = programs.draws(6, 8)
    before = torch.get_rng_state()
    first, again, other = (emfc.infer(programs.normal, y, steps=60, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.draws, again.draws)
    assert first.elbo == again.elbo
    assert first.summary().to_dict() == again.summary().to_dict()
    assert not torch.equal(first.draws, other.draws)
    assert emfc.infer(programs.normal, y, steps=20, seed=2**63 - 1).trusted


def test_discrete_latents() -> None:
    y = torch.tensor([-2.1, 2.2, 1.8, -1.7, 2.0, 2.4])
    posterior = emfc.infer(programs.mixture, y, **SHORT)
    assert list(posterior.sites) == ["centre"]
    expected = torch.tensor([-1.91, 2.095])  # each row is of the population that it lies next to
    assert torch.allclose(posterior.mean["centre"], expected, atol=0.04)

    def leaf() -> None:
        pyro.sample("rate", dist.Gamma(1.0, 1.0))
        pyro.sample("count", dist.Poisson(2.0))

    with pytest.raises(UserError, match="'count' is discrete"):
        emfc.infer(leaf)


def test_nothing_to_infer() -> None:
    def observed() -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(CompileError, match="no latent sample site"):
        emfc.infer(observed)


@pytest.mark.parametrize(
    "options",
    [
        {"seconds": 0.0},
        {"seconds": -1.0},
        {"steps": 0},
        {"steps": 1.5},
        {"particles": 0},
        {"draws": 99},
        {"draws": True},
        {"backbone": "nonsense"},
    ],
)
def test_options_that_mean_nothing(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        emfc.infer(programs.normal, torch.zeros(3), **options)  # type: ignore[arg-type]


def test_arguments_that_clash_with_options() -> None:
    def model(steps: int) -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([steps]).to_event(1))

    posterior = emfc.infer(functools.partial(model, steps=3), steps=20)
    assert posterior.sites == {"x": (3,)}


@pytest.mark.parametrize("backbone", ["meanfield", "mvn", "lowrank", "iaf", "maf", "nsf", "coupling"])
@pytest.mark.parametrize("informed", [False, True, None])
def test_every_backbone(backbone: str, informed: bool | None, tmp_path: Path) -> None:
    x, y = programs.draws(2, 12, 2), programs.draws(3, 12)
    posterior = emfc.infer(programs.regression, x, y, backbone=backbone, informed=informed, steps=40, draws=1000)
    _, _, evidence = programs.regression_answer(x, y)
    assert posterior.options["backbone"] == backbone
    assert informed is None or posterior.options["informed"] == informed
    assert posterior.elbo < evidence + 5 * posterior.elbo_se + 1e-3
    assert abs(posterior.log_evidence - evidence) < 0.1
    posterior.save(tmp_path / "p")
    loaded = emfc.Posterior.load(tmp_path / "p")
    assert torch.equal(loaded.sample(5, seed=1)["w"], posterior.sample(5, seed=1)["w"])


def test_progress_and_record() -> None:
    heard: list[int] = []
    posterior = emfc.infer(
        programs.normal, torch.zeros(3), steps=300, draws=200, progress=lambda step, elbo: heard.append(step)
    )
    assert heard == sorted(heard)
    assert posterior.record.steps <= 300
    assert len(posterior.draws) == 200
    assert math.isfinite(posterior.record.elbo)


def test_prior_alone() -> None:
    def prior() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, scale))

    posterior = emfc.infer(prior, steps=50)
    assert abs(posterior.elbo) < 0.05
    with pytest.raises(UserError, match="no data"):
        posterior.predictive(3)


def coin(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def heavy(share: float) -> None:
    """A standard normal, a share of which is ten times as wide."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    plain = dist.Normal(0.0, 1.0).log_prob(x)
    wide = dist.Normal(0.0, 10.0).log_prob(x) + math.log(share)
    pyro.factor("tail", torch.logaddexp(plain + math.log1p(-share), wide) - plain)


def test_tails_beyond_the_draws_that_carry_nothing() -> None:
    """Logit-normal weights of a Beta posterior grow without end, where it has next to no mass."""
    posterior = emfc.infer(coin, torch.ones(3), backbone="mvn", steps=150)
    assert posterior.khat > 0.7
    assert posterior.wide is not None
    assert posterior.wide.khat < 0.7
    assert posterior.wide.apart < 0.05
    assert posterior.trusted
    assert "draws that spread wider than the fit" in posterior.verdict
    assert abs(float(posterior.mean["p"]) - 0.8) < 0.01


def test_tails_beyond_the_draws_that_carry_something() -> None:
    """One in fifty lies ten times as far out: the fit's own draws do not tell, wider ones do."""
    posterior = emfc.infer(heavy, 0.02, backbone="mvn", steps=60)
    assert not posterior.trusted
    assert "not to be trusted" in posterior.verdict
