"""``emfc check`` and ``emfc graph``: what they print and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_check_prints_a_table(programs: Path, command) -> None:
    result = command("check", programs / "chain.py", "--set", "steps=4")
    assert "chain.py compiles" in result.stdout
    assert "x_3" in result.stdout
    assert "LogNormal" in result.stdout
    assert "parameter scale: " in result.stdout
    assert "An example has 4 elements" in result.stdout


def test_check_json(programs: Path, command_json) -> None:
    document = command_json("check", programs / "images.py", "--set", "populations=3")
    assert document["dim"] == document["noise_dim"] == 16
    assert document["parameters"]["logits"]["shape"] == [3, 4, 4, 3]
    by_name = {site["name"]: site for site in document["sites"]}
    assert {"name", "family", "shape", "parents", "observed", "transform"} <= set(by_name["pixels"])
    assert by_name["pixels"]["shape"] == [4, 4]
    assert by_name["pixels"]["parents"] == ["z"]
    assert not by_name["pixels"]["observed"]


def test_check_of_a_long_program_is_short(programs: Path, command, command_json) -> None:
    result = command("check", programs / "chain.py", "--set", "steps=80")
    assert "... and 20 more sites" in result.stdout
    assert len(command_json("check", programs / "chain.py", "--set", "steps=80")["sites"]) == 80


def test_check_explains(programs: Path, command) -> None:
    assert len(command("check", programs / "chain.py", "--explain").stdout) > len(
        command("check", programs / "chain.py").stdout
    )


def test_a_refused_program(tmp_path: Path, command) -> None:
    path = tmp_path / "branch.py"
    path.write_text(
        "import pyro\nimport pyro.distributions as dist\n\n"
        "def model():\n    x = pyro.sample('x', dist.Normal(0.0, 1.0))\n"
        "    if x > 0:\n        x = -x\n    pyro.sample('y', dist.Normal(x, 1.0))\n"
    )
    for name in ("check", "train"):
        result = command(name, path, status=2)
        assert result.stdout == ""
        assert "E-DATADEP" in result.stderr
        assert "branch.py:6" in result.stderr


def test_a_program_that_raises(tmp_path: Path, command) -> None:
    path = tmp_path / "raises.py"
    path.write_text("def model():\n    raise ValueError('no luck')\n")
    result = command("check", path, status=2)
    assert "no luck" in result.stderr


def test_graph_as_text(programs: Path, command) -> None:
    lines = command("graph", programs / "chain.py").stdout.splitlines()
    assert lines[0] == "chain.py: 3 elements"
    assert lines[1] == "x_0 ~ LogNormal"
    assert lines[2] == "x_1 ~ LogNormal given x_0"
    assert "parameter scale" in lines[4]
    text = command("graph", programs / "images.py", "--set", "populations=2").stdout
    assert "summed out" in text


@pytest.mark.parametrize("kind", ["json", "dot", "mermaid"])
def test_graph_as_code(programs: Path, command, tmp_path: Path, kind: str) -> None:
    printed = command("graph", programs / "chain.py", "--format", kind).stdout
    assert "x_1" in printed
    ending = {"json": "json", "dot": "dot", "mermaid": "mmd"}[kind]
    command("graph", programs / "chain.py", "-o", tmp_path / f"g.{ending}")
    assert (tmp_path / f"g.{ending}").read_text() == printed
    if kind == "json":
        json.loads(printed)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_graph_as_a_picture(programs: Path, command, tmp_path: Path, ending: str) -> None:
    result = command("graph", programs / "images.py", "--set", "populations=2", "-o", tmp_path / f"g.{ending}")
    assert "wrote" in result.stderr
    assert (tmp_path / f"g.{ending}").stat().st_size > 1000


def test_what_a_program_prints_is_no_result(tmp_path: Path, command, command_json) -> None:
    (tmp_path / "noisy.py").write_text(
        "print('import!')\n"
        "import pyro, torch, pyro.distributions as dist\n"
        "def model():\n    print('model!')\n    pyro.sample('x', dist.Normal(torch.zeros(2), 1.0).to_event(1))\n"
        "def data():\n    print('data!')\n    return {'x': torch.randn(20, 2)}\n"
        "def start(data):\n    print('start!')\n    return {}\n"
    )
    command_json("check", tmp_path / "noisy.py")
    json.loads(command("graph", tmp_path / "noisy.py", "--format", "json").stdout)
    words = ("train", tmp_path / "noisy.py", "--out", tmp_path / "r", "--epochs", 1, "--hidden", 8)
    command_json(*words, "--baseline")
    said = command(*words, "--overwrite", "--json").stderr
    assert all(f"{name}!" in said for name in ("import", "model", "data", "start"))
