"""The command that measures accuracy: it finds what is wrong, measures every family, and its page is complete."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import re

import mpmath as mp
import pytest
import torch
from torch import distributions as td

import emfc.distributions
import emfc.special
import emfc.transforms
from emfc.transforms import CDFTransform, ScalarFamily, from_normal
from tests.accuracy import page
from tests.accuracy.__main__ import main
from tests.accuracy.families import FAMILIES, WITHOUT
from tests.accuracy.measure import Family, measure
from tests.accuracy.oracle import Truth
from tests.accuracy.ranges import Log
from tests.accuracy.special import SPECIAL, UNMEASURED
from tests.transforms.cases import CASES


def small(family: Family) -> Family:
    return dataclasses.replace(family, draws=300, oracle=12)


@pytest.mark.parametrize("name", ["Laplace", "mixture of Normal"])
def test_two_families_are_within_their_limits(name):
    figures = measure(small(FAMILIES[name]))
    assert figures["draws"] == 300
    for precision in ("float32", "float64"):
        assert 0 < figures[precision]["round trip"]["figure"] <= 1
        assert 0 < figures[precision]["mpmath"]["figure"] <= 1
    parameters = set(FAMILIES[name].ranges)
    assert set(figures["float64"]) == {"round trip", "mpmath", "input"} | parameters
    for key in {"input"} | parameters:
        assert 0 < figures["float64"][key]["figure"] <= 1e-6
        assert set(figures["float64"][key]["place"]) == parameters | {"noise"}


def test_another_scale_than_the_oracles_is_found():
    wrong = Family(
        lambda scale: td.HalfCauchy(1.0001 * scale), {"scale": Log(1e-2, 1e2)}, FAMILIES["HalfCauchy"].tails, oracle=12
    )
    figures = measure(dataclasses.replace(wrong, draws=100))
    assert figures["float64"]["round trip"]["figure"] <= 1
    assert figures["float64"]["mpmath"]["figure"] > 1e3


class _Wrong(ScalarFamily):
    """An exponential with one thing wrong."""

    support = td.constraints.nonnegative

    def __init__(self, dist: td.Exponential, fault: str) -> None:
        self.right, self.fault = emfc.transforms.scalar_family(dist), fault
        self.rate, self.batch_shape = dist.rate, dist.batch_shape

    def evaluate(self, at):
        if self.fault == "gradient":
            at = at._replace(value=at.value, below=at.below.detach())
        return self.right.evaluate(at)

    def quantile(self, log_p, log_q):
        return self.right.quantile(log_p, log_q) * (1 + 1e-6 if self.fault == "value" else 1)


@pytest.mark.parametrize(("fault", "figure"), [("value", "round trip"), ("gradient", "input")])
def test_a_wrong_family_is_found(fault, figure, monkeypatch):
    monkeypatch.setattr("tests.accuracy.measure.from_normal", lambda dist: CDFTransform(_Wrong(dist, fault)))
    figures = measure(small(FAMILIES["Exponential"]))["float64"]
    assert figures[figure]["figure"] > (1 if figure == "round trip" else 0.5)


def test_derivatives_of_the_oracle():
    truth = Truth(lambda x, rate: (-mp.expm1(-rate * x), mp.exp(-rate * x)), 2.0, [0.5], 60)
    e = float(torch.special.ndtri(torch.tensor(1 - torch.exp(torch.tensor(-1.0, dtype=torch.float64)).item())))
    assert abs(truth.error(0, e)) < 1e-15
    density = torch.exp(torch.tensor(-0.5 * e * e, dtype=torch.float64)).item() / (2 * torch.pi) ** 0.5
    tail = torch.exp(torch.tensor(-1.0, dtype=torch.float64)).item()
    assert truth.derivative([e], None, 1.0, 1.0)[0] == pytest.approx(0.5 * tail / density, rel=1e-14)
    assert truth.derivative([e], 0, 1.0, 1.0)[0] == pytest.approx(2.0 * tail / density, rel=1e-14)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The store and the page in a folder of the test, and a registry of two lines."""
    monkeypatch.setattr(page, "STORE", tmp_path / "store")
    monkeypatch.setattr(page, "PAGE", tmp_path / "accuracy.md")
    monkeypatch.setattr(page, "ROOT", tmp_path)
    names = ("Normal", "Exponential")
    for module in ("tests.accuracy.page", "tests.accuracy.__main__"):
        monkeypatch.setattr(f"{module}.FAMILIES", {name: small(FAMILIES[name]) for name in names})
        special = {"log1mexp": dataclasses.replace(SPECIAL["log1mexp"], oracle=20)}
        monkeypatch.setattr(f"{module}.SPECIAL", special)
    return tmp_path


def test_the_page_is_written_once_every_line_has_figures(elsewhere, capsys):
    assert main(["--only", "normal", "log1mexp"]) == 0
    assert "no page: 1 lines have no figures yet (Exponential)" in capsys.readouterr().out
    assert not page.PAGE.exists()
    assert main(["--missing"]) == 0
    printed = capsys.readouterr().out
    assert "Exponential:" in printed
    assert "Normal:" not in printed
    text = page.PAGE.read_text()
    assert re.findall(r"^\| (\w+) \|", text, flags=re.MULTILINE) == ["family", "Normal", "Exponential", "function"]
    assert "| `log1mexp` |" in text
    assert sorted(path.name for path in elsewhere.iterdir()) == ["accuracy.md", "store"]


def test_figures_beyond_their_limits_fail_the_command(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("tests.accuracy.measure.from_normal", lambda dist: CDFTransform(_Wrong(dist, "value")))
    assert main(["--only", "exponential"]) == 1
    assert "BEYOND" in capsys.readouterr().out
    stored = json.loads((page.STORE / "family-Exponential.json").read_text())
    assert stored["float64"]["round trip"]["figure"] > 1


def _everything() -> list[type]:
    """The classes that have a transform, with every module of the rooms imported."""
    for package in (emfc.transforms, emfc.distributions):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    ours = ("torch.", "pyro.", "emfc.")  # a test may register families of its own
    return [
        family
        for family, make in from_normal.registry.items()
        if family.__module__.startswith(ours) and not getattr(make, "refuses", False)
    ]


def _known(dist: td.Distribution) -> type:
    """The registered class whose transform a distribution gets."""
    return next(known for known in type(dist).__mro__ if known in from_normal.registry)


def _measured() -> set[type]:
    """Registered classes that the lines of the table reach, those inside wrappers too."""
    found = set()
    for family in FAMILIES.values():
        parameters = family.parameters(1, torch.float64, torch.Generator().manual_seed(0))
        if family.single:
            parameters = {name: value[0] for name, value in parameters.items()}
        dist: object = family.build(**parameters)
        while dist is not None:
            found.add(_known(dist))
            dist = getattr(dist, "base_dist", None)
    return found


def test_no_family_is_missing():
    missing = {family.__name__ for family in set(_everything()) - _measured()}
    assert missing - set(WITHOUT) == {"InverseGamma"} & missing  # Pyro's has torch's transform


def test_every_class_of_the_case_tables_is_measured():
    kinds = {_known(case.dist(torch.float64)) for case in CASES.values()}
    missing = {family.__name__ for family in kinds - _measured()}
    assert missing - set(WITHOUT) == {"InverseGamma"} & missing


def test_no_special_function_is_missing():
    """Every public function of the room that tells its source has a line."""
    missing = []
    for module in pkgutil.iter_modules(emfc.special.__path__):
        room = importlib.import_module(f"emfc.special.{module.name}")
        for name in getattr(room, "__all__", []):
            documented = "Source:" in (getattr(room, name).__doc__ or "")
            if documented and name not in SPECIAL and name not in UNMEASURED:
                missing.append(f"{module.name}.{name}")
    assert missing == []


def test_the_page_has_every_line():
    text = (page.ROOT / "docs" / "accuracy.md").read_text()
    families, functions = text.split("## Special functions")
    rows = re.findall(r"^\| ([^|]+?) \|", families, flags=re.MULTILINE)
    assert rows == ["family", "---", *FAMILIES]
    assert re.findall(r"^\| `(\w+)` \|", functions, flags=re.MULTILINE) == list(SPECIAL)
