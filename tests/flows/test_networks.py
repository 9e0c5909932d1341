"""Hyper-networks keep every dependency, whatever their widths."""

from __future__ import annotations

import pytest
import torch

from emfc.flows.networks import MaskedNetwork


def _dependencies(network: MaskedNetwork, features: int) -> torch.Tensor:
    """Which output [row] moves with which input [column], by the Jacobian at random weights and a random point."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    point = torch.randn(features)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[:, 0], point)
    return jacobian != 0


CASES = {
    "wide": (5, (32, 32)),
    "narrow": (20, (8, 8)),
    "one unit": (6, (1,)),
    "two units": (9, (2, 2)),
    "shrinking": (30, (64, 7)),
    "growing": (30, (7, 64)),
    "many elements": (300, (128, 128)),
    "odd widths": (50, (33, 17, 41)),
    "two elements": (2, (4, 4)),
    "no hidden excess": (17, (16, 16)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
def test_every_earlier_element_is_seen_and_no_later_one(case, reverse):
    features, hidden = CASES[case]
    ranks = torch.arange(features)
    ranks = ranks.flip(0) if reverse else ranks
    network = MaskedNetwork(ranks, context_features=0, hidden_features=hidden, outputs=2, activation="softplus")
    expected = ranks[:, None] > ranks[None, :]
    assert torch.equal(_dependencies(network, features), expected)


def test_context_reaches_every_element():
    network = MaskedNetwork(
        torch.arange(7), context_features=3, hidden_features=(5, 5), outputs=2, activation="softplus"
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    value = torch.randn(7)
    jacobian = torch.autograd.functional.jacobian(lambda c: network(value, c), torch.randn(3))
    assert (jacobian != 0).all()


def test_outputs_start_at_zero_and_every_parameter_learns():
    network = MaskedNetwork(torch.arange(12), context_features=0, hidden_features=(6, 6), outputs=2, activation="tanh")
    value = torch.randn(4, 12)
    assert (network(value) == 0).all()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network(value).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_single_element_has_constants_only():
    network = MaskedNetwork(torch.arange(1), context_features=0, hidden_features=(6,), outputs=2, activation="tanh")
    assert network(torch.randn(5, 1)).shape == (5, 1, 2)
    assert sum(p.numel() for p in network.parameters()) == 2


def test_dropout_acts_in_training_only():
    network = MaskedNetwork(torch.arange(6), context_features=0, hidden_features=(32, 32), outputs=1, activation="relu")
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter))
    value = torch.randn(6)
    assert not torch.equal(network(value), network(value))
    network.eval()
    assert torch.equal(network(value), network(value))
