"""Run folders appear whole or not at all, and nothing of the user's is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emfc.cli.run_folder import choose_run, new_run, read_metrics, write_json
from emfc.errors import UserError


def _run(path: Path, text: str = "{}") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(text)
    return path


def _inside(target: Path) -> Path:
    folder = target.with_name("work")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_choosing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_run(None, "digits", overwrite=False) == Path("runs/digits")
    _run(Path("runs/digits"))
    assert choose_run(None, "digits", overwrite=False) == Path("runs/digits-2")
    assert choose_run(None, "digits", overwrite=True) == Path("runs/digits")
    Path("empty").mkdir()
    assert choose_run(Path("empty"), "x", overwrite=False) == Path("empty")


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        choose_run(tmp_path / "file", "x", overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(UserError, match="no run of emfc"):
        choose_run(tmp_path / "photos", "x", overwrite=True)
    _run(tmp_path / "run")
    with pytest.raises(UserError, match="--overwrite"):
        choose_run(tmp_path / "run", "x", overwrite=False)


def test_a_run_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with new_run(target, inside=_inside(target)) as aside:
        (aside / "manifest.json").write_text("new")
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert [path.name for path in target.parent.iterdir() if path != _inside(target)] == ["run"]


def test_a_replaced_run_leaves_the_users_own_files(tmp_path: Path) -> None:
    target = _run(tmp_path / "run", "old")
    (target / "notes.txt").write_text("mine")
    (target / "samples.png").write_text("old picture")
    with new_run(target, inside=_inside(target)) as aside:
        (aside / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new"
    assert (target / "notes.txt").read_text() == "mine"
    assert not (target / "samples.png").exists()
    assert [path.name for path in tmp_path.iterdir() if path != _inside(target)] == ["run"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_a_fault_leaves_what_was_there(tmp_path: Path, fault: type[BaseException]) -> None:
    target = _run(tmp_path / "run", "old")

    def write() -> None:
        with new_run(target, inside=_inside(target)) as aside:
            (aside / "manifest.json").write_text("half")
            raise fault

    with pytest.raises(fault):
        write()
    assert (target / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path != _inside(target)] == ["run"]


def test_metrics(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path)) == {}
    write_json(tmp_path / "metrics.json", {"a": float("inf"), "image": "8x8"})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": None, "image": "8x8"}
    assert read_metrics(str(tmp_path))["image"] == "8x8"
    (tmp_path / "metrics.json").write_text("[")
    assert read_metrics(str(tmp_path)) == {}


@pytest.mark.parametrize("step", ["put away", "in place"])
def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, step: str) -> None:
    target, inside = tmp_path / "run", _inside(tmp_path / "run")
    old = _run(inside / "replaced", "old")
    (old / "notes.txt").write_text("mine")
    if step == "in place":
        _run(target, "newer")
    with new_run(target, inside=inside) as aside:
        assert (target / "manifest.json").read_text() == ("newer" if step == "in place" else "old")
        (aside / "manifest.json").write_text("newest")
    assert (target / "manifest.json").read_text() == "newest"
    assert (target / "notes.txt").read_text() == "mine"
    assert not list(inside.iterdir())


def test_folders_above_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        choose_run(tmp_path / "file" / "run", "name", overwrite=False)
    choose_run(tmp_path / "new" / "run", "name", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
