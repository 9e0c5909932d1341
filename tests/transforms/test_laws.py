"""The laws that every transform obeys, over the table of families."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

from emfc.transforms import NormalTransform, from_normal, gated
from emfc.transforms.base import sum_rightmost
from tests.transforms.cases import BOUND, CASES, DTYPES, LIMIT, SCALAR, noise_grid, round_trip_error

ALL = pytest.mark.parametrize("name", CASES)
BOTH = pytest.mark.parametrize("precision", DTYPES, ids=["float32", "float64"])


def make(name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> NormalTransform:
    return from_normal(CASES[name].dist(dtype, device))


def moderate_noise(name: str, count: int = 7, limit: float = 2.5) -> Tensor:
    """Float64 noise that avoids the corners between the levels of discrete families."""
    return noise_grid(CASES[name], torch.float64, limit, count) + 0.0123


@ALL
@BOTH
def test_round_trip(name, precision):
    noise = noise_grid(CASES[name], precision, min(LIMIT[precision], CASES[name].reach), 401)
    value, error, allowed = round_trip_error(make(name, precision), noise)
    assert torch.isfinite(value).all()
    assert (error <= allowed).all(), (error / allowed).max()


@ALL
@BOTH
def test_draws_lie_strictly_inside_the_support(name, precision):
    transform = make(name, precision)
    noise = noise_grid(CASES[name], precision, 2 * LIMIT[precision])
    value, ladj = transform.call_and_ladj(noise)
    assert not torch.isnan(ladj).any()
    assert torch.isfinite(value).all()
    assert transform.codomain.check(value).all()
    constraint = getattr(transform.codomain, "base_constraint", transform.codomain)
    if hasattr(constraint, "lower_bound"):
        assert (value > constraint.lower_bound).all()
    if hasattr(constraint, "upper_bound"):
        assert (value < constraint.upper_bound).all()


@ALL
def test_log_jacobian_is_that_of_autograd(name):
    case, transform = CASES[name], make(name, torch.float64)
    noise = moderate_noise(name)
    value, ladj = transform.call_and_ladj(noise)
    inverse_ladj = transform.inv.call_and_ladj(value)[1]
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(transform.log_abs_det_jacobian(noise, value), ladj, rtol=1e-8, atol=1e-8)
    if case.event_dim:
        jacobian = torch.func.vmap(torch.func.jacrev(lambda e: case.free.pick(transform.call_and_ladj(e)[0])))(noise)
        expected = torch.linalg.slogdet(jacobian)[1]
    else:
        leaf = noise.clone().requires_grad_()
        expected = torch.autograd.grad(transform(leaf).sum(), leaf)[0].log()
    torch.testing.assert_close(ladj, expected, rtol=1e-7, atol=1e-7)


@ALL
def test_density_is_that_of_the_distribution(name, dtype, device):
    case = CASES[name]
    dist, transform = case.dist(dtype, device), make(name, dtype, device)
    value = transform(moderate_noise(name).to(device, dtype))
    noise, ladj = transform.inv.call_and_ladj(value)
    density = sum_rightmost(-0.5 * noise**2 - 0.5 * math.log(2 * math.pi), transform.domain.event_dim) + ladj
    expected = dist.log_prob(value.floor() if case.discrete else value)
    tolerance = 1e-8 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(density, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SCALAR)
@BOTH
def test_tails_agree_with_mpmath(name, precision):
    case, limit = CASES[name], LIMIT[precision]
    noise = noise_grid(case, precision, limit, 9)
    value, ladj = make(name, precision).call_and_ladj(noise)
    info = torch.finfo(precision)
    for row in range(noise.shape[0]):
        for index in range(noise.shape[1]):
            e, x = noise[row, index].item(), value[row, index].item()
            # mpmath sees the parameters as the transform does, rounded to the dtype
            parameters = [tensor[index].tolist() for tensor in case.tensors(precision)]
            with mp.workdps(200):
                lower, upper = case.tails(mp.mpf(x), *parameters)
                tail = lower if e < 0 else upper
                small = mp.erfc(abs(mp.mpf(e)) / mp.sqrt(2)) / 2
                slope = mp.exp(-(mp.mpf(e) ** 2) / 2) / mp.sqrt(2 * mp.pi) / small
                error = float(abs(mp.log(tail / small)) / slope) if tail > 0 else math.inf
            rounding = 4 * max(abs(x) * info.eps, info.tiny * info.eps) * math.exp(min(-ladj[row, index].item(), 700))
            assert error <= max(BOUND[precision] * max(1.0, abs(e)), rounding), (e, x, error, rounding)


def central_differences(function, inputs, index, step=1e-5):
    """Derivative of a scalar function along every element of one input."""
    result = torch.zeros_like(inputs[index])
    flat = result.view(-1)
    for i in range(flat.numel()):
        ends = []
        for sign in (1, -1):
            moved = [t.detach().clone() for t in inputs]
            moved[index].view(-1)[i] += sign * step
            ends.append(function(*moved))
        flat[i] = (ends[0] - ends[1]) / (2 * step)
    return result


@ALL
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_agree_with_central_differences(name, direction):
    case = CASES[name]
    noise = moderate_noise(name, 3, 2.0)
    values = make(name, torch.float64)(noise).detach()
    inputs = [noise if direction == "forward" else case.free.pick(values), *case.tensors(torch.float64)]
    torch.manual_seed(1)
    weights = torch.rand(2, *noise.shape, dtype=torch.float64) + 0.5

    def score(x, *parameters):
        transform = from_normal(case.build(*parameters))
        forward = direction == "forward"
        y, ladj = transform.call_and_ladj(x) if forward else transform.inv.call_and_ladj(case.free.fill(x))
        y = case.free.pick(y) if forward else y
        return (weights[0] * y).sum() + (weights[1].flatten()[: ladj.numel()] * ladj.flatten()).sum()

    leaves = [t.clone().requires_grad_() for t in inputs]
    gradients = torch.autograd.grad(score(*leaves), leaves)
    for index, gradient in enumerate(gradients):
        expected = central_differences(score, inputs, index)
        scale = expected.abs().max().clamp(min=1)
        assert (gradient - expected).abs().max() <= 1e-6 * scale, (index, gradient, expected)


@ALL
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradcheck(name, direction):
    case = CASES[name]
    noise = moderate_noise(name, 2, 1.5)
    values = make(name, torch.float64)(noise).detach()

    def run(x, *parameters):
        transform = from_normal(case.build(*parameters))
        return transform.call_and_ladj(x) if direction == "forward" else transform.inv.call_and_ladj(case.free.fill(x))

    inputs = [noise if direction == "forward" else case.free.pick(values), *case.tensors(torch.float64)]
    assert torch.autograd.gradcheck(
        run, [t.requires_grad_() for t in inputs], atol=1e-6, rtol=1e-4, fast_mode=True, check_forward_ad=True
    )


@ALL
@BOTH
def test_gradients_are_never_nan(name, precision):
    case = CASES[name]
    for direction in ("forward", "inverse"):
        parameters = [t.requires_grad_() for t in case.tensors(precision)]
        transform = from_normal(case.build(*parameters))
        noise = noise_grid(case, precision, 1.4 * LIMIT[precision])
        x = (noise if direction == "forward" else transform(noise).detach()).requires_grad_()
        y, ladj = (transform if direction == "forward" else transform.inv).call_and_ladj(x)
        for gradient in torch.autograd.grad(y.sum() + ladj.sum(), [x, *parameters]):
            assert not torch.isnan(gradient).any()


@ALL
def test_batch_shapes_broadcast(name, dtype):
    case, transform = CASES[name], make(name, dtype)
    shape, whole = case.noise_shape(), case.value_shape()
    batch = whole[: len(whole) - case.event_dim]
    event = shape[len(batch) :]
    small = torch.randn(event, dtype=dtype)
    for noise in (small, small.expand(4, *(1,) * len(batch), *event)):
        value, ladj = transform.call_and_ladj(noise)
        expected = torch.broadcast_shapes(noise.shape[: noise.dim() - len(event)], batch)
        assert value.shape == (*expected, *whole[len(batch) :]) == transform.forward_shape((*expected, *event))
        assert ladj.shape == expected
        back, inverse_ladj = transform.inv.call_and_ladj(value)
        assert back.shape == (*expected, *event) == transform.inverse_shape(value.shape)
        assert inverse_ladj.shape == expected
        torch.testing.assert_close(transform(noise.expand(back.shape)), value)


@ALL
def test_vmap_over_noise_and_parameters(name):
    case = CASES[name]
    if "counts" in name:
        pytest.skip("the number of levels is fixed outside")
    if not case.mapped:
        pytest.skip("torch looks at the parameters")
    noise = moderate_noise(name, 3)
    parameters = case.tensors(torch.float64)
    stacked = [torch.stack([t, t * 1.01, t * 0.99]) for t in parameters]

    def both(e, *values):
        transform = from_normal(_unvalidated(case, values))
        x, ladj = transform.call_and_ladj(e)
        return (x, ladj, *transform.inv.call_and_ladj(x))

    mapped = torch.func.vmap(both)(noise, *stacked)
    looped = [torch.stack(parts) for parts in zip(*map(both, noise, *stacked), strict=True)]
    for one, other in zip(mapped, looped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    gradient = torch.func.vmap(torch.func.grad(lambda e, *p: sum(part.sum() for part in both(e, *p))))(noise, *stacked)
    assert torch.isfinite(gradient).all()


def _unvalidated(case, values):
    with _no_validation():
        return case.build(*values)


class _no_validation:
    """Validation of torch and Pyro distributions off for a while."""

    def __enter__(self):
        import pyro

        self.before = torch.distributions.Distribution._validate_args
        self.pyro = pyro.validation_enabled(False)
        self.pyro.__enter__()
        torch.distributions.Distribution.set_default_validate_args(False)

    def __exit__(self, *exception):
        self.pyro.__exit__(*exception)
        torch.distributions.Distribution.set_default_validate_args(self.before)


@ALL
def test_outside_the_support(name, dtype):
    case = CASES[name]
    parameters = [t.requires_grad_() for t in case.tensors(dtype)]
    transform = from_normal(case.build(*parameters))
    inner = getattr(transform.codomain, "base_constraint", transform.codomain)
    shape = case.value_shape()
    for x in (-1e3, 1e3, -math.inf, math.inf):
        value = torch.full(shape, x, dtype=dtype)
        if inner.event_dim or (inner.check(value).any() and math.isfinite(x)) or "normal" in name:
            continue
        value.requires_grad_()
        noise, ladj = transform.inv.call_and_ladj(value)
        assert torch.isfinite(noise).all()
        assert (ladj == -math.inf).all()
        finite = ladj.masked_fill(ladj == -math.inf, 0).sum() + 0 * noise.sum()
        for result in (noise.sum(), finite):
            for gradient in torch.autograd.grad(result, [value, *parameters], retain_graph=True):
                assert not torch.isnan(gradient).any()


@ALL
def test_half_precision_is_computed_in_float32(name):
    case = CASES[name]
    if not case.half:
        pytest.skip("torch has no half-precision Cholesky factor")
    noise = torch.randn(5, *case.noise_shape()).to(torch.bfloat16)
    parameters = [t.to(torch.bfloat16) for t in case.tensors(torch.float32)]
    value, ladj = from_normal(_unvalidated(case, parameters)).call_and_ladj(noise)
    assert value.dtype == ladj.dtype == torch.float32
    reference = from_normal(_unvalidated(case, [t.float() for t in parameters])).call_and_ladj(noise.float())[0]
    torch.testing.assert_close(value, reference, rtol=2e-2, atol=2e-2)


@ALL
def test_samples_are_distributed_as_the_distribution(name):
    case = CASES[name]
    dist, transform = case.dist(torch.float64), make(name, torch.float64)
    if not case.sampled:
        pytest.skip("torch samples another distribution")
    count = 4000
    sample = dist.sample((count,))
    if case.discrete:
        sample = sample + torch.rand(sample.shape, dtype=torch.float64)
    noise = transform.inv(sample).reshape(count, -1)
    ordered = torch.special.ndtr(noise.sort(0).values)
    steps = torch.arange(1, count + 1, dtype=torch.float64).unsqueeze(-1) / count
    distance = torch.maximum((ordered - steps).abs(), (ordered - steps + 1 / count).abs()).amax(0)
    assert (distance * math.sqrt(count) < 2.3).all(), distance * math.sqrt(count)


@ALL
def test_inverse_of_the_inverse_is_the_transform(name):
    transform = make(name, torch.float64)
    assert transform.inv.inv is transform
    assert transform.inv == transform.inv
    assert transform.discrete == CASES[name].discrete
    assert transform.codomain.event_dim == CASES[name].event_dim
    assert transform.domain.event_dim == (1 if CASES[name].event_dim else 0)
    assert repr(transform.inv).endswith(".inv")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "halfnormal", "uniform", "cauchy", "categorical", "mixture of normals"])
def test_compile(name):
    case = CASES[name]
    noise = moderate_noise(name, 3)
    parameters = case.tensors(torch.float64)

    def run(e, *values):
        transform = from_normal(case.build(*values))
        x, ladj = transform.call_and_ladj(e)
        opened = gated(transform, torch.tensor(0.7, dtype=e.dtype))
        return (x, ladj, *transform.inv.call_and_ladj(1.01 * x), *opened.inv.call_and_ladj(x))

    leaves = [t.requires_grad_() for t in (noise, *parameters)]
    with _no_validation():
        expected = run(*leaves)
        result = torch.compile(run)(*leaves)
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    gradients = [torch.autograd.grad(sum(part.sum() for part in parts), leaves) for parts in (result, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
