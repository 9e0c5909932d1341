"""Flows around real compiled programs."""

from __future__ import annotations

import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import emfc
from emfc.flows import EmbeddedModelFlow, load, save


def _mixed():
    """Real, positive and bounded sites, a chain, learned numbers and a dequantised leaf."""
    drift = pyro.param("drift", torch.tensor(0.7))
    spread = pyro.param("spread", torch.tensor(0.4), constraint=constraints.positive)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    share = pyro.sample("share", dist.Uniform(0.0, 2.0))
    position = pyro.sample("start", dist.Normal(0.0, scale))
    for step in range(3):
        position = pyro.sample(f"step_{step}", dist.Normal(drift * position + share, spread))
    pyro.sample("count", dist.Categorical(logits=torch.stack([position, share, -position])))


def _independent():
    with pyro.plate("elements", 4):
        pyro.sample("level", dist.Binomial(5, torch.tensor(0.3)))


def _shares():
    """Simplices and a value that is fixed: fewer noises than values."""
    shares = pyro.sample("shares", dist.LogisticNormal(torch.tensor([0.3, -0.2]), torch.ones(2)))
    fixed = pyro.sample("fixed", dist.Delta(torch.tensor([0.5, 2.0]), event_dim=1))
    with pyro.plate("rows", 2):
        pyro.sample("parts", dist.LogisticNormal(2 * shares[:1] + torch.zeros(2, 1), torch.ones(1)))
    pyro.sample("x", dist.Normal(shares[0] * fixed[1], 0.3))


PROGRAMS = {"mixed": _mixed, "independent": _independent, "shares": _shares}
BACKBONES = ["maf", "nsf", "coupling", "mvn"]
PLACEMENTS = ["top", "middle", "bottom"]


def _pyro_log_prob(model, flow: EmbeddedModelFlow, value: torch.Tensor) -> torch.Tensor:
    densities = []
    sites = flow.unpack(value)
    for row in range(value.shape[0]):
        conditioned = pyro.poutine.condition(model, data={name: site[row] for name, site in sites.items()})
        densities.append(pyro.poutine.trace(conditioned).get_trace().log_prob_sum())
    return torch.stack(densities)


@pytest.mark.parametrize("name", PROGRAMS)
def test_bare_program_has_pyros_density(name, dtype):
    flow = EmbeddedModelFlow(PROGRAMS[name], backbone=None)
    value = flow().sample((6,))
    bound = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(
        flow().log_prob(value), _pyro_log_prob(PROGRAMS[name], flow, value), atol=bound, rtol=bound
    )
    assert flow.layer.gate is None


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_untrained_flow_with_open_gates_has_pyros_density(backbone, placement, name, dtype):
    flow = EmbeddedModelFlow(PROGRAMS[name], backbone=backbone, placement=placement, hidden_features=(16,))
    flow.layer.set_gates(1.0)
    value = flow().sample((6,))
    bound = 2e-3 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(
        flow().log_prob(value), _pyro_log_prob(PROGRAMS[name], flow, value), atol=bound, rtol=bound
    )


def _disturb(flow: EmbeddedModelFlow) -> None:
    with torch.no_grad():
        for parameter in flow.backbone_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_draws_lie_in_the_support_and_have_their_density(backbone, placement, name, dtype):
    flow = EmbeddedModelFlow(PROGRAMS[name], backbone=backbone, placement=placement, hidden_features=(16,))
    _disturb(flow)
    value, log_density = flow().rsample_and_log_prob((200,))
    assert flow().support.check(value).all()
    assert torch.isfinite(log_density).all()
    if dtype == torch.float64:
        torch.testing.assert_close(flow().log_prob(value), log_density, atol=1e-5, rtol=1e-5)
    else:
        assert (flow().log_prob(value) - log_density).abs().median() < 1e-3


@pytest.mark.parametrize("name", PROGRAMS)
def test_closed_gates_are_the_backbone(name, dtype):
    flow = EmbeddedModelFlow(PROGRAMS[name], hidden_features=(16,))
    _disturb(flow)
    flow.layer.set_gates(0.0)
    baseline = flow.baseline()
    baseline.before.load_state_dict(flow.before.state_dict())
    value = baseline().sample((20,))
    bound = 1e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(flow().log_prob(value), baseline().log_prob(value), atol=bound, rtol=bound)


def test_support_depending_on_a_site_has_no_baseline_but_has_a_flow():
    def model():
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Uniform(0.0, width))

    flow = EmbeddedModelFlow(model, gate=None, hidden_features=(8,))
    assert torch.isfinite(flow().log_prob(flow().sample((5,)))).all()
    with pytest.raises(emfc.CompileError, match="E-SUPPORT"):
        flow.baseline()
    with pytest.raises(emfc.CompileError, match="E-SUPPORT"):
        EmbeddedModelFlow(model, placement="bottom", gate=None, hidden_features=(8,))


def test_program_arguments_are_the_programs():
    def model(length, *, spread):
        for step in range(length):
            pyro.sample(f"x_{step}", dist.Normal(0.0, spread))

    flow = EmbeddedModelFlow(model, 3, spread=2.0, backbone=None)
    assert flow.dim == 3
    assert list(flow.graph.sites) == ["x_0", "x_1", "x_2"]
    expected = dist.Normal(0.0, 2.0).log_prob(torch.ones(3)).sum()
    torch.testing.assert_close(flow().log_prob(torch.ones(3)), expected)


@pytest.mark.parametrize(("placement", "baseline"), [("middle", False), ("top", True)], ids=["program", "baseline"])
def test_saved_flow_loads_in_another_process_to_the_same_numbers(placement, baseline, tmp_path):
    flow = EmbeddedModelFlow(_mixed, placement=placement, hidden_features=(16,))
    flow.layer.set_values({"drift": torch.tensor(0.3), "spread": torch.tensor(0.9)})
    flow = flow.baseline() if baseline else flow
    _disturb(flow)
    value = flow().sample((5,))
    save(flow, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")().log_prob(value), flow().log_prob(value))
    torch.save(value, tmp_path / "value.pt")
    script = (
        "import sys, torch, emfc; "
        "value = torch.load(sys.argv[2], weights_only=True); "
        "print(emfc.load(sys.argv[1])().log_prob(value).tolist())"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "value.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    numbers = torch.tensor([float(x) for x in outcome.stdout.strip()[1:-1].split(",")])
    torch.testing.assert_close(numbers, flow().log_prob(value).detach(), atol=1e-6, rtol=1e-6)


def test_outside_is_minus_infinity_for_every_site():
    flow = EmbeddedModelFlow(_mixed, hidden_features=(16,))
    names = flow.layer.element_names()
    value = flow().sample()
    for name, wrong in [("share", 2.5), ("share", -0.1), ("count", 3.5), ("step_1", math.nan)]:
        broken = value.clone()
        broken[names.index(name)] = wrong
        assert flow().log_prob(broken) == -math.inf, name


def test_fewer_noises_than_values():
    flow = EmbeddedModelFlow(_shares, placement="middle", hidden_features=(8,))
    assert (flow.layer.dim, flow.layer.noise_dim) == (10, 5)
    assert flow.noise_reference.shape == (5,)
    assert flow().sample((0,)).shape == (0, 10)
    support = flow().support
    value = torch.distributions.biject_to(support)(torch.randn(4, 5))
    assert support.check(value).all()
    broken = value[0].clone()
    broken[1] += 0.2
    assert flow().log_prob(broken) == -math.inf
    assert flow.layer.outside(broken).nonzero().flatten().tolist() == [0, 1, 2]


def test_vectors_train_with_and_without_the_program():
    flow = EmbeddedModelFlow(_shares, backbone="mvn")
    data = EmbeddedModelFlow(_shares, backbone=None)().sample((200,))
    baseline = flow.baseline()
    for each in (flow, baseline):
        assert math.isfinite(emfc.fit(each, data, epochs=3, batch_size=64).best_validation_nll)
    assert baseline.layer.location.shape == (5,)


def test_vectors_without_a_gate_are_named():
    def model():
        base = dist.Normal(torch.zeros(3), 0.5)
        pyro.sample("turned", dist.TransformedDistribution(base, [dist.transforms.Permute(torch.tensor([2, 0, 1]))]))

    with pytest.raises(emfc.CompileError, match=r"TransformedDistribution has no gate.*gate=None"):
        EmbeddedModelFlow(model)
    flow = EmbeddedModelFlow(model, gate=None, hidden_features=(8,))
    assert flow().log_prob(flow().sample((4,))).isfinite().all()


def test_a_program_that_draws_nothing_has_no_learned_layers():
    def model():
        pyro.sample("fixed", dist.Delta(torch.tensor(0.5)))

    flow = EmbeddedModelFlow(model, backbone=None)
    assert flow().sample((3,)).tolist() == [[0.5]] * 3
    torch.testing.assert_close(flow().log_prob(torch.tensor([[0.5], [0.6]])), torch.tensor([0.0, -math.inf]))
    with pytest.raises(ValueError, match="backbone=None"):
        EmbeddedModelFlow(model)
