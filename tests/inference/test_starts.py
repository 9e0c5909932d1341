"""Modes, Hessians and whitening: exact on Gaussians, robust on what is not."""

from __future__ import annotations

import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.compiler import compile_target
from emfc.inference import starts
from emfc.inference.starts import NoStart, find_mode, hessian, lbfgs, mode_start, value_and_gradient, whitening
from emfc.inference.variational import VariationalFlow


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def gaussian(width, spread=1.0, seed=0, dtype=torch.float64):
    """Log density, location and covariance of a Gaussian whose standard deviations range over ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    sizes = torch.logspace(0, math.log10(spread), width, dtype=torch.float64)
    covariance = (basis * sizes.square()) @ basis.T
    loc = torch.randn(width, generator=generator, dtype=torch.float64)
    precision = torch.linalg.inv(covariance).to(dtype)

    def log_density(points):
        moved = points - loc.to(dtype)
        return -0.5 * ((moved @ precision) * moved).sum(-1)

    return log_density, loc.to(dtype), covariance.to(dtype)


@pytest.mark.parametrize("width", [1, 2, 7, 30, 120])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_mode_and_covariance_of_a_gaussian(width, spread):
    log_density, loc, covariance = gaussian(width, spread)
    mode, curvature = find_mode(log_density, torch.zeros(width))
    assert torch.allclose(mode.loc, loc, atol=1e-6 * spread)
    scale = whitening(curvature)
    assert torch.allclose(scale @ scale.T, covariance, rtol=1e-4, atol=1e-6 * spread**2)
    assert mode.gradient < 1e-5
    assert mode.iterations <= 5


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 8), seed=st.integers(0, 500), spread=st.floats(1.0, 300.0))
def test_any_gaussian(width, seed, spread):
    log_density, loc, covariance = gaussian(width, spread, seed)
    mode, curvature = find_mode(log_density, torch.zeros(width))
    assert torch.allclose(mode.loc, loc, atol=1e-4 * spread)
    scale = whitening(curvature)
    assert torch.allclose(scale @ scale.T, covariance, rtol=1e-2, atol=1e-4 * spread**2)


def test_single_precision():
    log_density, loc, covariance = gaussian(5, 3.0, dtype=torch.float32)
    mode, curvature = find_mode(log_density, torch.zeros(5, dtype=torch.float32))
    assert mode.loc.dtype == torch.float32
    assert torch.allclose(mode.loc, loc, atol=1e-2)
    scale = whitening(curvature)
    assert torch.allclose(scale @ scale.T, covariance, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("width", [2, 20, 300])
def test_lbfgs_climbs_as_well(width):
    log_density, loc, _ = gaussian(width, 10.0)
    point, value, used = lbfgs(log_density, torch.zeros(width), 500, None)
    assert torch.allclose(point, loc, atol=0.02)
    assert value == pytest.approx(0, abs=1e-4)
    assert used < 500


def test_lbfgs_on_a_curved_valley():
    def banana(points):
        x, y = points.unbind(-1)
        return -0.5 * x**2 - 50 * (y - x**2) ** 2 - 0.5 * (y - 1) ** 2

    newton, _ = find_mode(banana, torch.tensor([-2.0, 3.0]))
    point, value, _ = lbfgs(banana, torch.tensor([-2.0, 3.0]), 500, None)
    assert value == pytest.approx(newton.log_density, abs=1e-6)
    assert torch.allclose(point.abs(), newton.loc.abs(), atol=1e-3)


def test_large_problems_use_lbfgs(monkeypatch):
    log_density, loc, _ = gaussian(6)
    monkeypatch.setattr(starts, "NEWTON_LIMIT", 3)
    mode, _ = find_mode(log_density, torch.zeros(6))
    assert torch.allclose(mode.loc, loc, atol=1e-3)


def test_hessian_in_batches(monkeypatch):
    log_density, _, covariance = gaussian(9)
    whole = hessian(log_density, torch.zeros(9))
    monkeypatch.setattr(starts, "AT_ONCE", 4)
    assert torch.allclose(hessian(log_density, torch.zeros(9)), whole)
    assert torch.allclose(whole, -torch.linalg.inv(covariance), atol=1e-5)


def test_whitening_of_a_saddle_is_positive_definite():
    curvature = torch.diag(torch.tensor([-4.0, 1.0, 0.0]))
    scale = whitening(curvature)
    assert torch.allclose(scale[:2, :2], torch.diag(torch.tensor([0.5, 1.0])))
    assert bool(torch.isfinite(scale).all())
    assert float(scale[2, 2]) > 1


@pytest.mark.parametrize(
    ("curvature", "text"), [(torch.full((2, 2), math.nan), "not finite"), (torch.zeros(2, 2), "flat")]
)
def test_whitening_says_why_not(curvature, text):
    with pytest.raises(NoStart, match=text):
        whitening(curvature)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_edges_are_kept_away_from(bad):
    def log_density(points):
        inside = points[..., 0] > 0.5
        plain = -0.5 * (points - 1).square().sum(-1) * 4
        return torch.where(inside, plain, torch.full_like(plain, bad))

    mode, curvature = find_mode(log_density, torch.tensor([3.0, 5.0]))
    assert torch.allclose(mode.loc, torch.ones(2), atol=1e-6)
    assert torch.allclose(whitening(curvature), 0.5 * torch.eye(2), atol=1e-5)
    with pytest.raises(NoStart, match="is 0 or not a number"):
        find_mode(log_density, torch.zeros(2))


def test_values_that_are_not_finite_count_as_zero_density():
    values, gradients = value_and_gradient(lambda x: x[:, 0].log(), torch.tensor([[1.0], [0.0], [-1.0]]))
    assert values.tolist() == [0.0, -math.inf, -math.inf]
    assert gradients[:, 0].tolist() == [1.0, 0.0, 0.0]


def test_unbounded_densities_end():
    mode, curvature = find_mode(lambda x: x.sum(-1), torch.zeros(2), iterations=20)
    assert mode.iterations <= 20
    with pytest.raises(NoStart, match="flat"):
        whitening(torch.where(curvature.abs() < 1e-3, torch.zeros(2, 2), curvature))


def test_the_deadline_is_kept():
    def slow(points):
        time.sleep(0.02)
        return -(points.square().sum(-1).sqrt() ** 1.5)

    began = time.perf_counter()
    find_mode(slow, torch.full((3,), 100.0), deadline=began + 0.1)
    assert time.perf_counter() - began < 1.0


# ---- in the noise space of a program -----------------------------------------------------------------------------


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    level = pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(level + slope * x, 0.5), obs=y)


@pytest.mark.parametrize("gate", ["site", "element", None])
def test_mode_of_a_regression_is_its_exact_posterior(gate):
    x, y = torch.linspace(5, 6, 20), torch.linspace(-3, 4, 20)
    log_joint = compile_target(regression, x, y)
    flow = VariationalFlow(log_joint.target.prior(), backbone="mvn", gate=gate)
    loc, scale = mode_start(flow, log_joint, like=torch.zeros(()), deadline=None)
    flow.set_affine(loc, scale)
    flow.open()
    value, log_q = flow.rsample_and_log_prob((500,))
    spread = (log_joint(value) - log_q).detach()
    assert float(spread.std()) < 1e-4


def test_a_program_parameter_counts():
    def model(y):
        loc = pyro.param("loc", torch.tensor(2.0))
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    pyro.clear_param_store()
    log_joint = compile_target(model, torch.tensor(0.0))
    flow = VariationalFlow(log_joint.target.prior(), backbone="mvn")
    loc, scale = mode_start(flow, log_joint, like=torch.zeros(()), deadline=None)
    assert float(loc) == pytest.approx(-1.0, abs=1e-5)
    assert float(scale) == pytest.approx(0.5**0.5, abs=1e-5)
    pyro.clear_param_store()


def test_too_many_dimensions(monkeypatch):
    log_joint = compile_target(regression, torch.zeros(2), torch.zeros(2))
    flow = VariationalFlow(log_joint.target.prior(), backbone="mvn")
    monkeypatch.setattr(starts, "LARGEST_HESSIAN", 1)
    with pytest.raises(NoStart, match="too many for a Hessian"):
        mode_start(flow, log_joint, like=torch.zeros(()), deadline=None)


@pytest.mark.parametrize("gate_form", ["value", "parameter"])
def test_closed_gates_whiten_the_values_themselves(gate_form):
    log_joint = compile_target(regression, torch.linspace(5, 6, 20), torch.linspace(-3, 4, 20))
    flow = VariationalFlow(log_joint.target.prior(), backbone="mvn", gate_form=gate_form)
    loc, scale = mode_start(flow, log_joint, like=torch.zeros(()), deadline=None, closed=True)
    flow.set_affine(loc, scale)
    flow.layer.set_gates(0.0)
    value, log_q = flow.rsample_and_log_prob((500,))
    assert float((log_joint(value) - log_q).detach().std()) < 1e-4
    bare = VariationalFlow(log_joint.target.prior(), backbone="mvn", gate=None)
    with pytest.raises(NoStart, match="without gates"):
        mode_start(bare, log_joint, like=torch.zeros(()), deadline=None, closed=True)
