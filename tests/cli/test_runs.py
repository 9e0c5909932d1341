"""``emfc sample``, ``emfc score`` and ``emfc evaluate``, and run folders that are damaged."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from emfc.data import read_table, write_table

SITES = {f"x_{t}": () for t in range(3)}


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(5)
    walk = torch.exp(0.2 * torch.randn(12, 3, generator=generator).cumsum(-1))
    write_table(tmp_path / "examples.csv", {f"x_{t}": walk[:, t] for t in range(3)})
    return tmp_path / "examples.csv"


def test_samples_are_printed_as_lines(chain_run, command) -> None:
    rows = list(csv.reader(io.StringIO(command("sample", chain_run[0], "-n", 5).stdout)))
    assert rows[0] == ["x_0", "x_1", "x_2"]
    assert len(rows) == 6
    assert all(float(value) > 0 for row in rows[1:] for value in row)


def test_samples_follow_the_seed(chain_run, command_json) -> None:
    first, again, other = (command_json("sample", chain_run[0], "-n", 4, "--seed", seed) for seed in (1, 1, 2))
    assert first == again
    assert first["samples"] != other["samples"]
    assert len(first["samples"]["x_0"]) == first["rows"] == 4


@pytest.mark.parametrize("ending", [".npz", ".npy", ".csv", ".parquet"])
def test_samples_in_files(chain_run, tmp_path: Path, command_json, ending: str) -> None:
    document = command_json("sample", chain_run[0], "-n", 9, "-o", tmp_path / f"s{ending}")
    assert document["file"] == str(tmp_path / f"s{ending}")
    assert "picture" not in document
    table = read_table(tmp_path / f"s{ending}", SITES)
    assert len(table["x_0"]) == 9
    assert math.isfinite(command_json("evaluate", chain_run[0], tmp_path / f"s{ending}")["nll"])


def test_sampled_images(image_run, tmp_path: Path, command, command_json) -> None:
    run = image_run[0]
    document = command_json("sample", run, "-n", 30, "-o", tmp_path / "s.npz")
    assert document["picture"] == str(tmp_path / "s.png")
    pixels = read_table(tmp_path / "s.npz", {"pixels": (4, 4)})["pixels"]
    assert set(pixels.flatten().tolist()) <= {0.0, 1.0, 2.0}
    command("sample", run, "-o", tmp_path / "only.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["only.png", "s.npz", "s.png"]
    command("sample", run, "-o", tmp_path / "n.csv", "--image", "none")
    assert not (tmp_path / "n.png").exists()


def test_pictures_of_what_are_no_images(chain_run, tmp_path: Path, command) -> None:
    assert "does not draw images" in command("sample", chain_run[0], "-o", tmp_path / "s.png", status=2).stderr


def test_scores_and_loss_agree(chain_run, examples: Path, tmp_path: Path, command, command_json) -> None:
    run = chain_run[0]
    scored = command_json("score", run, examples, "-o", tmp_path / "scored.parquet")
    table = read_table(tmp_path / "scored.parquet", SITES | {"log_prob": ()})
    assert torch.allclose(table["log_prob"], torch.tensor(scored["log_prob"], dtype=torch.float64))
    evaluated = command_json("evaluate", run, tmp_path / "scored.parquet")
    assert evaluated["rows"] == 12
    assert math.isclose(evaluated["nll"], -float(table["log_prob"].mean()), rel_tol=1e-5)
    assert math.isclose(evaluated["nll_se"], float(table["log_prob"].std()) / math.sqrt(12), rel_tol=1e-4)
    lines = command("score", run, examples).stdout.splitlines()
    assert lines[0] == "row,log_prob"
    assert len(lines) == 13
    printed = command("evaluate", run, examples).stdout
    assert f"{evaluated['nll']:.4f}" in printed


def test_scores_in_order(chain_run, examples: Path, command, command_json) -> None:
    document = command_json("score", chain_run[0], examples, "--top", 3, "--bottom", 2)
    order = sorted(range(12), key=lambda row: -document["log_prob"][row])
    assert [entry["row"] for entry in document["top"]] == order[:3]
    assert [entry["row"] for entry in document["bottom"]] == order[:-3:-1]
    assert "picture" not in document
    printed = command("score", chain_run[0], examples, "--top", 1).stdout
    assert "most probable" in printed
    assert "least probable" not in printed


def test_ranked_images(image_run, tmp_path: Path, command, command_json) -> None:
    run = tmp_path / "run"
    shutil.copytree(image_run[0], run)
    write_table(tmp_path / "x.npz", {"pixels": torch.randint(0, 3, (20, 4, 4))})
    words = ("score", run, tmp_path / "x.npz", "--top", 4, "--bottom", 30)
    assert command_json(*words)["picture"] == str(run / "ranked-x.png")
    assert command_json(*words, "-o", tmp_path / "s.csv")["picture"] == str(tmp_path / "s-ranked.png")
    command(*words, "--picture", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert "--picture needs" in command(*words[:3], "--picture", tmp_path / "q.png", status=2).stderr
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0].endswith('"log_prob"')
    assert lines[1].split(",")[0] in {"0", "1", "2"}
    document = command_json("evaluate", run, tmp_path / "s.csv")
    assert math.isclose(document["nll_unit"], document["nll"] - 16 * math.log(3), rel_tol=1e-6)


def test_files_that_do_not_fit(chain_run, examples: Path, tmp_path: Path, command) -> None:
    run = chain_run[0]
    write_table(tmp_path / "wide.npy", {"x": torch.ones(3, 5)})
    assert "5 columns; the program needs 3" in command("evaluate", run, tmp_path / "wide.npy", status=2).stderr
    table = {**read_table(examples, SITES)}
    table["x_1"][8] = -2.0
    write_table(tmp_path / "outside.csv", table)
    for name in ("evaluate", "score"):
        message = command(name, run, tmp_path / "outside.csv", status=2).stderr
        assert "row 8 (counted from 0): site 'x_1': x_1 = -2 lies outside the support" in message
    assert "takes no context" in command("evaluate", run, examples, "--context", examples, status=2).stderr


def _cut(run: Path) -> None:
    content = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(content[:-40])


def _change(run: Path) -> None:
    content = bytearray((run / "weights.safetensors").read_bytes())
    content[-5] ^= 255
    (run / "weights.safetensors").write_bytes(bytes(content))


def _newer(run: Path) -> None:
    document = json.loads((run / "manifest.json").read_text())
    document["format"] = 999
    (run / "manifest.json").write_text(json.dumps(document))


def _edit(run: Path) -> None:
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text.replace("maf", "nsf"))


DAMAGE = {
    "no manifest": lambda run: (run / "manifest.json").unlink(),
    "no weights": lambda run: (run / "weights.safetensors").unlink(),
    "weights cut short": _cut,
    "weights changed": _change,
    "a newer version": _newer,
    "an edited manifest": _edit,
    "a manifest that is none": lambda run: (run / "manifest.json").write_text("{"),
    "no folder": lambda run: shutil.rmtree(run),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_runs(name: str, chain_run, examples: Path, tmp_path: Path, command) -> None:
    run = tmp_path / "run"
    shutil.copytree(chain_run[0], run)
    DAMAGE[name](run)
    for words in (("sample", run), ("score", run, examples), ("evaluate", run, examples)):
        result = command(*words, status=2)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert "run" in result.stderr


def test_one_row_has_no_error(chain_run, tmp_path: Path, command, command_json) -> None:
    write_table(tmp_path / "one.csv", dict.fromkeys(SITES, torch.ones(1)))
    assert "nan" not in (said := command("evaluate", chain_run[0], tmp_path / "one.csv").stdout)
    assert said.endswith("nats per example (1 row)\n")
    assert command_json("evaluate", chain_run[0], tmp_path / "one.csv")["nll_se"] is None


def test_values_that_are_huge(chain_run, tmp_path: Path, command) -> None:
    table = {site: torch.ones(3, dtype=torch.float64) for site in SITES}
    table["x_1"][1] = 1e300
    write_table(tmp_path / "big.csv", table)
    refused = command("evaluate", chain_run[0], tmp_path / "big.csv", status=2).stderr
    assert "row 1 (counted from 0): site 'x_1': x_1 = 1e+300 is too large for float32" in refused


def test_rows_without_density_are_named(programs: Path, tmp_path: Path, command, command_json) -> None:
    command("train", programs / "plain.py", "--data", _plain(tmp_path, 1.0), "--out", tmp_path / "r", "--epochs", 1)
    far = _plain(tmp_path, 1e30)
    assert "row 1 (counted from 0): the density is zero" in command("evaluate", tmp_path / "r", far).stderr
    assert command_json("evaluate", tmp_path / "r", far)["nll"] is None


def _plain(folder: Path, value: float) -> Path:
    values = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    values[1] = value
    write_table(folder / "plain.npy", {"x": values})
    return folder / "plain.npy"


def test_inputs_are_not_overwritten(chain_run, programs: Path, examples: Path, command) -> None:
    before = examples.read_bytes()
    assert "is the file that is read" in command("score", chain_run[0], examples, "-o", examples, status=2).stderr
    assert examples.read_bytes() == before
    program = programs / "chain.py"
    words = ("graph", f"{program}:model", "--format", "text", "-o", program)
    assert "is the file that is read" in command(*words, status=2).stderr


def test_a_manifest_that_is_a_folder(tmp_path: Path, command) -> None:
    (tmp_path / "run" / "manifest.json").mkdir(parents=True)
    assert "its manifest.json is a folder" in command("sample", tmp_path / "run", status=2).stderr
