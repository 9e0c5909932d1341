"""Log densities of many rows."""

from __future__ import annotations

import math

import pytest
import torch

from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow
from emfc.training import evaluate, log_prob
from tests.flows.fakes import ChainLayer, LevelLayer


def test_batches_do_not_change_the_result():
    flow = EmbeddedModelFlow.from_layer(ChainLayer(4), hidden_features=(8,))
    data = torch.randn(101, 4)
    expected = flow().log_prob(data)
    torch.testing.assert_close(log_prob(flow, data, batch_size=7), expected)
    result = evaluate(flow, data, batch_size=10)
    assert result.nll == pytest.approx(-float(expected.mean().detach()), rel=1e-5)
    assert result.standard_error == pytest.approx(float(expected.std().detach()) / math.sqrt(101), rel=1e-5)
    assert result.rows == 101
    assert math.isnan(evaluate(flow, data[:1]).standard_error)


def test_evaluation_is_without_dropout_and_keeps_the_mode():
    flow = EmbeddedModelFlow.from_layer(ChainLayer(4), hidden_features=(8,))
    with torch.no_grad():
        for parameter in flow.backbone_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flow.train()
    flow.set_dropout(0.5)
    data = torch.randn(20, 4)
    assert torch.equal(log_prob(flow, data), log_prob(flow, data))
    assert flow.training
    assert not torch.equal(flow().log_prob(data), flow().log_prob(data))


def test_integers_are_dequantised_with_the_seed():
    flow = EmbeddedModelFlow.from_layer(LevelLayer(torch.randn(3, 4)), hidden_features=(8,))
    with torch.no_grad():
        for parameter in flow.backbone_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    levels = {"pixels": torch.randint(0, 4, (30, 3))}
    assert torch.equal(log_prob(flow, levels, seed=3), log_prob(flow, levels, seed=3))
    assert not torch.equal(log_prob(flow, levels, seed=3), log_prob(flow, levels, seed=4))


def test_context_is_cut_with_the_rows():
    flow = EmbeddedModelFlow.from_layer(ChainLayer(4), hidden_features=(8,), context_features=2)
    with torch.no_grad():
        for parameter in flow.backbone_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    data, context = torch.randn(20, 4), torch.randn(20, 2)
    torch.testing.assert_close(log_prob(flow, data, context=context, batch_size=6), flow(context).log_prob(data))
    with pytest.raises(UserError, match="same number of rows"):
        log_prob(flow, data, context=context[:5])
