"""``emfc infer``: data by name, numbers that are right, files, pictures, and every refusal in one sentence."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MEAN = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model(y, sd=1.0):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, sd), obs=torch.as_tensor(y))

    def data(shift=0.0):
        print("printed by data()")
        return {"y": torch.tensor([1.0, 2.0, 0.5]) + shift}
"""

SITES = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model(group=None):
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        effect = pyro.sample("effect", dist.Normal(torch.zeros(2), spread).to_event(1))
        rows = torch.tensor([0, 0, 1, 1]) if group is None else group
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(effect[rows], 0.5))

    def lonely():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("count", dist.Poisson(2.0))

    def broken():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 0:
            pyro.sample("y", dist.Normal(0.0, 1.0))
"""

FUNNEL = """
    import pyro
    import pyro.distributions as dist

    def model():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
        narrow, plain = dist.Normal(0.0, (v / 2).exp()), dist.Normal(0.0, 1.0)
        pyro.factor("funnel", (narrow.log_prob(x) - plain.log_prob(x)).sum())
"""

CLIFF = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("cliff", torch.where(x > 0.3, torch.tensor(float("inf")), torch.tensor(0.0)))
"""

Y = np.array([1.0, 2.0, 0.5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("infer")
    for name, text in (("mean", MEAN), ("sites", SITES), ("funnel", FUNNEL), ("cliff", CLIFF)):
        (found / f"{name}.py").write_text(textwrap.dedent(text))
    return found


def _answer(y: Any, sd: float = 1.0) -> tuple[float, float]:
    precision = 0.25 + len(y) / sd**2
    return float(np.sum(y)) / sd**2 / precision, precision**-0.5


def _close(document: dict[str, Any], y: Any, sd: float = 1.0) -> None:
    mean, spread = _answer(y, sd)
    assert abs(document["sites"]["mean"]["mean"] - mean) < 0.06 * spread
    assert abs(document["sites"]["mean"]["sd"] / spread - 1) < 0.06


def test_table_and_run_folder(folder: Path, tmp_path: Path, command) -> None:
    run, picture = tmp_path / "run", tmp_path / "marginals.svg"
    result = command(
        *("infer", folder / "mean.py", "--out", run, "--steps", 100),
        *("--picture", picture, "--predictive", "--draws", 500, "--backbone", "mvn"),
    )
    for word in ("mean", "5 %", "ESS", "k-hat", "ELBO", "log evidence", "The result is good"):
        assert word in result.stdout
    assert "printed by data()" in result.stderr
    assert "printed by data()" not in result.stdout
    assert f"wrote the run folder {run}" in result.stderr
    assert picture.read_text().startswith("<?xml")
    names = {path.name for path in run.iterdir()}
    assert names >= {"draws.npz", "weights.npz", "summary.json", "marginals.png", "predictive.npz", "predictive.png"}
    assert names >= {"posterior.json", "posterior.safetensors"}
    draws, weights = np.load(run / "draws.npz"), np.load(run / "weights.npz")
    assert draws["mean"].shape == weights["log_weights"].shape == (500,)
    assert draws["mean"].dtype == np.float64
    assert np.load(run / "predictive.npz")["y"].shape == (1000, 3)
    assert math.isclose(np.exp(weights["smoothed"]).sum(), 1, rel_tol=1e-9)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    from emfc import Posterior

    held = json.loads((run / "summary.json").read_text())
    assert math.isclose(Posterior.load(run).elbo, held["elbo"])


def test_run_folders_are_kept(folder: Path, tmp_path: Path, command) -> None:
    run = tmp_path / "run"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    words = ("infer", folder / "mean.py", "--steps", 20, "--backbone", "mvn")
    command(*words, "--out", run)
    (run / "notes.txt").write_text("mine")
    assert "--overwrite" in command(*words, "--out", run, status=2).stderr
    assert "no run of emfc" in command(*words, "--out", tmp_path / "other", "--overwrite", status=2).stderr
    command(*words, "--out", run, "--overwrite", "--seed", 1)
    assert (run / "notes.txt").read_text() == "mine"
    assert json.loads((run / "summary.json").read_text())["seed"] == 1


def test_json(folder: Path, tmp_path: Path, command_json) -> None:
    words = ("infer", folder / "mean.py", "--steps", 60, "--backbone", "mvn", "--set", "shift=1.0")
    document = command_json(*words, "--out", tmp_path / "a")
    _close(document, Y + 1)
    assert set(document["sites"]["mean"]) >= {"mean", "sd", "q05", "q50", "q95", "khat", "ess"}
    for key in ("elbo", "elbo_se", "log_evidence", "khat", "verdict", "trusted", "stopped", "run", "parameters"):
        assert key in document
    again = command_json(*words, "--out", tmp_path / "b")
    for key in ("sites", "elbo", "elbo_se", "khat"):
        assert document[key] == again[key]
    single = command_json(*words, "--out", tmp_path / "c", "--dtype", "float32")
    _close(single, Y + 1)
    assert single["dtype"] == "float32"
    assert np.load(tmp_path / "c" / "draws.npz")["mean"].dtype == np.float32


def test_data_as_arguments_from_files(folder: Path, tmp_path: Path, command_json) -> None:
    other = np.array([4.0, 5.0, 4.5, 3.0])
    np.savez(tmp_path / "d.npz", y=other)
    (tmp_path / "d.csv").write_text("y\n4\n5\n4.5\n3\n")
    (tmp_path / "d.json").write_text(json.dumps({"y": other.tolist(), "sd": 0.5}))
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"y": other}), tmp_path / "d.parquet")
    words = ("infer", folder / "mean.py", "--steps", 60, "--backbone", "mvn")
    for ending in ("npz", "csv", "json", "parquet"):
        document = command_json(*words, "--data", tmp_path / f"d.{ending}", "--out", tmp_path / ending)
        _close(document, other, 0.5 if ending == "json" else 1.0)


def test_data_as_sites(folder: Path, tmp_path: Path, command_json) -> None:
    np.savez(tmp_path / "a.npz", y=np.array([1.0, 1.2, -1.0, -1.1]), group=np.array([0, 0, 1, 1]))
    (tmp_path / "b.csv").write_text("y[0],y[1],y[2],y[3]\n1.0,1.2,-1.0,-1.1\n")
    found = [
        command_json(
            "infer", folder / "sites.py", "--steps", 60, "--data", tmp_path / name, "--out", tmp_path / name[0]
        )
        for name in ("a.npz", "b.csv")
    ]
    for document in found:
        assert set(document["sites"]) == {"spread", "effect"}
        low, high = document["sites"]["effect"]["mean"][1], document["sites"]["effect"]["mean"][0]
        assert low < -0.6
        assert high > 0.6
    assert abs(found[0]["log_evidence"] - found[1]["log_evidence"]) < 0.02


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("d.json", '{"y": "abc"}', "'y' is the text 'abc'; a sample site takes numbers, of shape [4]"),
        ("d.json", '{"spread": null}', "'spread' is nothing (null); a sample site takes numbers"),
        ("d.json", '{"y": ["a", "b", "c", "d"]}', "'y' is not an array of numbers"),
        ("d.json", '{"y": [1, 2, 3, 4], "y": [1, 2, 3, 4]}', "the name 'y' comes twice"),
        ("d.csv", "y,y\n1,2\n2,3\n", "the column 'y' comes twice"),
        ("d.csv", "y[0],y[1],y[2],y[0]\n1,2,3,4\n", "the column 'y[0]' comes twice"),
        ("d.csv", "y[0],y[1],y[2],y[00]\n1,2,3,4\n", "the column 'y[00]' comes twice"),
        ("d.csv", "y,y[0],y[1]\n1,2,3\n", "is one column and several with an index"),
    ],
)
def test_files_that_are_wrong(folder: Path, tmp_path: Path, command, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    result = command("infer", folder / "sites.py", "--data", tmp_path / name, "--out", tmp_path / "r", status=2)
    assert told in result.stderr
    assert "a fault of emfc itself" not in result.stderr


def test_json_where_numbers_are_not_finite(folder: Path, tmp_path: Path, command) -> None:
    """JSON has no NaN: what is none is null, on standard output as in the run folder."""
    out = ("--backbone", "meanfield", "--steps", 3, "--draws", 100, "--out", tmp_path / "r", "--json")
    result = command("infer", folder / "cliff.py", *out)

    def refuse(name: str) -> float:
        raise AssertionError(name)

    for text in (result.stdout, (tmp_path / "r" / "summary.json").read_text()):
        document = json.loads(text, parse_constant=refuse)
        assert document["khat"] is None
        assert document["trusted"] is False
    json.loads((tmp_path / "r" / "posterior.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"y": [1.0, 2.0], "z": 3.0}, "has 'z', which is neither an argument nor a sample site"),
        ({"y": [1.0, float("nan"), 2.0]}, "the observed value nan lies outside the support"),
        ({"y": [1.0, float("inf")]}, "'y' has infinity at [1]"),
        ({"y": [1.0, "a"]}, "is not an array of numbers"),
        ({"y": [[1.0], [2.0, 3.0]]}, "is not an array of numbers"),
        ({"sd": 2.0}, "needs the argument 'y'"),
        ([1.0, 2.0], "must hold an object"),
    ],
)
def test_data_that_do_not_fit(folder: Path, tmp_path: Path, command, content: Any, told: str) -> None:
    (tmp_path / "d.json").write_text(json.dumps(content))
    result = command("infer", folder / "mean.py", "--data", tmp_path / "d.json", "--out", tmp_path / "r", status=2)
    assert told in result.stderr
    assert not (tmp_path / "r").exists()


def test_sites_that_do_not_fit(folder: Path, tmp_path: Path, command) -> None:
    np.savez(tmp_path / "short.npz", y=np.zeros(3))
    np.savez(tmp_path / "rows.npz", y=np.zeros((5, 4)))
    np.savez(tmp_path / "nan.npz", y=np.array([1.0, 2.0, np.nan, 0.0]))
    np.savez(tmp_path / "all.npz", y=np.zeros(4), spread=np.ones(()), effect=np.zeros(2))
    (tmp_path / "bad.csv").write_text("y[0],y[2]\n1,2\n")
    (tmp_path / "x.txt").write_text("1")
    (tmp_path / "x.npz").write_text("1")
    cases = {
        "short.npz": "'y' has shape [3]; the model's site has [4]",
        "rows.npz": "one data set, not of many examples",
        "nan.npz": "'y' has NaN (no number) at [2]",
        "all.npz": "no latent sample site",
        "bad.csv": "columns of 'y' are missing",
        "x.txt": "come in .npz, .csv, .json, .parquet",
        "x.npz": "is not a .npz file",
        "absent.npz": "does not exist",
    }
    for name, told in cases.items():
        result = command(
            "infer", folder / "sites.py", "--data", tmp_path / name, "--out", tmp_path / "r", "--steps", 10, status=2
        )
        assert told in result.stderr, name


def test_other_refusals(folder: Path, tmp_path: Path, command) -> None:
    out = ("--out", tmp_path / "r")
    (tmp_path / "d.json").write_text(json.dumps({"y": [1.0], "sd": 2.0}))
    mean = folder / "mean.py"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((mean, "--set", "nothing=1"), "'nothing' is unknown"),
        ((mean, "--data", tmp_path / "d.json", "--set", "sd=1"), "given by --set and by"),
        ((mean, "--seconds", 0), "--seconds must be more than 0"),
        ((mean, "--steps", 0), "--steps"),
        ((mean, "--draws", 10), "--draws"),
        ((mean, "--calibrate", 5), "--calibrate"),
        ((mean, "--backbone", "large"), "--backbone"),
        ((mean, "--picture", tmp_path / "p.gif"), "ending must be one of"),
        ((f"{folder / 'sites.py'}:lonely",), "'count' is discrete"),
        ((f"{folder / 'sites.py'}:broken",), "E-DATADEP"),
        ((f"{folder / 'sites.py'}:absent",), "has no 'absent'"),
    ]
    for words, told in cases:
        result = command("infer", *words, *out, status=2)
        assert told in result.stderr, words
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "r").exists()


def test_fit_that_is_not_to_be_trusted(folder: Path, tmp_path: Path, command) -> None:
    run = tmp_path / "r"
    result = command("infer", folder / "funnel.py", "--backbone", "meanfield", "--steps", 600, "--out", run)
    assert "not to be trusted: k-hat" in " ".join(result.stdout.split())
    document = json.loads((run / "summary.json").read_text())
    assert document["khat"] > 0.7
    assert document["trusted"] is False
    assert "do not use these means and intervals" in document["verdict"]


def test_prior_that_contradicts_the_data(folder: Path, tmp_path: Path, command) -> None:
    words = ("--set", "shift=80.0", "--steps", 40, "--backbone", "mvn", "--out", tmp_path / "r")
    assert "Beware: the prior of mean contradicts the data" in command("infer", folder / "mean.py", *words).stdout


@pytest.mark.slow
def test_calibration_and_nuts(folder: Path, tmp_path: Path, command) -> None:
    run = tmp_path / "r"
    words = ("infer", folder / "mean.py", "--backbone", "mvn", "--steps", 60, "--calibrate", 20, "--nuts", "--out", run)
    result = command(*words)
    assert "Calibration: calibrated" in result.stdout
    assert "R-hat" in result.stdout
    document = json.loads((run / "summary.json").read_text())
    assert document["calibration"]["simulations"] == 20
    mean, spread = _answer(Y)
    chains = document["nuts"]["sites"]["mean"]
    assert abs(chains["mean"] - mean) < 0.15 * spread
    assert chains["rhat"] < 1.03
    assert (run / "calibration.png").is_file()


def test_interruption_keeps_the_best(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    words = ["infer", str(folder / "funnel.py"), "--seconds", "100", "--backbone", "iaf", "--out", str(run)]
    code = "import sys; from emfc.cli.app import main; sys.argv[0] = 'emfc'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if line.startswith("fitting: step"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    told = "".join(lines) + stderr
    assert process.returncode == 130, told
    assert f"interrupted: the best fit so far is kept in {run}" in told
    assert "stopped before it had converged" in " ".join(stdout.split())
    assert json.loads((run / "summary.json").read_text())["interrupted"] is True
    assert (run / "posterior.json").is_file()
