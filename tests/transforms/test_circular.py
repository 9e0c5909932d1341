"""The von Mises transform: its cut, modes of any angle, and the relatives that are refused."""

from __future__ import annotations

import math

import pyro.distributions as pd
import pytest
import torch
from torch import distributions as td

from emfc.transforms import CDFTransform, UnsupportedFamilyError, from_normal, gated, mixture_family, scalar_family

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def test_a_mode_next_to_the_cut_has_draws_at_both_ends():
    transform = from_normal(td.VonMises(torch.tensor(3.1), torch.tensor(50.0)))
    noise = torch.linspace(-3, 3, 13)
    value, _ = transform.call_and_ladj(noise)
    assert (value.diff() > 0).all()
    assert value[0] < -2.5
    assert value[-1] > 2.5
    torch.testing.assert_close(transform.inv(value), noise)


def test_modes_a_turn_apart_are_the_same():
    angle = torch.tensor([0.3, -2.0, 3.0])
    noise = torch.linspace(-4, 4, 9).unsqueeze(-1)
    expected = from_normal(td.VonMises(angle, torch.tensor(2.0)))(noise)
    for turns in (-3, 1, 20):
        value = from_normal(td.VonMises(angle + turns * 2 * math.pi, torch.tensor(2.0)))(noise)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_the_density_is_that_of_one_turn():
    dist = td.VonMises(torch.tensor(1.0), torch.tensor(4.0))
    transform = from_normal(dist)
    x = torch.tensor([-3.2, -3.0, 0.0, 3.0, 3.2, 9.0, math.inf])
    noise, ladj = transform.inv.call_and_ladj(x)
    assert torch.isfinite(noise).all()
    density = -0.5 * noise**2 - HALF_LOG_TWO_PI + ladj
    torch.testing.assert_close(density[1:4], dist.log_prob(x[1:4]), rtol=1e-6, atol=1e-6)
    assert torch.isinf(density).tolist() == [True, False, False, False, True, True, True]


def test_samples_of_torch_become_standard_noise():
    torch.manual_seed(0)
    dist = td.VonMises(torch.tensor([2.5, -1.0]), torch.tensor([0.3, 20.0]))
    noise = from_normal(dist).inv(dist.sample((4000,)))
    ordered = torch.special.ndtr(noise.sort(0).values)
    steps = torch.arange(1, 4001).unsqueeze(-1) / 4000
    assert ((ordered - steps).abs().amax(0) * math.sqrt(4000) < 2).all()


def test_hardly_any_concentration_is_a_uniform_angle():
    for concentration in (0.0, 1e-12):
        k = torch.tensor(concentration, requires_grad=True)
        transform = CDFTransform(scalar_family(td.VonMises(torch.tensor(2.0), k, validate_args=False)))
        noise = torch.linspace(-20, 20, 9)
        value, ladj = transform.call_and_ladj(noise)
        expected = from_normal(td.Uniform(-math.pi, math.pi)).call_and_ladj(noise)
        torch.testing.assert_close(value, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ladj, expected[1], rtol=1e-9, atol=1e-9)
        assert torch.isfinite(torch.autograd.grad(value.sum() + ladj.sum(), k)[0])


def test_gates_and_mixtures():
    loc, k = torch.tensor([-2.0, 1.0]), torch.tensor([3.0, 30.0])
    opened = gated(from_normal(td.VonMises(loc, k)), torch.tensor(0.6))
    noise = torch.linspace(-5, 5, 11).unsqueeze(-1).expand(11, 2)
    torch.testing.assert_close(opened.inv(opened(noise)), noise, rtol=1e-7, atol=1e-7)
    mixed = CDFTransform(mixture_family(torch.zeros(2), scalar_family(td.VonMises(loc, k))))
    torch.testing.assert_close(mixed.inv(mixed(noise[:, 0])), noise[:, 0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("dist", "instead"),
    [
        (lambda: pd.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.1), "VonMises"),
        (lambda: pd.SineSkewed(pd.VonMises(0.0, 1.0).expand([1]).to_event(1), torch.tensor([0.3])), "VonMises"),
        (lambda: pd.ProjectedNormal(torch.ones(2)), "MultivariateNormal"),
        (lambda: pd.VonMises3D(torch.tensor([1.0, 0.0, 0.0])), "VonMises"),
    ],
    ids=["sine bivariate", "sine skewed", "projected normal", "three dimensions"],
)
def test_relatives_are_refused(dist, instead):
    for make in (from_normal, scalar_family):
        with pytest.raises(UnsupportedFamilyError, match=f"nearest supported is .*{instead}"):
            make(dist())


def test_a_parameter_that_is_no_number_gives_none():
    transform = from_normal(td.VonMises(torch.tensor(math.nan), 1.0, validate_args=False))
    noise, _ = transform.inv.call_and_ladj(torch.tensor([-1.0, 0.3, 2.0]))
    assert noise.isnan().all()
