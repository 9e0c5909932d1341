"""Gradient estimators: equal expectations on Gaussian targets, no variance at the optimum, forces of every family."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.compiler import parse_target
from emfc.errors import UserError
from emfc.inference.fit_force import force, run_parts
from emfc.inference.fit_noise import NormalNoise, QuasiNoise, make_noise
from emfc.inference.objectives import OBJECTIVES, Tempered, check_objective, estimate
from emfc.inference.variational import VariationalFlow

BACKBONES = ("meanfield", "mvn", "lowrank", "iaf", "maf", "nsf", "coupling")


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def normals(width):
    pyro.sample("x", dist.Normal(torch.zeros(width), 1.0).to_event(1))


def chain(width):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    value = torch.zeros(())
    for index in range(width - 1):
        value = pyro.sample(f"x_{index}", dist.Normal(0.5 * value, scale))


def make(model, width, *, backbone="iaf", gate="site", moved=0.0, **options):
    flow = VariationalFlow(parse_target(model, width).prior(), backbone=backbone, gate=gate, **options)
    if moved:
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(moved * torch.randn_like(parameter))
    return flow


def gaussian(width):
    """A correlated Gaussian: log density, mean and Cholesky factor."""
    generator = torch.Generator().manual_seed(width)
    loc = torch.randn(width, generator=generator)
    scale = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator).tril()
    scale = scale.tril(-1) + torch.diag(scale.diagonal().abs() + 0.1)
    target = torch.distributions.MultivariateNormal(loc, scale_tril=scale, validate_args=False)
    return target.log_prob, loc, scale


def gradient(flow, loss):
    flow.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in flow.parameters()])


def gradients(flow, target, objective, *, batches, size, seed=1, **options):
    noise = NormalNoise(flow.noise_dim, seed=seed, like=torch.zeros(()))
    rows = [gradient(flow, estimate(flow, target, noise(size), objective, **options).loss) for _ in range(batches)]
    return torch.stack(rows)


def agree(left, right, sigmas=5.0):
    difference = left - right
    error = difference.std(0) / len(difference) ** 0.5
    scale = left.mean(0).abs().max()
    return bool((difference.mean(0).abs() <= sigmas * error + 1e-9 * (1 + scale)).all())


# ---- forces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("model", [normals, chain])
@pytest.mark.parametrize("width", [2, 5])
def test_force_is_the_gradient_of_the_log_density(backbone, model, width):
    flow = make(model, width, backbone=backbone, moved=0.15)
    noise = torch.randn(7, flow.noise_dim)
    made = run_parts(flow.transform().parts, noise)
    found = force(made)
    value = made.value.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(flow.log_prob(value).sum(), value)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_force_in_single_precision(backbone):
    torch.set_default_dtype(torch.float32)
    flow = make(normals, 4, backbone=backbone, moved=0.1)
    made = run_parts(flow.transform().parts, torch.randn(5, 4))
    assert made.value.dtype == torch.float32
    value = made.value.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(flow.log_prob(value).sum(), value)
    assert torch.allclose(force(made), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 9), moved=st.floats(0.0, 0.6), seed=st.integers(0, 1000), rows=st.integers(1, 5))
def test_force_of_any_autoregressive_flow(width, moved, seed, rows):
    torch.manual_seed(seed)
    flow = make(normals, width, moved=moved, hidden_features=(12,))
    made = run_parts(flow.transform().parts, torch.randn(rows, width))
    value = made.value.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(flow.log_prob(value).sum(), value)
    assert torch.allclose(force(made), wanted, rtol=1e-5, atol=1e-5 * (1 + float(wanted.abs().max())))


def test_a_pass_is_the_flow_itself():
    flow = make(chain, 4, moved=0.2)
    noise = torch.randn(6, 4)
    made = run_parts(flow.transform().parts, noise)
    value, log_q = flow.rsample_and_log_prob((6,), noise=noise)
    assert torch.allclose(made.value, value)
    assert torch.allclose(-0.5 * (noise.square().sum(-1) + 4 * math.log(2 * math.pi)) - made.ladj, log_q)


# ---- expectations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["stl", "path"])
@pytest.mark.parametrize("backbone", ["meanfield", "iaf", "coupling"])
@pytest.mark.parametrize("model", [normals, chain])
def test_estimators_of_the_elbo_agree_in_expectation(objective, backbone, model):
    flow = make(model, 3, backbone=backbone, moved=0.1, hidden_features=(8,))
    loc = torch.tensor([1.0, 0.3, -0.2])

    def target(value):
        return -0.5 * ((value - loc) / 0.7).square().sum(-1) - value[..., 0].abs()

    total = gradients(flow, target, "elbo", batches=30, size=500)
    other = gradients(flow, target, objective, batches=30, size=500)
    assert agree(total, other)


@pytest.mark.parametrize("objective", ["elbo", "stl", "path"])
def test_elbo_gradient_of_a_normal_is_known(objective):
    flow = make(normals, 1, backbone="meanfield", gate=None)
    flow.set_affine(torch.tensor([0.4]), torch.tensor([[1.3]]))
    made = gradients(flow, lambda x: -0.5 * ((x[..., 0] - 1.0) / 0.8) ** 2, objective, batches=40, size=5000)
    by_name = dict(zip([name for name, _ in flow.named_parameters()], made.mean(0), strict=True))
    errors = dict(zip(by_name, made.std(0) / 40**0.5, strict=True))
    # KL = -log s + (s^2 + (m - 1)^2) / (2 0.8^2), with m = 0.4 + 1.3 shift and s = 1.3 exp(log_scale).
    assert float(by_name["affine.shift"]) == pytest.approx(
        1.3 * (0.4 - 1) / 0.64, abs=5 * float(errors["affine.shift"])
    )
    assert float(by_name["affine.log_scale"]) == pytest.approx(
        -1 + 1.69 / 0.64, abs=5 * float(errors["affine.log_scale"]) + 1e-9
    )


@pytest.mark.parametrize("size", [2, 8])
def test_iwae_is_unbiased(size):
    flow = make(normals, 2, backbone="mvn", gate=None, moved=0.2)
    target, _, _ = gaussian(2)
    doubly = gradients(flow, target, "iwae", batches=700, size=size)
    noise = NormalNoise(2, seed=1, like=torch.zeros(()))
    rows = []
    for _ in range(700):
        value, log_q = flow.rsample_and_log_prob((size,), noise=noise(size))
        rows.append(gradient(flow, -torch.logsumexp(target(value) - log_q, 0)))
    assert agree(torch.stack(rows), doubly)


def test_alpha_lies_between_the_bounds():
    flow = make(normals, 3, backbone="mvn", gate=None, moved=0.3)
    target, _, _ = gaussian(3)
    noise = torch.randn(4000, 3)
    flow.requires_grad_(False)
    elbo = -float(estimate(flow, target, noise, "elbo").loss)
    half = -float(estimate(flow, target, noise, "alpha", alpha=0.5).loss)
    near = -float(estimate(flow, target, noise, "alpha", alpha=0.9999).loss)
    zero = -float(estimate(flow, target, noise, "alpha", alpha=0.0).loss)
    terms = estimate(flow, target, noise, "elbo").terms
    assert elbo < half < zero
    assert near == pytest.approx(elbo, abs=1e-2)
    assert zero == pytest.approx(float(terms.logsumexp(0)) - math.log(4000))
    with pytest.raises(UserError, match="alpha=1"):
        estimate(flow, target, noise, "alpha", alpha=1)


def test_forward_kl_is_the_gradient_of_the_cross_entropy():
    flow = make(normals, 2, backbone="mvn", gate=None)
    target, loc, scale = gaussian(2)
    flow.set_affine(loc + 0.2, 1.4 * scale)
    made = gradients(flow, target, "forward_kl", batches=40, size=20_000)
    draws = loc + torch.randn(400_000, 2) @ scale.mT
    exact = gradient(flow, -flow.log_prob(draws).mean())
    assert torch.allclose(made.mean(0), exact, atol=0.02)


# ---- variance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["mvn", "iaf", "maf", "coupling"])
@pytest.mark.parametrize("objective", ["stl", "path", "iwae"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_no_variance_where_the_flow_is_the_target(backbone, objective, width):
    flow = make(normals, width, backbone=backbone, gate=None)
    target, loc, scale = gaussian(width)
    flow.set_affine(loc, scale)
    noise = torch.randn(16, width)
    assert float(gradient(flow, estimate(flow, target, noise, objective).loss).abs().max()) < 1e-9
    assert float(gradient(flow, estimate(flow, target, noise, "elbo").loss).abs().max()) > 1e-3


def test_stl_has_no_variance_with_gates_either():
    flow = make(chain, 4, backbone="iaf", gate="site", moved=0.1)
    held = make(chain, 4, backbone="iaf", gate="site")
    held.load_state_dict(flow.state_dict())
    noise = torch.randn(8, 4)
    found = gradient(flow, estimate(flow, held.log_prob, noise, "stl").loss)
    assert float(found.abs().max()) < 1e-8


# ---- what is not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_draws_without_a_density_are_left_out(objective, bad):
    flow = make(normals, 2, backbone="iaf")

    def target(value):
        plain = -0.5 * value.square().sum(-1) + value[..., 0].clamp(min=0).sqrt()
        return torch.where(value[..., 0] < 0, torch.full_like(plain, bad), plain)

    made = estimate(flow, target, torch.randn(64, 2), objective)
    assert 0 < made.dropped < 64
    assert bool(torch.isfinite(gradient(flow, made.loss)).all())


def test_nothing_finite_at_all():
    flow = make(normals, 2)
    made = estimate(flow, lambda value: value.sum(-1) * math.nan, torch.randn(8, 2), "elbo")
    assert made.dropped == 8


@pytest.mark.parametrize("alpha", [-1.0, -1e-9, math.nan, math.inf])
def test_orders_that_are_no_lower_bound(alpha):
    flow = make(normals, 2)
    with pytest.raises(UserError, match="alpha must be 0 or more"):
        estimate(flow, gaussian(2)[0], torch.randn(8, 2), "alpha", alpha=alpha)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parameters_of_the_target_rule_out_some(objective):
    flow = make(normals, 2)
    flow.moves_target = True
    if objective in ("iwae", "forward_kl"):
        with pytest.raises(UserError, match="own parameters"):
            estimate(flow, gaussian(2)[0], torch.randn(8, 2), objective)
    else:
        assert torch.isfinite(estimate(flow, gaussian(2)[0], torch.randn(8, 2), objective).loss)


def test_unknown_objective():
    with pytest.raises(UserError, match="objective must be one of elbo"):
        check_objective("best")


# ---- noise and tempering -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "quasi"])
def test_noise_is_standard_normal_and_repeats(kind):
    first, second = (make_noise(kind, 5, seed=3, like=torch.zeros(())) for _ in range(2))
    drawn = [first(128) for _ in range(50)]
    assert all(torch.equal(batch, second(128)) for batch in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    whole = torch.cat(drawn)
    assert torch.allclose(whole.mean(0), torch.zeros(5), atol=0.06)
    assert torch.allclose(whole.T.cov(), torch.eye(5), atol=0.08)


def test_quasi_noise_is_unbiased_and_varies_less():
    like = torch.zeros(())
    quasi, plain = QuasiNoise(4, seed=0, like=like), NormalNoise(4, seed=0, like=like)

    def means(source):
        return torch.stack([batch.cos().sum(-1).mean() for batch in (source(64) for _ in range(1000))])

    spread, even = means(plain), means(quasi)
    wanted = 4 * math.exp(-0.5)
    assert abs(float(even.mean()) - wanted) < 5 * float(even.std()) / 1000**0.5
    assert float(even.std()) < 0.5 * float(spread.std())


def test_tempered_target():
    held = Tempered(lambda x: 4 * x.sum(-1))
    value = torch.ones(2, 3)
    assert torch.equal(held(value), torch.full((2,), 12.0))
    held.share = 0.5
    assert torch.equal(held(value), torch.full((2,), 6.0))
