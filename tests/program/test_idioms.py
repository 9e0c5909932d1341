"""There is no third case: an idiom of tensor code compiles to the same numbers, or it is refused."""

from __future__ import annotations

import pytest
import torch

import emfc
from tests.programs.compiled import density
from tests.programs.idioms import COMPILED, IDIOMS, program
from tests.programs.oracle import pyro_log_prob

NOT_THE_MODELS_FAULT = ("E-DATADEP", "E-ESCAPE", "E-DYNSHAPE", "E-IMPURE", "E-STRUCT", "E-OPERATION")


@pytest.fixture(autouse=True)
def _float64(_clean_state):
    torch.set_default_dtype(torch.float64)


def _compiled(model):
    """The layer of a program, or its refusal."""
    try:
        return emfc.compile(model)
    except emfc.CompileError as error:
        return error


@pytest.mark.parametrize("name", IDIOMS)
@pytest.mark.filterwarnings("ignore")
def test_compiles_or_is_refused(name):
    model = program(IDIOMS[name])
    layer = _compiled(model)
    if isinstance(layer, emfc.CompileError):
        assert name not in COMPILED, str(layer)
        assert layer.code in NOT_THE_MODELS_FAULT, str(layer)
        assert layer.advice
        return
    x = layer()(torch.randn(3, layer.noise_dim, generator=torch.Generator().manual_seed(1))).detach()
    values = layer.unpack(x)
    expected = [
        pyro_log_prob(model, values={site: rows[row].clone() for site, rows in values.items()}) for row in range(3)
    ]
    torch.testing.assert_close(density(layer, x), torch.stack(expected), rtol=1e-7, atol=1e-7)
