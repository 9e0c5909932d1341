"""Preconditioned HMC: Pyro's NUTS through a guide, and the guide's own sampler."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import NeuTraReparam

from emfc import EMFGuide, UserError
from emfc.inference.hmc import Chains, run_nuts
from emfc.inference.variational import VariationalFlow
from tests.inference.guided import MODELS, normal
from tests.programs.accepted import PROGRAMS


def by_neutra(guide: EMFGuide, model: Any, args: Any, kwargs: Any, samples: int, warmup: int) -> dict[str, Any]:
    """Draws by site ``[samples, *shape]`` of Pyro's NUTS through a guide."""
    neutra = NeuTraReparam(guide)
    start = init_to_value(values=guide.median(*args, **kwargs))  # Pyro can't draw from improper priors
    kernel = NUTS(neutra.reparam(model), max_tree_depth=3, init_strategy=start)
    mcmc = MCMC(kernel, num_samples=samples, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    (latent,) = mcmc.get_samples().values()
    free = guide.get_transform()(latent)
    coordinates = guide._coordinate_map()
    examples = coordinates.constrain(free)
    inside = {site.name: bool(site.support.check(site.value(examples)).all()) for site in coordinates.sites
              if site.moving is None}  # fmt: skip
    assert all(inside.values()), inside
    return guide.flow.layer.unpack(examples)


def run_case(model: Any, args: Any, kwargs: Any, guide: EMFGuide) -> None:
    """A short run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = by_neutra(guide, model, args, kwargs, samples=3, warmup=3)
    for value in drawn.values():
        assert bool(value.isfinite().all())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_neutra_runs_on_guided_models(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    args = MODELS[name].args()
    run_case(MODELS[name].model, args, {}, EMFGuide(MODELS[name].model, "meanfield").setup(*args))


def _with_data(model: Any, args: Any, kwargs: Any, summed: tuple[str, ...]) -> Any:
    """A program of the corpus with its discrete sites as data, but for those that are summed out."""
    nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
    data = {
        name: site["value"]
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample"
        and name not in summed and site["fn"].support.is_discrete
    }  # fmt: skip
    return poutine.condition(model, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_neutra_runs_on_the_corpus(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    case = PROGRAMS[name]
    model, args, kwargs = case.build()
    model = _with_data(model, args, kwargs, case.summed)
    if name == "digit_populations":
        pytest.skip("all its sites are discrete")
    gate = None if name == "vector_bijections" else "site"  # one of its families has no gate
    guide = EMFGuide(model, "meanfield", gate=gate).setup(*args, **kwargs)
    chains = guide.nuts(*args, warmup=2, samples=4, max_tree_depth=2, **kwargs)
    assert all(bool(value.isfinite().all()) for value in chains.draws.values())
    if case.summed:
        return  # Pyro sums out discrete sites in programs that are written for it
    try:
        guide.get_transform()
    except UserError as error:
        pytest.skip(str(error))
    run_case(model, args, kwargs, guide)


def test_the_sampler_finds_a_normal_posterior() -> None:
    torch.set_default_dtype(torch.float64)
    y = torch.tensor([0.5, 1.5, 2.0, 1.0])
    guide = EMFGuide(normal, "meanfield").setup(y)
    chains = guide.nuts(y, warmup=150, samples=400, chains=8, seed=3)
    precision = 1 / 4 + len(y)
    draws = chains.draws["mean"]
    assert draws.shape == (8, 400)
    error = precision**-0.5 / math.sqrt(chains.worst_ess)
    assert abs(float(draws.mean()) - float(y.sum() / precision)) < 4 * error
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.06)
    assert chains.divergences == 0
    assert chains.worst_r_hat < 1.02
    assert chains.worst_ess > 1000
    again = guide.nuts(y, warmup=150, samples=400, chains=8, seed=3)
    torch.testing.assert_close(again.draws["mean"], draws)


class Correlated(torch.nn.Module):
    """A correlated normal log density with unequal scales."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        self.covariance = factor @ factor.mT / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
        self.covariance = self.covariance * torch.linspace(0.2, 4, dim, dtype=torch.float64)[:, None]
        self.covariance = self.covariance * torch.linspace(0.2, 4, dim, dtype=torch.float64)
        self.mean = torch.linspace(-3, 3, dim, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dist.MultivariateNormal(self.mean, self.covariance).log_prob(x)  # type: ignore[no-any-return]


def flow_of(dim: int) -> VariationalFlow:
    """An untrained flow of independent normal sites."""
    from emfc.compiler import parse_target

    def model(y: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return VariationalFlow(parse_target(model, torch.zeros(dim)).prior(), backbone="meanfield")


@pytest.mark.parametrize("chains", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_sampler_adapts_to_scales(chains: int) -> None:
    torch.set_default_dtype(torch.float64)
    target = Correlated(5)
    held = run_nuts(flow_of(5), target, warmup=200, samples=1000 // chains, chains=chains, seed=1)
    draws = held.draws["x"].flatten(0, 1)
    sd = target.covariance.diagonal().sqrt()
    assert held.worst_ess > 150
    assert float(((draws.mean(0) - target.mean) / sd).abs().max()) < 4.5 / math.sqrt(held.worst_ess)
    torch.testing.assert_close(draws.std(0), sd, rtol=0.2, atol=0)
    assert held.divergences == 0
    assert "effective draws" in repr(held)


def test_the_sampler_reports_divergences() -> None:
    torch.set_default_dtype(torch.float64)

    def funnel(x: torch.Tensor) -> torch.Tensor:
        head = dist.Normal(0.0, 3.0).log_prob(x[..., 0])
        return head + dist.Normal(0.0, (x[..., :1] / 2).exp()).log_prob(x[..., 1:]).sum(-1)

    held = run_nuts(flow_of(6), funnel, warmup=100, samples=100, chains=4, seed=1)
    assert held.divergences > 0 or held.worst_ess < 100


def chains_of(**draws: torch.Tensor) -> Chains:
    """The record of some draws."""
    from emfc.inference.diagnostics import ess_bulk, rhat

    r_hat = {name: rhat(value) for name, value in draws.items()}
    return Chains(draws, r_hat, {name: ess_bulk(value) for name, value in draws.items()}, 0, 0.8, 0.1, 1, 0.1)


def test_the_worst_figures() -> None:
    torch.manual_seed(0)
    moving, still = torch.randn(2, 100, 2), torch.ones(2, 100)
    held = chains_of(moving=moving, still=still)
    assert held.worst_r_hat == float(held.r_hat["moving"].max()) < 1.1
    assert held.worst_ess == float(held.ess["moving"].min())
    for wrong in (math.inf, math.nan):
        spoilt = moving.clone()
        spoilt[0, 3, 1] = wrong
        held = chains_of(moving=spoilt, still=still)
        assert held.worst_r_hat == math.inf
        assert math.isnan(held.worst_ess)
    assert chains_of(still=torch.full((2, 100), math.inf)).worst_r_hat == math.inf
    assert math.isnan(chains_of(still=still).worst_ess)


def test_refusals() -> None:
    torch.set_default_dtype(torch.float64)
    flow = flow_of(2)
    with pytest.raises(UserError, match="samples"):
        run_nuts(flow, Correlated(2), samples=0)
    with pytest.raises(UserError, match="not finite"):
        run_nuts(flow, lambda x: x.sum(-1) * math.nan)


@pytest.mark.parametrize(
    "name",
    ["hierarchy", "moving_support", "simplex", pytest.param("cholesky", marks=pytest.mark.slow), "improper", "summed"],
)
def test_the_sampler_agrees_with_the_evidence_of_expectations(name: str) -> None:
    """Draws of the sampler have the mean that importance weights of the guide give."""
    torch.set_default_dtype(torch.float64)
    if name == "summed":
        from tests.inference.guided import summed as model

        args: Any = (torch.tensor([-2.0, 2.1, 1.9]),)
    else:
        model, args = MODELS[name].model, MODELS[name].args()
    guide = EMFGuide(model, "meanfield").setup(*args)
    with torch.no_grad():
        torch.manual_seed(0)
        x, log_q = guide.flow.rsample_and_log_prob((100_000,))
        weights = torch.softmax(guide.log_joint(*args)(x) - log_q, 0)
        inner = x.clamp(-3, 3)  # moments that exist
        mean = (weights[:, None] * inner).sum(0)
        spread = (weights[:, None] * (inner - mean).square()).sum(0).sqrt()
    chains = guide.nuts(*args, warmup=60, samples=60, chains=48, seed=1)
    drawn = guide.flow.pack(chains.draws).flatten(0, 1).clamp(-3, 3)
    assert float(((drawn.mean(0) - mean) / spread.clamp(min=0.01)).abs().max()) < 0.2
    assert math.isfinite(chains.worst_ess)
    assert math.isfinite(chains.worst_r_hat)
