"""Small programs, and runs of them that several tests read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from emfc.cli.app import app

CHAIN = """
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints

    ROWS = 160

    def model(steps=3):
        scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
        x = pyro.sample("x_0", dist.LogNormal(0.0, 1.0))
        for t in range(1, steps):
            x = pyro.sample(f"x_{t}", dist.LogNormal(torch.log(x), scale))

    def data(n=200, steps=3, seed=0):
        noise = torch.randn(n, steps, generator=torch.Generator().manual_seed(seed))
        walk = torch.exp(0.2 * noise.cumsum(-1))
        return {f"x_{t}": walk[:, t] for t in range(steps)}

    def start(data, n=200):
        assert len(data["x_0"]) == n * 8 // 10
        return {"scale": torch.tensor(0.25)}
"""

IMAGES = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model(populations=1):
        if populations == 1:
            logits = pyro.param("logits", lambda: torch.zeros(4, 4, 3))
        else:
            z = pyro.sample("z", dist.Categorical(torch.full((populations,), 1 / populations)))
            ramp = torch.linspace(-1, 1, populations * 48).reshape(populations, 4, 4, 3)
            logits = pyro.param("logits", lambda: ramp)[z]
        pyro.sample("pixels", dist.Categorical(logits=logits).to_event(2))

    def data(n=60, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {"pixels": torch.randint(0, 3, (n, 4, 4), generator=generator)}
"""

PLAIN = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
"""


def run_command(*words: object, status: int = 0) -> Any:
    """Run a command and check its exit status."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, f"status {result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert status == 1 or "Traceback" not in result.stderr
    return result


def run_json(*words: object) -> dict[str, Any]:
    """Run a command and read its JSON."""
    document: dict[str, Any] = json.loads(run_command(*words, "--json").stdout)
    return document


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for name, text in (("chain", CHAIN), ("images", IMAGES), ("plain", PLAIN)):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


SMALL = ("--hidden", "8", "--epochs", "3", "--transforms", "1")


@pytest.fixture(scope="session")
def chain_run(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A trained chain with every rival, and the JSON that training printed."""
    run = tmp_path_factory.mktemp("runs") / "chain"
    before = torch.get_default_dtype()
    document = run_json(
        *("train", programs / "chain.py", "--out", run, *SMALL),
        *("--baseline", "--rival", "spline", "--rival", "copula"),
    )
    assert torch.get_default_dtype() == before
    return run, document


@pytest.fixture(scope="session")
def image_run(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Trained images, and what training printed."""
    run = tmp_path_factory.mktemp("runs") / "images"
    return run, run_command("train", programs / "images.py", "--out", run, "--baseline", *SMALL)


@pytest.fixture
def command() -> Callable[..., Any]:
    return run_command


@pytest.fixture
def command_json() -> Callable[..., dict[str, Any]]:
    return run_json
