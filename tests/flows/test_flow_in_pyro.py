"""A trained flow is a Pyro distribution: a prior in models, under guides, samplers, plates and handlers."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_sample
from torch.distributions import biject_to, constraints

from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow
from emfc.program.errors import CompileError


def real():
    x = pyro.sample("x", dist.Normal(1.0, 2.0))
    pyro.sample("y", dist.Normal(0.5 * x, 1.0))


def positive():
    x = pyro.sample("x", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Gamma(3.0, x))


def simplex():
    pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))


def mixed():
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    x = pyro.sample("x", dist.Normal(p[0], 1.0))
    pyro.sample("s", dist.HalfNormal(1.0))
    pyro.sample("u", dist.Uniform(-1.0, 2.0))
    pyro.sample("v", dist.MultivariateNormal(torch.stack([x, x]), torch.eye(2)))


MODELS = {model.__name__: model for model in (real, positive, simplex, mixed)}


def make(name, *, context=0, backbone="maf"):
    """A flow with weights away from the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        flow = EmbeddedModelFlow(MODELS[name], backbone=backbone, hidden_features=(8,), context_features=context)
        with torch.no_grad():
            for parameter in flow.backbone_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


@pytest.fixture(params=MODELS)
def flow(request, _clean_state):
    return make(request.param)


def regression(flow, data):
    """The flow is the prior of a vector, whose sum is observed."""
    z = pyro.sample("z", flow())
    with pyro.plate("rows", len(data)):
        pyro.sample("data", dist.Normal(z.sum(-1), 0.5), obs=data)
    return z


DATA = torch.tensor([1.1, 0.7, 1.4, 0.9, 1.2])


# ---------------------------------------------------------------------- what a distribution has


def test_is_a_pyro_distribution(flow):
    held = flow()
    assert isinstance(held, dist.TorchDistribution)
    assert held.batch_shape == ()
    assert held.event_shape == (flow.dim,)
    assert held.event_dim == 1
    assert held.has_rsample
    assert not held.has_enumerate_support
    assert held.support.event_dim == 1
    assert not held.support.is_discrete
    with pytest.raises(NotImplementedError):
        held.enumerate_support()
    assert "FlowDistribution" in repr(held)


def test_shapes_under_every_wrapper(flow):
    held = flow()
    wide = held.expand([4, 3])
    cases = {
        "expand": (wide, (4, 3), (flow.dim,)),
        "expand_by": (held.expand_by([5]), (5,), (flow.dim,)),
        "to_event": (wide.to_event(1), (4,), (3, flow.dim)),
        "to_event, all": (wide.to_event(2), (), (4, 3, flow.dim)),
        "mask": (wide.mask(torch.tensor([True, False, True])), (4, 3), (flow.dim,)),
        "expand a mask": (held.mask(True).expand([2]), (2,), (flow.dim,)),
    }
    for name, (made, batch, event) in cases.items():
        assert made.batch_shape == batch, name
        assert made.event_shape == event, name
        value = made.rsample((2,))
        assert value.shape == (2, *batch, *event), name
        found = made.log_prob(value)
        assert found.shape == (2, *batch), name
        assert found.isfinite().all(), name
        assert made.support.check(value).all(), name
    masked = held.expand([3]).mask(torch.tensor([True, False, True]))
    assert (masked.log_prob(masked.sample())[1] == 0).all()


def test_support_has_a_map_from_the_reals(flow):
    to_support = biject_to(flow().support)
    value = flow().sample((6,))
    free = to_support.inv(value)
    assert free.shape == (6, flow.layer.noise_dim)
    torch.testing.assert_close(to_support(free), value, rtol=1e-6, atol=1e-6)
    found = to_support.log_abs_det_jacobian(free, value)
    assert found.shape == (6,)
    moved = dist.TransformedDistribution(flow(), [to_support.inv])
    assert moved.event_shape == (flow.layer.noise_dim,)
    torch.testing.assert_close(moved.log_prob(free), flow().log_prob(value) + found, rtol=1e-6, atol=1e-6)


def test_copies_share_nothing(flow):
    held = flow()
    other = copy.deepcopy(held)
    value = held.sample((3,))
    before = other.log_prob(value).detach()
    torch.testing.assert_close(held.log_prob(value).detach(), before)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3)
    torch.testing.assert_close(other.log_prob(value).detach(), before)
    assert not torch.allclose(held.log_prob(value).detach(), before)


def test_gradients_flow_through_draws_and_densities(flow):
    value = flow().rsample((4,))
    value.square().sum().backward()
    held = flow().sample((4,)).requires_grad_()
    flow().log_prob(held).sum().backward()
    assert held.grad is not None
    assert held.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in flow.backbone_parameters())


# ---------------------------------------------------------------------- handlers


def test_trace_replay_condition_and_mask(flow):
    trace = poutine.trace(regression).get_trace(flow, DATA)
    value = trace.nodes["z"]["value"]
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], flow().log_prob(value))
    again = poutine.trace(poutine.replay(regression, trace=trace)).get_trace(flow, DATA)
    assert torch.equal(again.nodes["z"]["value"], value)
    held = poutine.trace(poutine.condition(regression, data={"z": value})).get_trace(flow, DATA)
    assert held.nodes["z"]["is_observed"]
    torch.testing.assert_close(held.log_prob_sum(), trace.log_prob_sum())
    with poutine.scale(scale=2.0), poutine.mask(mask=torch.tensor(True)):
        scaled = poutine.trace(poutine.replay(regression, trace=trace)).get_trace(flow, DATA)
    torch.testing.assert_close(scaled.log_prob_sum(), 2 * trace.log_prob_sum())


def test_plates_expand(flow):
    def model():
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
            z = pyro.sample("z", flow())
            assert z.shape == (3, 4, flow.dim)
        with pyro.plate("part", 10, subsample_size=2):
            assert pyro.sample("w", flow()).shape == (2, flow.dim)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    node = trace.nodes["z"]
    assert node["log_prob"].shape == (3, 4)
    torch.testing.assert_close(node["log_prob"], flow().log_prob(node["value"]))
    torch.testing.assert_close(trace.nodes["w"]["log_prob_sum"], 5 * flow().log_prob(trace.nodes["w"]["value"]).sum())


def test_vectorised_particles(flow):
    guide = AutoNormal(regression, init_loc_fn=init_to_sample)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)

    def model(flow, data):
        z = pyro.sample("z", flow())
        with pyro.plate("rows", len(data)):
            pyro.sample("data", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=data)

    guide = AutoNormal(model, init_loc_fn=init_to_sample)
    assert torch.isfinite(torch.tensor(SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(flow, DATA)))


# ---------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    "make_guide",
    [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta],
    ids=lambda guide: guide.__name__,
)
def test_autoguides_fit(flow, make_guide):
    guide = make_guide(regression, init_loc_fn=init_to_sample)
    svi = SVI(regression, guide, pyro.optim.ClippedAdam({"lr": 0.03}), Trace_ELBO())
    losses = torch.tensor([svi.step(flow, DATA) for _ in range(30)])
    assert losses.isfinite().all()
    assert losses[-10:].mean() < losses[:10].mean() + 0.5
    held = guide.median(flow, DATA)["z"]
    assert flow().support.check(held)
    posterior = Predictive(regression, guide=guide, num_samples=7)(flow, DATA)
    assert flow().support.check(posterior["z"].reshape(7, flow.dim)).all()
    assert posterior["data"].shape[0] == 7


def test_mean_field_elbo_falls_back_to_draws(flow):
    guide = AutoNormal(regression, init_loc_fn=init_to_sample)
    loss = SVI(regression, guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO()).step(flow, DATA)
    assert torch.isfinite(torch.tensor(loss))


@pytest.mark.parametrize("name", MODELS)
def test_nuts_draws_from_the_posterior(name):
    flow = make(name)
    flow.requires_grad_(False)
    kernel = NUTS(regression, max_tree_depth=4)
    mcmc = MCMC(kernel, num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run(flow, DATA)
    draws = mcmc.get_samples()["z"]
    assert draws.shape == (10, flow.dim)
    assert flow().support.check(draws).all()
    assert draws.std(0).max() > 0


@pytest.mark.slow
def test_nuts_finds_the_posterior_that_is_known():
    """Untrained, the flow is its program: the posterior of a conjugate model is known."""

    def program():
        pyro.sample("mean", dist.Normal(1.0, 2.0))

    flow = EmbeddedModelFlow(program, backbone="maf", hidden_features=(8,)).requires_grad_(False)

    def model():
        z = pyro.sample("z", flow())
        with pyro.plate("rows", len(DATA)):
            pyro.sample("data", dist.Normal(z[0], 0.5), obs=DATA)

    mcmc = MCMC(NUTS(model), num_samples=1500, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    precision = 1 / 4 + len(DATA) / 0.25
    mean = (1.0 / 4 + DATA.sum() / 0.25) / precision
    draws = mcmc.get_samples()["z"][:, 0]
    assert abs(draws.mean() - mean) < 0.05
    assert abs(draws.std() * precision**0.5 - 1) < 0.1


def test_prior_predictive(flow):
    drawn = Predictive(regression, num_samples=9)(flow, DATA)
    assert drawn["z"].reshape(9, -1).shape == (9, flow.dim)

    def generative(flow):
        z = pyro.sample("z", flow())
        return pyro.sample("data", dist.Normal(z.sum(-1), 1.0))

    several = Predictive(generative, num_samples=9, parallel=True)(flow)
    assert several["z"].shape == (9, flow.dim)
    assert several["data"].shape == (9,)


# ---------------------------------------------------------------------- parameters stay the module's


def test_only_pyro_module_trains_the_flow(flow):
    def train(model):
        pyro.clear_param_store()
        guide = AutoNormal(model, init_loc_fn=init_to_sample)
        before = [parameter.detach().clone() for parameter in flow.parameters()]
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(3):
            svi.step(flow, DATA)
        names = [name for name in pyro.get_param_store() if "prior" in name]
        return names, [not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True)]

    names, moved = train(regression)
    assert not names
    assert not any(moved)

    def learned(flow, data):
        pyro.module("prior", flow)
        regression(flow, data)

    names, moved = train(learned)
    assert len(names) == len(list(flow.parameters()))
    assert any(moved)


def test_a_module_with_a_flow_inside_trains():
    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.flow = make("real")

        def forward(self, data):
            return regression(self.flow, data)

    model = Model()
    guide = AutoNormal(model, init_loc_fn=init_to_sample)
    before = [parameter.detach().clone() for parameter in model.flow.backbone_parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(3):
        svi.step(DATA)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.flow.backbone_parameters(), strict=True))


# ---------------------------------------------------------------------- contexts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backbone", ["maf", "mvn"])
def test_a_batch_of_contexts_is_a_batch(name, backbone):
    flow = make(name, context=2, backbone=backbone)
    contexts = torch.randn(4, 2)
    held = flow(contexts)
    assert held.batch_shape == (4,)
    value = held.sample((3,))
    torch.testing.assert_close(held.log_prob(value)[:, 1], flow(contexts[1]).log_prob(value[:, 1]))
    assert held.to_event(1).log_prob(value).shape == (3,)
    assert held.expand([2, 4]).mask(torch.tensor([True, False, True, True])).log_prob(value[:2]).shape == (2, 4)

    def model(data):
        with pyro.plate("rows", 4):
            z = pyro.sample("z", flow(contexts))
            pyro.sample("data", dist.Normal(z.sum(-1), 0.5), obs=data)

    guide = AutoNormal(model, init_loc_fn=init_to_sample)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(torch.ones(4)))) for _ in range(5))
    assert guide.median()["z"].shape == (4, flow.dim)
    drawn = Predictive(model, guide=guide, num_samples=3)(torch.ones(4))["z"]
    assert drawn.shape == (3, 4, flow.dim)


def test_a_context_that_is_random():
    """A flow below another site: the context is drawn first."""
    flow = make("positive", context=2)

    def model(data):
        context = pyro.sample("context", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z = pyro.sample("z", flow(context))
        pyro.sample("data", dist.Normal(z.sum(-1), 0.5), obs=data)

    guide = AutoMultivariateNormal(model, init_loc_fn=init_to_sample)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(torch.tensor(1.0)))) for _ in range(5))


# ---------------------------------------------------------------------- supports that move


def moving():
    top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", dist.Uniform(0.0, top))


def test_a_support_that_moves_is_told_where_a_map_is_needed():
    """Draws, densities and handlers work; a guide or sampler in real coordinates cannot."""
    flow = EmbeddedModelFlow(moving, backbone="maf", hidden_features=(8,))
    value = flow().sample((5,))
    assert flow().log_prob(value).isfinite().all()
    assert flow().support.check(value).all()
    assert Predictive(regression, num_samples=3)(flow, DATA)["z"].numel() == 6
    with pytest.raises(CompileError, match=r"the support of the site depends on other sites' values") as caught:
        biject_to(flow().support)
    assert (caught.value.code, caught.value.site) == ("E-SUPPORT", "x")
    guide = AutoNormal(regression, init_loc_fn=init_to_sample)
    with pytest.raises((CompileError, UserError), match="support"):
        guide(flow, DATA)


def test_wrong_shapes_are_told():
    held = make("real")()
    with pytest.raises(ValueError, match="must have 2 elements"):
        held.log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="cannot be expanded"):
        held.expand([2]).expand([3])


def test_constraint_is_a_constraint(flow):
    support = flow().support
    assert isinstance(support, constraints.Constraint)
    assert not support.check(torch.full((flow.dim,), torch.nan))
    assert support.check(flow().sample((3, 2))).shape == (3, 2)
