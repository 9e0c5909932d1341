"""Preprocessing: a bijection with the right Jacobian, there and back through its description."""

from __future__ import annotations

import json

import pytest
import torch

from emfc.data import (
    Chain,
    Dequantise,
    Logit,
    Scale,
    Standardise,
    Step,
    parse_recipe,
    preprocess_from_config,
)
from emfc.errors import UserError


def _data(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 17, (40, 3), generator=generator).to(device, dtype)


RECIPES = [
    "dequantise",
    "scale:0:17",
    "standardise",
    "scale:-1:18,logit",
    "dequantise,scale:0:17,logit:1e-6",
    "dequantise,scale:0:17,logit:0.01,standardise",
]


@pytest.mark.parametrize("text", RECIPES)
def test_round_trip_and_jacobian(text: str, device: torch.device, dtype: torch.dtype) -> None:
    data = _data(device, dtype)
    chain = parse_recipe(text).build(data)
    x = chain.pack(data, generator=torch.Generator().manual_seed(0))
    y, ladj = chain.call_and_ladj(x)
    back, ladj_back = chain.inv.call_and_ladj(y)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    assert y.dtype == dtype
    assert ladj.shape == (40,)
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ladj_back, -ladj, rtol=tolerance, atol=tolerance)
    jacobian = torch.func.vmap(torch.func.jacrev(chain))(x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj, rtol=tolerance, atol=tolerance)
    assert torch.equal(chain.unpack(x), data if "dequantise" in text else x)


@pytest.mark.parametrize("text", RECIPES)
def test_the_dtype_is_that_of_the_data_whatever_the_default(text: str, dtype: torch.dtype) -> None:
    other = torch.float32 if dtype == torch.float64 else torch.float64
    data = _data(torch.device("cpu"), other)
    chain = parse_recipe(text).build(data)
    x = chain.pack(data)
    assert {x.dtype, *(value.dtype for value in chain.call_and_ladj(x))} == {other}
    assert {value.dtype for value in chain.inv.call_and_ladj(chain(x))} == {other}


@pytest.mark.parametrize("text", RECIPES)
def test_a_description_and_tensors_rebuild_the_chain(text: str, device: torch.device, dtype: torch.dtype) -> None:
    data = _data(device, dtype)
    chain = parse_recipe(text).build(data)
    other = preprocess_from_config(json.loads(json.dumps(chain.config()))).to(device, dtype)
    other.load_state_dict(chain.state_dict())
    x = chain.pack(data)
    assert all(torch.equal(a, b) for a, b in zip(chain.call_and_ladj(x), other.call_and_ladj(x), strict=True))


def test_noise_stays_below_the_next_integer(dtype: torch.dtype) -> None:
    x = torch.full((200_000, 1), 16.0, dtype=dtype)
    noisy = Dequantise().pack(x)
    assert bool((noisy >= 16).all())
    assert bool((noisy < 17).all())
    assert abs(float((noisy - x).mean()) - 0.5) < 0.01


def test_outside_the_domain_the_density_is_zero_and_nothing_is_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([[-0.1], [0.0], [0.5], [1.0], [1.1]], dtype=dtype)
    y, ladj = Logit(0.0).call_and_ladj(x)
    assert bool(y.isfinite().all())
    assert ladj.isneginf().tolist() == [True, True, False, True, True]
    y, ladj = Logit(1e-3).call_and_ladj(x)
    assert bool(y.isfinite().all())
    assert ladj.isneginf().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dequantize:3", "must be written dequantise"),
        ("logits", "did you mean 'logit'"),
        ("whiten", "the steps are"),
        ("scale:0", "must be written scale:LOW:HIGH"),
        ("scale:0:x", "needs numbers"),
        ("scale:1:0", "the lower first"),
        ("logit:0.7", r"\[0, 0.5\)"),
        ("", "unknown preprocessing step ''"),
    ],
)
def test_bad_recipes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe(text)


def test_data_that_a_step_does_not_take(device: torch.device, dtype: torch.dtype) -> None:
    data = _data(device, dtype)
    with pytest.raises(UserError, match="'logit' does not take all the data"):
        parse_recipe("logit").build(data)
    with pytest.raises(UserError, match="whole numbers"):
        parse_recipe("dequantise").build(data + 0.5)
    with pytest.raises(UserError, match=r"element 1 .* constant"):
        parse_recipe("standardise").build(torch.stack([data[:, 0], torch.ones_like(data[:, 0])], 1))


@pytest.mark.parametrize("config", [{"kind": "exec"}, {}, {"kind": "scale", "low": "x"}, {"kind": "chain", "steps": 3}])
def test_damaged_descriptions(config: dict[str, object]) -> None:
    with pytest.raises(UserError):
        preprocess_from_config(config)


def test_base_and_parts() -> None:
    chain = Chain([Scale(0, 2), Standardise(torch.zeros(1), torch.ones(1))])
    assert [step.kind for step in chain] == ["scale", "standardise"]
    assert chain.inv.inv is chain
    assert chain.inv(chain(torch.ones(1, 1))).item() == 1
    with pytest.raises(NotImplementedError):
        Step()(torch.ones(1))
    with pytest.raises(NotImplementedError):
        Step().inv(torch.ones(1))
