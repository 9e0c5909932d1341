"""Loading programs: what a file may hold, and one sentence for each way that it fails."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from emfc.cli.loader import load_program
from emfc.errors import UserError

GOOD = """
    import beside
    print("hello")
    def model(steps=3, *, width=1):
        return steps
    def other():
        return beside.VALUE
    def data(steps=3, n=5, seed=0):
        return {"x": [steps, n, seed]}
    def start(data, steps=3):
        return {"p": (data, steps)}
"""


def _write(folder: Path, text: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    _write(tmp_path, "VALUE = 7", "beside.py")
    return _write(tmp_path, GOOD)


def test_a_program_and_its_hooks(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.path)
    program = load_program(str(good), {"steps": 4, "n": 6})
    assert capsys.readouterr().out == ""
    assert sys.path == before
    assert program.title == "program.py"
    assert program.arguments(seed=0) == {"steps": 4}
    assert program.call_data(seed=9) == {"x": [4, 6, 9]}
    assert program.call_start({"x": 1}) == {"p": ({"x": 1}, 4)}
    assert "program" not in sys.modules


def test_another_name_in_the_file(good: Path) -> None:
    program = load_program(f"{good}:other")
    assert program.title == "program.py:other"
    assert program.model() == 7


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _write(tmp_path / name, f"def model(): return {name!r}")
    assert [load_program(str(tmp_path / name / "program.py")).model() for name in "ab"] == ["a", "b"]


def test_any_callable_is_a_program(tmp_path: Path) -> None:
    text = """
        import functools, torch
        class Net(torch.nn.Module):
            def forward(self, steps=2):
                return steps
        model = Net()
        part = functools.partial(Net(), steps=3)
        short = lambda steps=1, **rest: steps
    """
    path = _write(tmp_path, text)
    assert load_program(str(path), {"steps": 5}).arguments(seed=0) == {"steps": 5}
    assert load_program(f"{path}:part").model() == 3
    assert load_program(f"{path}:short", {"anything": 5}).arguments(seed=0) == {"anything": 5}
    with pytest.raises(UserError, match="'step' is unknown; did you mean 'steps'"):
        load_program(str(path), {"step": 5}).arguments(seed=0)


def test_missing_arguments_come_from_data(tmp_path: Path) -> None:
    path = _write(tmp_path, "def model(y, z=1): pass\ndef data(): return {'y': 3, 'other': 4}")
    assert load_program(str(path)).arguments(seed=0) == {"y": 3}
    path = _write(tmp_path, "def model(y, z=1): pass", "bare.py")
    with pytest.raises(UserError, match="needs the argument 'y'; give it with --set y=VALUE"):
        load_program(str(path)).arguments(seed=0)


FAULTS = {
    "syntax": ("def model(:", r"program\.py:1: the program does not parse"),
    "raises": ("x = 1\nraise ValueError('two\\nlines')", r"program\.py:2: .* ValueError: two lines"),
    "exits": ("import sys\nsys.exit(3)", r"program\.py:2: .* SystemExit: 3"),
    "import": ("import no_such_module", r"program\.py:1: .*no_such_module"),
    "no model": ("def mode(): pass", r"has no 'model'; it defines mode: give .*program\.py:mode"),
    "nothing": ("", "has no 'model'; a program file defines a callable `model`"),
    "no callable": ("model = 3", "'model' is not a program but int"),
    "a class": ("class model: pass", "is a class"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files(tmp_path: Path, name: str) -> None:
    text, message = FAULTS[name]
    with pytest.raises(UserError, match=message) as caught:
        load_program(str(_write(tmp_path, text)))
    assert "\n" not in str(caught.value)


def test_faulty_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"program file .*none\.py does not exist"):
        load_program(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="is not a Python file"):
        load_program(str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="is not a Python file"):
        load_program(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="is not the name of a program"):
        load_program("a.py:b c")


def test_faulty_hooks(tmp_path: Path) -> None:
    text = "def model(): pass\ndef data():\n    raise OSError('no disk')\ndef start(data):\n    return 3\n"
    program = load_program(str(_write(tmp_path, text)))
    with pytest.raises(UserError, match=r"program\.py:3: data\(\) raised OSError: no disk"):
        program.call_data(seed=0)
    with pytest.raises(UserError, match=r"start\(\) must return a mapping"):
        program.call_start({})
    bare = load_program(str(_write(tmp_path, "def model(): pass", "bare.py")))
    assert bare.call_start({"x": torch.ones(1)}) == {}
    with pytest.raises(UserError, match=r"has no data\(\); give the examples with --data FILE"):
        bare.call_data(seed=0)
