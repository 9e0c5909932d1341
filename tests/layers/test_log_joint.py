"""The log joint of a variational target is Pyro's, in value and in gradient, or the model is refused."""

from __future__ import annotations

import math
import zlib

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode

from emfc.compiler import compile_target
from emfc.errors import UserError
from emfc.layers.structured import StructuredLayer
from emfc.program.errors import CompileError
from tests.programs.accepted import PROGRAMS
from tests.programs.target_oracle import enumerated_log_joint, log_joint
from tests.programs.targets import DISCRETE, FAMILIES, IMPROPER, SUMMED, TARGETS
from tests.programs.watch import draw

GROUPS = {"target": TARGETS, "discrete": DISCRETE, "family": FAMILIES, "improper": IMPROPER, "summed": SUMMED}
CASES = {f"{group}: {name}": program for group, programs in GROUPS.items() for name, program in programs.items()}
REFUSED = {
    "improper: unit_lower_cholesky": ("E-NOCDF", "no map from the real numbers"),
    "improper: sphere": ("E-NOCDF", "no map from the real numbers"),
    "family: SineBivariateVonMises": ("E-DATADEP", "branches"),
    "family: SineSkewed": ("E-DATADEP", "branches"),
    "family: GaussianHMM": ("E-NOCDF", "cannot be made again"),
    "family: DiscreteHMM": ("E-NOCDF", "cannot be made again"),
    "family: LinearHMM": ("E-NOCDF", "cannot be computed"),
    "family: Empirical": ("E-NOCDF", "cannot be made again"),
    "family: GroupedNormalNormal": ("E-NOCDF", "cannot be made again"),
    "family: OneOneMatching": ("E-NOCDF", "cannot be made again"),
}
PYRO_BY_QUADRATURE = ("family: Stable",)
PYRO_HAS_NO_GRADIENT = ("missing", "missing_events", "missing_counts", "masked_mixture")  # 0 * NaN


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request, _clean_state):
    torch.set_default_dtype(request.param)
    return request.param


def perturbed(held):
    """Parameters a little off their start; by name as tensors that depend on them."""
    with torch.no_grad():
        for parameter in held.unconstrained:
            parameter += 0.1 * torch.randn_like(parameter)
    pairs = zip(held.target.program.parameters, held.unconstrained, held._transforms, strict=True)
    return {p.name: value if transform is None else transform(value) for p, value, transform in pairs}


def filled(gradients, inputs):
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_equals_pyro(name, dtype):
    model, args, kwargs = CASES[name].build()
    held = compile_target(model, *args, **kwargs)
    layer = StructuredLayer(held.target.prior())
    assert layer.dim == held.dim
    parameters = perturbed(held)
    noise = (0.7 * torch.randn(3, layer.noise_dim)).requires_grad_()
    x = layer()(noise)
    inputs = [noise, *held.unconstrained]
    actual = held(x)
    assert actual.dtype is dtype
    assert actual.shape == (3,)
    found = [log_joint(model, args, kwargs, layer.unpack(x[row]), parameters) for row in range(3)]
    expected = torch.stack([torch.as_tensor(value) for value in found]).to(dtype)
    tolerance = 2e-3 if dtype is torch.float32 else 3e-4 if name in PYRO_BY_QUADRATURE else 1e-8
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    slopes = filled(torch.autograd.grad(actual.sum(), inputs, allow_unused=True, retain_graph=True), inputs)
    if name.partition(": ")[2] in PYRO_HAS_NO_GRADIENT:
        assert all(bool(slope.isfinite().all()) for slope in slopes)
        return
    wanted = torch.autograd.grad(expected.sum(), inputs, allow_unused=True) if expected.requires_grad else [None] * 9
    for slope, other in zip(slopes, filled(wanted[: len(inputs)], inputs), strict=True):
        bound = 10 * tolerance * (1 + float(other.abs().max()))
        torch.testing.assert_close(slope, other, rtol=10 * tolerance, atol=bound)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, dtype):
    code, words = REFUSED[name]
    model, args, kwargs = CASES[name].build()
    with pytest.raises(CompileError, match=words) as caught:
        compile_target(model, *args, **kwargs)
    assert caught.value.code == code
    assert caught.value.location


def test_gradients_at_masked_gaps_are_those_without_them():
    """Rows that are masked out because their data are missing count as if they were not there."""
    for name in ("missing", "missing_counts", "missing_events"):
        program = TARGETS[name]
        model, (y,), _ = program.build()
        whole, part = compile_target(model, y), compile_target(model, y[~y.isnan()])
        x = StructuredLayer(whole.target.prior())()(torch.randn(4, whole.dim)).detach()
        results = []
        for held in (whole, part):
            inputs = x.clone().requires_grad_()
            value = held(inputs)
            results.append((value, torch.autograd.grad(value.sum(), inputs)[0]))
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def _seed(name):
    return zlib.crc32(name.encode())


def _levels(site):
    return site.discrete


@pytest.mark.parametrize("name", PROGRAMS)
def test_corpus_with_random_sites_observed(name):
    """Any subset of a program's sites may be data: of two subsets each."""
    case = PROGRAMS[name]
    model, args, kwargs = case.build()
    generator = torch.Generator().manual_seed(_seed(name))
    draws = draw(model, args, kwargs, number=4, seed=_seed(name))
    sites = [site for site in case.parents if site not in case.observed]
    for trial in range(2):
        chosen = [site for site in sites if float(torch.rand((), generator=generator)) < 0.5]
        continuous = [site for site in sites if site not in case.summed and draws[site].is_floating_point()]
        if set(sites) == set(chosen) or not set(continuous) - set(chosen):
            chosen = [site for site in chosen if site != (continuous or sites)[-1]]
        chosen += [site for site in case.summed if draws[site][0].numel() > 4 and site not in chosen]
        conditioned = poutine.condition(model, data={site: draws[site][trial] for site in chosen})
        try:
            held = compile_target(conditioned, *args, **kwargs)
        except CompileError as error:
            assert error.code in ("E-DISCRETE", "E-STRUCT", "E-NOCDF", "E-MODEL"), error  # noqa: PT017
            continue
        latent = [held.target.program.sites[index] for index in held.plan.example if index not in held.plan.given]
        rows, expected = [], []
        for row in (2, 3):
            values = {site.name: draws[site.name][row] for site in latent}
            flat = [values[site.name].reshape(-1).double() + (0.5 if site.discrete else 0.0) for site in latent]
            rows.append(torch.cat(flat))
            expected.append(log_joint(conditioned, args, kwargs, values, {}))
        wanted = torch.stack(expected).detach()
        assert not wanted.isnan().any()
        with torch.no_grad():
            torch.testing.assert_close(held(torch.stack(rows)), wanted, rtol=1e-8, atol=1e-8)


ENUMERATED = ("mixture", "vector_mixture", "diagonal_mixture", "hidden_markov_counts", "masked_mixture")


@pytest.mark.parametrize("name", ENUMERATED)
def test_discrete_latents_are_summed_out_as_pyro_does(name):
    model, args, kwargs = SUMMED[name].build()
    held = compile_target(model, *args, **kwargs)
    layer = StructuredLayer(held.target.prior())
    x = layer()(torch.randn(2, layer.noise_dim))
    expected = torch.stack([enumerated_log_joint(model, args, kwargs, layer.unpack(row)) for row in x])
    torch.testing.assert_close(held(x).detach(), expected, rtol=1e-8, atol=1e-8)


FIXED = ("plain", "grouped", "observed_parent", "autoregression", "regression", "nested_plates", "broadcast_data")


@pytest.mark.parametrize("name", FIXED)
def test_other_data_equal_compiling_with_them(name):
    model, args, _ = TARGETS[name].build()
    other = (*args[:1], 1.5 * args[1] + 0.25, args[2]) if name == "regression" else (1.5 * args[0] + 0.25, *args[1:])
    held, wanted = compile_target(model, *args), compile_target(model, *other)
    x = StructuredLayer(held.target.prior())()(torch.randn(5, held.dim)).detach()
    torch.testing.assert_close(held(x, data=wanted.data), wanted(x), rtol=1e-10, atol=1e-10)
    rows = torch.stack([held.data, wanted.data, held.data, wanted.data, held.data])
    each = held(x, data=rows)
    torch.testing.assert_close(each[::2], held(x)[::2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(each[1::2], wanted(x)[1::2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(held(x.expand(3, 5, -1), data=rows)[1], each, rtol=1e-10, atol=1e-10)


def lagged(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        pyro.sample(f"y_{t}", dist.Normal(a * y[t - 1], 1.0), obs=y[t])


def columns(table):
    """Two columns of one tensor: one is observed, the other read."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(table)):
        pyro.sample("y", dist.Normal(a * table[:, 1], 1.0), obs=table[:, 0])


def test_other_data_are_refused_where_the_model_reads_its_data_elsewhere():
    y = torch.randn(6)
    held = compile_target(lagged, y)
    assert held.target.reread == ("y_1", "y_2", "y_3", "y_4")
    x = torch.randn(2, 1)
    torch.testing.assert_close(held(x, data=held.data), held(x))
    with pytest.raises(UserError, match="compiling again"):
        held(x, data=2 * held.data)
    table = torch.randn(5, 2)
    apart = compile_target(columns, table)
    assert apart.target.reread == ()
    other = torch.stack([2 * table[:, 0], table[:, 1]], -1)
    torch.testing.assert_close(apart(x, data=other[:, 0]), compile_target(columns, other)(x))


@pytest.mark.parametrize("name", ["plain", "grouped", "autoregression", "nested_plates", "missing", "imputed"])
def test_gradients_reach_the_data(name):
    model, args, _ = TARGETS[name].build()
    held = compile_target(model, *args)
    x = StructuredLayer(held.target.prior())()(torch.randn(2, held.dim)).detach()
    data = held.data.nan_to_num(0.7)
    for rows in (data, data.expand(2, -1).clone()):
        assert torch.autograd.gradcheck(lambda y: held(x, data=y), rows.clone().requires_grad_())


def test_data_are_told():
    model, args, _ = TARGETS["observed_parent"].build()
    held = compile_target(model, *args)
    assert held.data_sites == {"y": (4,), "level": (4,), "z": (4,)}
    assert held.data.shape == (12,)
    torch.testing.assert_close(held.data[:4], args[0])
    for wrong in (torch.zeros(11), torch.tensor(1.0)):
        with pytest.raises(UserError, match="12 numbers of data"):
            held(torch.zeros(2, held.dim), data=wrong)
    with pytest.raises(UserError, match="do not go with"):
        held(torch.zeros(2, held.dim), data=torch.zeros(3, 12))
    with pytest.raises(UserError, match="12 latent numbers, not 11"):
        held(torch.zeros(2, 11))
    assert held(torch.zeros(0, held.dim)).shape == (0,)
    assert held(torch.zeros(held.dim)).shape == ()
    assert held(torch.zeros(2, 3, held.dim)).shape == (2, 3)


def test_other_dtypes_of_examples():
    model, args, _ = TARGETS["grouped"].build()
    held = compile_target(model, *args)
    x = torch.rand(3, held.dim)
    torch.testing.assert_close(held(x.float()), held(x).float(), rtol=1e-4, atol=1e-4)
    held.float()
    assert held(x.float()).dtype is torch.float32


# ---------------------------------------------------------------------- far out and impossible values


def rates(y):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)
        pyro.sample("n", dist.Poisson(scale), obs=y.abs().round())


def test_far_and_impossible_rows_are_minus_infinity_and_harm_no_other():
    y = torch.tensor([1e8, -1e150, 3.0])
    held = compile_target(rates, y)
    good, loc = torch.tensor([[1.0, 0.3], [2.0, -0.1]]), torch.tensor([0.5])
    bad = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1e-300, 0.0], [math.inf, 0.0], [1.0, math.inf]])
    x = torch.cat([good, bad, torch.tensor([[math.nan, 0.0]])]).requires_grad_()
    value = held(x)
    assert value[2:7].tolist() == [-math.inf] * 5
    assert value[7].isnan()
    (slope,) = torch.autograd.grad(value[:2].sum(), x)
    wanted = good.clone().requires_grad_()
    torch.testing.assert_close(value[:2], held(wanted))
    torch.testing.assert_close(slope[:2], torch.autograd.grad(held(wanted).sum(), wanted)[0])
    assert (slope[2:] == 0).all()
    alone = bad.clone().requires_grad_()
    assert (torch.autograd.grad(held(alone).sum(), alone)[0] == 0).all()
    assert loc.numel() == 1


def gaussian_process(y):
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    points = torch.linspace(0.0, 1.0, len(y))
    kernel = torch.exp(-0.5 * ((points[:, None] - points) / length) ** 2)
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    factor = torch.linalg.cholesky(kernel + noise * torch.eye(len(y)))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), scale_tril=factor), obs=y)


def test_a_row_whose_matrix_has_no_factor_harms_no_other():
    y = torch.sin(torch.arange(12.0))
    held = compile_target(gaussian_process, y)
    x = torch.tensor([[0.5, 0.3], [2000.0, 1e-30], [0.7, 0.1]]).requires_grad_()
    value = held(x)
    assert value[1] == -math.inf
    expected = [log_joint(gaussian_process, (y,), {}, {"length": row[0], "noise": row[1]}, {}) for row in x[::2]]
    torch.testing.assert_close(value[::2], torch.stack(expected), rtol=1e-8, atol=1e-8)
    (slope,) = torch.autograd.grad(value[::2].sum(), x, retain_graph=True)
    (other,) = torch.autograd.grad(torch.stack(expected).sum(), x)
    torch.testing.assert_close(slope, other, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------- what has no meaning


def scaled_labels(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(y)), poutine.scale(scale=0.5):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def improper_below_a_label(y):
    z = pyro.sample("z", dist.Categorical(torch.ones(2)))
    x = pyro.sample("x", dist.ImproperUniform(constraints.greater_than(z.to(y.dtype)), (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y[0])


def labels_alone(y):
    z = pyro.sample("z", dist.Categorical(torch.ones(2)))
    pyro.sample("y", dist.Normal(z.to(y.dtype), 1.0), obs=y[0])


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        (scaled_labels, "E-FACTOR", "poutine.scale"),
        (improper_below_a_label, "E-FACTOR", "an improper prior"),
        (labels_alone, "E-DISCRETE", "nothing is left"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_no_single_meaning(model, code, words):
    with pytest.raises(CompileError, match=words) as caught:
        compile_target(model, torch.tensor([0.1, 0.2]))
    assert caught.value.code == code


# ---------------------------------------------------------------------- cost


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def looped(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(loc, scale), obs=y[t])


def smoothed(y):
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        if t % 3:
            pyro.sample(f"y_{t}", dist.StudentT(3.0, torch.sin(x), 0.1), obs=y[t])


def counted(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    for t in range(len(y)):
        pyro.sample(f"n_{t}", dist.Poisson(rate), obs=y[t].abs().round())
        pyro.factor(f"f_{t}", -rate * y[t])


@pytest.mark.parametrize("model", [looped, smoothed, counted], ids=lambda model: model.__name__)
def test_operations_do_not_grow_with_the_data(model):
    counts = []
    for steps in (30, 300):
        held = compile_target(model, torch.randn(steps))
        x = StructuredLayer(held.target.prior())()(torch.randn(2, held.dim)).detach().requires_grad_()
        held(x)
        counter = _Operations()
        with counter:
            held(x).sum().backward()
        counts.append(counter.count)
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_ten_thousand_observations_in_a_loop():
    y = torch.randn(10_000)
    held = compile_target(looped, y)
    assert len([kernel for kernel in held.plan.kernels if kernel.held.sites[0] in held.plan.given]) == 1
    x = torch.tensor([[0.3, 0.8]])
    expected = (
        dist.Normal(0.0, 1.0).log_prob(x[0, 0])
        + dist.HalfNormal(1.0).log_prob(x[0, 1])
        + dist.Normal(x[0, 0], x[0, 1]).log_prob(y).sum()
    )
    torch.testing.assert_close(held(x)[0], expected, rtol=1e-10, atol=1e-8)
