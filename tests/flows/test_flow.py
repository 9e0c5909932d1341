"""The embedding: placements, distribution, baseline, supports, preprocessing."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to

from emfc.compiler import compile as compile_program
from emfc.compiler import parse
from emfc.data import Chain as Steps
from emfc.data import Logit, Scale
from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow
from emfc.flows.configuration import FlowConfiguration
from tests.flows.fakes import ChainLayer, LevelLayer

BACKBONES = ["maf", "nsf", "coupling", "mvn", None]
PLACEMENTS = ["top", "middle", "bottom"]
LAYERS = {
    "chain": lambda: ChainLayer(6),
    "levels": lambda: LevelLayer(torch.randn(6, 5)),
}


def _flow(layer="chain", *, trained=False, **options) -> EmbeddedModelFlow:
    options = {"hidden_features": (16, 16), "activation": "tanh", **options}
    flow = EmbeddedModelFlow.from_layer(LAYERS[layer](), **options)
    if trained:
        with torch.no_grad():
            for parameter in flow.backbone_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def _program_log_prob(flow: EmbeddedModelFlow, value: torch.Tensor) -> torch.Tensor:
    noise, ladj = flow.layer().inv.call_and_ladj(value)
    return torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) + ladj


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_untrained_flow_is_the_program(backbone, placement, layer, dtype):
    flow = _flow(layer, backbone=backbone, placement=placement)
    value = flow().sample((20,))
    bound = 2e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(flow().log_prob(value), _program_log_prob(flow, value), atol=bound, rtol=bound)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_draws_and_their_log_densities_agree(backbone, placement, layer, dtype):
    flow = _flow(layer, trained=True, backbone=backbone, placement=placement)
    value, log_density = flow().rsample_and_log_prob((3, 7))
    assert value.shape == (3, 7, 6)
    assert log_density.shape == (3, 7)
    bound = 5e-3 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(flow().log_prob(value), log_density, atol=bound, rtol=bound)
    assert flow().support.check(value).all()


@pytest.mark.parametrize(
    ("backbone", "placement"),
    [("maf", "top"), ("maf", "middle"), ("nsf", "bottom"), ("coupling", "top"), ("coupling", "middle"), ("mvn", "top")],
)
def test_density_integrates_to_one(backbone, placement):
    flow = EmbeddedModelFlow.from_layer(ChainLayer(2), backbone=backbone, placement=placement, hidden_features=(8,))
    with torch.no_grad():
        for parameter in flow.backbone_parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        axis = (torch.arange(500) + 0.5) / 500 * 24 - 12
        mass = flow().log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (24 / 500) ** 2
    assert abs(float(mass) - 1) < 0.02


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_outside_the_support_is_minus_infinity(backbone, placement):
    flow = _flow("levels", trained=True, backbone=backbone, placement=placement)
    value = flow().sample((6,))
    value[0, 2] = -0.5
    value[1, 0] = 5.5
    value[2, 3] = math.nan
    value[3, 3] = math.inf
    value[4, 5] = -math.inf
    log_density = flow().log_prob(value)
    assert (log_density[:5] == -math.inf).all()
    assert torch.isfinite(log_density[5])
    assert flow().support.check(value).tolist() == [False] * 5 + [True]


def test_gradients_reach_every_parameter_both_ways():
    for placement in PLACEMENTS:
        flow = _flow("chain", trained=True, backbone="maf", placement=placement)
        for loss in (lambda f: f().log_prob(torch.randn(9, 6)).sum(), lambda f: f().rsample((9,)).square().sum()):
            flow.zero_grad()
            loss(flow).backward()
            for name, parameter in flow.named_parameters():
                assert parameter.grad is not None, (placement, name)
                assert torch.isfinite(parameter.grad).all(), (placement, name)
                assert parameter.grad.abs().sum() > 0, (placement, name)


def test_context_batches_expand_and_broadcast():
    flow = _flow(trained=True, backbone="maf", context_features=2)
    contexts = torch.randn(4, 2)
    distribution = flow(contexts)
    assert distribution.batch_shape == (4,)
    assert distribution.event_shape == (6,)
    assert distribution.sample((3,)).shape == (3, 4, 6)
    one_point = torch.randn(6)
    log_density = distribution.log_prob(one_point)
    assert log_density.shape == (4,)
    torch.testing.assert_close(log_density[2], flow(contexts[2]).log_prob(one_point))
    wide = distribution.expand((5, 4))
    assert wide.sample((2,)).shape == (2, 5, 4, 6)
    torch.testing.assert_close(wide.log_prob(one_point)[3], log_density)
    with pytest.raises(ValueError, match="cannot be expanded"):
        distribution.expand((3,))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("backbone", ["nsf", "coupling", "mvn"])
def test_every_backbone_takes_a_context(backbone, placement):
    flow = _flow(trained=True, backbone=backbone, placement=placement, context_features=2)
    value, log_density = flow(torch.randn(4, 2)).rsample_and_log_prob((3,))
    assert value.shape == (3, 4, 6)
    assert torch.isfinite(log_density).all()


def test_wrong_use_is_told():
    flow = _flow(context_features=2)
    with pytest.raises(ValueError, match="needs a context of width 2"):
        flow()
    with pytest.raises(ValueError, match="must have 2 features"):
        flow(torch.zeros(3))
    with pytest.raises(ValueError, match="has no context"):
        _flow()(torch.zeros(3))
    with pytest.raises(ValueError, match="must have 6 elements"):
        _flow()().log_prob(torch.zeros(5))
    for options, message in [
        ({"backbone": "glow"}, "backbone"),
        ({"placement": "side"}, "placement"),
        ({"transforms": 0}, "transforms"),
        ({"hidden_features": (0,)}, "at least 1"),
        ({"activation": "sin"}, "activation is 'sin'"),
        ({"transforms": 1, "placement": "middle"}, "transforms >= 2"),
        ({"backbone": None, "context_features": 1}, "needs a backbone"),
    ]:
        with pytest.raises(ValueError, match=message):
            _flow(**options)


def test_baseline_has_the_same_learned_layers_and_no_program():
    flow = _flow("levels", backbone="maf")
    baseline = flow.baseline()
    assert sum(p.numel() for p in baseline.backbone_parameters()) == sum(p.numel() for p in flow.backbone_parameters())
    assert baseline.parameter_count == flow.parameter_count - flow.layer.logits.numel()
    assert not list(baseline.program_parameters())
    noise = torch.randn(5, 6)
    expected = flow.layer.constraint_map()(noise)
    torch.testing.assert_close(baseline.transform()(noise), expected)
    shared = {p.data_ptr() for p in flow.parameters()} & {p.data_ptr() for p in baseline.parameters()}
    assert not shared
    assert baseline.baseline().parameter_count == baseline.parameter_count


def test_baseline_is_standardised_by_data():
    baseline = _flow("chain", backbone="maf").baseline()
    data = 5 + 3 * torch.randn(2000, 6)
    baseline.start_from_data(data)
    noise = baseline.transform().inv(data)
    torch.testing.assert_close(noise.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(6), atol=1e-4, rtol=0)


def test_preprocessing_enters_the_density():
    """Raw data 1..16 are scaled to [0, 1] and carried to the real line: the density is that of the raw data."""
    steps = Steps([Scale(0.0, 16.0), Logit(0.01)])
    plain = EmbeddedModelFlow.from_layer(ChainLayer(6), backbone="mvn")
    flow = EmbeddedModelFlow.from_layer(ChainLayer(6), backbone="mvn", preprocess=steps)
    raw = 16 * torch.rand(8, 6)
    value, ladj = steps.call_and_ladj(raw)
    torch.testing.assert_close(flow().log_prob(raw), plain().log_prob(value) + ladj)
    draws, log_density = flow().rsample_and_log_prob((8,))
    torch.testing.assert_close(flow().log_prob(draws), log_density, atol=1e-4, rtol=1e-4)
    assert flow().log_prob(torch.full((6,), 17.0)) == -math.inf


def test_support_is_known_to_torch():
    flow = _flow("levels")
    to_support = biject_to(flow().support)
    free = torch.randn(10, 6)
    value = to_support(free)
    assert flow().support.check(value).all()
    torch.testing.assert_close(to_support.inv(value), free, atol=1e-3, rtol=1e-3)


def test_copies_share_nothing_and_dtype_follows():
    flow = _flow("levels", trained=True)
    other = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    value = flow().sample((4,))
    assert not torch.allclose(flow().log_prob(value), other().log_prob(value))
    for dtype in (torch.float32, torch.float64):
        flow.to(dtype)
        draws = flow().sample((2,))
        assert draws.dtype == dtype
        assert flow().log_prob(draws).dtype == dtype


def test_density_maps_over_rows_with_vmap():
    flow = _flow("levels", trained=True, backbone="nsf")
    value = flow().sample((5,))
    mapped = torch.func.vmap(lambda x: flow().log_prob(x))(value)
    torch.testing.assert_close(mapped, flow().log_prob(value))


def test_importing_flows_leaves_argument_validation_on():
    program = "import torch; d = torch.distributions; import emfc.flows; d.Normal(0., -1.)"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Expected parameter scale" in outcome.stderr


def test_options_that_nobody_knows_are_refused():
    def model(steps=2):
        pyro.sample("x", dist.Normal(torch.zeros(steps), 1.0).to_event(1))

    with pytest.raises(
        UserError, match=r"'hiden_features' is neither an option of EmbeddedModelFlow .* 'hidden_feature"
    ):
        EmbeddedModelFlow(model, hiden_features=(8,))
    with pytest.raises(UserError, match=r"'gates' is neither an option of compile .*did you mean 'gate'"):
        compile_program(model, gates="site")
    assert EmbeddedModelFlow(model, steps=3).layer.dim == 3
    with pytest.raises(UserError, match="a parsed graph has its program's arguments already"):
        compile_program(parse(model), steps=3)
    with pytest.raises(ValueError, match="give a configuration or backbone, not both"):
        EmbeddedModelFlow.from_layer(ChainLayer(6), FlowConfiguration(), backbone="nsf")
