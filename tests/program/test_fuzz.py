"""Random programs: each one compiles to Pyro's own density and gradient, or it is refused with a code."""

from __future__ import annotations

import json

import pyro
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import emfc
from emfc.layers.structured import StructuredLayer
from emfc.program.serialize import program_from_document, program_to_document
from tests.programs.oracle import pyro_log_prob
from tests.programs.random_programs import RandomProgram, generate
from tests.programs.watch import draw

NOT_THE_MODELS_FAULT = ("E-OPERATION", "E-ESCAPE", "E-DYNSHAPE", "E-DATADEP")
SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a smaller seed is no smaller program
    suppress_health_check=[HealthCheck.too_slow],
)
ROWS = 3


@pytest.fixture(autouse=True)
def _float64(_clean_state):
    torch.set_default_dtype(torch.float64)


def _compiled(program: RandomProgram) -> StructuredLayer | emfc.CompileError:
    try:
        return emfc.compile(program)
    except emfc.CompileError as error:
        return error


def _examples(program: RandomProgram, layer: StructuredLayer) -> torch.Tensor:
    """Rows ``[3, D]``, each a draw of the program itself."""
    drawn = draw(program, number=ROWS, seed=1, parameters=_parameters(layer))
    generator = torch.Generator().manual_seed(0)
    return layer.pack({name: drawn[name] for name in layer.example_sites}, generator=generator)


def _parameters(layer: StructuredLayer) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in layer.values().items()}


def _expected(program: RandomProgram, layer: StructuredLayer, x: torch.Tensor) -> torch.Tensor:
    """Pyro's log density of every row ``[3]``."""
    summed = [name for name, site in layer.graph.sites.items() if site.latent_discrete]
    values, parameters = layer.unpack(x), _parameters(layer)
    return torch.stack([
        pyro_log_prob(program, (), {}, {name: value[row] for name, value in values.items()}, parameters, summed=summed)
        for row in range(len(x))
    ])  # fmt: skip


def _check_gradient(program: RandomProgram, layer: StructuredLayer, x: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    try:
        (expected,) = torch.autograd.grad(_expected(program, layer, x).sum(), x)
    except RuntimeError:  # torch itself has no gradient, such as where a value it needs was stored over
        return
    (found,) = torch.autograd.grad(layer().log_prob(x).sum(), x)
    finite = expected.isfinite()
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-6, atol=1e-6)


def _check_round_trip(layer: StructuredLayer) -> None:
    noise = torch.randn(4, layer.noise_dim, generator=torch.Generator().manual_seed(3))
    x, ladj = layer().call_and_ladj(noise)
    back, inverse_ladj = layer().inv.call_and_ladj(x)
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-5, atol=1e-5)


def _check_other_layers(layer: StructuredLayer, x: torch.Tensor, density: torch.Tensor) -> None:
    """The layer without its optimisations, and the layer of the stored program."""
    document, tensors = program_to_document(layer.program)
    reloaded = program_from_document(json.loads(json.dumps(document)), tensors)
    noise = torch.randn(4, layer.noise_dim, generator=torch.Generator().manual_seed(4))
    drawn = _with_slopes(layer, noise)
    for other in (StructuredLayer(layer.program, optimize=False), StructuredLayer(reloaded)):
        other.load_state_dict(layer.state_dict())
        torch.testing.assert_close(other().log_prob(x), density, rtol=1e-9, atol=1e-9, equal_nan=True)
        for first, second in zip(_with_slopes(other, noise), drawn, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6, equal_nan=True)


def _with_slopes(layer: StructuredLayer, noise: torch.Tensor) -> list[torch.Tensor]:
    """Draws, their log-Jacobians, and derivatives of a sum of both by the noise and by the parameters."""
    with torch.enable_grad():
        leaf = noise.clone().requires_grad_()
        x, ladj = layer().call_and_ladj(leaf)
        weights = torch.linspace(0.5, 1.5, x.shape[-1])
        total = (weights * torch.tanh(x)).sum() + ladj.sum()
        slopes = torch.autograd.grad(total, [leaf, *layer.parameters()], allow_unused=True, materialize_grads=True)
    return [x.detach(), ladj.detach(), *slopes]


def _check(program: RandomProgram) -> bool:
    """Whether the program compiled; a wrong layer, or a refusal that blames the model, fails the test."""
    layer = _compiled(program)
    if isinstance(layer, emfc.CompileError):
        assert layer.code in NOT_THE_MODELS_FAULT, str(layer)
        return False
    x = _examples(program, layer)
    with torch.no_grad():
        density, expected = layer().log_prob(x), _expected(program, layer, x)
        finite = expected.isfinite()
        torch.testing.assert_close(density[finite], expected[finite], rtol=1e-7, atol=1e-7)
        _check_round_trip(layer)
        _check_other_layers(layer, x, density)
        assert layer().log_prob(x[:0]).shape == (0,)
        assert layer()(torch.zeros(0, layer.noise_dim)).shape == (0, layer.dim)
    _check_gradient(program, layer, x)
    return True


def _check_seed(seed: int) -> None:
    pyro.clear_param_store()
    program = generate(seed)
    try:
        _check(program)
    except Exception as error:
        error.add_note(f"seed {seed}:\n{program}")
        raise


@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, 2**31))
@settings(SETTINGS, max_examples=100)
def test_random_programs(seed):
    _check_seed(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, 2**31))
@settings(SETTINGS, max_examples=1500)
def test_many_random_programs(seed):
    _check_seed(seed)


@pytest.mark.filterwarnings("ignore")
def test_most_random_programs_compile():
    compiled = [isinstance(_compiled(generate(seed)), StructuredLayer) for seed in range(20)]
    assert sum(compiled) >= 16


def test_the_same_seed_gives_the_same_program():
    assert [str(generate(seed)) for seed in range(5)] == [str(generate(seed)) for seed in range(5)]
