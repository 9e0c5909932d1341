"""Every example of the pages is run: what a reader copies has to work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ERRORS = ROOT / "docs" / "errors.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(body) for _, body in found]


def commands(page: Path) -> list[str]:
    text = "\n".join(blocks(page.read_text(), "bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("emfc ")]


def run_python(code: str, folder: Path) -> dict[str, object]:
    """Runs code as a file, so that refusals can show its lines."""
    path = folder / "example.py"
    path.write_text(code)
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(code, str(path), "exec"), namespace)
    return namespace


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a fresh checkout, in the dtype that a user starts with."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != ERRORS and blocks(page.read_text(), "python")], ids=name_of
)
def test_python_examples(page, checkout):
    code = "\n\n".join(blocks(page.read_text(), "python"))
    if "@family_of" in code:  # what it registers would stay with the other tests
        (checkout / "example.py").write_text(code)
        subprocess.run([sys.executable, "example.py"], cwd=checkout, check=True)
    else:
        run_python(code, checkout)


def quick(command: str) -> bool:
    """Training counts as quick when it is for a few epochs."""
    epochs = re.search(r"--epochs (\d+)", command)
    return "train" not in command.split()[:2] or (epochs is not None and int(epochs[1]) <= 5)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if all(map(quick, commands(page))) else [pytest.mark.slow])
        for page in PAGES
        if commands(page)
    ],
    ids=name_of,
)
def test_commands(page, checkout):
    from typer.testing import CliRunner

    from emfc.cli.app import app

    for command in commands(page):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"


PRELUDE, *SECTIONS = re.split(r"^## ", ERRORS.read_text(), flags=re.MULTILINE)
EXAMPLES = {re.match(r"`(E-\w+)`", section).group(1): blocks(section, "python") for section in SECTIONS}


@pytest.mark.parametrize("code", [code for code, examples in EXAMPLES.items() if examples])
def test_errors_page(code, checkout):
    import emfc

    prelude = blocks(PRELUDE, "python")[0]
    refused, accepted = (run_python(prelude + example, checkout)["model"] for example in EXAMPLES[code])
    with pytest.raises(emfc.CompileError) as caught:
        emfc.EmbeddedModelFlow(refused, backbone=None).baseline()
    assert caught.value.code == code
    emfc.compile(accepted)


def test_links_between_readme_and_pages_resolve():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
