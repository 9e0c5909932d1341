"""Options and keywords of a wrong type or name: one sentence each, from every entry of inference."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import emfc
from emfc import UserError
from emfc.inference import calibrate, fit_density
from emfc.options import keywords_of, read_keywords
from tests.inference import posterior_programs as programs

Y = torch.tensor([1.0, 2.0, 0.5])


@pytest.fixture(scope="module")
def posterior() -> emfc.Posterior:
    return emfc.infer(programs.normal, Y, steps=20, draws=200, backbone="mvn")


@pytest.fixture(scope="module")
def guide() -> emfc.EMFGuide:
    made = emfc.EMFGuide(programs.normal, backbone="mvn")
    made.setup(Y)
    return made


@pytest.fixture(scope="module")
def amortised() -> emfc.EMFGuide:
    made = emfc.EMFGuide(programs.normal, backbone="mvn", amortize=8)
    made.setup(Y)
    return made


def refused(call: Callable[[], Any], told: str) -> None:
    """The call raises `UserError` with one sentence that holds these words."""
    with pytest.raises(UserError) as caught:
        call()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seconds": "3"}, "seconds must be a positive number, not '3'"),
        ({"seconds": True}, "seconds must be a positive number"),
        ({"seconds": float("nan")}, "seconds must be a positive number"),
        ({"steps": "5"}, "steps must be a whole number, 1 or more, not '5'"),
        ({"steps": 5.0}, "steps must be a whole number"),
        ({"particles": 0}, "particles must be a whole number, 1 or more"),
        ({"draws": None}, "draws must be a whole number, 100 or more"),
        ({"draws": -1}, "draws must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number, not 'a'"),
        ({"seed": None}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"informed": "yes"}, "informed must be True or False, not 'yes'"),
        ({"backbone": None}, "backbone must be one of"),
        ({"progress": 3}, "progress must be a function or None, not 3"),
        ({"step": 5}, "'step' is neither an option of infer nor an argument of the model; did you mean 'steps'?"),
        ({"backbon": "iaf"}, "did you mean 'backbone'?"),
        ({"unlike_all": 1}, "'unlike_all' is neither an option of infer nor an argument of the model; there are"),
    ],
)
def test_infer(options: dict[str, Any], told: str) -> None:
    refused(lambda: emfc.infer(programs.normal, Y, **options), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seconds": "a"}, "seconds must be"),
        ({"seed": "a"}, "seed must be"),
        ({"informed": "yes"}, "informed must be"),
        ({"reweight": "x"}, "reweight must be True or False"),
        ({"family": 3}, "family must be a mapping"),
        ({"progress": 3}, "progress must be a function"),
        ({"simulation": 30}, "did you mean 'simulations'?"),
    ],
)
def test_calibrate(options: dict[str, Any], told: str) -> None:
    refused(lambda: calibrate(programs.normal, Y, **options), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"spread": "a"}, "spread must be a positive number"),
        ({"seed": "a"}, "seed must be"),
        ({"steps": "a"}, "steps must be"),
        ({"flow": 3}, "flow must be a mapping"),
        ({"flow": {"transform": 3}}, "flow has no option 'transform'; did you mean 'transforms'?"),
        ({"fit": {"aneal": 0.5}}, "fit has no option 'aneal'; did you mean 'anneal'?"),
    ],
)
def test_fit_density(options: dict[str, Any], told: str) -> None:
    refused(lambda: fit_density(lambda x: -0.5 * x.square().sum(-1), 2, **options), told)


@pytest.mark.parametrize("seed", ["a", 1.5, True])
def test_seeds_of_a_posterior(posterior: emfc.Posterior, seed: Any) -> None:
    for draw in (posterior.sample, posterior.resample, posterior.predictive):
        refused(functools.partial(draw, 3, seed=seed), "seed must be a whole number")
    refused(lambda: posterior.to_arviz(seed=seed), "seed must be a whole number")


def test_seeds_of_any_size(posterior: emfc.Posterior) -> None:
    for seed in (-1, 2**70, np.int64(3)):
        for draw in (posterior.sample, posterior.resample, posterior.predictive):
            assert len(next(iter(draw(3, seed=seed).values()))) == 3


@pytest.mark.parametrize("n", [0, -1, 1.5, "a", None, True])
def test_numbers_of_draws(posterior: emfc.Posterior, amortised: emfc.EMFGuide, n: Any) -> None:
    for draw in (posterior.sample, posterior.resample, posterior.predictive):
        refused(functools.partial(draw, n), "the number of draws must be a whole number, 1 or more")
    refused(lambda: amortised.posterior_for(Y, draws=n), "the number of draws must be a whole number")


@pytest.mark.parametrize("level", [1.5, -0.1, "a", None, [0.1, 0.9], float("nan"), torch.tensor([0.1, 0.2])])
def test_quantiles(posterior: emfc.Posterior, guide: emfc.EMFGuide, level: Any) -> None:
    refused(lambda: posterior.quantiles(level), "quantiles takes probabilities, numbers from 0 to 1")
    if level is None or isinstance(level, (str, float)):
        refused(lambda: guide.quantiles([level], Y), "quantiles takes probabilities")


def test_quantiles_that_are_right(posterior: emfc.Posterior, guide: emfc.EMFGuide) -> None:
    assert posterior.quantiles(0, 0.5, 1)["mean"].shape == (3,)
    assert posterior.quantiles(np.float64(0.3))["mean"].shape == (1,)
    for levels in ([0.1, 0.9], torch.tensor([0.1, 0.9]), np.array([0.1, 0.9]), (0.1, 0.9)):
        assert guide.quantiles(levels, Y)["mean"].shape == (2,)
    assert guide.quantiles(0.5, Y)["mean"].shape == (1,)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unknown": 1}, "EMFGuide has no option 'unknown'"),
        ({"hidden_feature": (8,)}, "did you mean 'hidden_features'?"),
        ({"informed": "yes"}, "informed must be"),
        ({"create_plates": 3}, "create_plates must be a function"),
        ({"name": 3}, "name must be text"),
        ({"context_features": 3}, "leave context_features out"),
    ],
)
def test_guide(options: dict[str, Any], told: str) -> None:
    refused(lambda: emfc.EMFGuide(programs.normal, **options), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hidden_features": 8}, "hidden_features must be widths"),
        ({"hidden_features": "abc"}, "hidden_features must be widths"),
        ({"bins": 0}, "bins must be a whole number, from 2 to 1,024"),
        ({"bins": "a"}, "bins must be"),
        ({"rank": 0, "backbone": "lowrank"}, "rank must be"),
        ({"rank": "a", "backbone": "lowrank"}, "rank must be"),
        ({"transforms": True}, "transforms must be"),
        ({"optimize": "x"}, "optimize must be True or False"),
        ({"activation": [1]}, "activation must be one of"),
        ({"amortize": 2.5}, "amortize is True"),
    ],
)
def test_family_of_a_guide(options: dict[str, Any], told: str) -> None:
    refused(lambda: emfc.EMFGuide(programs.normal, **options)(Y), told)


def test_guide_of_no_model() -> None:
    refused(lambda: emfc.EMFGuide(3), "a guide is made of a model")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seconds": "3"}, "seconds must be"),
        ({"seed": "a"}, "seed must be"),
        ({"seed": None}, "seed must be"),
        ({"progress": 3}, "progress must be"),
        ({"step": 5}, "did you mean 'steps'?"),
    ],
)
def test_fit(guide: emfc.EMFGuide, amortised: emfc.EMFGuide, options: dict[str, Any], told: str) -> None:
    refused(lambda: guide.fit(Y, **{"steps": 2, **options}), told)
    refused(lambda: amortised.fit(Y, **{"steps": 2, **options}), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"warmup": "a"}, "warmup must be a whole number"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"chains": 1.5}, "chains must be a whole number"),
        ({"max_tree_depth": "a"}, "max_tree_depth must be"),
        ({"target_accept": 2}, "target_accept must be a number between 0 and 1, not 2"),
        ({"target_accept": "a"}, "target_accept must be"),
        ({"seed": "a"}, "seed must be"),
        ({"sample": 5}, "did you mean 'samples'?"),
    ],
)
def test_nuts(guide: emfc.EMFGuide, options: dict[str, Any], told: str) -> None:
    refused(lambda: guide.nuts(Y, **options), told)


def test_data_of_an_amortised_guide(amortised: emfc.EMFGuide) -> None:
    refused(lambda: amortised.posterior_for(None), "data must be a flat tensor or a mapping")  # type: ignore[arg-type]
    refused(lambda: amortised.posterior_for({"y": "a"}), "data site 'y' is not an array of numbers")
    refused(lambda: amortised.fit(Y, steps=2, datasets=3), "datasets must be a tensor")  # type: ignore[arg-type]


def test_keywords_of_models_that_cannot_be_told() -> None:
    """Nothing is refused that may be right."""

    class Module(nn.Module):
        def forward(self, y: Any, sd: float = 1.0) -> None:
            """Nothing."""

    def wrapped(**kwargs: Any) -> None:
        """Nothing."""

    options = keywords_of(emfc.infer)
    read_keywords("infer", options, wrapped, {"anything": 1})
    read_keywords("infer", options, functools.partial(programs.normal, y=Y), {})
    read_keywords("infer", options, Module(), {"sd": 2.0})
    refused(lambda: read_keywords("infer", options, Module(), {"step": 2}), "did you mean 'steps'?")
    conditioned = pyro.poutine.condition(programs.normal, data={})
    read_keywords("infer", options, conditioned, {"y": Y})


# ---------------------------------------------------------------------- files


def test_a_posterior_is_not_pickled_but_copied(posterior: emfc.Posterior) -> None:
    refused(lambda: pickle.dumps(posterior), "posterior.save(path)")
    shallow, deep = copy.copy(posterior), copy.deepcopy(posterior)
    assert shallow.draws is posterior.draws
    assert deep.draws is not posterior.draws
    assert torch.equal(deep.draws, posterior.draws)
    assert torch.equal(deep.sample(3, seed=0)["mean"], posterior.sample(3, seed=0)["mean"])


@pytest.mark.parametrize("path", [3, None, ["a"]])
def test_folders_that_are_no_paths(posterior: emfc.Posterior, path: Any) -> None:
    refused(lambda: posterior.save(path), "the folder must be a path")
    refused(lambda: emfc.Posterior.load(path), "the folder must be a path")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("options", "backbone", [1]),
        ("options", "hidden_features", 3),
        ("options", "context_features", "a"),
        ("options", "activation", [1]),
        ("options", "bins", "a"),
        ("options", "rank", "a"),
        ("options", "transforms", 10**9),
        ("options", "informed", "yes"),
        ("options", "optimize", "x"),
        ("options", "program", {}),
        ("options", "unknown", 1),
        ("record", "steps", "a"),
        ("record", "steps", 1.5),
        ("record", "stopped", 3),
        ("record", "start", None),
        ("record", "particles", "a"),
        ("record", "remarks", 3),
        ("record", "remarks", [3]),
        ("record", "objective", 3),
        ("record", "elbo", [1]),
        ("record", "history", [[1]]),
    ],
)
def test_documents_that_were_edited(
    posterior: emfc.Posterior, tmp_path: Path, part: str, name: str, value: Any
) -> None:
    posterior.save(tmp_path / "p")
    file = tmp_path / "p" / "posterior.json"
    document = json.loads(file.read_text())
    document[part][name] = value
    file.write_text(json.dumps(document))
    refused(lambda: emfc.Posterior.load(tmp_path / "p"), "is damaged: ")


# ---------------------------------------------------------------------- masks


def _imputed(y: torch.Tensor, mask: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        value = pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=mask)
    pyro.sample("total", dist.Normal(value.sum(), 1.0), obs=torch.tensor(9.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_missing_data_are_imputed(dtype: torch.dtype, tmp_path: Path) -> None:
    """The normal posterior of the mean and the missing row is known; observed rows are drawn from their own density."""
    torch.set_default_dtype(dtype)
    y, mask = torch.tensor([1.0, 2.0, float("nan"), 0.5]), torch.tensor([True, True, False, True])
    posterior = emfc.infer(_imputed, y, mask, steps=200)
    precision = torch.tensor([[5.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    mean, sd = torch.linalg.solve(precision, torch.tensor([3.5, 5.5], dtype=torch.float64)), precision.inverse()
    sd = sd.diagonal().sqrt()
    found = posterior.mean["mean"], posterior.mean["y_unobserved"][2]
    spread = posterior.sd["mean"], posterior.sd["y_unobserved"][2]
    for place in range(2):
        assert abs(float(found[place] - mean[place])) < 0.06 * float(sd[place])
        assert abs(float(spread[place] / sd[place]) - 1) < 0.05
    own = posterior.sd["y_unobserved"][[0, 1, 3]].double()
    assert torch.allclose(own, (1 + sd[0] ** 2).sqrt().expand(3), rtol=0.06)
    joint = torch.zeros(4, 6, dtype=torch.float64)  # y_0, y_1, y_3 and the total, of mean, the rows' noise, its own
    joint[:3, 0], joint[3] = 1.0, torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    joint[0, 1] = joint[1, 2] = joint[2, 4] = 1.0
    exact = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), joint @ joint.T)
    evidence = float(exact.log_prob(torch.tensor([1.0, 2.0, 0.5, 9.0], dtype=torch.float64)))
    assert abs(posterior.log_evidence - evidence) < 0.01
    assert posterior.khat < 0.5
    posterior.save(tmp_path / "p")
    assert emfc.Posterior.load(tmp_path / "p", _imputed, y, mask).khat == posterior.khat


def test_missing_data_by_nuts() -> None:
    y, mask = torch.tensor([1.0, 2.0, 0.0, 0.5]), torch.tensor([True, True, False, True])
    guide = emfc.EMFGuide(_imputed, backbone="mvn")
    guide.fit(y, mask, steps=100)
    draws = guide.nuts(y, mask, warmup=100, samples=200, chains=2).draws
    assert abs(float(draws["y_unobserved"][..., 2].mean()) - 3.444) < 0.2
    assert float(draws["y_unobserved"][..., 0].std()) < 2


def _masked(mask: torch.Tensor) -> None:
    with pyro.plate("rows", 3), pyro.poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z[0], 1.0), obs=torch.tensor(1.0))


def _masked_family() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True])).to_event(1))
    pyro.sample("y", dist.Normal(z[0], 1.0), obs=torch.tensor(1.0))


def _masked_and_missing(y: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3), pyro.poutine.mask(mask=torch.tensor([True, True, False])):
        pyro.sample("z", dist.Normal(mean, 1.0), obs=y, obs_mask=torch.tensor([True, False, False]))


def test_masked_latent_sites_are_refused() -> None:
    """Where the mask is off a latent element is flat: there is no posterior."""
    off = torch.tensor([True, False, True])
    refused(lambda: emfc.infer(_masked, off), "a mask takes the prior of the latent site 'z' away")
    refused(lambda: emfc.infer(_masked_family), "the latent site 'z'")
    refused(lambda: emfc.infer(_masked_and_missing, torch.zeros(3)), "the latent site 'z_unobserved'")
    refused(lambda: calibrate(_masked, off), "the latent site 'z'")
    guide = emfc.EMFGuide(_masked, backbone="mvn")
    refused(lambda: guide.fit(off, steps=2), "the latent site 'z'")
    refused(lambda: guide.nuts(off, warmup=2, samples=2), "the latent site 'z'")
    posterior = emfc.infer(_masked, torch.tensor([True, True, True]), steps=30, backbone="mvn")
    assert abs(float(posterior.mean["z"][0]) - 0.5) < 0.06


def test_missing_counts_are_summed_out() -> None:
    def model(y: torch.Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Bernoulli(p), obs=y, obs_mask=torch.tensor([True, True, True, False]))

    with pytest.raises(UserError, match="'y_unobserved' is discrete and nothing depends on it"):
        emfc.infer(model, torch.tensor([1.0, 1.0, 0.0, 0.0]))


# ---------------------------------------------------------------------- a flow as a prior


def test_a_flow_as_a_prior_is_refused_in_words() -> None:
    def base() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    flow = emfc.EmbeddedModelFlow(base, backbone="maf", hidden_features=(8,))

    def model(y: torch.Tensor) -> None:
        z = pyro.sample("z", flow())
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    for call in (lambda: emfc.infer(model, torch.tensor(1.0)), lambda: emfc.EMFGuide(model)(torch.tensor(1.0))):
        with pytest.raises(emfc.CompileError, match="use Pyro's own inference, such as SVI with AutoNormal") as caught:
            call()
        assert (caught.value.code, caught.value.site) == ("E-NOCDF", "z")
