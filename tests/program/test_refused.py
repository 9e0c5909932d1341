"""Programs that can't be compiled are refused with a code, the user's own line, and advice (law 8)."""

from __future__ import annotations

import warnings

import pyro
import pytest
import torch

import emfc
from emfc.program.errors import CODES
from tests.programs.refused import REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name):
    case = REFUSED[name]
    model, args, kwargs = case.build()
    with pytest.raises(emfc.CompileError) as caught:
        emfc.compile(model, *args, **kwargs)
    error = caught.value
    message = str(error)
    assert error.code == case.code, message
    assert error.code in CODES
    assert message.startswith(case.code)
    assert isinstance(error, ValueError)
    if case.line:
        assert case.line in (error.source or ""), message
        assert case.line in message
        assert error.location is not None
        file, _, number = error.location.partition(":")
        assert file.endswith("refused.py")
        assert number.isdecimal()
    for word in case.words:
        assert word in message.replace("1,048,576", "1048576"), message
    assert error.advice, message
    assert "\n" not in message
    assert "emfc/" not in message


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_leaves_nothing_behind(name):
    case = REFUSED[name]
    model, args, kwargs = case.build()
    pyro.param("mine", torch.tensor(1.0))
    state = torch.get_rng_state()
    validation = pyro.settings.get("validate_distributions_pyro")
    with pytest.raises(emfc.CompileError):
        emfc.compile(model, *args, **kwargs)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)
    assert pyro.settings.get("validate_distributions_pyro") == validation
    with warnings.catch_warnings():  # no mode of the compiler is left switched on
        warnings.simplefilter("error")
        a = torch.randn(3)
        assert bool((a[a > 0] > 0).all())
        assert isinstance(a.sum().item(), float)


def test_unsupported_family_names_near_ones():
    case = REFUSED["unsupported_family"]
    with pytest.raises(emfc.CompileError, match="SineSkewed") as caught:
        emfc.compile(case.model)
    assert caught.value.site == "angle"
    assert "MixtureSameFamily" in caught.value.advice


def test_refusal_names_the_sites_involved():
    case = REFUSED["copied_tensor"]
    with pytest.raises(emfc.CompileError) as caught:
        emfc.compile(case.model)
    assert "a" in str(caught.value)
    assert "site" in str(caught.value)
