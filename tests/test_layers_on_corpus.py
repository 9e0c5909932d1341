"""What every layer of the corpus holds besides the laws: batch shapes, supports, gates."""

from __future__ import annotations

import pytest
import torch

import emfc
from tests.programs.accepted import PROGRAMS
from tests.programs.compiled import compiled, density

ROWS = 4
UNGATED = ("vector_bijections",)


@pytest.fixture
def float64(_clean_state):
    torch.set_default_dtype(torch.float64)
    return torch.float64


SHAPES = [(), (1,), (2, 3)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PROGRAMS)
def test_examples_of_any_batch_shape(name):
    layer = compiled(name)
    with torch.no_grad():
        for shape in SHAPES:
            noise = torch.randn(*shape, layer.noise_dim)
            x, ladj = layer().call_and_ladj(noise)
            again, inverse_ladj = layer().inv.call_and_ladj(x)
            assert x.shape == (*shape, layer.dim)
            assert again.shape == noise.shape
            assert ladj.shape == inverse_ladj.shape == shape
        torch.testing.assert_close(layer()(noise[1, 2]), x[1, 2], rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["one_of_each_family", "discrete_leaves", "multivariate", "population_chain"])
def test_no_examples_at_all(name):
    layer = compiled(name)
    x, ladj = layer().call_and_ladj(torch.zeros(0, layer.noise_dim))
    noise, inverse_ladj = layer().inv.call_and_ladj(x)
    assert x.shape == noise.shape == (0, layer.dim)
    assert ladj.shape == inverse_ladj.shape == (0,)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PROGRAMS)
def test_density_outside_the_support_is_zero(name):
    layer = compiled(name)
    with torch.no_grad():
        inside = layer()(torch.randn(1, layer.noise_dim, generator=torch.Generator().manual_seed(6)))
        moved = inside.repeat(2 * layer.dim, 1)
        elements = torch.arange(layer.dim)
        moved[elements, elements] = -17.0
        moved[elements + layer.dim, elements] = 17.0
        log_prob = density(layer, moved)
        outside = layer.outside(moved).any(-1)
        assert not log_prob.isnan().any()
        assert (log_prob[outside] == -torch.inf).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gate", ["site", "element"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_gates_lead_from_the_program_to_the_constraint_map(name, gate):
    model, args, kwargs = PROGRAMS[name].build()
    if name in UNGATED:
        with pytest.raises(emfc.CompileError, match=r"has no gate.*gate=None"):
            emfc.compile(model, *args, gate=gate, **kwargs)
        return
    layer, bare = emfc.compile(model, *args, gate=gate, **kwargs), emfc.compile(model, *args, **kwargs)
    noise = torch.randn(ROWS, layer.noise_dim, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        layer.set_gates(1.0)
        for actual, expected in zip(layer().call_and_ladj(noise), bare().call_and_ladj(noise), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
        layer.set_gates(0.3)
        x, ladj = layer().call_and_ladj(noise)
        again, inverse_ladj = layer().inv.call_and_ladj(x)
        assert not layer.outside(x).any()
        torch.testing.assert_close(again, noise, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(-inverse_ladj, ladj, rtol=1e-6, atol=1e-6)
        layer.set_gates(0.0)
        try:
            constraint_map = layer.constraint_map()
        except emfc.CompileError as error:
            assert error.code == "E-SUPPORT"  # noqa: PT017
            return
        for actual, expected in zip(layer().call_and_ladj(noise), constraint_map.call_and_ladj(noise), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
