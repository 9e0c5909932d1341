"""Trainings under way: until a run folder ``RUN`` is whole, what was trained lies beside it in ``RUN.training``.

The folder can be loaded like a run, with the best weights so far, whenever the process ends. One that an earlier
training left is taken up by ``--resume`` and otherwise stays; a new training then takes ``RUN.training-2``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from emfc.data.atomic import write_text
from emfc.errors import UserError

__all__ = [
    "CONFIGURATION",
    "MANIFEST",
    "METRICS",
    "REPLACED",
    "TrainingFolder",
    "bring_back",
    "has_unfinished",
    "newest_unfinished",
    "training_folder",
    "unfinished",
    "unfinished_hint",
]

CONFIGURATION = "training.json"
LOCK = "training.lock"
SUFFIX = ".training"
MANIFEST = "manifest.json"
METRICS = "metrics.json"
REPLACED = "replaced"
OURS = {
    MANIFEST,
    METRICS,
    "program.safetensors",
    "weights.safetensors",
    "training.safetensors",
    "history.json",
    "training.png",
    "graph.png",
    "samples.png",
    "ranked.png",
    "baseline",
    "spline",
    "copula",
}
SAID = {"program_digest": "another text of the program", "data": "other data", "context": "other contexts"}


@dataclass
class TrainingFolder:
    """The folder of a training under way.

    Attributes:
        path: The folder.
        resumed: Whether it goes on from an earlier training.
        keep: Whether the folder stays although the training ended well.
    """

    path: Path
    resumed: bool
    keep: bool = False

    def part(self, key: str) -> Path:
        """Give the folder of one of the flows that are compared."""
        return self.path if key == "embedded" else self.path / key

    @property
    def kept(self) -> str | None:
        """What there is to go on from, in words; None if nothing was learned yet."""
        from emfc.training.checkpoint import read_state

        try:
            state = read_state(self.path)
        except UserError:
            return None
        if state is None or state.best_epoch == 0:
            return None
        return f"the weights of epoch {state.best_epoch} are kept in {self.path}, and --resume goes on from there"


@contextmanager
def training_folder(
    target: Path, configuration: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[TrainingFolder]:
    """Give the folder beside ``target`` to train in; it goes when the block ends well, else it keeps what was learned.

    Args:
        target: The run folder.
        configuration: What must be the same to go on from an earlier training.
        resume: Whether to go on from one.
        overwrite: Whether earlier trainings beside ``target`` may go once the block has ended well.

    Yields:
        The folder.

    Raises:
        UserError: There is nothing to go on from, it was begun otherwise, it is in use, or nothing can be written. An
            error of the block then also says what is kept.
    """
    before = unfinished(target)
    try:
        path, lock = _take_up(target, before, configuration) if resume else _begin(target, configuration)
    except OSError as error:
        raise UserError(f"cannot write beside the run folder {target}: {error.strerror or error}") from error
    folder = TrainingFolder(path, resume)
    try:
        yield folder
    except (UserError, KeyboardInterrupt) as error:
        kept = folder.kept
        _let_go(lock)
        if kept is None and not resume:
            _remove(path, target)
        if kept is None:
            raise
        raise type(error)(f"{error}; {kept}" if str(error) else f"interrupted; {kept}") from error
    except BaseException:
        _let_go(lock)
        raise
    _let_go(lock)
    if not folder.keep:
        _remove(path, target)
    for other in before if overwrite else ():
        if other != path and (free := _lock(other)) is not None:
            _let_go(free)
            _remove(other, target)


def unfinished(target: Path) -> list[Path]:
    """Find what earlier trainings left beside a run folder, the newest first."""
    return _find(target.parent, re.escape(target.name))


def has_unfinished(target: Path) -> bool:
    """Whether an earlier training left something beside a run folder."""
    return bool(unfinished(target))


def newest_unfinished(first: Path) -> Path | None:
    """Find the run folder, ``first`` or ``first`` with a number, whose training was left last."""
    found = _find(first.parent, re.escape(first.name) + r"(-\d+)?")
    return found[0].with_name(found[0].name.rpartition(SUFFIX)[0]) if found else None


def _find(folder: Path, name: str) -> list[Path]:
    pattern = re.compile(name + re.escape(SUFFIX) + r"(-\d+)?")
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if pattern.fullmatch(path.name) and (path / CONFIGURATION).is_file()]
    return sorted(found, key=_last_write, reverse=True)


def unfinished_hint(target: Path) -> str:
    """Say where the weights of a training that never ended are, for messages about a run that is missing."""
    for path in unfinished(target):
        if (path / MANIFEST).is_file():
            return f"; a training that did not end left its best weights in {path}: use that folder"
    return ""


def bring_back(inside: Path, target: Path) -> None:
    """Finish what replacing a run began: the old run comes back where no new one is, else those of its files not ours.

    Raises:
        OSError: The operating system refuses; nothing is lost.
    """
    old = inside / REPLACED
    if not old.exists():
        return
    if not target.exists():
        old.rename(target)
        return
    for entry in [entry for entry in old.iterdir() if entry.name not in OURS and not (target / entry.name).exists()]:
        entry.rename(target / entry.name)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)


def _remove(path: Path, target: Path) -> None:
    """Remove the folder of a training, but no file of the user's that is in it for a moment."""
    try:
        bring_back(path, target)
    except OSError:
        return
    shutil.rmtree(path, ignore_errors=True)


def _last_write(path: Path) -> float:
    return max((entry.stat().st_mtime for entry in path.iterdir()), default=0.0)


def _begin(target: Path, configuration: Mapping[str, Any]) -> tuple[Path, IO[str] | None]:
    """Make a folder of our own; those of others stay as they are."""
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = target.with_name(target.name + SUFFIX + (f"-{number}" if number > 1 else ""))
        try:
            path.mkdir()
            break
        except FileExistsError:
            number += 1
    lock = _lock(path)
    try:
        write_text(path / CONFIGURATION, json.dumps(configuration, indent=2) + "\n")
    except BaseException:
        _let_go(lock)
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path, lock


def _take_up(target: Path, found: list[Path], configuration: Mapping[str, Any]) -> tuple[Path, IO[str] | None]:
    """Take the newest earlier training that was begun in the same way."""
    if not found:
        raise UserError(f"there is no unfinished training of {target}; leave out --resume to begin one")
    differences = []
    for path in found:
        different = _difference(path, configuration)
        differences.append(different)
        if different is None:
            lock = _lock(path)
            if lock is None:
                raise UserError(f"{path} is in use by another training")
            bring_back(path, target)
            return path, lock
    raise UserError(
        f"{found[0]} was begun with {differences[0]}; give the same options and data, or leave out --resume"
    )


def _difference(path: Path, configuration: Mapping[str, Any]) -> str | None:
    """Say in what an earlier training differs, or None."""
    try:
        before = json.loads((path / CONFIGURATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{path / CONFIGURATION} is damaged; {path} cannot be gone on from")
    now = json.loads(json.dumps(configuration))
    for key in dict.fromkeys((*now, *before)):
        if key not in before or key not in now or before[key] != now[key]:
            if key in SAID:
                return SAID[key]
            first, second = (json.dumps(each[key]) if key in each else "nothing" for each in (before, now))
            return f"{key} = {first}, not {second}"
    return None


def _lock(path: Path) -> Any:
    """Take the lock of a folder, which ends with the process; None if another process has it."""
    file = (path / LOCK).open("a")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # the file system has no locks; what is lost is only the refusal of a second training
            return file
    return file


def _let_go(lock: IO[str] | None) -> None:
    if lock is not None:
        lock.close()
