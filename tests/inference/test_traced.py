"""A function written down once gives what the function gives."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from emfc.compiler import compile_target
from emfc.inference.traced import traced_value_and_gradient
from emfc.inference.variational import VariationalFlow


def funnel() -> None:
    """Neal's funnel and a measurement."""
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
    with pyro.plate("places", 3):
        x = pyro.sample("x", dist.Normal(0.0, torch.exp(scale / 2)))
        pyro.sample("y", dist.Normal(x, 0.5), obs=torch.tensor([0.3, -0.2, 1.0]))


def chain() -> None:
    """A gamma step size and a chain of Student-t steps."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, 6):
        x = pyro.sample(f"x_{t}", dist.StudentT(5.0, torch.tanh(x), scale))
        pyro.sample(f"y_{t}", dist.Poisson(torch.exp(0.3 * x)), obs=torch.tensor(float(t % 3)))


def mixture() -> None:
    """A summed-out population."""
    weight = pyro.sample("weight", dist.Beta(2.0, 3.0))
    place = pyro.sample("place", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", 4):
        kind = pyro.sample("kind", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(torch.where(kind > 0, place[0], place[1]), 0.2), obs=torch.linspace(0, 1, 4))


def _plain(function, rows: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        rows = rows.detach().requires_grad_(True)
        values = function(rows)
        return values.detach(), torch.autograd.grad(values.sum(), rows)[0]


@pytest.mark.parametrize("model", [funnel, chain, mixture])
@pytest.mark.parametrize("chains", [1, 3])
def test_energies_and_gradients_are_those_of_the_function(model, chains: int, dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = compile_target(model)
        flow = VariationalFlow.from_target(target.target, backbone="iaf").to(dtype=dtype)
        for parameter in flow.backbone_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        noise = torch.randn(4 * chains, flow.noise_dim, dtype=dtype)
    log_joint, transform = target.to(dtype=dtype), flow.transform()

    def energy(rows: Tensor) -> Tensor:
        examples, ladj = transform.call_and_ladj(rows)
        return -(log_joint(examples) + ladj)

    with torch.no_grad():
        evaluate = traced_value_and_gradient(energy, noise[: 2 * chains])
        for rows in noise.split(chains)[1:]:
            for found, wanted in zip(evaluate(rows), _plain(energy, rows), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
                assert not found.requires_grad


def test_a_function_is_written_down_only_once() -> None:
    calls = []

    def energy(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows.square().sum(-1)

    evaluate = traced_value_and_gradient(energy, torch.ones(4, 3))
    before = len(calls)
    values, gradient = evaluate(torch.full((2, 3), 2.0))
    assert len(calls) == before
    assert values.tolist() == [12.0, 12.0]
    assert gradient.tolist() == [[4.0] * 3] * 2


def _steered(rows: Tensor) -> Tensor:
    return rows.sum(-1) if bool((rows > 0).all()) else rows.square().sum(-1)


def _steered_unseen(rows: Tensor) -> Tensor:
    factor = float(rows.detach().abs().max())
    return factor * rows.sum(-1)


@pytest.mark.parametrize("function", [_steered, _steered_unseen])
def test_a_function_that_values_steer_is_called_as_it_is(function) -> None:
    examples = torch.tensor([[1.0, 2.0], [-3.0, 1.0]])
    evaluate = traced_value_and_gradient(function, examples)
    for rows in (examples[:1], examples[1:], 5 * examples[1:]):
        for found, wanted in zip(evaluate(rows), _plain(function, rows), strict=True):
            assert torch.equal(found, wanted)


def test_what_is_not_finite_stays_so() -> None:
    evaluate = traced_value_and_gradient(lambda rows: rows.log().sum(-1), torch.ones(2, 2))
    values, _ = evaluate(torch.tensor([[-1.0, 1.0]]))
    assert math.isnan(float(values))
