"""What ``emfc train`` keeps when it is killed, interrupted, or finds no room on the disk, and how it goes on."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import emfc.training
from emfc.cli.training_folder import training_folder
from emfc.data import write_table
from emfc.errors import UserError
from tests.cli.conftest import run_command, run_json

SLOW = """
import sys, time
from emfc.cli.app import main
from emfc.training import LineProgress
original = LineProgress.epoch
def epoch(self, row, *, best):
    original(self, row, best=best)
    time.sleep(0.2)
LineProgress.epoch = epoch
main()
"""
OPTIONS = ("--hidden", "8", "--transforms", "1", "--epochs", "12", "--dropout", "0.1", "--batch-size", "16")


def _start(*words: object, code: str = SLOW, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=Path(__file__).parents[2],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def _await(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.fixture(scope="module")
def train(programs: Path) -> tuple[object, ...]:
    return ("train", programs / "chain.py", "--set", "n=80", *OPTIONS)


@pytest.fixture(scope="module")
def whole(train: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training, without a break."""
    return run_json(*train, "--out", tmp_path_factory.mktemp("whole") / "r")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "x.csv"
    path.parent.mkdir()
    write_table(path, {f"x_{t}": torch.rand(6) + 0.5 for t in range(3)})
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key in ("test_nll", "epochs", "best_epoch"):
        assert math.isclose(one[key], other[key], rel_tol=1e-4), key


def test_killed_training(train, whole, runs: Path, table: Path) -> None:
    process = _start(*train, "--out", runs / "r")
    _await(runs / "r.training" / "training.safetensors", process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert _names(runs) == ["r.training"]
    for words in (("sample", runs / "r"), ("score", runs / "r", table), ("evaluate", runs / "r", table)):
        message = run_command(*words, status=2).stderr
        assert f"left its best weights in {runs / 'r.training'}: use that folder" in message
        assert run_command(words[0], runs / "r.training", *words[2:]).stdout
    assert "a training that did not end" in run_command(*train, "--out", runs / "r.training", status=2).stderr

    write_table(table, {f"x_{t}": torch.rand(80) + 0.5 for t in range(3)})
    for extra, told in (
        (("--seed", 1), "begun with seed = 0, not 1"),
        (("--backbone", "mvn"), 'begun with backbone = "maf", not "mvn"'),
        (("--set", "steps=4"), "begun with --set steps = nothing, not 4"),
        (("--data", table), "begun with other data"),
    ):
        message = run_command(*train, "--out", runs / "r", "--resume", *extra, status=2).stderr
        assert message.count("\n") == 1
        assert told in message
    assert "no unfinished training" in run_command(*train, "--out", runs / "q", "--resume", status=2).stderr

    before = (runs / "r.training" / "training.safetensors").read_bytes()
    _same(run_json(*train, "--out", runs / "r"), whole)
    assert _names(runs) == ["r", "r.training"]
    assert (runs / "r.training" / "training.safetensors").read_bytes() == before
    assert "--overwrite" in run_command(*train, "--out", runs / "r", "--resume", status=2).stderr
    result = run_command(*train, "--out", runs / "r", "--resume", "--overwrite")
    assert "going on from epoch" in result.stderr
    assert _names(runs) == ["r"]
    _same(json.loads((runs / "r" / "metrics.json").read_text()), whole)


def test_interrupted_training(train, whole, runs: Path, table: Path) -> None:
    process = _start(*train, "--out", runs / "r", "--baseline")
    _await(runs / "r.training" / "training.safetensors", process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"the best weights so far are kept in {runs / 'r'}; emfc train with --resume goes on" in error
    assert "Traceback" not in error
    assert "embedded-model flow" in out
    metrics = json.loads((runs / "r" / "metrics.json").read_text())
    assert metrics["interrupted"]
    assert metrics["stopped"] == "interrupted"
    assert "baseline" not in metrics
    assert math.isfinite(run_json("evaluate", runs / "r", table)["nll"])
    assert "--resume" in run_command(*train, "--out", runs / "r", status=2).stderr
    document = run_json(*train, "--out", runs / "r", "--baseline", "--resume")
    _same(document, whole)
    assert math.isfinite(document["baseline"]["test_nll"])
    assert _names(runs) == ["r"]
    assert not json.loads((runs / "r" / "metrics.json").read_text())["interrupted"]


class _Interrupts(emfc.training.SilentProgress):
    def __init__(self, at: int, fault: BaseException) -> None:
        self.at, self.fault = at, fault

    def epoch(self, row: Any, *, best: float) -> None:
        if row.epoch == self.at:
            raise self.fault


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    with monkeypatch.context() as patch:

        def stop(epoch: int, fault: BaseException) -> None:
            patch.setattr(emfc.training, "make_progress", lambda: _Interrupts(epoch, fault))

        yield stop


def test_ctrl_c_does_not_replace_a_finished_run(train, whole, runs: Path, stop_at) -> None:
    run_command(*train, "--out", runs / "r", "--seed", 5)
    weights = (runs / "r" / "weights.safetensors").read_bytes()
    stop_at(4, KeyboardInterrupt())
    result = run_command(*train, "--out", runs / "r", "--overwrite", status=130)
    assert f"{runs / 'r'} is as it was; emfc train with --resume --overwrite goes on" in result.stderr
    assert (runs / "r" / "weights.safetensors").read_bytes() == weights
    assert run_command("sample", runs / "r.training").stdout
    stop_at(0, KeyboardInterrupt())
    _same(run_json(*train, "--out", runs / "r", "--resume", "--overwrite"), whole)
    assert _names(runs) == ["r"]


def test_default_folders_step_aside_and_are_found_again(train, tmp_path: Path, stop_at, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    stop_at(3, SystemExit(9))
    run_command(*train, status=9)
    assert _names(Path("runs")) == ["chain.training"]
    stop_at(0, KeyboardInterrupt())
    run_command(*train)
    assert _names(Path("runs")) == ["chain-2", "chain.training"]
    assert run_json(*train, "--resume")["run"] == "runs/chain"
    assert _names(Path("runs")) == ["chain", "chain-2"]
    stop_at(3, SystemExit(9))
    run_command(*train, "--out", "runs/chain", "--overwrite", status=9)
    stop_at(0, KeyboardInterrupt())
    run_command(*train, "--out", "runs/chain", "--overwrite")
    assert _names(Path("runs")) == ["chain", "chain-2"]


@pytest.mark.parametrize("writes", [0, 3, 5, 11])
def test_a_full_disk(train, whole, runs: Path, stop_at, monkeypatch, writes: int) -> None:
    """The disk is full from some write on: at once, in the first checkpoint, or when the run folder is written."""
    if writes == 11:
        stop_at(0, KeyboardInterrupt())
    original, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        result = run_command(*train, "--out", runs / "r", status=2)
    last = result.stderr.splitlines()[-1]
    assert "No space left on device" in last
    assert last.startswith("emfc: cannot write")
    assert not [path for path in runs.rglob("*") if "aside" in path.name or ".part" in path.name]
    assert not (runs / "r").exists()
    if writes == 11:
        assert f"are kept in {runs / 'r.training'}, and --resume goes on from there" in last
        assert run_command("sample", runs / "r.training").stdout
        _same(run_json(*train, "--out", runs / "r", "--resume"), whole)
        assert _names(runs) == ["r"]
    else:
        assert _names(runs) == []


def test_a_real_limit_on_what_may_be_written(train, runs: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = (*train, "--out", runs / "r", "--hidden", "64,64")
    process = _start(*words, preexec_fn=limit)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2, error
    assert error.splitlines()[-1].startswith("emfc: cannot write")
    assert error.splitlines()[-1].endswith("File too large")
    assert _names(runs) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_standard_output(chain_run) -> None:
    with Path("/dev/full").open("w") as full:
        process = _start("sample", chain_run[0], stdout=full)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error == "emfc: cannot write the output: No space left on device\n"


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    target, options = tmp_path / "r", {"overwrite": True}
    with training_folder(target, {"seed": 0}, resume=False, **options) as first:
        with pytest.raises(UserError, match="in use"), training_folder(target, {"seed": 0}, resume=True, **options):
            pass
        with training_folder(target, {"seed": 0}, resume=False, **options) as second:
            assert second.path != first.path
        assert _names(tmp_path) == ["r.training"]
        (first.path / "replaced").mkdir()
        first.keep = True
    with training_folder(target, {"seed": 0}, resume=True, **options) as again:
        assert again.path == first.path
        assert target.is_dir(), "a run that was being replaced comes back"
    (tmp_path / "r.training").mkdir()
    (tmp_path / "r.training" / "training.json").write_text("{")
    with pytest.raises(UserError, match="damaged"), training_folder(target, {}, resume=True, **options):
        pass
