"""Fits: exact posteriors found, budgets kept, nothing crashes, the best weights stay."""

from __future__ import annotations

import math
import time
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.compiler import compile_target
from emfc.errors import UserError
from emfc.inference import fit_run
from emfc.inference.fit_settings import late_alpha
from emfc.inference.fit_state import Evaluation, State, evaluate
from emfc.inference.fit_step import Stepper
from emfc.inference.fitting import FitRecord, default_options, fit_variational
from emfc.inference.objectives import OBJECTIVES
from emfc.inference.schedule import Budget, Cycle, improves
from emfc.inference.starts import NoStart
from emfc.inference.variational import VariationalFlow
from emfc.program.errors import CompileError


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def normal_model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def scaled_model(y):
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def schools(y, errors):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


def flow_of(log_joint, **options):
    return VariationalFlow(log_joint.target.prior(), **{"backbone": "mvn", **options})


def scaled(log_joint):
    """The target with a kink, which no Gaussian equals."""
    return lambda value: log_joint(value) - value[..., 0].abs()


def normal_evidence(y):
    n = len(y)
    covariance = torch.eye(n) + 4 * torch.ones(n, n)
    return float(torch.distributions.MultivariateNormal(torch.zeros(n), covariance).log_prob(y))


DATA = torch.tensor([0.3, 1.9, 1.2, 0.7])


# ---- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "start"),
    [
        *[(backbone, "mode") for backbone in ("meanfield", "lowrank", "maf", "nsf", "coupling")],
        *[(backbone, start) for backbone in ("mvn", "iaf") for start in ("auto", "mode", "closed", "prior")],
    ],
)
def test_an_exact_posterior_is_found(backbone, start):
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint, backbone=backbone)
    record = fit_variational(flow, log_joint, steps=300, particles=64, start=start, learning_rate=0.03)
    assert record.elbo == pytest.approx(normal_evidence(DATA), abs=5e-3)
    assert record.steps <= 400
    assert record.elbo_se < 5e-3
    draws = flow.sample((4000,))
    assert float(draws.mean()) == pytest.approx(float(DATA.sum()) / 4.25, abs=0.05)
    assert record.start == (start if start != "auto" else record.start)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_it(objective):
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    record = fit_variational(
        flow, log_joint, steps=300, objective=objective, start="prior", particles=64, learning_rate=0.03
    )
    assert record.elbo == pytest.approx(normal_evidence(DATA), abs=0.02)
    assert record.objective == objective


@pytest.mark.parametrize("noise", ["quasi", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_precisions_and_noises(noise, dtype):
    torch.set_default_dtype(dtype)
    log_joint = compile_target(normal_model, DATA.to(dtype))
    flow = flow_of(log_joint, backbone="iaf")
    record = fit_variational(flow, log_joint, steps=300, noise=noise)
    assert all(parameter.dtype == dtype for parameter in flow.parameters())
    assert record.elbo == pytest.approx(normal_evidence(DATA.to(dtype)), abs=0.01)


def test_a_gaussian_posterior_stays_exact():
    log_joint = compile_target(normal_model, DATA)
    record = fit_variational(flow_of(log_joint, backbone="iaf"), log_joint, steps=200, start="mode")
    assert record.elbo == pytest.approx(normal_evidence(DATA), abs=1e-4)


@pytest.mark.parametrize("anneal", [0.5, 1.0])
def test_annealing_ends_at_the_target(anneal):
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    record = fit_variational(flow, log_joint, steps=600, start="prior", learning_rate=0.03, anneal=anneal)
    assert record.elbo == pytest.approx(normal_evidence(DATA), abs=0.01)


def test_heavy_tails():
    log_joint = compile_target(scaled_model, torch.tensor([3.0]))
    flow = flow_of(log_joint, backbone="iaf", hidden_features=(16,))
    record = fit_variational(flow, log_joint, steps=800)
    assert math.isfinite(record.elbo)
    points = torch.logspace(-4, 5, 40001)
    evidence = float(torch.trapezoid(log_joint(points[:, None]).exp(), points).log())
    assert record.elbo == pytest.approx(evidence, abs=0.08)


@pytest.mark.slow
def test_eight_schools_within_its_figure():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    log_joint = compile_target(schools, y, errors)
    options = default_options(log_joint.target)
    flow = VariationalFlow(log_joint.target.prior(), **options["flow"])
    record = fit_variational(flow, log_joint, steps=3000, **options["fit"])
    assert -31.311 - record.elbo < 0.03 + 3 * record.elbo_se


# ---- what must not happen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("objective", ["elbo", "stl", "iwae", "forward_kl"])
def test_holes_in_the_density_do_not_crash(bad, objective):
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint, backbone="iaf")

    def holed(value):
        return torch.where(value[..., 0] < -4, torch.full_like(value[..., 0], bad), log_joint(value))

    record = fit_variational(flow, holed, steps=200, objective=objective)
    assert all(bool(torch.isfinite(p).all()) for p in flow.backbone_parameters())
    assert record.elbo > -20


def test_a_density_that_is_nowhere_finite():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    record = fit_variational(flow, lambda value: value[..., 0] * math.nan, steps=50)
    assert record.elbo == -math.inf
    assert any("no start at a mode" in remark for remark in record.remarks)


def test_a_gradient_that_is_not_finite_is_left_out():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    before = State(flow)
    stepper = Stepper(flow, lambda x: (x[..., 0] * 0).sqrt(), objective="elbo", alpha=0.5, learning_rate=0.1)
    for _ in range(5):
        assert stepper(torch.randn(8, 1), 1.0) is None
    assert stepper.scale == 0.5
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in flow.state_dict().items())


def test_divergence_goes_back_to_the_best():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint, backbone="iaf")
    record = fit_variational(flow, log_joint, steps=300, start="mode", learning_rate=3.0)
    assert record.elbo == pytest.approx(normal_evidence(DATA), abs=1e-3)


def test_ctrl_c_keeps_the_best_weights():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)

    def progress(step, elbo):
        if step > 500:
            raise KeyboardInterrupt

    record = fit_variational(flow, scaled(log_joint), steps=100_000, progress=progress)
    assert record.stopped == "interrupted"
    assert record.steps < 2000
    points = torch.linspace(-10, 10, 20001)
    evidence = float(torch.trapezoid(scaled(log_joint)(points[:, None]).exp(), points).log())
    assert record.elbo == pytest.approx(evidence, abs=0.02)
    assert "interrupted" in record.remarks[-1]
    assert all(parameter.requires_grad for parameter in flow.parameters())


@pytest.mark.parametrize("seconds", [0.3, 1.5])
@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_seconds_are_kept(seconds, delay):
    log_joint = compile_target(normal_model, DATA)

    def slow(value):
        time.sleep(delay)
        return log_joint(value)

    began = time.perf_counter()
    record = fit_variational(flow_of(log_joint, backbone="iaf"), slow, seconds=seconds)
    assert time.perf_counter() - began < seconds + 0.5
    assert record.stopped in ("budget", "converged")
    assert math.isfinite(record.elbo)


@pytest.mark.parametrize("steps", [0, 1, 7, 120])
def test_steps_are_kept(steps):
    log_joint = compile_target(normal_model, DATA)
    record = fit_variational(flow_of(log_joint), scaled(log_joint), steps=steps)
    assert record.stopped == "budget"
    assert record.steps == steps


def test_it_stops_when_nothing_improves(monkeypatch):
    monkeypatch.setattr(fit_run, "Cycle", partial(Cycle, least=300))
    log_joint = compile_target(normal_model, DATA)
    record = fit_variational(flow_of(log_joint), log_joint, start="prior", particles=16, learning_rate=0.05)
    assert record.stopped == "converged"
    assert record.steps > 900
    assert record.elbo == pytest.approx(normal_evidence(DATA), abs=5e-3)


@pytest.mark.parametrize("backbone", ["mvn", "iaf"])
def test_the_same_seed_gives_the_same_fit(backbone):
    log_joint = compile_target(normal_model, DATA)

    def fit(seed):
        torch.manual_seed(5)
        flow = flow_of(log_joint, backbone=backbone)
        torch.manual_seed(seed + 100)
        record = fit_variational(flow, log_joint, steps=100, start="prior", seed=seed)
        return record, torch.cat([parameter.detach().reshape(-1) for parameter in flow.parameters()])

    (first, left), (again, right), (other, different) = fit(1), fit(1), fit(2)
    assert torch.equal(left, right)
    assert first.elbo == again.elbo
    assert not torch.equal(left, different)
    assert first.elbo != other.elbo


def test_global_random_state_is_left_alone():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    state = torch.random.get_rng_state()
    fit_variational(flow, log_joint, steps=20)
    assert torch.equal(state, torch.random.get_rng_state())


def test_progress_and_history():
    log_joint = compile_target(normal_model, DATA)
    told = []
    record = fit_variational(
        flow_of(log_joint), scaled(log_joint), steps=900, progress=lambda step, elbo: told.append((step, elbo))
    )
    assert told == record.history
    assert len(told) >= 5
    assert [step for step, _ in told] == sorted(step for step, _ in told)
    assert isinstance(record, FitRecord)
    assert set(record.starts) == {"mode", "prior"}


def test_an_exact_start_ends_the_fit():
    log_joint = compile_target(normal_model, DATA)
    record = fit_variational(flow_of(log_joint), log_joint, seconds=60)
    assert record.stopped == "converged"
    assert record.start == "mode"
    assert record.steps <= 600


def test_a_given_start_is_taken_as_it_is():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    flow.set_affine(torch.tensor([0.5]), torch.tensor([[0.2]]))
    record = fit_variational(flow, log_joint, steps=0, start="given")
    assert record.start == "given"
    assert not record.starts
    assert float(flow.loc.detach()) == 0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"objective": "best"}, "objective must be one of"),
        ({"start": "here"}, "start must be"),
        ({"noise": "pink"}, "noise must be"),
        ({"seconds": 0}, "seconds must be a positive number"),
        ({"steps": -1}, "steps must be"),
        ({"steps": 1.5}, "steps must be"),
        ({"particles": 0}, "particles must be"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
        ({"anneal": 2.0}, "anneal must be a share"),
        ({"objective": "alpha", "alpha": -0.5}, "alpha must be 0 or more"),
        ({"objective": "alpha", "alpha": 1.0}, "alpha=1 is the evidence lower bound"),
    ],
)
def test_options_without_a_meaning(options, text):
    log_joint = compile_target(normal_model, DATA)
    with pytest.raises(UserError, match=text):
        fit_variational(flow_of(log_joint), log_joint, **options)


def test_nothing_to_learn():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint).requires_grad_(False)
    with pytest.raises(UserError, match="nothing to learn"):
        fit_variational(flow, log_joint, steps=5)


# ---- parts -------------------------------------------------------------------------------------------------------


def test_improvement_is_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, generator=generator)
    rising = (noise + torch.linspace(0, 10, 2000)).tolist()
    assert improves(rising)
    assert not improves((noise + 3).tolist())
    assert improves(rising[:100])
    assert not improves(rising, least=5.0)
    flat = [sum(improves((torch.randn(800, generator=generator)).tolist()) for _ in range(100))]
    assert flat[0] <= 10


def test_a_cycle_rises_stays_and_falls():
    budget = Budget(steps=1000)
    cycle = Cycle(budget, least=100)
    factors = []
    while not budget.spent and not cycle.over:
        factors.append(cycle.factor())
        budget.done += 1
        cycle.steps += 1
        if cycle.due and not cycle.falling:
            cycle.begin_fall()
    assert factors[0] < 0.05
    assert max(factors) == 1.0
    assert factors[-1] < 1e-4
    assert len(factors) == 1000
    top = factors.index(1.0)
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_a_cycle_without_a_budget_ends_by_itself():
    cycle = Cycle(Budget())
    for _ in range(300):
        cycle.steps += 1
    assert not cycle.due
    assert not cycle.over
    cycle.begin_fall()
    for _ in range(600):
        assert not cycle.over
        cycle.steps += 1
    assert cycle.over
    assert cycle.factor() == pytest.approx(0)


def test_evaluations_are_compared_with_the_same_noise():
    log_joint = compile_target(normal_model, DATA)
    flow = flow_of(log_joint)
    like = torch.zeros(())
    first = evaluate(flow, log_joint, draws=2000, seed=1, like=like)
    assert evaluate(flow, log_joint, draws=2000, seed=1, like=like).elbo == first.elbo
    with torch.no_grad():
        flow.affine.shift.add_(0.001)
    gain, error = evaluate(flow, log_joint, draws=2000, seed=1, like=like).gain(first)
    assert error < 0.1 * first.se
    assert gain != 0
    nothing = Evaluation(torch.tensor([1.0, math.nan]))
    assert nothing.elbo == -math.inf
    assert first.gain(nothing)[0] == math.inf


def test_mode_trials_can_fail(monkeypatch):
    def fail(*args, **kwargs):
        raise NoStart("no way up")

    monkeypatch.setattr(fit_run, "mode_start", fail)
    log_joint = compile_target(normal_model, DATA)
    record = fit_variational(flow_of(log_joint), log_joint, steps=300, start="mode")
    assert record.start == "prior"
    assert record.remarks == ["no start at a mode: no way up"]


def test_the_order_at_the_end_follows_the_fit():
    assert late_alpha(0.0) == late_alpha(0.01) == 0.5
    assert 0.5 < late_alpha(0.2) < late_alpha(2.0) < 1
    assert late_alpha(math.inf) == 1
    assert late_alpha(1e30) == late_alpha(1e9) == 1


def test_a_fit_of_huge_variance_ends_by_the_bound_itself():
    """An order that rounds to 1 is the evidence lower bound, which the fall then goes on with."""
    log_joint = compile_target(normal_model, DATA)

    def steep(value):
        return -1e12 * value[..., 0].square()

    record = fit_variational(flow_of(log_joint), steep, steps=300, start="given", learning_rate=1e-6, particles=16)
    assert record.objective == "elbo"
    assert math.isfinite(record.elbo)


def test_the_record_names_every_objective():
    log_joint = compile_target(normal_model, DATA)
    record = fit_variational(flow_of(log_joint), scaled(log_joint), steps=600)
    assert record.objective == "elbo, alpha"


@pytest.mark.parametrize("error", [UserError("no"), CompileError("E-MODEL", "no"), torch.OutOfMemoryError("no")])
def test_true_faults_get_out_of_the_search_for_a_mode(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(fit_run, "mode_start", fail)
    log_joint = compile_target(normal_model, DATA)
    with pytest.raises(type(error)):
        fit_variational(flow_of(log_joint), log_joint, steps=50)


@pytest.mark.parametrize("kind", ["some", "all", "gradient"])
def test_a_fit_without_a_budget_ends_where_steps_come_to_nothing(kind, monkeypatch):
    monkeypatch.setattr(fit_run, "Cycle", partial(Cycle, least=300))
    log_joint = compile_target(normal_model, DATA)
    calls = []

    def holed(value):
        calls.append(len(value))
        assert len(calls) < 10_000
        if kind == "gradient":
            return (value[..., 0] * 0).sqrt()
        holes = torch.ones(len(value), dtype=torch.bool)
        if kind == "some":
            holes[1:] = False
        return torch.where(holes, -torch.inf, scaled(log_joint)(value))

    told = []
    progress = lambda step, elbo: told.append(elbo)  # noqa: E731
    record = fit_variational(flow_of(log_joint), holed, start="prior", particles=16, progress=progress)
    assert record.remarks
    if kind == "some":
        assert told
        assert all(map(math.isfinite, told))
        assert "no density" in record.remarks[-1]
    else:
        assert "100% of the last steps came to nothing" in record.remarks[0]
    assert record.stopped == "failed"


def test_slow_targets_get_fewer_draws():
    log_joint = compile_target(normal_model, DATA)

    def slow(value):
        time.sleep(4e-4 * len(value))
        return log_joint(value) - value[..., 0].abs()

    began = time.perf_counter()
    record = fit_variational(flow_of(log_joint), slow, seconds=2.0, start="prior")
    assert time.perf_counter() - began < 2.6
    assert record.particles == 64
    assert fit_variational(flow_of(log_joint), log_joint, steps=3).particles == 256


def test_default_options_follow_the_size():
    small = default_options(compile_target(normal_model, DATA).target)
    assert small["flow"]["backbone"] == "iaf"
    assert small["flow"]["transforms"] == 4

    def large():
        pyro.sample("x", dist.Normal(torch.zeros(60), 1.0).to_event(1))

    assert default_options(compile_target(large).target)["flow"]["transforms"] == 2
