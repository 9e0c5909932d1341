"""Fixed affine maps around learned layers: identity until set, part of the density, stored with the flow."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.flows import EmbeddedModelFlow, load, save
from emfc.flows.manifest import _checksum
from emfc.flows.normalisation import FixedAffine, GatedNormalisation, Normalisation

PLACEMENTS = ("top", "middle", "bottom")


def _program(size=3):
    x = pyro.sample("x", dist.LogNormal(torch.zeros(size), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 3.0))


def _data(rows=200):
    generator = torch.Generator().manual_seed(0)
    positive, real = torch.rand(rows, 3, generator=generator), torch.randn(rows, 1, generator=generator)
    return torch.cat((positive + 5, 100 * real), -1)


def _flow(**options):
    torch.manual_seed(0)
    return EmbeddedModelFlow(_program, **{"hidden_features": (8,), **options}).double()


def _shake(flow):
    with torch.no_grad():
        for parameter in flow.backbone_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def test_the_affine_map_and_its_inverse():
    transform = FixedAffine(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
    x = torch.randn(5, 2)
    y, ladj = transform.call_and_ladj(x)
    back, inverse = transform.inv.call_and_ladj(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(ladj, torch.full((5,), 2.0).log())
    torch.testing.assert_close(inverse, -ladj)


def test_rows_that_are_not_finite_do_not_count():
    normalisation = Normalisation(2)
    values = torch.tensor([[1.0, 2.0], [3.0, 2.0], [torch.inf, 0.0], [torch.nan, 0.0]])
    normalisation.set_from(values)
    torch.testing.assert_close(normalisation.location, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(normalisation.scale, torch.tensor([2.0**0.5, 1.0]))
    normalisation.set_from(values[2:])
    torch.testing.assert_close(normalisation.location, torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_identity_until_set(placement):
    with_it, without = (_shake(_flow(placement=placement, normalise=choice)) for choice in (True, False))
    assert torch.equal(with_it().log_prob(_data().double()), without().log_prob(_data().double()))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("program", [True, False])
def test_the_density_is_one_of_the_samples(placement, program):
    """The log density of a draw is that of its noise less the log-Jacobian, by automatic differentiation."""
    flow = _flow(placement=placement)
    flow = _shake(flow if program else flow.baseline())
    flow.start_from_data(_data().double())
    noise = torch.randn(4, dtype=torch.float64)
    value = flow.transform()(noise)
    jacobian = torch.autograd.functional.jacobian(flow.transform(), noise)
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(flow().log_prob(value), expected)
    torch.testing.assert_close(flow.transform().inv(value), noise)


@pytest.mark.parametrize("placement", ["middle", "bottom"])
def test_before_training_the_program_stays_the_density(placement):
    flow = _flow(placement=placement, gate=None)
    bare = EmbeddedModelFlow.from_layer(flow.layer, backbone=None)
    flow.data_normalisation.set_from(torch.randn(50, 4) * 7 + 3)
    torch.testing.assert_close(flow().log_prob(_data().double()), bare().log_prob(_data().double()))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_stored_with_the_flow(placement, tmp_path):
    flow = _shake(_flow(placement=placement))
    flow.start_from_data(_data().double())
    save(flow, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")().log_prob(_data().double()), flow().log_prob(_data().double()))


def test_runs_from_before_normalisation_still_load(tmp_path):
    flow = _shake(_flow(placement="middle", normalise=False))
    save(flow, tmp_path / "run")
    file = tmp_path / "run" / "manifest.json"
    document = json.loads(file.read_text())
    del document["configuration"]["normalise"], document["gate_form"]
    document["checksum"] = _checksum(document)
    file.write_text(json.dumps(document))
    again = load(tmp_path / "run")
    assert again.data_normalisation is None
    assert torch.equal(again().log_prob(_data().double()), flow().log_prob(_data().double()))


def test_runs_from_before_the_bound_on_log_scales_still_load(tmp_path):
    flow = _shake(EmbeddedModelFlow.from_layer(_flow().layer, hidden_features=(8,), log_scale_bound=None))
    save(flow, tmp_path / "run")
    file = tmp_path / "run" / "manifest.json"
    document = json.loads(file.read_text())
    del document["configuration"]["log_scale_bound"]
    document["checksum"] = _checksum(document)
    file.write_text(json.dumps(document))
    again = load(tmp_path / "run")
    assert again.configuration == flow.configuration
    assert torch.equal(again().log_prob(_data().double()), flow().log_prob(_data().double()))


def test_the_form_of_gates_is_stored(tmp_path):
    flow = _flow(gate_form="parameter")
    flow.layer.set_gates(0.4)
    save(flow, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.layer.gate_form == "parameter"
    torch.testing.assert_close(again().log_prob(_data().double()), flow().log_prob(_data().double()))
    assert flow.baseline().layer.program_layer.gate is None


def test_closed_gates_leave_the_standardised_flow_without_program():
    flow = _flow()
    baseline = flow.baseline()
    data = _data().double()
    for each in (flow, baseline):
        each.start_from_data(data)
    flow.layer.set_gates(0.0)
    torch.testing.assert_close(flow().log_prob(data), baseline().log_prob(data))
    assert not torch.allclose(_flow()().log_prob(data), baseline().log_prob(data))


def test_on_the_way_between_open_and_closed():
    normalisation = GatedNormalisation(1)
    opened, closed, gate = torch.tensor([[1.0], [3.0]]), torch.tensor([[100.0], [300.0]]), torch.tensor([0.5])
    normalisation.set_from(opened, closed, gate)
    for gate, location, factor in ((0.5, 2.0, 1.0), (0.8, 2.0, 1.0), (0.25, 101.0, 10.0), (0.0, 200.0, 100.0)):
        found = normalisation.at(torch.tensor([gate]))
        torch.testing.assert_close(found.location, torch.tensor([location]))
        torch.testing.assert_close(found.scale, torch.tensor([factor]) * 2.0**0.5)
    learned = torch.tensor([0.3], requires_grad=True)
    normalisation.at(learned).scale.sum().backward()
    assert learned.grad is not None
    assert torch.isfinite(learned.grad).all()
