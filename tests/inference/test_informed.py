"""The model-informed layer: its special cases, its triangular map and its log-Jacobian."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.compiler import parse_target
from emfc.inference.informed import Informed, InformedTransform, conditional_parameters
from emfc.inference.variational import VariationalFlow
from tests.inference.family_programs import PROGRAMS, disturb

EVERY = pytest.mark.parametrize("name", PROGRAMS)
NORMAL = ["schools", "brownian", "lorenz", "spreading"]
LOG = ("innovation", "error", "scale")


def build(name, precision=torch.float64, **options):
    torch.set_default_dtype(precision)
    given = {"hidden_features": (16, 16), "informed": True, **options}
    return VariationalFlow(parse_target(PROGRAMS[name]).prior(), **given)


def conditionals(name, value):
    """Locations and scales of a model's sites at some values, by running the model; in logs for lognormal sites."""
    flow = build(name)
    trace = pyro.poutine.trace(pyro.poutine.condition(PROGRAMS[name], flow.unpack(value))).get_trace()
    locs, scales, values = [], [], []
    for site in flow.layer.example_sites:
        held, at = trace.nodes[site]["fn"], trace.nodes[site]["value"]
        while hasattr(held, "base_dist") and not isinstance(held, dist.LogNormal):
            held = held.base_dist
        locs.append(held.loc.expand(at.shape).reshape(-1))
        scales.append(held.scale.expand(at.shape).reshape(-1))
        values.append((at.log() if site in LOG else at).reshape(-1))
    return torch.cat(locs), torch.cat(scales), torch.cat(values)


@EVERY
@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "reference"])
def test_both_directions_and_the_log_jacobian(name, optimize):
    flow = build(name, backbone="mvn", optimize=optimize)
    disturb(flow, 0.3)
    noise = 0.7 * torch.randn(4, flow.noise_dim)
    value, log_q = flow.rsample_and_log_prob((4,), noise=noise)
    back, _ = flow.transform().inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.log_prob(value), log_q, rtol=1e-6, atol=1e-6)
    if flow.dim == flow.noise_dim:
        transform = flow.program_transform()
        jacobian = torch.autograd.functional.jacobian(lambda e: transform(e), noise[0])
        ladj = transform.call_and_ladj(noise[0])[1]
        torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-7, atol=1e-7)
        if name != "families":  # a multivariate normal's elements depend on one another in order, too
            assert (jacobian.triu(1) == 0).all()


@EVERY
def test_the_optimised_program_equals_the_reference(name):
    fast, slow = build(name), build(name, optimize=False)
    disturb(fast, 0.3)
    slow.load_state_dict(fast.state_dict())
    noise = torch.randn(4, fast.noise_dim)
    for found, expected in zip(
        fast.rsample_and_log_prob((4,), noise=noise), slow.rsample_and_log_prob((4,), noise=noise), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@EVERY
def test_gradients_reach_every_number(name):
    flow = build(name)
    disturb(flow, 0.1)
    value, log_q = flow.rsample_and_log_prob((16,))
    (log_q.mean() + value.square().mean()).backward()
    for parameter in flow.informed.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert flow.informed.message.grad.abs().sum() > 0


@EVERY
@pytest.mark.parametrize("form", [None, "site"])
def test_silenced_messages_leave_the_gated_program(name, form):
    flow, plain = build(name, gate=form), build(name, gate=form, informed=False)
    flow.informed.close()
    noise = torch.randn(4, flow.noise_dim)
    for found, expected in zip(
        flow.program_transform().call_and_ladj(noise), plain.layer().call_and_ladj(noise), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def set_numbers(flow, *, power=1.0, centre=0.0, log_root=-torch.inf, message=0.0):
    informed = flow.informed
    informed.power.copy_(torch.as_tensor(power) - 1)
    informed.centre.copy_(torch.as_tensor(centre))
    informed.log_root.copy_(torch.as_tensor(log_root))
    informed.message.copy_(torch.as_tensor(message))


def full_rank(flow):
    width = flow.noise_dim
    scale = torch.randn(width, width).tril(-1) / 4 + torch.diag(torch.rand(width) + 0.5)
    flow.set_affine(torch.randn(width), scale)
    return flow.loc.detach(), scale


@pytest.mark.parametrize("name", ["brownian", "lorenz", "spreading"])
def test_vip_on_a_full_rank_normal(name):
    """u = mu + sigma ** (1 - lambda) (g - lambda mu), g normal: Gorinova's form, and the theorem of Ko and Domke."""
    flow = build(name, backbone="mvn", gate=None)
    loc, scale = full_rank(flow)
    gate = torch.rand(flow.noise_dim)
    set_numbers(flow, power=1 - gate, centre=gate)
    noise = torch.randn(flow.noise_dim)
    value, log_q = flow.rsample_and_log_prob((), noise=noise)
    locs, scales, coordinates = conditionals(name, value)
    g = loc + scale @ noise
    torch.testing.assert_close(coordinates, locs + scales ** (1 - gate) * (g - gate * locs))
    stretch = ((1 - gate) * scales.log()).sum() + scale.diagonal().log().sum()
    logs = sum(coordinates[i] for i, site in enumerate(sites_of(flow)) if site in LOG)
    torch.testing.assert_close(log_q, torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - stretch - logs)


def sites_of(flow):
    return [
        name for name, shape in flow.layer.example_sites.items() for _ in range(max(1, int(torch.tensor(shape).prod())))
    ]


@pytest.mark.parametrize("name", ["brownian", "lorenz", "spreading"])
def test_the_gate_on_parameters_on_a_full_rank_normal(name):
    flow = build(name, backbone="mvn", gate=None)
    loc, scale = full_rank(flow)
    gate = torch.rand(flow.noise_dim)
    set_numbers(flow, power=gate, centre=1 - gate)
    plain = build(name, backbone="mvn", gate="element", informed=False)
    plain.set_affine(loc, scale)
    with torch.no_grad():
        plain.layer.gate_logits.copy_(torch.logit(gate))
    noise = torch.randn(3, flow.noise_dim)
    for found, expected in zip(
        flow.rsample_and_log_prob((3,), noise=noise), plain.rsample_and_log_prob((3,), noise=noise), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["brownian", "lorenz", "spreading"])
@pytest.mark.parametrize("kind", ["mvn", "meanfield"])
def test_the_centred_normal(name, kind):
    flow = build(name, backbone=kind, gate=None)
    full_rank(flow)
    set_numbers(flow, power=0.0, centre=1.0)
    value, log_q = flow.rsample_and_log_prob((5,))
    coordinates, ladj = flow.layer.constraint_map().inv.call_and_ladj(value)
    density = torch.distributions.MultivariateNormal(flow.loc, scale_tril=flow.scale_tril)
    torch.testing.assert_close(log_q, density.log_prob(coordinates) + ladj)


def test_a_message_is_bayes_rule():
    """A Gaussian chain observed through known errors is exact in one number for each message and each mean."""

    def model(steps=5):
        state = pyro.sample("x_0", dist.Normal(0.3, 2.0))
        for t in range(1, steps):
            state = pyro.sample(f"x_{t}", dist.Normal(0.8 * state, 0.5))

    torch.set_default_dtype(torch.float64)
    flow = VariationalFlow(parse_target(model).prior(), backbone="meanfield", gate=None, informed=True)
    data, deviation, precision, mean = torch.randn(5), 0.7, torch.zeros(5), torch.zeros(5)
    future, pull = (
        torch.tensor(0.0),
        torch.tensor(0.0),
    )  # what later data say of a state: precision, precision times mean
    for t in reversed(range(5)):
        precision[t] = deviation**-2 + future
        mean[t] = (data[t] * deviation**-2 + pull) / precision[t]
        spread = 1 / precision[t] + 0.5**2
        future, pull = 0.8**2 / spread, 0.8 * mean[t] / spread
    set_numbers(flow, log_root=0.5 * precision.log(), message=mean)
    value, log_q = flow.rsample_and_log_prob((40,))
    log_joint = flow.layer().log_prob(value)
    log_joint = log_joint + torch.distributions.Normal(value, deviation).log_prob(data).sum(-1)
    assert (log_joint - log_q).detach().std().item() < 1e-10


@pytest.mark.parametrize("name", NORMAL)
def test_conditional_parameters_are_the_models(name):
    flow = build(name)
    value = flow.sample((3,))
    found = conditional_parameters(flow.layer, value)
    if name == "schools":
        torch.testing.assert_close(found[0][:, 2:], value[:, :1].expand(3, 8))
        torch.testing.assert_close(found[1][:, 2:], value[:, 1:2].log().expand(3, 8))
        return
    for row in range(3):
        locs, scales, _ = conditionals(name, value[row])
        torch.testing.assert_close(found[0][row], locs)
        torch.testing.assert_close(found[1][row], scales.log())


def test_other_families_are_linearised():
    flow = build("families")
    value = flow.sample((3,))
    loc, log_scale = conditional_parameters(flow.layer, value)
    names = list(flow.layer.example_sites)
    beta = names.index("e") + 1  # d has two elements
    inner = torch.linspace(-1e-4, 1e-4, 3)[:, None]
    from emfc.transforms import from_normal

    transform = from_normal(dist.Beta(1.0 + value[:, 2], 2.0)).unconstrained()
    image = transform(inner)
    torch.testing.assert_close(loc[:, beta], image[1])
    torch.testing.assert_close(log_scale[:, beta].exp(), (image[2] - image[0]) / 2e-4, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_messages_start_almost_silent(precision):
    for name in PROGRAMS:
        flow = build(name, precision, backbone="meanfield")
        assert next(flow.informed.parameters()).dtype == precision
        value, log_q = flow.rsample_and_log_prob((200,))
        weights = flow.layer().log_prob(value) - log_q
        gated = build(name, precision, backbone="meanfield", informed=False)
        again, log_again = gated.rsample_and_log_prob((200,))
        plain = gated.layer().log_prob(again) - log_again
        assert torch.isfinite(weights).all()
        assert float(weights.mean()) > float(plain.mean()) - 1.0


def test_it_is_one_pass_of_the_program(monkeypatch):
    flow = build("lorenz")
    seen = []
    original = type(flow.layer.sampling).__call__
    monkeypatch.setattr(type(flow.layer.sampling), "__call__", lambda *a: (seen.append(1), original(*a))[1])
    InformedTransform(flow.layer, flow.informed).call_and_ladj(torch.randn(8, flow.noise_dim))
    assert seen == [1]


def test_it_is_a_module():
    flow = build("radon")
    again = Informed(flow.layer)
    again.load_state_dict(flow.informed.state_dict(), strict=True)
    assert {name for name, _ in again.named_parameters()} == {
        "power",
        "centre",
        "log_root",
        "message",
    }
