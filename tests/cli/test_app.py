"""The command line itself: help, bad usage, exit statuses, what goes to which stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from emfc.cli import app as application
from emfc.cli.app import app
from emfc.errors import UserError

COMMANDS = ("check", "graph", "train", "sample", "score", "evaluate")


def _invoke(*words: str):
    return CliRunner().invoke(app, list(words))


def test_help_names_every_command() -> None:
    result = _invoke("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = _invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: emfc {command}" in result.stdout


BAD_USAGE = {
    "no command": ([], "Usage"),
    "an unknown command": (["chek"], "Did you mean 'check'"),
    "no program": (["check"], "PROGRAM"),
    "an unknown option": (["train", "x.py", "--epoch", "3"], "--epochs"),
    "an unknown choice": (["train", "x.py", "--backbone", "iaf"], "'iaf' is not one of"),
    "a number that is none": (["train", "x.py", "--epochs", "many"], "--epochs"),
    "a number out of range": (["sample", "run", "-n", "0"], "-n"),
    "a missing program": (["check", "no.py"], "no.py does not exist"),
    "a missing run": (["sample", "no-run"], "no-run"),
    "an ending that is none": (["sample", "run", "-o", "a.txt"], "ending must be one of"),
    "a folder that is none": (["sample", "run", "-o", "no/a.csv"], "does not exist"),
    "a device that is none": (["sample", "run", "--device", "tpu9"], "there is no device 'tpu9'; use cpu"),
    "a seed beyond bounds": (["check", "x.py", "--seed", "99999999999999999999"], f"at most {2**63 - 1}."),
    "a number of words": (["sample", "run", "-n", "abc"], "it needs a whole number."),
    "an empty argument": (["check", ""], "the argument after 'check' is empty"),
    "an empty option": (["train", "x.py", "--out", ""], "the argument after '--out' is empty"),
    "an empty value": (["graph", "x.py", "--output="], "the value of --output is empty"),
    "a colon without a name": (["check", "x.py:"], "no name follows the colon"),
    "scores without names": (["score", "run", "a.csv", "-o", "s.npy"], "use .npz, .csv or .parquet"),
    "widths that are none": (["train", "x.py", "--hidden", "a"], "--hidden"),
    "steps that are none": (["train", "x.py", "--preprocess", "shuffle"], "unknown preprocessing step"),
    "a setting that is none": (["check", "x.py", "--set", "a"], "KEY=VALUE"),
    "a rate of nothing": (["train", "x.py", "--learning-rate", "0"], "--learning-rate"),
    "nothing to compare": (["train", "x.py", "--backbone", "none", "--baseline"], "nothing to compare"),
    "a picture without a file": (["graph", "x.py", "--format", "png"], "needs a file"),
    "a picture in a text file": (["graph", "x.py", "--format", "svg", "-o", "a.txt"], "does not end in .svg"),
    "an ending without a format": (["graph", "x.py", "-o", "a.xyz"], "tells no format"),
}


@pytest.mark.parametrize("name", BAD_USAGE)
def test_bad_usage_is_one_message_and_status_2(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, message = BAD_USAGE[name]
    result = _invoke(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert name == "no command" or result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def _failing(error: BaseException) -> typer.Typer:
    failing = typer.Typer(cls=application.Commands)

    @failing.command("a")
    def _a() -> None:
        raise error

    @failing.command("b")
    def _b() -> None:
        raise typer.Exit(130)

    return failing


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("bad rows"), 2, "emfc: bad rows\n"),
        (KeyboardInterrupt(), 130, "emfc: interrupted; nothing was kept\n"),
        (RuntimeError("odd"), 1, "emfc: a fault of emfc itself: RuntimeError: odd (set EMFC_DEBUG=1 to see where)\n"),
    ],
)
def test_faults_and_statuses(error, status, message, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMFC_DEBUG", raising=False)
    result = CliRunner().invoke(_failing(error), ["a"])
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("EMFC_DEBUG", "1")
    result = CliRunner().invoke(_failing(error), ["a"])
    assert result.exit_code == status
    assert isinstance(error, KeyboardInterrupt) or "Traceback" in result.stderr


def test_a_command_may_end_with_its_own_status() -> None:
    assert CliRunner().invoke(_failing(RuntimeError()), ["b"]).exit_code == 130


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, emfc.cli.app; print([m for m in ('torch', 'pyro', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
