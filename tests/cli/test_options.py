"""Reading options: JSON settings, widths, devices, and the defaults that hold while a command runs."""

from __future__ import annotations

import pytest
import torch

from emfc.cli.console import finite_or_none, print_json, print_table
from emfc.cli.options import DtypeName, numeric_defaults, read_device, read_settings, read_widths
from emfc.errors import UserError


def test_settings_are_json() -> None:
    texts = ["a=1", "b=[1, 2.5]", 'c="x=y"', "d=null", "e=true"]
    assert read_settings(texts) == {"a": 1, "b": [1, 2.5], "c": "x=y", "d": None, "e": True}
    assert read_settings(None) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "needs KEY=VALUE"),
        (["1a=3"], "needs KEY=VALUE"),
        (["=3"], "needs KEY=VALUE"),
        (["a=x"], "not JSON: 'x'"),
        (["a="], "not JSON"),
        (["a=1", "a=2"], "given twice"),
    ],
)
def test_bad_settings(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(texts)


def test_widths() -> None:
    assert read_widths("128, 64") == (128, 64)
    for text in ("", "a", "3,", "0", "4,-1"):
        with pytest.raises(UserError, match="--hidden"):
            read_widths(text)


def test_devices() -> None:
    assert read_device("cpu") == torch.device("cpu")
    for text in ("gpu", "cuda:99", "meta"):
        with pytest.raises(UserError, match=text):
            read_device(text)


def test_defaults_hold_inside_only() -> None:
    before = torch.get_default_dtype()
    with numeric_defaults(DtypeName.float32, 3) as kind:
        first = torch.rand(2)
        assert kind == first.dtype == torch.float32
    with numeric_defaults("float64", 3):
        assert torch.ones(()).dtype == torch.float64
    with numeric_defaults(DtypeName.float32, 3):
        assert torch.equal(torch.rand(2), first)
    assert torch.get_default_dtype() == before


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    assert finite_or_none({"a": [1.0, float("nan")], "b": (float("inf"), 2)}) == {"a": [1.0, None], "b": [None, 2]}
    print_json({"a": float("nan")})
    assert capsys.readouterr().out == '{\n  "a": null\n}\n'


def test_tables_are_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("name", "left"), ("n", "right")], [["x[0]" * 60, "1"]], title="a table")
    out = capsys.readouterr().out
    assert "x[0]" * 60 in out
    assert "a table" in out
