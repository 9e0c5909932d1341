"""``emfc bench inference``: it measures what it says, holds it against the goals, and says what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import import_module
from types import SimpleNamespace

import pyro
import pytest
import torch

from emfc.cli.bench.inference_cells import Cell, compare, evaluate
from emfc.cli.bench.inference_nuts import NUTS, PEER_NUTS, nuts_cell, peer_nuts_cell
from emfc.cli.bench.inference_references import Moments, Prepared, find_models, prepare
from emfc.cli.bench.inference_table import as_document, as_markdown, nuts_rows, reached, rows
from emfc.cli.bench.inference_targets import TARGETS, Goals, InferenceTarget, NutsGoals
from emfc.cli.bench.inference_ways import PEERS, Peer, infer_cell, peer_cell
from emfc.compiler import compile_target
from models import brownian_bridge, eight_schools, garch, hidden_markov_posterior, kidscore


@pytest.fixture(autouse=True)
def _double():
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def exact_bridge():
    """The Brownian bridge of simulated data with its exact posterior: a target with everything known."""
    y = brownian_bridge.data()["y"]
    seen, times = ~y.isnan(), torch.arange(1.0, len(y) + 1)
    prior = brownian_bridge.STEP**2 * torch.minimum(times[:, None], times)
    inner = prior[seen][:, seen] + brownian_bridge.NOISE**2 * torch.eye(int(seen.sum()))
    gain = torch.linalg.solve(inner, prior[:, seen].T).T
    posterior = torch.distributions.MultivariateNormal(gain @ y[seen], prior - gain @ prior[:, seen].T)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(int(seen.sum())), inner).log_prob(y[seen])
    target = dataclasses.replace(TARGETS["brownian-bridge"], evidence=-float(evidence))
    moments = {"": Moments(posterior.mean, posterior.stddev)}
    return Prepared(target, brownian_bridge.model, {"y": y}, moments), posterior


def simulated(key, module, program="model", **settings):
    return Prepared(TARGETS[key], getattr(module, program), module.data(**settings), None)


# ---------------------------------------------------------------------- what is measured


def test_the_exact_posterior_has_no_gap():
    prepared, posterior = exact_bridge()
    log_joint = compile_target(prepared.model, **prepared.data)
    cholesky = posterior.scale_tril

    def sampler(noise):
        x = posterior.mean + noise @ cholesky.T
        return x, posterior.log_prob(x)

    def unpack(x):
        return {f"x_{t}": x[:, t] for t in range(30)}

    found = evaluate(prepared, sampler, log_joint, unpack, noise_dim=30, draws=20_000, seed=1)
    assert abs(found["gap"]) < 1e-9
    assert found["evidence"] == pytest.approx(-prepared.target.evidence, abs=1e-9)
    assert found["mean_error"] < 4 / math.sqrt(20_000)
    assert 0.97 < found["least_ratio"] <= found["most_ratio"] < 1.03


def test_a_density_that_is_too_wide_has_its_gap():
    """Half as much spread again: the gap is a Kullback-Leibler divergence that is known."""
    prepared, posterior = exact_bridge()
    log_joint = compile_target(prepared.model, **prepared.data)
    cholesky = 1.5 * posterior.scale_tril
    wide = torch.distributions.MultivariateNormal(posterior.mean, scale_tril=cholesky)

    def sampler(noise):
        x = posterior.mean + noise @ cholesky.T
        return x, wide.log_prob(x)

    def unpack(x):
        return {f"x_{t}": x[:, t] for t in range(30)}

    found = evaluate(prepared, sampler, log_joint, unpack, noise_dim=30, draws=20_000, seed=1)
    exact = 30 * (0.5 * (1.5**2 - 1) - math.log(1.5))
    assert found["gap"] == pytest.approx(exact, abs=5 * found["elbo_se"])
    assert found["least_ratio"] == pytest.approx(1.5, abs=0.05)


def test_errors_are_the_worst_of_all_parameters():
    values = {"a": torch.randn(4000, 2, 3) + 1, "b": 3 * torch.randn(4000)}
    values["a"][:, 1, 2] += 0.5
    moments = {"a": Moments(torch.ones(2, 3), torch.ones(2, 3)), "b": Moments(torch.zeros(()), torch.ones(()))}
    found = compare(values, moments)
    assert found["worst"] == "a[1, 2]"
    assert found["mean_error"] == pytest.approx(0.5, abs=0.1)
    assert found["most_ratio"] == pytest.approx(3, abs=0.2)
    assert found["least_ratio"] == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("way", PEERS)
@pytest.mark.parametrize(
    ("key", "module", "program"),
    [
        ("eight-schools-centred", eight_schools, "centred"),
        ("garch", garch, "model"),
        ("kidscore", kidscore, "model"),
        ("hidden-markov", hidden_markov_posterior, "model"),
    ],
)
def test_densities_of_peers_are_theirs(key, module, program, way):
    """A guide's density of its draws, by the change of variables written out."""
    settings = {"steps": 8} if module in (garch, hidden_markov_posterior) else {}
    prepared = simulated(key, module, program, **settings)
    log_joint = compile_target(prepared.model, **prepared.data)
    peer = Peer(prepared, log_joint, way)
    examples, log_q = peer.sample(3)
    assert log_q.shape == (3,)
    assert torch.isfinite(log_joint(examples)).all()
    assert not list(pyro.get_param_store().keys())
    posterior = peer.guide.get_posterior()
    free = posterior.rsample((3,))
    jacobians = [
        torch.autograd.functional.jacobian(
            lambda z: torch.cat([value.reshape(-1) for value in peer.constrain(z[None])[0].values()]), row
        )
        for row in free.detach()
    ]
    if all(row.shape[0] == row.shape[1] for row in jacobians):  # a simplex has one number more than it has freedom
        _, inside = peer.constrain(free.detach())
        torch.testing.assert_close(inside, torch.stack([row.slogdet()[1] for row in jacobians]))


def test_ways_fill_their_cells():
    prepared, _ = exact_bridge()
    ours = infer_cell(prepared, seed=0, seconds=1.0, draws=400)
    peer = peer_cell(prepared, "AutoNormal", seed=0, seconds=1.0, draws=400)
    for cell in (ours, peer):
        assert cell.steps > 0
        assert cell.seconds < 20
        assert cell.gap == pytest.approx(-cell.elbo - prepared.target.evidence)
        assert math.isfinite(cell.khat)
        assert cell.mean_error >= 0
    assert ours.way == "emfc"
    assert "start" in ours.kept
    assert ours.gap < peer.gap


@pytest.mark.slow
def test_samplers_fill_their_cells():
    prepared = simulated("eight-schools-centred", eight_schools, "centred")
    ours = nuts_cell(prepared, seed=0, seconds=2.0, samples=20)
    peer = peer_nuts_cell(prepared, seed=0, seconds=1.0, samples=20)
    assert (ours.way, peer.way) == (NUTS, PEER_NUTS)
    for cell in (ours, peer):
        assert cell.ess > 0
        assert cell.divergences >= 0
        assert cell.ess_per_second == pytest.approx(cell.ess / cell.seconds)
    assert not list(pyro.get_param_store().keys())


# ---------------------------------------------------------------------- goals and tables


def cell(way="emfc", seed=0, target="lorenz-bridge", **values):
    return Cell(target, way, seed, 30.0, **values)


def test_goals_hold_medians_of_seeds():
    cells = [
        cell(seed=seed, gap=gap, khat=0.5, mean_error=0.04, least_ratio=0.9, most_ratio=1.2, steps=100, seconds=30.0)
        for seed, gap in enumerate((0.2, 0.12, 9.0))
    ]
    found = {(goal.what, goal.stretch): goal for goal in reached(cells)}
    assert found["gap", False].met
    assert not found["gap", True].met
    assert found["gap", False].value == "0.2"
    assert found["k-hat", False].met
    assert found["worst mean error", True].met
    assert not found["sd ratios", False].met
    (line,) = rows(cells)
    assert line[0] == "Lorenz bridge"
    assert line[-1] == "missed: sd ratios 0.8 to 1.12"
    page = as_markdown(cells, ["nothing of the others"])
    assert "medians over 3 seeds" in page
    assert "- nothing of the others" in page


def test_all_goals_met():
    cells = [cell(gap=0.05, khat=0.1, mean_error=0.01, least_ratio=1.0, most_ratio=1.01, steps=1, seconds=1.0)]
    assert rows(cells)[0][-1] == "met, stretch too"


def test_a_fit_that_came_to_nothing_meets_no_goal():
    cells = [cell(gap=math.nan, khat=math.inf, mean_error=math.nan, least_ratio=math.nan, most_ratio=math.inf)]
    assert not any(goal.met for goal in reached(cells))
    assert rows(cells)[0][-1].startswith("missed: gap")


def test_goals_of_samplers_compare_with_the_peer():
    held = {"target": "radon-minnesota", "divergences": 0, "mean_error": 0.05}
    ours = cell(NUTS, ess=300.0, seconds=60.0, **held)
    peer = cell(PEER_NUTS, ess=100.0, seconds=50.0, **held)
    found = {goal.what: goal for goal in reached([ours, peer])}
    assert found["NUTS, draws per second over AutoIAFNormal"].met
    assert found["NUTS, draws per second over AutoIAFNormal"].value == "2.50"
    assert found["NUTS, divergences"].met
    ours_line, peer_line = nuts_rows([ours, peer])
    assert ours_line[-1] == "met"
    assert peer_line[-1] == ""
    lorenz = [cell(NUTS, ess=250.0, seconds=70.0, divergences=2)]
    assert [goal.met for goal in reached(lorenz)] == [False, False, False]


def test_document_holds_everything():
    document = as_document([cell(gap=0.05, khat=0.1)], ["a sentence"])
    assert document["cells"][0]["gap"] == 0.05
    assert {goal["what"] for goal in document["goals"]} == {"gap", "k-hat"}
    assert document["missing"] == ["a sentence"]


def test_targets_are_whole():
    with_goals = [target for target in TARGETS.values() if target.goals]
    assert len(with_goals) == 12
    assert {key for key, target in TARGETS.items() if target.nuts} == {
        "eight-schools-centred",
        "lorenz-bridge",
        "radon-minnesota",
    }
    assert {key for key, target in TARGETS.items() if target.seconds == 30} == {
        "brownian-bridge",
        "lorenz-bridge",
        "radon-minnesota",
    }
    assert all(target.evidence is not None for target in with_goals)
    assert isinstance(TARGETS["garch"], InferenceTarget)
    assert isinstance(TARGETS["garch"].goals, Goals)
    assert isinstance(TARGETS["radon-minnesota"].nuts, NutsGoals)
    for target in TARGETS.values():
        assert (find_models(None) / target.program.partition(":")[0]).is_file()


# ---------------------------------------------------------------------- references


@pytest.fixture
def reference(tmp_path):
    """A folder laid out as the real ones, with made-up numbers."""
    (tmp_path / "posteriordb" / "data").mkdir(parents=True)
    (tmp_path / "inference_gym").mkdir()
    params = {f"beta[{k}]": {"mean": float(k), "sd": 2.0} for k in (1, 2, 3, 4)}
    params["sigma"] = {"mean": 18.0, "sd": 0.5}
    summaries = {"kidiq-kidscore_interaction": {"params": params}}
    (tmp_path / "posteriordb" / "reference_summaries.json").write_text(json.dumps(summaries))
    columns = {"kid_score": [60, 70, 90], "mom_hs": [0, 1, 1], "mom_iq": [90, 100, 120]}
    (tmp_path / "posteriordb" / "data" / "kidiq.json").write_text(json.dumps(columns))
    schools = {"AVG_EFFECT": 5.8, "LOG_STDDEV": 2.5, "SCHOOL_EFFECTS": [6.0] * 8}
    truth = {
        f"IDENTITY_{name}_{moment}": value if moment == "MEAN" else torch.full_like(torch.tensor(value), 5.0).tolist()
        for name, value in schools.items()
        for moment in ("MEAN", "MEAN_STANDARD_ERROR", "STANDARD_DEVIATION")
    }
    (tmp_path / "inference_gym" / "ground_truth_eight_schools.json").write_text(json.dumps(truth))
    return tmp_path


def test_reads_summaries(reference):
    prepared = prepare(TARGETS["kidscore"], find_models(None), reference)
    assert prepared.moments["beta"].mean.tolist() == [1, 2, 3, 4]
    assert prepared.moments["sigma"].sd.item() == 0.5
    assert prepared.data["mom_iq"].tolist() == [90, 100, 120]
    assert prepared.missing is None


def test_reads_the_ground_truth(reference):
    prepared = prepare(TARGETS["eight-schools"], find_models(None), reference)
    assert set(prepared.moments) == {"avg_effect", "log_stddev", "school_effects"}
    assert prepared.moments["school_effects"].mean.shape == (8,)
    values = {"mu": torch.zeros(5), "log_tau": torch.zeros(5), "standard": torch.ones(5, 8)}
    quantities = prepared.target.quantities(values)
    assert quantities["school_effects"].eq(1).all()
    assert {name: value.shape[1:] for name, value in quantities.items()} == {
        name: held.mean.shape for name, held in prepared.moments.items()
    }


def test_says_what_is_missing(reference):
    folder = find_models(None)
    assert "garch.json does not exist" in prepare(TARGETS["garch"], folder, reference)
    assert "give their folder with --reference" in prepare(TARGETS["garch"], folder, None)
    assert "no reference means" in prepare(TARGETS["eight-schools"], folder, None).missing
    (reference / "inference_gym" / "ground_truth_eight_schools.json").unlink()
    assert "has no reference means" in prepare(TARGETS["eight-schools"], folder, reference).missing


# ---------------------------------------------------------------------- the command

QUICK = ("bench", "inference", "--targets", "eight-schools", "--seeds", "1", "--seconds", "0.6", "--draws", "400")


def test_measures_what_ships_without_references(command, tmp_path):
    result = command(*QUICK, "-o", tmp_path / "i.md", "-o", tmp_path / "i.json", "--json")
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "i.json").read_text())
    (held,) = document["cells"]
    assert (held["target"], held["way"], held["seed"], held["budget"]) == ("eight-schools", "emfc", 0, 0.6)
    assert held["gap"] is not None
    assert held["mean_error"] is None
    assert "no reference means" in document["missing"][0]
    assert "no reference means" in result.stderr
    assert "| eight schools, paper's | emfc |" in (tmp_path / "i.md").read_text()
    assert torch.get_default_dtype() == torch.float64  # as it was before


def test_goes_on_where_it_stopped(command, tmp_path, reference):
    kept = tmp_path / "cells.jsonl"
    command(*QUICK, "--reference", reference, "--keep", kept)
    first = kept.read_text()
    assert len(first.splitlines()) == 1
    assert json.loads(first)["mean_error"] is not None
    result = command(*QUICK, "--reference", reference, "--keep", kept)
    assert kept.read_text() == first
    assert "eight schools, paper's" in result.stdout
    command(*(word if word != "1" else "2" for word in QUICK), "--reference", reference, "--keep", kept)
    assert [json.loads(line)["seed"] for line in kept.read_text().splitlines()] == [0, 1]
    kept.write_text(first + first[:100])  # as a run leaves it that is killed while it writes
    assert "line 2 is cut off" in command(*QUICK, "--reference", reference, "--keep", kept).stderr
    command(*(word if word != "400" else "500" for word in QUICK), "--reference", reference, "--keep", kept)
    assert [held["counts"] for line in kept.read_text().splitlines()[2:] for held in [json.loads(line)]] == [500]


def test_ctrl_c_ends_it_and_keeps_no_cut_short_fit(command, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        return SimpleNamespace(record=SimpleNamespace(stopped="interrupted"))

    monkeypatch.setattr(import_module("emfc.inference.infer"), "infer", interrupted)
    for way, target in (("emfc", "eight-schools"), ("nuts", "eight-schools-centred")):
        words = (*QUICK, "--targets", target, "--ways", way, "--keep", tmp_path / "k.jsonl")
        assert "interrupted; no cell is kept" in command(*words, status=130).stderr
    assert not (tmp_path / "k.jsonl").exists()
    (tmp_path / "k.jsonl").write_text("")
    assert f"the cells that are done are kept in {tmp_path}" in command(*words, status=130).stderr


def test_a_cell_that_fails_leaves_others_alone(command, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(import_module("emfc.inference.infer"), "infer", fails)
    result = command(*QUICK, "--ways", "emfc,AutoNormal")
    assert "a fault of emfc itself: RuntimeError: broken" in result.stderr
    assert "AutoNormal, seed 0" in result.stderr


def test_trains_peers(command):
    result = command(*QUICK, "--peers")
    for way in PEERS:
        assert f"eight schools, paper's, {way}, seed 0" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--targets", "eight-scools"), "did you mean 'eight-schools'"),
        (("--reference", "nowhere"), "the folder nowhere does not exist; --reference takes"),
        (("--models", "nowhere"), "the folder nowhere does not exist; --models takes"),
        (("--targets", "garch"), "give the folder of the real data with --reference"),
        (("-o", "table.txt"), "must be .md or .json"),
        (("-o", "nowhere/table.md"), "does not exist"),
        (("--keep", "nowhere/cells.jsonl"), "does not exist"),
        (("--keep", "pyproject.toml"), "does not hold results"),
        (("--seeds", "0"), "at least 1"),
        (("--draws", "3"), "at least 200"),
    ],
)
def test_bad_options(command, words, message):
    assert message in command("bench", "inference", *words, status=2).stderr


def test_options_before_the_name_are_refused(command):
    result = command("bench", "--quick", "inference", status=2)
    assert "give the options of emfc bench inference after its name" in result.stderr


def test_a_reference_that_is_none(command, reference):
    path = reference / "posteriordb" / "reference_summaries.json"
    path.write_text("{}")
    words = ("bench", "inference", "--targets", "kidscore", "--reference", reference)
    assert "is not a reference of kidscore interaction" in command(*words, status=2).stderr
