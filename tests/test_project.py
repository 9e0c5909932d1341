"""What holds of the project as a whole: packaging, rooms, and promises that are easy to break by accident."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "emfc"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted((ROOT / "models").glob("*.py"))
LINES = 350

ROOMS: dict[str, set[str]] = {
    "special": set(),
    "transforms": {"special"},
    "distributions": {"special", "transforms"},
    "testing": {"special", "transforms"},
    "program": {"transforms"},
    "passes": {"program"},
    "layers": {"special", "program", "passes", "transforms"},
    "compiler": {"program", "passes", "layers"},
    "flows": {"special", "program", "transforms", "distributions", "layers", "compiler", "data"},
    "training": {"flows", "data"},
    "inference": {"special", "program", "passes", "transforms", "distributions", "layers", "compiler", "flows", "data"},
    "data": set(),
}
ROOMS["report"] = set(ROOMS)
ROOMS["cli"] = set(ROOMS)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a module imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "emfc" and parts[1] in ROOMS else None


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_architecture_allows(room):
    alone = PACKAGE / f"{room}.py"
    wrong = [
        f"{name_of(path)}:{line} imports {dotted}"
        for path in ([alone] if alone.exists() else sorted((PACKAGE / room).rglob("*.py")))
        for line, dotted in imports(path)
        if dotted == "emfc" or (room_of(dotted) or room) not in ROOMS[room] | {room}
    ]
    assert wrong == []


def test_architecture_page_draws_the_same_rooms():
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = {}
    for room, cell in re.findall(r"^\| `emfc/(\w+)(?:/|\.py)` \|.*\| ([^|]*) \|$", page, flags=re.MULTILINE):
        drawn[room] = set(re.findall(r"\w+", cell)) - {"nothing"}
    assert drawn == ROOMS


def test_every_folder_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ROOMS)


def test_zuko_is_imported_by_flows_only():
    wrong = [
        name_of(path)
        for path in MODULES
        for _, dotted in imports(path)
        if dotted.split(".")[0] == "zuko" and "flows" not in path.parts
    ]
    assert wrong == []


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_programs_need_nothing_of_emfc(path):
    assert {dotted.split(".")[0] for _, dotted in imports(path)}.isdisjoint({"emfc", "zuko"})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_stay_short(path):
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_pickle_no_assert(path):
    """Nothing is unpickled, and input is never checked by a statement that ``python -O`` removes.

    Code is made in one place alone: of the allow-listed operations of a slice, with every other thing bound to a name.
    """
    makes_code = name_of(path) == "emfc/layers/writer.py"
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert {dotted.split(".")[0] for _, dotted in imports(path)}.isdisjoint(unsafe)
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "eval"}, where
            assert called != "exec" or makes_code, where
            for keyword in node.keywords:
                assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False", where


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_the_same_everywhere():
    import emfc

    version = pyproject()["project"]["version"]
    assert emfc.__version__ == version
    assert importlib.metadata.version("emfc") == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_requirement_is_pinned():
    """Each name in pyproject.toml has one exact version in constraints.txt, within the range asked for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = pyproject()["project"]
    optional = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *itertools.chain.from_iterable(optional)]
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_every_requirement_is_used_and_explained():
    """What is installed with the package is imported by it, and every requirement has a row on its page."""
    from packaging.requirements import Requirement

    project = pyproject()["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    imported = {dotted.split(".")[0] for path in MODULES for _, dotted in imports(path)}
    for requirement in map(Requirement, project["dependencies"]):
        assert {"pyro-ppl": "pyro"}.get(requirement.name, requirement.name) in imported, requirement.name
    optional = itertools.chain.from_iterable(project["optional-dependencies"].values())
    for requirement in map(Requirement, [*project["dependencies"], *optional]):
        assert requirement.name == project["name"] or re.search(rf"\b{requirement.name}\b", page), requirement.name


def test_make_has_every_promised_target():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("install", "demo", "test", "test-all", "lint", "bench", "docs"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_command_shows_an_example():
    from typer.main import get_command
    from typer.testing import CliRunner

    from emfc.cli.app import app

    for name in get_command(app).commands:  # type: ignore[attr-defined]
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0, name
        assert re.search(rf"emfc {name} \S", result.output.replace("Usage: emfc", "")), name


def test_errors_page_lists_every_code():
    from emfc.program.errors import CODES

    page = (ROOT / "docs" / "errors.md").read_text()
    assert set(re.findall(r"^## `(E-\w+)`", page, flags=re.MULTILINE)) == set(CODES)


def test_decisions_are_listed():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text()
    assert [path.name for path in folder.glob("[0-9]*.md") if f"({path.name})" not in index] == []


def test_every_public_name_has_a_reference_entry():
    import emfc

    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {dotted.rsplit(".", 1)[-1] for dotted in re.findall(r"^::: (emfc[\w.]*)$", pages, flags=re.MULTILINE)}
    assert {name for name in emfc.__all__ if not name.startswith("__")} <= documented
