"""The variational family: it starts at the prior, has exact densities, and is a module like any other."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.compiler import compile_target, parse_target
from emfc.errors import UserError
from emfc.inference.masks import posterior_dependencies, turned_mask
from emfc.inference.variational import VariationalFlow
from tests.inference.family_programs import PROGRAMS, disturb, learned, schools

KINDS = ["meanfield", "mvn", "lowrank", "iaf", "maf", "nsf", "coupling"]
EVERY = pytest.mark.parametrize("name", PROGRAMS)


def build(name, precision=torch.float64, **options):
    torch.set_default_dtype(precision)
    model = PROGRAMS[name] if isinstance(name, str) else name
    return VariationalFlow(parse_target(model).prior(), **{"hidden_features": (16, 16), **options})


@EVERY
@pytest.mark.parametrize("informed", [False, True], ids=["plain", "informed"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_it_starts_at_the_prior(name, informed, precision):
    flow = build(name, precision, informed=informed)
    flow.open()
    value, log_q = flow.rsample_and_log_prob((50,))
    prior = flow.layer().log_prob(value)
    bound = {"rtol": 2e-3, "atol": 2e-2} if precision == torch.float32 else {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(flow.log_prob(value), prior, **bound)
    torch.testing.assert_close(log_q, prior, **bound)
    if name == "schools":
        trace = pyro.poutine.trace(pyro.poutine.condition(schools, flow.unpack(value[0]))).get_trace()
        sites = [trace.nodes[site] for site in ("mean", "spread", "effect")]
        expected = sum(site["fn"].log_prob(site["value"]).sum() for site in sites)
        torch.testing.assert_close(log_q[0], expected, **bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["schools", "lorenz", "families"])
def test_densities_agree_in_both_directions(kind, name):
    flow = build(name, backbone=kind)
    disturb(flow, 0.1)
    value, log_q = flow.rsample_and_log_prob((5,))
    torch.testing.assert_close(flow.log_prob(value), log_q, rtol=1e-6, atol=1e-6)
    assert flow.sample((3, 2)).shape == (3, 2, flow.dim)


@EVERY
@pytest.mark.parametrize("form", ["value", "parameter"])
def test_the_log_jacobian_is_that_of_autograd(name, form):
    flow = build(name, gate="element", gate_form=form)
    disturb(flow, 0.1)
    with torch.no_grad():
        flow.layer.gate_logits.copy_(torch.randn_like(flow.layer.gate_logits))
    if flow.dim != flow.noise_dim:
        pytest.skip("a set of lower dimension has no square Jacobian")
    noise = torch.randn(flow.noise_dim)
    value, ladj = flow.transform().call_and_ladj(noise)
    jacobian = torch.autograd.functional.jacobian(lambda e: flow.transform()(e), noise)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-7, atol=1e-7)
    back, back_ladj = flow.transform().inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back_ladj, -ladj, rtol=1e-7, atol=1e-7)


@EVERY
@pytest.mark.parametrize("form", ["value", "parameter"])
@pytest.mark.parametrize("gate", ["site", "element"])
def test_gates_at_their_ends(name, form, gate):
    flow = build(name, gate=gate, gate_form=form)
    noise = torch.randn(4, flow.noise_dim)
    plain = build(name, gate=None).layer()
    flow.layer.set_gates(1.0)
    for found, expected in zip(flow.layer().call_and_ladj(noise), plain.call_and_ladj(noise), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    flow.layer.set_gates(0.0)
    for found, expected in zip(
        flow.layer().call_and_ladj(noise), flow.layer.constraint_map().call_and_ladj(noise), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_gate_on_parameters_keeps_the_neck_of_a_funnel():
    """Where a scale vanishes values stay as near their location as the program draws them, whatever the gate."""
    flow = build("schools", backbone="mvn")
    noise = torch.randn(2000, flow.noise_dim)
    noise[:, 1] = -6.0
    value, log_q = flow.rsample_and_log_prob((2000,), noise=noise)
    assert value[:, 1].max() < 1e-6
    assert float((flow.layer().log_prob(value) - log_q).detach().min()) > -20


@EVERY
@pytest.mark.parametrize("form", ["value", "parameter"])
def test_the_optimised_program_equals_the_reference(name, form):
    fast, slow = (
        build(name, gate="element", gate_form=form),
        build(name, gate="element", gate_form=form, optimize=False),
    )
    disturb(fast, 0.3)
    slow.load_state_dict(fast.state_dict())
    noise = torch.randn(4, fast.noise_dim)
    for found, expected in zip(
        fast.rsample_and_log_prob((4,), noise=noise), slow.rsample_and_log_prob((4,), noise=noise), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_set_affine_starts_at_a_normal(kind):
    flow = build("schools", backbone=kind)
    disturb(flow, 0.1)
    flow.open()
    loc = torch.randn(flow.noise_dim)
    scale = torch.randn(flow.noise_dim, flow.noise_dim).tril(-1) / 4 + torch.diag(torch.rand(flow.noise_dim) + 0.5)
    flow.set_affine(loc, scale)
    noise = torch.randn(20_000, flow.noise_dim)
    whitened = flow.layer().inv(flow.sample((4,))) if kind == "maf" else flow.layer().inv(flow.transform()(noise))
    assert whitened.shape[-1] == flow.noise_dim
    torch.testing.assert_close(flow.loc, loc)
    if kind in ("meanfield", "lowrank"):
        if kind == "meanfield":
            precision = torch.linalg.inv(scale @ scale.mT)
            torch.testing.assert_close(flow.scale_tril.diagonal(), precision.diagonal().rsqrt())
        return
    value = flow.layer()(loc + torch.randn(6, flow.noise_dim) @ scale.mT)
    density = torch.distributions.MultivariateNormal(loc, scale_tril=scale)
    noise, ladj = flow.layer().inv.call_and_ladj(value)
    torch.testing.assert_close(flow.log_prob(value), density.log_prob(noise) + ladj, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("loc", "scale"),
    [
        (torch.zeros(2), torch.eye(1)),
        (torch.zeros(2), torch.eye(2)),
        (torch.full((1,), torch.nan), torch.eye(1)),
        (torch.zeros(1), -torch.eye(1)),
    ],
)
def test_a_wrong_normal_is_refused(loc, scale):
    flow = build("learned")
    with pytest.raises(UserError, match="set_affine"):
        flow.set_affine(loc, scale)


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_learns_again_after_set_affine(kind):
    flow = build("schools", backbone=kind, gate=None)
    flow.set_affine(torch.zeros(flow.noise_dim), torch.eye(flow.noise_dim))
    value, log_q = flow.rsample_and_log_prob((8,))
    (log_q.mean() + value.square().mean()).backward()
    gradients = [p.grad for p in flow.backbone_parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_conditions_every_family(kind):
    flow = build("schools", backbone=kind, context_features=3)
    disturb(flow, 0.1)
    context = torch.randn(4, 3)
    value, log_q = flow.rsample_and_log_prob((2,), context)
    assert value.shape == (2, 4, flow.dim)
    torch.testing.assert_close(flow.log_prob(value, context), log_q, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(flow.log_prob(value, context), flow.log_prob(value, context.flip(0)))
    with pytest.raises(UserError, match="context"):
        flow.sample()
    with pytest.raises(UserError, match="context"):
        build("schools").sample((), context)


def test_parameters_are_in_groups_and_apart_from_the_models():
    flow = build("learned", informed=True)
    groups = [list(flow.gate_parameters()), list(flow.backbone_parameters()), list(flow.program_parameters())]
    held = [id(parameter) for group in groups for parameter in group]
    assert sorted(held) == sorted(id(parameter) for parameter in flow.parameters())
    assert len(groups[2]) == 1
    log_joint = compile_target(learned)
    assert not {id(p) for p in log_joint.parameters()} & set(held)
    with torch.no_grad():
        groups[2][0].add_(1.0)
    assert log_joint.unconstrained[0].item() != groups[2][0].item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("informed", [False, True])
def test_state_goes_round(kind, informed):
    first, second = (build("radon", backbone=kind, informed=informed) for _ in range(2))
    disturb(first, 0.1)
    value = first.sample((3,))
    assert not torch.allclose(first.log_prob(value), second.log_prob(value))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first.log_prob(value), second.log_prob(value))
    third = copy.deepcopy(first)
    disturb(first, 0.1)
    torch.testing.assert_close(third.log_prob(value), second.log_prob(value))
    assert not torch.allclose(first.log_prob(value), second.log_prob(value))


def test_a_flow_moves_to_another_dtype():
    flow = build("schools", torch.float64, informed=True)
    disturb(flow, 0.1)
    noise = torch.randn(3, flow.noise_dim, dtype=torch.float64)
    value, log_q = flow.rsample_and_log_prob((3,), noise=noise)
    flow.to(torch.float32)
    again, log_again = flow.rsample_and_log_prob((3,), noise=noise.float())
    assert again.dtype == log_again.dtype == flow.sample((2,)).dtype == torch.float32
    torch.testing.assert_close(again.double(), value, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(log_again.double(), log_q, rtol=1e-3, atol=1e-2)


def test_values_pack_and_unpack():
    flow = build("schools")
    value = flow.sample((4,))
    sites = flow.unpack(value)
    assert {name: held.shape for name, held in sites.items()} == {"mean": (4,), "spread": (4,), "effect": (4, 8)}
    torch.testing.assert_close(flow.pack(sites), value)


def test_it_is_a_distribution():
    flow = build("schools")
    value = flow().rsample((5,))
    torch.testing.assert_close(flow().log_prob(value), flow.log_prob(value))
    outside = value.clone()
    outside[:, 1] = -1.0
    assert (flow.log_prob(outside) == -torch.inf).all()


# ---------------------------------------------------------------------- dependencies


def tree(y):
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    left = pyro.sample("left", dist.Normal(top, 1.0))
    right = pyro.sample("right", dist.Normal(0.5 * top, 2.0))
    with pyro.plate("leaves", 3):
        leaf = pyro.sample("leaf", dist.Normal(left, 1.0))
        pyro.sample("y", dist.Normal(leaf, 1.0), obs=y)
    pyro.sample("z", dist.Normal(right, 0.5), obs=y[0])


def chain(y):
    state = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, 5):
        state = pyro.sample(f"x_{t}", dist.Normal(0.7 * state, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(state, 0.4), obs=y[t % 3])


def collider(y):
    with pyro.plate("causes", 4):
        cause = pyro.sample("cause", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(cause[0] - 2 * cause[2], 0.3), obs=y[0])
    pyro.sample("z", dist.Normal(cause[2:].sum(), 0.3), obs=y[1])


def regression(y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    apart = pyro.sample("apart", dist.Normal(0.0, 1.0))
    design = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 0.0], [0.0, 0.0, 1.0]])
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Normal(design @ weights, 0.5), obs=y)
    pyro.sample("z", dist.Normal(apart, 1.0), obs=y[0])


GAUSSIAN = {"tree": tree, "chain": chain, "collider": collider, "regression": regression}
FOUND = {
    "tree": ((), (0,), (0,), (0, 1), (0, 1), (0, 1)),
    "chain": ((), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)),
    "collider": ((), (), (0,), (0, 2)),
    "regression": ((), (0,), (), ()),
}
Y = torch.tensor([1.0, 2.0, -3.0])


def noise_posterior(flow, model):
    """Exact mean and covariance of a Gaussian model's noise given the data."""
    log_joint, width = compile_target(model, Y.to(flow.noise_reference)), flow.noise_dim

    def energy(noise):
        value, ladj = flow.layer().call_and_ladj(noise)
        return -log_joint(value) - ladj

    precision = torch.autograd.functional.hessian(energy, torch.zeros(width))
    slope = torch.autograd.functional.jacobian(energy, torch.zeros(width))
    return -torch.linalg.solve(precision, slope), torch.linalg.inv(precision), log_joint


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_masked_normal_is_exact_for_gaussian_models(name):
    torch.set_default_dtype(torch.float64)
    target = parse_target(GAUSSIAN[name], Y.double())
    assert posterior_dependencies(target) == FOUND[name]
    flow = VariationalFlow.from_target(target, backbone="mvn", masks="graph", gate=None)
    mean, covariance, log_joint = noise_posterior(flow, GAUSSIAN[name])
    scale = torch.linalg.cholesky(covariance)
    allowed = flow.affine.mask | torch.eye(flow.noise_dim, dtype=torch.bool)
    assert (scale[~allowed].abs() < 1e-12).all()
    with torch.no_grad():  # in learned numbers, not by the start
        flow.affine.shift.copy_(mean)
        flow.affine.log_scale.copy_(scale.diagonal().log())
        flow.affine.lower.copy_(torch.where(allowed, scale, 5.0).tril(-1))
        value, log_q = flow.rsample_and_log_prob((50,))
        weights = log_joint(value) - log_q
    assert weights.std() < 1e-9


def test_dependencies_of_a_hierarchy():
    torch.set_default_dtype(torch.float64)
    found = posterior_dependencies(parse_target(PROGRAMS["schools"]))
    assert found == ((), (0,), *[(0, 1)] * 8)
    found = posterior_dependencies(parse_target(PROGRAMS["radon"]))
    assert found[:4] == ((), (0,), (0, 1), (0, 1, 2))
    assert found[4:] == ((0, 1, 2, 3),) * 4


def test_what_is_summed_out_joins_its_neighbours():
    def model():
        with pyro.plate("parts", 2):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for row in range(3):
            part = pyro.sample(f"part_{row}", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{row}", dist.Normal(mean[part], 1.0), obs=torch.tensor(0.3))

    assert posterior_dependencies(parse_target(model)) == ((), (0,))


def test_vectors_depend_within_their_events():
    torch.set_default_dtype(torch.float64)
    found = posterior_dependencies(parse_target(PROGRAMS["simplex"]))
    assert found[1] == (0,)
    assert len(found) == 5


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_relations_are_kept(data):
    count = data.draw(st.integers(2, 6))
    relation = [data.draw(st.sets(st.integers(0, place - 1))) if place else set() for place in range(count)]

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(count), 1.0).to_event(1))

    torch.set_default_dtype(torch.float64)
    program = parse_target(model).prior()
    flow = VariationalFlow(program, masks="graph", dependencies=relation, backbone="iaf", gate=None)
    disturb(flow, 0.2)
    allowed = flow.affine.mask | turned_mask(flow.affine.mask) | torch.eye(count, dtype=torch.bool)
    noise = torch.randn(count)
    jacobian = torch.autograd.functional.jacobian(lambda e: flow.transform()(e), noise)
    assert (jacobian[~allowed] == 0).all()
    value, ladj = flow.transform().call_and_ladj(noise)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(flow.transform().inv(value), noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"masks": "graph"},
        {"masks": "sparse"},
        {"dependencies": [[]]},
        {"affine": "banded"},
        {"gate": "all"},
        {"gate_form": "mean"},
        {"masks": "graph", "dependencies": [[]], "backbone": "lowrank"},
    ],
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(UserError):
        build("learned", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "mvn", "affine": "diagonal"},
        {"backbone": "meanfield", "affine": "full"},
        {"informed": True, "gate_form": "value"},
    ],
)
def test_options_that_contradict_each_other(options):
    with pytest.raises(UserError, match="leave"):
        VariationalFlow(parse_target(schools).prior(), **options)
