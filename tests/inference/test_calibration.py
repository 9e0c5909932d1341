"""Simulation-based calibration: rank tests with known answers, and inference that is right or wrong on purpose."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from emfc import UserError
from emfc.compiler import compile_target
from emfc.inference import calibration
from emfc.inference.calibration import calibrate, simulator
from emfc.inference.rank_tests import chi_square, ecdf_band, outside_band
from emfc.inference.ranks import Calibration
from tests.inference import posterior_programs as programs


def _ranks(count: int, a: float, b: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return (torch.distributions.Beta(a, b).sample((count,)) * 100).long().clamp(max=99)


def _calibration(*columns: Tensor) -> Calibration:
    names = tuple("abcdefgh"[: len(columns)])
    return Calibration(names, torch.stack(columns, 1), 99, torch.zeros(len(columns[0])))


def test_chi_square() -> None:
    assert chi_square(torch.tensor([10, 10, 10])) == 1
    assert math.isclose(chi_square(torch.tensor([16, 4])), 0.00729, rel_tol=1e-2)
    values = torch.stack([torch.tensor(chi_square(torch.bincount(_ranks(200, 1, 1, s) // 10))) for s in range(300)])
    assert abs(float((values < 0.1).double().mean()) - 0.1) < 0.06


@pytest.mark.parametrize("count", [20, 100, 500])
def test_uniform_ranks_leave_the_band_in_one_case_of_twenty(count: int) -> None:
    band = ecdf_band(count, 99)
    generator = torch.Generator().manual_seed(1)
    outside = [outside_band(torch.randint(100, (count,), generator=generator), 99, band) for _ in range(2000)]
    assert 0.025 < sum(outside) / len(outside) < 0.07
    low, high = band
    assert bool((low <= high).all())
    assert bool((low.diff() >= 0).all())


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [(0.5, 0.5, "too narrow"), (2.5, 2.5, "too wide"), (2.0, 1.0, "too low"), (1.0, 2.0, "too high")],
)
def test_ranks_that_are_not_uniform(a: float, b: float, told: str) -> None:
    found = _calibration(_ranks(200, a, b), _ranks(200, 1.0, 1.0))
    assert not found.calibrated
    assert f"{told}" in found.verdict
    assert "for a" in found.verdict
    assert found.elements()[1].inside
    assert found.elements()[0].p_value < 1e-3


def test_verdict_and_dictionary() -> None:
    found = _calibration(_ranks(100, 1.0, 1.0))
    assert found.calibrated
    assert found.verdict.startswith("calibrated: in 100 simulations")
    assert int(found.histogram().sum()) == 100
    document = found.to_dict()
    assert document["simulations"] == 100
    assert sum(document["elements"]["a"]["histogram"]) == 100
    assert "gross faults only" in _calibration(_ranks(30, 1.0, 1.0)).verdict
    bad = Calibration(("a",), _ranks(100, 1, 1)[:, None], 99, torch.ones(100), failed=3)
    assert "k-hat was above 0.7 in 100 of 100 fits" in bad.verdict
    assert "3 simulated data sets could not be fitted" in bad.verdict


def test_picture(tmp_path: Path) -> None:
    from emfc.report.calibration import draw_ranks

    draw_ranks(tmp_path / "ranks.png", _calibration(_ranks(60, 0.5, 0.5), _ranks(60, 1, 1)), title="model.py")
    assert (tmp_path / "ranks.png").stat().st_size > 5000


def test_right_inference_is_calibrated() -> None:
    heard: list[int] = []
    found = calibrate(
        programs.normal, torch.zeros(4), simulations=30, steps=40, backbone="mvn", progress=heard.append, seed=5
    )
    assert found.calibrated, found.verdict
    assert heard == list(range(1, 31))
    assert found.names == ("mean",)
    assert bool((found.khats < 0.7).all())
    again = calibrate(programs.normal, torch.zeros(4), simulations=30, steps=40, backbone="mvn", seed=5)
    assert torch.equal(found.ranks, again.ranks)


@pytest.mark.slow
def test_short_mean_field_fits_are_too_narrow() -> None:
    x = torch.tensor([[1.0, 0.95], [1.0, 1.05], [1.0, 1.0]])
    found = calibrate(
        programs.regression, x, torch.zeros(3), simulations=60, steps=60, backbone="meanfield", reweight=False
    )
    assert not found.calibrated
    assert "too narrow" in found.verdict
    mended = calibrate(programs.regression, x, torch.zeros(3), simulations=60, steps=60, backbone="meanfield")
    assert sum(held.spread for held in mended.elements()) < sum(held.spread for held in found.elements())


def test_simulated_data_have_the_exact_posterior() -> None:
    stats = pytest.importorskip("scipy.stats")
    log_joint = compile_target(programs.counts, torch.zeros(3))
    generator = torch.Generator().manual_seed(0)
    truths, data = simulator(log_joint).simulate(20_000, like=log_joint.data, generator=generator)
    assert torch.equal(data, data.round())
    levels = torch.as_tensor(stats.gamma.cdf(truths[:, 0].numpy(), 3 + data.sum(1).numpy(), scale=0.2))
    assert stats.kstest(levels.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_counts_are_simulated_as_counts() -> None:
    found = calibrate(programs.counts, torch.zeros(3), simulations=20, steps=60, seed=1)
    assert found.simulations + found.failed == 20
    assert found.calibrated, found.verdict


def _scaled(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def _factor(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.factor("f", -mean.square())
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def _computed(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    pyro.sample("w", dist.Normal(0.0, 1.0), obs=mean * y)


def _no_data() -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))


def _flat(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (_scaled, "poutine.scale"),
        (_factor, "'f' is a pyro.factor"),
        (_computed, "a value that the model computes"),
        (_flat, "'mean' has an improper one"),
    ],
)
def test_models_that_nothing_can_be_simulated_from(model, told: str) -> None:
    with pytest.raises(UserError, match=told):
        calibrate(model, torch.tensor(0.5), simulations=20)


def _reread(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        pyro.sample(f"y_{t}", dist.Normal(mean + y[t - 1], 1.0), obs=y[t])


def test_data_that_the_model_reads_in_its_arguments_too() -> None:
    with pytest.raises(UserError, match=r"reads the data of 'y_1' in its arguments as well as by obs="):
        calibrate(_reread, torch.tensor([0.1, 0.4, 0.3]), simulations=20)


@pytest.mark.parametrize("error", [UserError("no"), torch.OutOfMemoryError("no"), ValueError("no"), RuntimeError("no")])
def test_faults_are_not_counted_as_failed_fits(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(calibration, "fit_variational", fail)
    with pytest.raises(type(error), match=r"^no$"):
        calibrate(programs.normal, torch.zeros(2), simulations=20)


def test_fits_that_fail_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(calibration, "fit_variational", fail)
    with pytest.raises(UserError, match="none of 20 simulated data sets could be fitted"):
        calibrate(programs.normal, torch.zeros(2), simulations=20)


def test_histograms_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _calibration(*[_ranks(40, 1.0, 1.0, seed) for seed in range(6)])
    calls: list[int] = []
    real = Calibration.histogram
    monkeypatch.setattr(Calibration, "histogram", lambda self: calls.append(1) or real(self))
    assert len(found.elements()) == 6
    assert len(calls) == 1


def test_other_refusals() -> None:
    with pytest.raises(UserError, match="the model has none"):
        calibrate(_no_data)
    with pytest.raises(UserError, match="simulations must be a whole number"):
        calibrate(programs.normal, torch.zeros(2), simulations=5)


def test_ctrl_c_within_a_fit_ends_it_and_leaves_that_fit_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = calibration._Given.forward

    def interrupted(self: torch.nn.Module, examples: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if fits == 3 and calls > 5:
            raise KeyboardInterrupt
        return real(self, examples)

    fits = 1

    def count(done: int) -> None:
        nonlocal fits, calls
        fits, calls = done + 1, 0

    monkeypatch.setattr(calibration._Given, "forward", interrupted)
    found = calibrate(programs.normal, torch.zeros(2), simulations=20, steps=20, progress=count)
    assert found.interrupted
    assert len(found.ranks) == 2
