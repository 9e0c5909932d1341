"""``emfc train``: results, run folders, what it refuses, and Ctrl-C."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import emfc.training
from emfc.data import write_table
from emfc.training import DivergenceError
from tests.cli.conftest import SMALL

ROW = {"test_nll", "test_nll_se", "parameters", "epochs", "seconds", "run"}


def test_json_has_every_row(chain_run) -> None:
    run, document = chain_run
    assert set(document) >= ROW
    assert document["run"] == str(run)
    assert document["rows"] == {"train": 160, "validation": 20, "test": 20}
    assert document["epochs"] == 3
    assert not document["interrupted"]
    for key in ("baseline", "spline", "copula"):
        assert set(document[key]) >= ROW | {"difference", "difference_se"}
        difference = document[key]["test_nll"] - document["test_nll"]
        assert math.isclose(document[key]["difference"], difference, abs_tol=1e-5)
    assert abs(document["spline"]["parameters"] - document["parameters"]) < 0.6 * document["parameters"]
    assert document["copula"]["parameters"] < document["parameters"]
    assert "test_nll_unit" not in document


def test_the_run_folder(chain_run) -> None:
    run, document = chain_run
    names = {path.name for path in run.iterdir()}
    assert names >= {"manifest.json", "metrics.json", "history.json", "training.png", "graph.png", "samples.png"}
    assert names >= {"baseline", "spline", "copula"}
    assert "ranked.png" not in names
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test_nll"] == document["test_nll"]
    assert metrics["options"]["hidden_features"] == [8]
    history = json.loads((run / "history.json").read_text())
    assert [row["epoch"] for row in history["embedded"]] == [1, 2, 3]
    assert not [path for path in run.parent.iterdir() if path.name.startswith(".")]


def test_levels_give_unit_loss_and_bits(image_run) -> None:
    run, result = image_run
    assert "in [0,1]^D" in result.stdout
    assert "±" in result.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    assert math.isclose(metrics["test_nll_unit"], metrics["test_nll"] - 16 * math.log(3), rel_tol=1e-6)
    assert math.isclose(metrics["bits_per_dim"], metrics["test_nll"] / (16 * math.log(2)), rel_tol=1e-6)
    assert metrics["image"] == "4x4"
    assert (run / "ranked.png").stat().st_size > 1000
    assert "training the embedded-model flow" in result.stderr
    assert f"wrote the run folder {run}" in result.stderr


TIMES = {"seconds", "examples_per_second", "run"}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("program", ["chain", "images"])
def test_the_same_seed_gives_the_same_run(programs: Path, tmp_path: Path, command_json, program: str) -> None:
    words = ("train", programs / f"{program}.py", "--set", "n=50", *SMALL, "--dropout", "0.1", "--baseline")
    documents = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        command_json(*words, "--rival", "copula", "--out", tmp_path / name, "--seed", seed)
        files = [json.loads((tmp_path / name / f"{file}.json").read_text()) for file in ("metrics", "history")]
        documents.append(_timeless(files))
    assert documents[0] == documents[1]
    assert documents[0][0]["test_nll"] != documents[2][0]["test_nll"]
    for name in ("weights.safetensors", "baseline/weights.safetensors", "samples.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    drawn = [command_json("sample", tmp_path / name, "-n", 5)["samples"] for name in ("a", "b", "c")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_double_precision_from_end_to_end(programs: Path, tmp_path: Path, command, command_json) -> None:
    run = tmp_path / "r"
    words = ("train", programs / "chain.py", "--set", "n=50", *SMALL, "--baseline", "--rival", "spline")
    document = command_json(*words, "--out", run, "--dtype", "float64", "--device", "cpu")
    for folder in (run, run / "baseline", run / "spline"):
        assert json.loads((folder / "manifest.json").read_text())["dtype"] == "float64"
    drawn = command_json("sample", run, "-n", 40, "--device", "cpu")["samples"]
    assert any(value != float(np.float32(value)) for value in drawn["x_0"])
    write_table(tmp_path / "x.npz", {site: torch.tensor(values) for site, values in drawn.items()})
    scored = command_json("score", run, tmp_path / "x.npz", "--device", "cpu")["log_prob"]
    assert any(value != float(np.float32(value)) for value in scored)
    evaluated = command_json("evaluate", run, tmp_path / "x.npz", "--device", "cpu")
    assert math.isclose(evaluated["nll"], -sum(scored) / 40, rel_tol=1e-12)
    assert math.isfinite(document["test_nll"])
    commands = (words, ("sample", run), ("score", run, tmp_path / "x.npz"), ("evaluate", run, tmp_path / "x.npz"))
    for given in commands:
        assert "cannot be used" in command(*given, "--device", "cuda:99", status=2).stderr


def test_only_json_on_standard_output(programs: Path, tmp_path: Path, command) -> None:
    text = (programs / "plain.py").read_text()
    text = text.replace("def model():", "print('at import')\n\ndef model():\n    print('in the model')")
    text += "def data():\n    print('in data')\n    return torch.randn(30, 2)\n"
    (tmp_path / "loud.py").write_text(text + "def start(data):\n    print('in start')\n    return {}\n")
    for words in (("train", "--out", tmp_path / "r", *SMALL), ("check",), ("graph", "--format", "json")):
        flags = () if words[0] == "graph" else ("--json",)
        result = command(words[0], tmp_path / "loud.py", *words[1:], *flags)
        json.loads(result.stdout)
        assert "in the model" in result.stderr


def test_a_rival_that_diverges_costs_nothing(programs: Path, tmp_path: Path, command_json, monkeypatch) -> None:
    original = emfc.training.fit

    def fit(flow: Any, *arguments: Any, **options: Any) -> Any:
        if not flow.configuration.program:
            raise DivergenceError("training diverged 6 times")
        return original(flow, *arguments, **options)

    monkeypatch.setattr(emfc.training, "fit", fit)
    words = ("train", programs / "chain.py", "--set", "n=50", *SMALL, "--out", tmp_path / "r")
    document = command_json(*words, "--baseline", "--rival", "copula")
    assert document["failed"] == {"baseline": "training diverged 6 times"}
    assert "baseline" not in document
    assert math.isfinite(document["copula"]["test_nll"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


@pytest.mark.parametrize(
    "extra",
    [
        ("--placement", "middle", "--transforms", "2"),
        ("--placement", "bottom"),
        ("--backbone", "nsf"),
        ("--backbone", "coupling", "--gate", "element"),
        ("--backbone", "mvn", "--gate", "none", "--dtype", "float64"),
        ("--backbone", "none"),
    ],
    ids=lambda extra: "-".join(word.strip("-") for word in extra),
)
def test_every_architecture(programs: Path, tmp_path: Path, command_json, extra: tuple[str, ...]) -> None:
    words = ("train", programs / "chain.py", "--set", "n=50", *SMALL, "--out", tmp_path / "r", *extra)
    document = command_json(*words)
    assert math.isfinite(document["test_nll"])
    table = tmp_path / "x.csv"
    write_table(table, {f"x_{t}": torch.ones(4) for t in range(3)})
    assert math.isfinite(command_json("evaluate", tmp_path / "r", table)["nll"])


def test_an_existing_run_needs_overwrite(programs: Path, tmp_path: Path, command) -> None:
    words = ("train", programs / "chain.py", "--set", "n=50", *SMALL, "--out", tmp_path / "r")
    command(*words)
    weights = (tmp_path / "r" / "weights.safetensors").read_bytes()
    assert "--overwrite" in command(*words, "--seed", 1, status=2).stderr
    assert (tmp_path / "r" / "weights.safetensors").read_bytes() == weights
    command(*words, "--seed", 1, "--overwrite")
    assert (tmp_path / "r" / "weights.safetensors").read_bytes() != weights
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert "no run of emfc" in command(*words[:-1], tmp_path / "photos", "--overwrite", status=2).stderr


def _table(rows: int = 30) -> dict[str, torch.Tensor]:
    return {f"x_{t}": torch.rand(rows) + 0.5 for t in range(3)}


def _with(table: dict[str, torch.Tensor], site: str, row: int, value: float) -> dict[str, torch.Tensor]:
    table[site][row] = value
    return table


BAD_DATA = {
    "missing": (None, "does not exist"),
    "a column too few": ({"x_0": torch.ones(30), "x_1": torch.ones(30)}, "'x_2' is missing"),
    "a column that matches no site": (_table() | {"x_9": torch.ones(30)}, "'x_9' matches no site"),
    "nan": (_with(_table(), "x_1", 7, math.nan), "row 7"),
    "outside the support": (_with(_table(), "x_2", 3, -1.0), "row 3 (counted from 0): site 'x_2': x_2 = -1"),
    "too few rows": (_table(2), "too few"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name: str, programs: Path, tmp_path: Path, command) -> None:
    table, message = BAD_DATA[name]
    if table is not None:
        write_table(tmp_path / "bad.csv", table)
    words = ("train", programs / "chain.py:model", "--data", tmp_path / "bad.csv", "--out", tmp_path / "r", *SMALL)
    result = command(*words, status=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_levels_outside_the_support(programs: Path, tmp_path: Path, command) -> None:
    for value, message in ((3, "pixels[2,1] = 3"), (0.5, "pixels[2,1] = 0.5 is no whole number")):
        pixels = torch.zeros(20, 4, 4)
        pixels[[4, 9], 2, 1] = value
        write_table(tmp_path / "bad.npz", {"pixels": pixels})
        words = ("train", programs / "images.py", "--data", tmp_path / "bad.npz", "--out", tmp_path / "r", *SMALL)
        result = command(*words, status=2)
        assert "rows 4 and 9 (counted from 0): site 'pixels'" in result.stderr
        assert message in result.stderr


def test_other_refusals(programs: Path, tmp_path: Path, command) -> None:
    out = ("--out", tmp_path / "r", *SMALL)
    assert "has no data()" in command("train", programs / "plain.py", *out, status=2).stderr
    refused = command("train", programs / "images.py", "--preprocess", "dequantise", *out, status=2)
    assert "dequantises it itself" in refused.stderr
    assert "9 pixels" in command("train", programs / "images.py", "--image", "3x3", *out, status=2).stderr
    words = ("train", programs / "chain.py", "--placement", "middle", "--transforms", 1)
    assert "transforms" in command(*words, "--out", tmp_path / "r", status=2).stderr
    assert "'step' is unknown" in command("train", programs / "chain.py", "--set", "step=3", *out, status=2).stderr
    assert not (tmp_path / "r").exists()


def test_hooks_that_do_not_fit(programs: Path, tmp_path: Path, command) -> None:
    text = (programs / "plain.py").read_text()
    observed = text + "    pyro.sample('y', dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))\n"
    for name, code, message in (
        ("words", text + "def data(): return {'x': ['a', 'b']}\n", "is not an array of numbers"),
        ("other", text + "def data(): return {'z': torch.ones(9, 2)}\n", "'z' matches no site"),
        ("nan", text + "def data(): return torch.full((9, 2), float('nan'))\n", "NaN"),
        ("given", observed + "def data(): return {'y': torch.ones(9)}\n", "'y', which the program observes"),
        ("start", text + "def data(): return torch.ones(9, 2)\ndef start(d): return {'q': 1}\n", "'q' is unknown"),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        result = command("train", path, "--out", tmp_path / "r", *SMALL, status=2)
        assert message in result.stderr, name


def test_preprocessing_enters_the_density(programs: Path, tmp_path: Path, command_json) -> None:
    counts = np.random.default_rng(0).integers(0, 256, size=(80, 2))
    np.save(tmp_path / "x.npy", counts)
    words = ("train", programs / "plain.py", "--data", tmp_path / "x.npy", "--out", tmp_path / "r", *SMALL)
    document = command_json(*words, "--preprocess", "dequantise,scale:0:256,logit:1e-6,standardise", "--baseline")
    assert 2 * math.log(256) - 1 < document["test_nll"] < 2 * math.log(256) + 4
    drawn = command_json("sample", tmp_path / "r", "-n", 50)["samples"]["x"]
    assert all(value == int(value) and 0 <= value < 256 for row in drawn for value in row)
    evaluated = command_json("evaluate", tmp_path / "r", tmp_path / "x.npy")
    assert abs(evaluated["nll"] - document["test_nll"]) < 3
    np.save(tmp_path / "far.npy", counts + 1000)
    words = ("train", programs / "plain.py", "--data", tmp_path / "far.npy", "--out", tmp_path / "q")
    from tests.cli.conftest import run_command

    result = run_command(*words, "--preprocess", "dequantise,scale:0:256,logit", status=2)
    assert "lies outside its domain" in result.stderr
    result = run_command("evaluate", tmp_path / "r", tmp_path / "far.npy", status=2)
    assert "out of the range" in result.stderr


def test_conditional_flows(programs: Path, tmp_path: Path, command, command_json) -> None:
    context = np.random.default_rng(0).normal(size=(200, 1))
    np.save(tmp_path / "c.npy", context)
    np.save(tmp_path / "x.npy", context + 0.1 * np.random.default_rng(1).normal(size=(200, 2)))
    run, given = tmp_path / "r", ("--context", tmp_path / "c.npy")
    words = ("train", programs / "plain.py", "--data", tmp_path / "x.npy", *SMALL, "--out")
    command_json(*words, run, *given, "--baseline", "--rival", "spline", "--rival", "copula")
    assert command_json("evaluate", run, tmp_path / "x.npy", *given)["rows"] == 200
    assert len(command_json("sample", run, "-n", 200, *given)["samples"]["x"]) == 200
    np.save(tmp_path / "one.npy", context[:1])
    assert len(command_json("sample", run, "-n", 7, "--context", tmp_path / "one.npy")["samples"]["x"]) == 7
    assert "conditional" in command("sample", run, status=2).stderr
    assert "conditional" in command("evaluate", run, tmp_path / "x.npy", status=2).stderr
    np.save(tmp_path / "wide.npy", np.ones((200, 2)))
    wide = ("--context", tmp_path / "wide.npy")
    assert "context has 1" in command("evaluate", run, tmp_path / "x.npy", *wide, status=2).stderr
    assert "one row for all" in command("sample", run, "-n", 3, *given, status=2).stderr
    assert "1 rows of context" in command(*words, tmp_path / "q", "--context", tmp_path / "one.npy", status=2).stderr


def test_examples_are_drawn_afresh_for_a_number_of_steps(command, programs, tmp_path):
    words = ("train", programs / "chain.py", "--set", "n=50", "--hidden", "8", "--fresh", "--out", tmp_path / "r")
    document = json.loads(command(*words, "--steps", "130", "--json").stdout)
    assert document["epochs"] == 2  # 10,000 rows are 79 steps of 128
    assert document["rows"] == {"train": 10_000, "validation": 5, "test": 5}
    assert "two ways" in command(*words, "--overwrite", "--steps", "3", "--epochs", "3", status=2).stderr
    refused = command(*words, "--overwrite", "--data", tmp_path / "x.npz", status=2)
    assert "does not go with --data" in refused.stderr
    refused = command("train", programs / "plain.py", "--fresh", "--out", tmp_path / "s", status=2)
    assert "has no data()" in refused.stderr
