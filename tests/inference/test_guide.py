"""A guide is a Pyro guide, its density is exact, and the compiled log joint is the model's."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor

import emfc
from emfc import CompileError, EMFGuide, UserError
from emfc.inference.variational import VariationalFlow
from tests.inference.guided import MODELS, normal, summed

NAMES = sorted(MODELS)


@pytest.fixture(autouse=True)
def _clean() -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def stirred(guide: EMFGuide, size: float = 0.2) -> EMFGuide:
    """A guide with random parameters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in guide.flow.parameters():
            value.add_(size * torch.randn(value.shape, generator=generator).to(value))
    return guide


def latent_log_prob(guide: EMFGuide, args: tuple[Any, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """One draw of a guide by site, and the log density of its trace."""
    trace = poutine.trace(guide).get_trace(*args)
    values = {name: trace.nodes[name]["value"] for name in guide.flow.layer.example_sites}
    return values, trace.log_prob_sum()


# ---------------------------------------------------------------- densities


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_open_guide_is_the_prior(name: str, dtype: torch.dtype) -> None:
    if not MODELS[name].normalised:
        pytest.skip("the prior is no density")
    torch.set_default_dtype(dtype)
    args = MODELS[name].args()
    guide = EMFGuide(MODELS[name].model, gate=None).setup(*args)
    values, log_q = latent_log_prob(guide, args)
    model = poutine.trace(poutine.condition(MODELS[name].model, values)).get_trace(*args)
    log_p = sum(model_site_log_prob(model, site) for site in values)
    torch.testing.assert_close(log_q, torch.as_tensor(log_p), rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-4)


def model_site_log_prob(trace: Any, name: str) -> Tensor:
    """Log density of a site of a trace."""
    site = trace.nodes[name]
    return site["fn"].log_prob(site["value"]).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backbone", ["meanfield", "iaf"])
def test_trace_elbo_is_the_compiled_elbo(name: str, backbone: str) -> None:
    case = MODELS[name]
    if not case.compiled:
        pytest.skip("the compiler does not evaluate the data")
    args = case.args()
    guide = stirred(EMFGuide(case.model, backbone).setup(*args))
    log_joint = guide.log_joint(*args)
    torch.manual_seed(5)
    loss = Trace_ELBO(num_particles=3).loss(case.model, guide, *args)
    torch.manual_seed(5)
    draws = [guide.flow.rsample_and_log_prob(()) for _ in range(3)]
    value = sum(float((log_joint(x) - log_q).detach()) for x, log_q in draws) / 3
    assert loss == pytest.approx(-value, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_vectorised_particles_have_the_same_elbo(name: str) -> None:
    case = MODELS[name]
    if not case.compiled:
        pytest.skip("the compiler does not evaluate the data")
    args = case.args()
    guide = stirred(EMFGuide(case.model).setup(*args))
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True)
    elbo.loss(case.model, guide, *args)
    torch.manual_seed(5)
    loss = elbo.loss(case.model, guide, *args)
    torch.manual_seed(5)
    x, log_q = guide.flow.rsample_and_log_prob((5,))
    assert loss == pytest.approx(float((log_q - guide.log_joint(*args)(x)).mean().detach()), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_transform_has_its_jacobian_and_inverse(name: str) -> None:
    args = MODELS[name].args()
    guide = stirred(EMFGuide(MODELS[name].model).setup(*args))
    transform = guide.get_transform()
    noise = torch.randn(3, guide.flow.noise_dim)
    free = transform(noise)
    assert free.shape == (3, guide.latent_dim)
    torch.testing.assert_close(transform.inv(free), noise, rtol=1e-6, atol=1e-6)
    for row, value in zip(noise, transform.log_abs_det_jacobian(noise, free), strict=True):
        jacobian: Any = torch.autograd.functional.jacobian(lambda e: transform(e[None])[0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_in_unconstrained_coordinates_is_the_guide(name: str) -> None:
    args = MODELS[name].args()
    guide = stirred(EMFGuide(MODELS[name].model).setup(*args))
    posterior = guide.get_posterior()
    free = posterior.rsample(torch.Size([2])).detach()
    coordinates = guide._coordinate_map()
    examples = coordinates.constrain(free)
    back, ladj = coordinates.unconstrain(examples)
    torch.testing.assert_close(back, free, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.log_prob(free), guide.flow.log_prob(examples) - ladj, rtol=1e-6, atol=1e-6)
    unpacked = {site["name"]: value for site, value in guide._unpack_latent(free[0])}
    assert list(unpacked) == list(guide.flow.layer.example_sites)


@pytest.mark.parametrize("name", NAMES)
def test_quantiles_lie_in_the_supports(name: str) -> None:
    args = MODELS[name].args()
    guide = stirred(EMFGuide(MODELS[name].model, "meanfield").setup(*args))
    held = guide.quantiles([0.1, 0.5, 0.9], *args)
    again = guide.median(*args)
    for site, value in held.items():
        assert value.shape == (3, *guide.flow.layer.example_sites[site])
        torch.testing.assert_close(value[1], again[site])
    assert not bool(guide.flow.layer.outside(guide.flow.pack(held)).any())


def flat_bound(y: Tensor) -> None:
    """A bound that does not move where the other site is small."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0 + torch.relu(x - 2.5)))
    pyro.sample("y", dist.Normal(x + b, 1.0), obs=y)


def chosen_bound(y: Tensor) -> None:
    """A bound of two values, of a truncated family."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 2):
        scale = torch.where(x > 4.0, torch.tensor(2.0), torch.tensor(1.0))
        b = pyro.sample("b", dist.Uniform(-scale, scale))
        pyro.sample("y", dist.Normal(x + b, 1.0), obs=y)


@pytest.mark.parametrize("model", [flat_bound, chosen_bound])
def test_supports_that_move_only_somewhere(model: Any) -> None:
    y = torch.tensor(1.0) if model is flat_bound else torch.tensor([1.0, 0.5])
    coordinates = EMFGuide(model, "meanfield").setup(y)._coordinate_map()
    examples = torch.tensor([[4.5, 2.0], [0.0, 0.5]] if model is flat_bound else [[4.5, 1.7, -1.8], [0.0, 0.5, -0.5]])
    assert [site.moving is not None for site in coordinates.sites] == [False, True]
    free, ladj = coordinates.unconstrain(examples)
    torch.testing.assert_close(coordinates.constrain(free), examples)
    for row, value in zip(examples, ladj, strict=True):
        jacobian: Any = torch.autograd.functional.jacobian(lambda x: coordinates.unconstrain(x[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], value)


def test_supports_that_other_parameters_leave_alone() -> None:
    for name in ("hierarchy", "nested", "scaled", "cholesky", "learned", "improper"):
        coordinates = EMFGuide(MODELS[name].model, "meanfield").setup(*MODELS[name].args())._coordinate_map()
        assert all(site.moving is None for site in coordinates.sites), name


def test_the_transform_forgets_what_is_stale() -> None:
    guide = EMFGuide(normal, "meanfield").setup(torch.tensor([1.0]))
    transform, noise = guide.get_transform(), torch.randn(3, 1)
    free = transform(noise)
    assert transform.log_abs_det_jacobian(noise, free) is transform.log_abs_det_jacobian(noise, free)
    stirred(guide, 0.5)
    torch.testing.assert_close(transform.log_abs_det_jacobian(noise, free), transform.call_and_ladj(noise)[1])
    free = transform(noise)
    graph = weakref.ref(transform.log_abs_det_jacobian(noise, free))
    assert graph() is not None
    del free
    gc.collect()
    assert graph() is None
    copy.deepcopy(transform)


# ---------------------------------------------------------------- as Pyro uses guides


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("vectorised", [False, True])
def test_svi_steps(name: str, elbo: Any, vectorised: bool) -> None:
    args = MODELS[name].args()
    guide = EMFGuide(MODELS[name].model)
    svi = SVI(
        MODELS[name].model,
        guide,
        pyro.optim.Adam({"lr": 0.01}),
        elbo(num_particles=2, vectorize_particles=vectorised, max_plate_nesting=2),
    )
    losses = [svi.step(*args) for _ in range(2)]
    assert all(math.isfinite(loss) for loss in losses)
    held = pyro.get_param_store()
    for path, value in guide.named_parameters():
        full = f"{guide._pyro_name}.{path.replace('flow.', 'flow$$$', 1)}"
        assert held._params[full] is value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_shapes(name: str, parallel: bool) -> None:
    if name == "improper":
        pytest.skip("Pyro's Predictive draws from the prior first")
    args = MODELS[name].args()
    guide = EMFGuide(MODELS[name].model, "meanfield").setup(*args)
    drawn = Predictive(MODELS[name].model, guide=guide, num_samples=5, parallel=parallel)(*args)
    for site, shape in guide.flow.layer.example_sites.items():
        assert drawn[site].shape[0] == 5
        assert drawn[site].numel() == 5 * math.prod(shape)


def test_jit_elbo_steps() -> None:
    args = MODELS["hierarchy"].args()
    guide = EMFGuide(MODELS["hierarchy"].model)
    elbo = JitTrace_ELBO(num_particles=2, vectorize_particles=True, ignore_jit_warnings=True)
    svi = SVI(MODELS["hierarchy"].model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(math.isfinite(svi.step(*args)) for _ in range(3))


def fit_by_svi(model: Any, guide: EMFGuide, args: tuple[Any, ...], steps: int = 600, lr: float = 0.05) -> None:
    """Train with Pyro."""
    optimiser = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(model, guide, optimiser, Trace_ELBO(num_particles=32, vectorize_particles=True))
    for _ in range(steps):
        svi.step(*args)


def draws_of(guide: EMFGuide, name: str, count: int = 4000) -> Tensor:
    """Draws of a site."""
    with torch.no_grad():
        return guide.flow.layer.unpack(guide.flow.sample((count,)))[name]


def test_svi_finds_a_normal_posterior() -> None:
    y = torch.tensor([0.5, 1.5, 2.0, 1.0])
    guide = EMFGuide(normal, "meanfield")
    fit_by_svi(normal, guide, (y,))
    precision = 1 / 4 + len(y)
    draws = draws_of(guide, "mean")
    assert float(draws.mean()) == pytest.approx(float(y.sum() / precision), abs=0.04)
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.06)


def test_svi_finds_a_beta_posterior_from_subsamples() -> None:
    y = (torch.arange(60) % 3 == 0).double()

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
        with pyro.plate("n", len(y), subsample_size=20) as rows:
            pyro.sample("y", dist.Bernoulli(rate), obs=y[rows])

    guide = EMFGuide(model, "meanfield")
    fit_by_svi(model, guide, (y,), steps=500)
    exact = dist.Beta(2.0 + y.sum(), 2.0 + (1 - y).sum())
    draws = draws_of(guide, "rate")
    assert float(draws.mean()) == pytest.approx(float(exact.mean), abs=0.02)
    assert float(draws.std()) == pytest.approx(float(exact.stddev), rel=0.15)
    with pytest.raises(CompileError, match="E-SUBSAMPLE"):
        guide.fit(y, steps=5)


def test_svi_finds_a_gamma_posterior() -> None:
    y = torch.tensor([3.0, 1.0, 2.0, 4.0])
    model = MODELS["gamma_poisson"].model
    guide = EMFGuide(model)
    fit_by_svi(model, guide, (y,))
    exact = dist.Gamma(2.0 + y.sum(), torch.tensor(1.0 + len(y)))
    draws = draws_of(guide, "rate")
    assert float(draws.mean()) == pytest.approx(float(exact.mean), rel=0.03)
    assert float(draws.std()) == pytest.approx(float(exact.stddev), rel=0.1)


@pytest.mark.parametrize("name", ["normal", "gamma_poisson", "beta_bernoulli"])
def test_fit_finds_the_evidence(name: str) -> None:
    args = MODELS[name].args()
    (y,), n = args, len(args[0])
    guide = EMFGuide(MODELS[name].model)
    record = guide.fit(*args, steps=400, seed=2)
    if name == "normal":
        cov = torch.eye(n) + 4 * torch.ones(n, n)
        exact = dist.MultivariateNormal(torch.zeros(n), cov).log_prob(y)
    elif name == "gamma_poisson":
        a, b = torch.tensor(2.0) + y.sum(), torch.tensor(1.0 + n)
        exact = a.lgamma() - a * b.log() - (y + 1).lgamma().sum()
    else:
        a, b = 2 + y.sum(), 3 + (1 - y).sum()
        exact = a.lgamma() + b.lgamma() - (a + b).lgamma() + math.lgamma(5) - math.lgamma(2) - math.lgamma(3)
    assert record.elbo == pytest.approx(float(exact), abs=0.05)


def test_model_parameters_train_by_svi() -> None:
    args = MODELS["learned"].args()
    guide = EMFGuide(MODELS["learned"].model, "meanfield")
    fit_by_svi(MODELS["learned"].model, guide, args, steps=50)
    assert float(pyro.param("scale")) != pytest.approx(0.7)


def test_summed_sites_by_enumeration() -> None:
    y = torch.tensor([-2.0, 2.1, 1.9])
    guide = EMFGuide(summed, "meanfield")
    assert list(guide.setup(y).flow.layer.example_sites) == ["means"]
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    torch.manual_seed(4)
    loss = elbo.loss(config_enumerate(summed), guide, y)
    torch.manual_seed(4)
    x, log_q = guide.flow.rsample_and_log_prob(())
    assert loss == pytest.approx(float((log_q - guide.log_joint(y)(x)).detach()))


# ---------------------------------------------------------------- several, saved, composed


def test_guides_have_their_own_parameters() -> None:
    y = torch.tensor([1.0])
    first, second = EMFGuide(normal), EMFGuide(normal, name="mine")
    for guide in (first, second):
        SVI(normal, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(y)
    names = list(pyro.get_param_store().keys())
    assert len(names) == len(list(first.parameters())) + len(list(second.parameters()))
    assert all(name.startswith(("EMFGuide_normal.", "mine.")) for name in names)
    third = EMFGuide(normal)
    assert Predictive(normal, guide=third, num_samples=3)(y)["mean"].shape[0] == 3
    with pytest.raises(UserError, match=r"'EMFGuide_normal'.*name="):
        SVI(normal, third, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(y)


def test_names_come_from_the_model() -> None:
    held = partial(partial(normal), torch.zeros(2))
    names = [EMFGuide(model)._pyro_name for model in (normal, normal, held, lambda: None, Module(), normal)]
    assert names == ["EMFGuide_normal"] * 3 + ["EMFGuide_lambda", "EMFGuide_Module", "EMFGuide_normal"]


def test_a_cleared_store_is_filled_again() -> None:
    y = torch.tensor([1.0])
    guide = EMFGuide(normal)
    svi = SVI(normal, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(y)
    pyro.clear_param_store()
    before = [value.detach().clone() for value in guide.parameters()]
    svi = SVI(normal, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(y)
    assert len(list(pyro.get_param_store().keys())) == len(before)
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def test_state_is_saved_and_loaded() -> None:
    y = torch.tensor([1.0])
    trained = stirred(EMFGuide(normal).setup(y))
    new = EMFGuide(normal)
    with pytest.raises(UserError, match=r"guide\.setup"):
        new.load_state_dict(trained.state_dict())
    new.setup(y).load_state_dict(trained.state_dict())
    x = torch.tensor([[0.3]])
    torch.testing.assert_close(new.flow.log_prob(x), trained.flow.log_prob(x))
    torch.testing.assert_close(copy.deepcopy(trained).flow.log_prob(x), trained.flow.log_prob(x))


def test_the_store_is_saved_and_loaded(tmp_path: Any) -> None:
    y = torch.tensor([1.0])
    guide = EMFGuide(normal, "meanfield", name="kept")
    fit_by_svi(normal, guide, (y,), steps=20)
    pyro.get_param_store().save(str(tmp_path / "store"))
    expected = guide.median(y)["mean"]
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store"))
    fresh = EMFGuide(normal, "meanfield", name="kept").setup(y)
    pyro.module("kept.flow", fresh.flow, update_module_params=True)
    torch.testing.assert_close(fresh.median(y)["mean"], expected)


def test_a_guide_of_a_flow() -> None:
    y = torch.tensor([1.0, 2.0])
    target = emfc.compiler.parse_target(normal, y)
    flow = VariationalFlow(target.prior())
    guide = EMFGuide.from_flow(normal, flow, y)
    assert guide.flow is flow
    assert math.isfinite(Trace_ELBO().loss(normal, guide, y))
    with pytest.raises(UserError, match="latent sites"):
        EMFGuide.from_flow(MODELS["scaled"].model, flow, y)


def test_other_arguments_keep_the_guide() -> None:
    guide = EMFGuide(normal, "meanfield").setup(torch.tensor([1.0, 2.0]))
    assert math.isfinite(Trace_ELBO().loss(normal, guide, torch.tensor([3.0, 4.0, 5.0])))


class Module(pyro.nn.PyroModule):  # type: ignore[misc]
    """A model that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        self.noise = pyro.nn.PyroParam(torch.tensor(0.5), dist.constraints.positive)
        self.shift = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = (self.weight[..., None, :] * x).sum(-1) + self.shift
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)
        return mean


def test_a_module_as_model() -> None:
    x, y = torch.randn(5, 2), torch.randn(5)
    model = Module()
    guide = EMFGuide(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x, y) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert float(model.shift) != pytest.approx(0.1)
    assert Predictive(model, guide=guide, num_samples=4)(x)["y"].shape == (4, 5)
    assert not {id(value) for value in guide.parameters()} & {id(value) for value in model.parameters()}
    loss = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(300)])
    with torch.no_grad():
        drawn, log_q = guide.flow.rsample_and_log_prob((300,))
        compiled = guide.log_joint(x, y)(drawn) - log_q
    error = float((loss.var() + compiled.var()) / 300) ** 0.5
    assert abs(float(loss.mean() + compiled.mean())) < 6 * error


# ---------------------------------------------------------------- refusals


def poisson_latent(y: Tensor) -> None:
    """A discrete site without an end."""
    count = pyro.sample("count", dist.Poisson(3.0))
    pyro.sample("y", dist.Normal(count, 1.0), obs=y)


def unread(y: Tensor) -> None:
    """A discrete site that nothing reads."""
    pyro.sample("z", dist.Bernoulli(0.3))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def local_in_a_subsample(y: Tensor) -> None:
    """A latent site in a plate that takes a part of its rows."""
    with pyro.plate("n", len(y), subsample_size=2) as rows:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y[rows])


def test_refusals() -> None:
    y = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(CompileError, match="'count'"):
        EMFGuide(poisson_latent).setup(y[0])
    with pytest.raises(CompileError, match="'count'"):
        SVI(poisson_latent, EMFGuide(poisson_latent), pyro.optim.Adam({}), Trace_ELBO()).step(y[0])
    for guide in (EMFGuide(unread), EMFGuide(unread, amortize=True)):
        with pytest.raises(CompileError, match=r"'z' is discrete and nothing depends on it"):
            guide.setup(y[0])
    with pytest.raises(CompileError, match=r"E-SUBSAMPLE.*'x'"):
        EMFGuide(local_in_a_subsample).setup(y)
    with pytest.raises(UserError, match="setup"):
        EMFGuide(normal).get_transform()
    with pytest.raises(UserError, match="amortize"):
        EMFGuide(normal).setup(y).posterior_for(y)
    with pytest.raises(CompileError, match="Quartic"):
        EMFGuide(MODELS["unknown_data"].model).setup(y).log_joint(y)


def test_reading_leaves_the_store_alone() -> None:
    y = torch.tensor([1.0, 2.0])
    guide = EMFGuide(normal).setup(y)
    guide.fit(y, steps=3)
    guide.median(y)
    assert not list(pyro.get_param_store().keys())
