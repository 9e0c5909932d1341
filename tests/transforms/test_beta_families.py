"""Beta, its relatives and Student's t at the ends of their parameters, which the table of families leaves out."""

from __future__ import annotations

import pyro.distributions as pd
import pytest
import torch
from torch import distributions as td

from emfc.transforms import from_normal
from tests.transforms.cases import LIMIT, round_trip_error

BOTH = pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
ENDS = torch.cartesian_prod(
    torch.tensor([1e-2, 0.3, 1.0, 7.0, 1e3, 1e5]), torch.tensor([1e-2, 0.3, 1.0, 7.0, 1e3, 1e5])
)


def betas(parameters):
    return td.Beta(parameters[:, 0], parameters[:, 1])


def affine_betas(parameters):
    loc, scale = torch.tensor([-3.0, 0.1]).to(parameters)
    return pd.AffineBeta(parameters[:, 0], parameters[:, 1], loc, scale)


def ratios(parameters):
    df = 20 * parameters.clamp(0.3, 1e3)
    return pd.FisherSnedecor(df[:, 0], df[:, 1])


def students(parameters):
    df = parameters[:, 0] * torch.linspace(0.5, 1.5, len(parameters), dtype=parameters.dtype)
    return pd.StudentT(df.clamp(0.5, 1e4), parameters[:, 1].log(), 2.0)


FAMILIES = pytest.mark.parametrize("family", [betas, affine_betas, ratios, students])


@FAMILIES
@BOTH
def test_round_trip_at_extreme_parameters(family, precision):
    transform = from_normal(family(ENDS.to(precision)))
    noise = torch.linspace(-LIMIT[precision], LIMIT[precision], 101, dtype=precision).unsqueeze(-1)
    value, error, allowed = round_trip_error(transform, noise.expand(-1, len(ENDS)))
    assert torch.isfinite(value).all()
    assert transform.codomain.check(value).all()
    assert (value.diff(dim=0) >= 0).all()
    info = torch.finfo(precision)
    shown = (value.abs() > info.tiny * info.eps) & (value.abs() < 0.99 * info.max)  # not the last number there is
    assert shown.double().mean() > 0.7
    assert (error <= allowed)[shown].all(), (error / allowed)[shown].max()


@FAMILIES
@BOTH
def test_nothing_is_nan_twice_as_far_out(family, precision):
    parameters = ENDS.to(precision).requires_grad_()
    reach = 2 * LIMIT[precision]
    noise = torch.linspace(-reach, reach, 41, dtype=precision).unsqueeze(-1).repeat(1, len(ENDS)).requires_grad_()
    transform = from_normal(family(parameters))
    value = transform(noise).detach().requires_grad_()
    for direction, x in ((transform, noise), (transform.inv, value)):
        for result in direction.call_and_ladj(x):
            assert torch.isfinite(result).all()
            for gradient in torch.autograd.grad(result.sum(), (parameters, x), retain_graph=True):
                assert not torch.isnan(gradient).any()


@pytest.mark.parametrize("family", [betas, ratios, students])
def test_derivatives_of_both_directions_undo_each_other(family):
    """The noise of a draw does not depend on the parameters."""
    parameters = ENDS[ENDS.amin(-1) >= 0.3].double().requires_grad_()
    noise = torch.linspace(-3, 3, len(parameters), dtype=torch.float64, requires_grad=True)
    transform = from_normal(family(parameters))
    value, ladj = transform.call_and_ladj(noise)
    back, inverse_ladj = transform.inv.call_and_ladj(value)
    by_parameters, by_noise = torch.autograd.grad(back.sum(), (parameters, noise), retain_graph=True)
    direct = torch.autograd.grad(transform.inv(value.detach()).sum(), parameters)[0]
    shown = (back - noise).abs().lt(1e-11).double().detach()  # a value next to 1 is rounded too coarsely
    assert shown.mean() > 0.8
    torch.testing.assert_close(inverse_ladj * shown, -ladj * shown, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(by_noise * shown, shown, rtol=1e-6, atol=1e-6)
    assert (by_parameters.abs() * shown.unsqueeze(-1) <= 1e-6 * direct.abs() + 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", [betas, students])
def test_compiles(family):
    parameters = torch.tensor([[2.0, 3.0], [0.4, 40.0], [300.0, 0.6]], dtype=torch.float64)
    noise = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)

    def run(noise, parameters):
        transform = from_normal(family(parameters))
        value, ladj = transform.call_and_ladj(noise)
        return (value, ladj, *transform.inv.call_and_ladj(0.999 * value))

    leaves = [noise.requires_grad_(), parameters.requires_grad_()]
    td.Distribution.set_default_validate_args(False)
    try:
        results, expected = torch.compile(run)(*leaves), run(*leaves)
    finally:
        td.Distribution.set_default_validate_args(True)
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad(sum(part.sum() for part in parts), leaves) for parts in (results, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
