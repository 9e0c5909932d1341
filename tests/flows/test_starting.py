"""The start from data: the program by maximum likelihood, then what the learned layers see."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from emfc.flows import EmbeddedModelFlow
from emfc.flows.starting import fit_program, standardise, start_from_data, start_gates
from emfc.training import evaluate, fit


def _walk(length=6):
    step = pyro.param("step", lambda: torch.ones(()), constraint=constraints.positive)
    drift = pyro.param("drift", lambda: torch.zeros(()))
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, length):
        x = pyro.sample(f"x_{t}", dist.Normal(x + drift, step))


def _mixture(components=20):
    logits = pyro.param("logits", lambda: torch.zeros(components))
    locs = pyro.param("locs", lambda: torch.linspace(-4.0, 4.0, components))
    scales = pyro.param("scales", lambda: torch.ones(components), constraint=constraints.positive)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, scales)))


def _rows(count=2000, length=6, seed=0, dtype=torch.float32):
    noise = torch.randn(count, length, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    noise[:, 1:] = 0.02 * noise[:, 1:] + 0.3
    return noise.cumsum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", [None, "site"])
def test_a_program_finds_its_maximum(dtype, gate):
    flow = EmbeddedModelFlow(_walk, gate=gate, hidden_features=(8,)).to(dtype)
    data = _rows(dtype=dtype)
    assert fit_program(flow, data)
    steps = data.diff(dim=-1)
    assert flow.layer.values()["drift"].item() == pytest.approx(float(steps.mean()), abs=1e-3)
    assert flow.layer.values()["step"].item() == pytest.approx(float(steps.std()), rel=0.02)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_what_is_best_already_stays():
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,))
    data = _rows()
    fit_program(flow, data)
    before = evaluate(EmbeddedModelFlow.from_layer(flow.layer, backbone=None), data).nll
    fit_program(flow, data)
    assert evaluate(EmbeddedModelFlow.from_layer(flow.layer, backbone=None), data).nll <= before + 1e-4


def test_few_rows_do_not_make_it_worse():
    """Twenty components on twelve rows: the likelihood has no maximum, and held-out rows decide."""
    flow = EmbeddedModelFlow(_mixture, hidden_features=(8,))
    data = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    fresh = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    before = evaluate(flow, fresh).nll
    fit_program(flow, data)
    assert all(torch.isfinite(parameter).all() for parameter in flow.parameters())
    assert evaluate(flow, fresh).nll < before + 0.5


def test_a_mixture_keeps_its_components():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-3.0, -1.0, 0.5, 2.5])
    data = centres[torch.randint(4, (3000, 1), generator=generator)] + 0.1 * torch.randn(3000, 1, generator=generator)
    flow = EmbeddedModelFlow(_mixture, backbone=None)
    assert fit_program(flow, data)
    floor = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.1) + math.log(4)
    assert evaluate(flow, data).nll == pytest.approx(floor, abs=0.05)


@pytest.mark.parametrize("rows", [0, 3])
def test_too_few_rows_are_left_alone(rows):
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,))
    before = flow.layer.values()["step"].clone()
    assert not fit_program(flow, torch.zeros(rows, 6))
    assert torch.equal(flow.layer.values()["step"], before)


def test_rows_where_the_program_has_no_density_do_not_matter():
    def halves():
        scale = pyro.param("scale", lambda: torch.ones(()), constraint=constraints.positive)
        pyro.sample("x", dist.HalfNormal(scale))

    flow = EmbeddedModelFlow(halves, backbone=None)
    assert not fit_program(flow, -torch.ones(50, 1))
    assert flow.layer.values()["scale"].item() == 1.0


@pytest.mark.parametrize("placement", ["top", "middle", "bottom"])
def test_learned_layers_see_standardised_values(placement):
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,), placement=placement)
    data = 30 * _rows() + 200
    start_from_data(flow, data)
    seen = []
    for backbone in (flow.before, flow.after):
        if backbone is not None:
            for layer in backbone.layers:
                layer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    flow().log_prob(data)
    assert len(seen) == 2
    for value in seen:
        assert value.mean(0).abs().max() < 0.2
        assert (value.std(0) - 1).abs().max() < 0.2


@pytest.mark.parametrize("placement", ["middle", "bottom"])
def test_raw_scales_far_from_one_are_trained(placement):
    """Learned layers at the data's own scale are what fails without normalisation."""

    def rows(seed):
        steps = _rows(1500, seed=seed).diff(dim=-1, prepend=torch.zeros(1500, 1))
        return torch.cat((steps[:, :1], 1000 * steps[:, 1:]), -1).cumsum(-1)

    flow = EmbeddedModelFlow(_walk, hidden_features=(16,), placement=placement)
    result = fit(flow, rows(0), epochs=6)
    assert result.diverged == 0
    floor = 0.5 * math.log(2 * math.pi * math.e) * 6 + 5 * math.log(20.0)
    assert evaluate(flow, rows(1)).nll < floor + 1


def test_no_start_leaves_the_flow_as_it_is():
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,), placement="middle")
    fit(flow, _rows(100), epochs=1, start=False)
    for normalisation in (flow.noise_normalisation.opened, flow.noise_normalisation.closed, flow.data_normalisation):
        assert torch.equal(normalisation.location, torch.zeros(6))
        assert torch.equal(normalisation.scale, torch.ones(6))


def _shuffled(length=6):
    """Neighbours in a wrong order: each value is tied to one that it has little to do with."""
    step = pyro.param("step", lambda: torch.ones(()), constraint=constraints.positive)
    x = {0: pyro.sample("x_0", dist.Normal(0.0, 1.0))}
    for t in range(1, length):
        x[t] = pyro.sample(f"x_{t}", dist.Normal(-x[t - 1], step))


@pytest.mark.parametrize("gate", ["site", "element"])
def test_gates_begin_nearly_closed_where_the_program_is_worse_than_none(gate):
    rows = _rows()
    for model, closes in ((_walk, False), (_shuffled, True)):
        flow = EmbeddedModelFlow(model, gate=gate, hidden_features=[8])
        fit_program(flow, rows)
        assert start_gates(flow, rows) is closes
        gates = flow.layer.gate_logits.sigmoid()
        assert bool((gates < 0.05).all()) if closes else bool((gates > 0.99).all())
        flow.start_from_data(rows)
        held = flow.baseline()
        held.start_from_data(rows)
        assert closes == (float(held().log_prob(rows).mean()) > float(flow().log_prob(rows).mean()) - 0.5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gates_that_were_set_stay(value):
    flow = EmbeddedModelFlow(_shuffled, gate="site", hidden_features=[8])
    flow.layer.set_gates(value)
    assert not start_gates(flow, _rows())
    torch.testing.assert_close(flow.layer.gate_logits.sigmoid(), torch.full((6,), value))


def test_gates_that_do_not_train_stay():
    flow = EmbeddedModelFlow(_shuffled, gate="site", hidden_features=[8])
    before = flow.layer.gate_logits.detach().clone()
    flow.layer.gate_logits.requires_grad_(False)
    assert not start_gates(flow, _rows())
    torch.testing.assert_close(flow.layer.gate_logits.detach(), before, rtol=0, atol=0)


def test_a_wrong_program_does_no_harm():
    rows = _rows()
    losses = []
    for flow in (EmbeddedModelFlow(_shuffled, gate="site", hidden_features=[16]), None):
        torch.manual_seed(0)
        held = flow or EmbeddedModelFlow(_shuffled, hidden_features=[16]).baseline()
        fit(held, rows, epochs=20, batch_size=100, seed=0)
        losses.append(evaluate(held, _rows(seed=1)).nll)
    assert losses[0] < losses[1] + 0.05


def test_gates_come_back_where_the_standardisation_fails():
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,))
    before = flow.layer.gate_logits.detach().clone()

    class Failing:
        def __init__(self, layer):
            self.layer = layer

        def __getattr__(self, name):
            return getattr(self.layer, name)

        def __call__(self):
            if torch.isinf(self.layer.gate_logits).all():
                raise RuntimeError("no closed gates")
            return self.layer()

    class Held:
        preprocess, layer = None, Failing(flow.layer)
        noise_normalisation, data_normalisation = flow.noise_normalisation, None

    with pytest.raises(RuntimeError, match="no closed gates"):
        standardise(Held(), _rows(50))
    assert torch.equal(flow.layer.gate_logits, before)
