"""What a posterior gives: tables, draws, files, ArviZ."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import emfc
from emfc import Posterior, UserError
from emfc.inference import storage
from tests.inference import posterior_programs as programs


@pytest.fixture(scope="module")
def fitted() -> tuple[Posterior, torch.Tensor, torch.Tensor]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    x, noise = programs.draws(2, 20, 2), programs.draws(3, 20)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 * noise
    posterior = emfc.infer(programs.regression, x, y, backbone="meanfield", steps=300)
    torch.set_default_dtype(before)
    return posterior, x, y


def test_table(fitted) -> None:
    posterior = fitted[0]
    summary = posterior.summary()
    assert [row.name for row in summary] == ["w[0]", "w[1]"]
    text = str(summary)
    for word in ("mean", "sd", "5 %", "50 %", "95 %", "ESS", "k-hat", "w[1]", "ELBO", "log evidence", "The result is"):
        assert word in text
    document = summary.to_dict()
    json.dumps(document)
    assert document["sites"]["w"]["mean"] == [summary["w[0]"].mean, summary["w[1]"].mean]
    assert document["elbo"] == posterior.elbo
    row = summary["w[0]"]
    assert row.q05 < row.q50 < row.q95
    assert math.isclose(row.q95 - row.q05, 2 * 1.645 * row.sd, rel_tol=0.1)
    assert row.khat >= posterior.khat
    assert 0 < row.ess <= 4200
    with pytest.raises(KeyError):
        summary["w[2]"]


def test_weights_correct_a_poor_fit(fitted) -> None:
    """A mean-field fit is too narrow where coefficients are correlated; the weighted draws are not."""
    posterior, x, y = fitted
    _, covariance, evidence = programs.regression_answer(x, y)
    truth = covariance.diagonal().sqrt()
    plain, weighted = posterior.draws.std(0), posterior.sd["w"]
    assert bool(((weighted / truth - 1).abs() < 0.08).all())
    assert float((weighted / truth - 1).abs().sum()) < float((plain / truth - 1).abs().sum()) + 0.02
    assert posterior.elbo < evidence
    assert abs(posterior.log_evidence - evidence) < 4 * posterior.log_evidence_se + 1e-3
    resampled = posterior.resample(4000)["w"]
    assert abs(float(torch.corrcoef(resampled.T)[0, 1]) - float(covariance[0, 1] / truth.prod())) < 0.08


def test_draws(fitted) -> None:
    posterior = fitted[0]
    assert posterior.sample(7)["w"].shape == (7, 2)
    assert torch.equal(posterior.sample(5, seed=1)["w"], posterior.sample(5, seed=1)["w"])
    assert torch.equal(posterior.resample(5, seed=1)["w"], posterior.resample(5, seed=1)["w"])
    assert posterior.quantiles(0.1, 0.9)["w"].shape == (2, 2)
    for bad in (0, -1, 2.0, True):
        with pytest.raises(UserError, match="number of draws"):
            posterior.sample(bad)  # type: ignore[arg-type]


def test_resampling_takes_draws_as_often_as_their_weight(fitted) -> None:
    posterior = fitted[0]
    count = 40_000
    rows = torch.bincount(posterior.chosen(count, 0), minlength=len(posterior.draws))
    expected = count * posterior.smoothed.exp()
    assert float((rows - expected).abs().max()) <= 1.0 + 1e-6


def test_files(fitted, tmp_path: Path) -> None:
    posterior, x, y = fitted
    folder = tmp_path / "p"
    posterior.save(folder)
    posterior.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["posterior.json", "posterior.safetensors"]
    for loaded in (Posterior.load(folder), Posterior.load(folder, programs.regression, x, y)):
        assert loaded.summary().to_dict() == posterior.summary().to_dict()
        assert loaded.record == posterior.record
        assert torch.equal(loaded.sample(3, seed=2)["w"], posterior.sample(3, seed=2)["w"])
    assert torch.equal(loaded.predictive(3)["y"], posterior.predictive(3)["y"])
    with pytest.raises(UserError, match="needs the model"):
        Posterior.load(folder).predictive(3)
    with pytest.raises(UserError, match="other latent sites"):
        Posterior.load(folder, programs.normal, y)


def test_files_are_not_loaded_with_other_data(fitted, tmp_path: Path) -> None:
    posterior, x, y = fitted
    posterior.save(tmp_path / "p")
    for other in (y + 1, 100 * y, y[:-1]):
        with pytest.raises(UserError, match="of other data at site 'y'"):
            Posterior.load(tmp_path / "p", programs.regression, x[: len(other)], other)
    with pytest.raises(UserError, match="'y' is observed by the stored posterior alone"):
        Posterior.load(tmp_path / "p", lambda: pyro.sample("w", _two()))
    assert Posterior.load(tmp_path / "p", programs.regression, x, y.float().double()).data.keys() == {"y"}


def _two() -> dist.Distribution:
    return dist.Normal(torch.zeros(2), 1.5).to_event(1)


def test_numbers_that_are_not_finite_come_back(fitted, tmp_path: Path) -> None:
    posterior = fitted[0]
    record = dataclasses.replace(
        posterior.record,
        elbo=-math.inf,
        elbo_se=math.nan,
        history=[(50, math.inf), (100, -1.0)],
        starts={"prior": -math.inf},
    )
    held = Posterior(
        posterior.flow,
        record,
        draws=posterior.draws,
        log_joint_values=posterior.log_joint_values,
        log_weights=posterior.log_weights,
        parameters={},
        data=posterior.data,
        options=posterior.options,
    )
    held.save(tmp_path / "p")
    found = Posterior.load(tmp_path / "p").record
    assert found.elbo == -math.inf
    assert math.isnan(found.elbo_se)
    assert found.history == record.history
    assert found.starts == record.starts


def test_faults_of_the_library_are_not_called_damage(fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted[0].save(tmp_path / "p")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(storage, "program_from_document", fail)
    with pytest.raises(RuntimeError, match=r"^a fault$"):
        Posterior.load(tmp_path / "p")


def test_damaged_files(fitted, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    fitted[0].save(folder)
    document = json.loads((folder / "posterior.json").read_text())

    def damaged(name: str, **changes: object) -> Path:
        other = tmp_path / name
        shutil.copytree(folder, other)
        (other / "posterior.json").write_text(json.dumps({**document, **changes}))
        return other

    tensors = damaged("tensors")
    with (tensors / "posterior.safetensors").open("ab") as file:
        file.write(b"x")
    cut = damaged("cut")
    (cut / "posterior.json").write_text('{"format": 1')
    missing = damaged("missing")
    (missing / "posterior.safetensors").unlink()
    cases = {
        tensors: "checksum",
        cut: "not complete JSON",
        missing: "cannot be read",
        damaged("newer", format=2): "newer emfc",
        damaged("options", options={"backbone": "none"}): "damaged",
        damaged("key", extra=1): "damaged",
        damaged("option", options={"depth": 2}): "no option depth",
        damaged("other", options={"backbone": "iaf"}): "weights are not those",
        damaged("record", record={"elbo": 1.0}): "damaged: its record has elbo",
        damaged("number", record={**document["record"], "elbo": "much"}): "numbers that are none",
        damaged("program", program={}): "damaged",
        tmp_path / "absent": "holds no posterior",
    }
    for path, told in cases.items():
        with pytest.raises(UserError, match=told):
            Posterior.load(path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="file of that name"):
        fitted[0].save(file)


def test_arviz(fitted) -> None:
    arviz = pytest.importorskip("arviz")
    posterior = fitted[0]
    data = posterior.to_arviz(predictive=40)
    assert data.posterior["w"].dims[:2] == ("chain", "draw")
    assert data.posterior["w"].shape == (4, 1000, 2)
    assert data.sample_stats["lp"].shape == (4, 1000)
    assert data.observed_data["y"].shape == (20,)
    assert data.posterior_predictive["y"].shape == (4, 10, 20)
    assert data.posterior.attrs["khat"] == posterior.khat
    table = arviz.summary(data)
    ours = posterior.summary()
    for name in ("w[0]", "w[1]"):
        assert abs(table["mean"][name] - ours[name].mean) < 0.1 * ours[name].sd
        assert abs(table["sd"][name] / ours[name].sd - 1) < 0.08
        assert table["r_hat"][name] < 1.05
    arviz.plot_posterior(data, show=False)
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.parametrize(("asked", "each"), [(2, 1), (4, 1), (6, 2), (4000, 1000)])
def test_arviz_gives_as_many_predictive_draws_as_asked(fitted, asked: int, each: int) -> None:
    pytest.importorskip("arviz")
    assert fitted[0].to_arviz(predictive=asked).posterior_predictive["y"].shape == (4, each, 20)


@pytest.mark.parametrize("asked", [-1, 4001, 2.0, True])
def test_arviz_refuses_other_numbers(fitted, asked: object) -> None:
    pytest.importorskip("arviz")
    with pytest.raises(UserError, match="predictive is a whole number from 0 to 4000"):
        fitted[0].to_arviz(predictive=asked)


def test_arviz_predicts_from_the_draws_that_it_shows() -> None:
    pytest.importorskip("arviz")
    posterior = emfc.infer(programs.normal, torch.zeros(1, dtype=torch.float64), steps=50)
    data = posterior.to_arviz(predictive=1000)
    mean = torch.tensor(data.posterior["mean"].values[:, :250].reshape(-1))
    new = torch.tensor(data.posterior_predictive["y"].values.reshape(-1))
    assert float(torch.corrcoef(torch.stack([mean, new]))[0, 1]) > 0.5


def test_arviz_is_missing(fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(UserError, match=r"pip install 'emfc\[arviz\]'"):
        fitted[0].to_arviz()


def test_guide(fitted) -> None:
    posterior = fitted[0]
    guide = posterior.guide
    drawn = torch.stack([guide()["w"] for _ in range(200)]).detach()
    assert torch.allclose(drawn.mean(0), posterior.draws.mean(0), atol=0.3 * float(posterior.draws.std()))


def test_weights_of_draws_without_density() -> None:
    posterior = emfc.infer(programs.normal, torch.zeros(3), steps=20, draws=100)
    broken = Posterior(
        posterior.flow,
        posterior.record,
        draws=posterior.draws,
        log_joint_values=posterior.log_joint_values,
        log_weights=torch.full((100,), math.nan),
        parameters={},
        data={},
        options={},
    )
    assert broken.khat == math.inf
    assert math.isnan(broken.log_evidence)
    assert "not to be trusted" in str(broken.summary())
