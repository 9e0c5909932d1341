"""Programs whose sites have fewer noises than values, from data to scores."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
import torch

from emfc.data import read_table, write_table

PROGRAM = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model():
        loc = pyro.param("loc", lambda: torch.zeros(2))
        shares = pyro.sample("shares", dist.LogisticNormal(loc, torch.ones(2)))
        double = pyro.sample("double", dist.Delta(2 * shares[0]))
        pyro.sample("level", dist.Normal(double, 0.2))

    def data(n=120, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shares = torch.softmax(torch.randn(n, 3, generator=generator), -1)
        level = 2 * shares[:, 0] + 0.1 * torch.randn(n, generator=generator)
        return {"shares": shares, "double": 2 * shares[:, 0], "level": level}
"""
FIXED = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model():
        shares = pyro.sample("shares", dist.LogisticNormal(torch.zeros(2), torch.ones(2)))
        pyro.sample("level", dist.Normal(shares[0], 0.2))

    def data(n=120, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shares = torch.softmax(torch.randn(n, 3, generator=generator), -1)
        return {"shares": shares, "level": shares[:, 0] + 0.1 * torch.randn(n, generator=generator)}
"""
SMALL = ("--hidden", "8", "--epochs", "2", "--transforms", "2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    for name, text in (("computed", PROGRAM), ("shares", FIXED)):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def test_check_counts_both(files, command, command_json):
    document = command_json("check", files / "computed.py")
    assert (document["dim"], document["noise_dim"]) == (5, 3)
    assert "5 elements, drawn from 3 noise numbers" in command("check", files / "computed.py").stdout


@pytest.mark.parametrize("placement", ["top", "middle"])
def test_training_sampling_and_scoring(files, tmp_path, command_json, placement):
    run = tmp_path / "run"
    rivals = ("--rival", "copula", "--rival", "spline") if placement == "top" else ()
    words = ("train", files / "shares.py", "--out", run, "--placement", placement, "--baseline", *SMALL)
    document = command_json(*words, *rivals)
    assert math.isfinite(document["test_nll"])
    assert math.isfinite(document["baseline"]["test_nll"])
    command_json("sample", run, "-n", 20, "-o", tmp_path / "drawn.csv")
    drawn = read_table(tmp_path / "drawn.csv", {"shares": (3,), "level": ()})
    torch.testing.assert_close(drawn["shares"].sum(-1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-5)
    scored = command_json("score", run, tmp_path / "drawn.csv")
    assert all(math.isfinite(value) for value in scored["log_prob"])
    evaluated = command_json("evaluate", run, tmp_path / "drawn.csv")
    assert evaluated["nll"] == pytest.approx(-sum(scored["log_prob"]) / 20, rel=1e-4)


def test_computed_values_are_data_too(files, tmp_path, command, command_json):
    run = tmp_path / "run"
    document = command_json("train", files / "computed.py", "--out", run, *SMALL)
    assert math.isfinite(document["test_nll"])
    refused = command(
        "train", files / "computed.py", "--out", tmp_path / "other", "--baseline", *SMALL, status=2
    ).stderr
    assert "depends on other sites" in refused
    assert "pyro.deterministic" in refused


def test_rows_off_the_simplex_are_named(files, tmp_path, command):
    shares = torch.softmax(torch.randn(10, 3), -1)
    shares[4, 1] += 0.1
    write_table(tmp_path / "data.csv", {"shares": shares, "level": torch.zeros(10)})
    told = command("train", files / "shares.py", "--data", tmp_path / "data.csv", *SMALL, status=2).stderr
    assert "outside" in told
    assert "shares" in told or "row" in told
