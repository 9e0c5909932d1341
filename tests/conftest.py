"""Options and fixtures that every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that the tests run on, such as cpu or cuda")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"], help="dtype that the tests run in")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture
def float64(_clean_state: None) -> torch.dtype:
    """Double precision, whatever was chosen."""
    torch.set_default_dtype(torch.float64)
    return torch.float64


@pytest.fixture(autouse=True)
def _clean_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fixed seed, the chosen default dtype and an empty param store for every test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.config.getoption("--dtype")))
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(before)
