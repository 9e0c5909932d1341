"""Learned layers: identity start, inverse, log-Jacobian, dependencies, robustness."""

from __future__ import annotations

import math

import pytest
import torch

from emfc.flows.backbones import AutoregressiveLayer, Backbone
from emfc.flows.configuration import FlowConfiguration
from emfc.flows.inversion import BlockwiseTransform
from emfc.flows.univariate import LOG_SCALE_BOUND, AffineTransform, soft_bound, spline

KINDS = ["maf", "nsf", "coupling", "mvn"]


def _backbone(kind: str, features: int, *, context: int = 0, transforms: int = 3, hidden=(24, 24)) -> Backbone:
    configuration = FlowConfiguration(
        backbone=kind, hidden_features=hidden, context_features=context, activation="tanh"
    )
    return Backbone(features, configuration, transforms=transforms)


def _disturb(module: torch.nn.Module, scale: float = 0.2) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [1, 2, 7])
def test_untrained_is_the_identity(kind, features, dtype):
    noise = 3 * torch.randn(50, features)
    value, ladj = _backbone(kind, features)().call_and_ladj(noise)
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(value, noise, atol=bound, rtol=bound)
    assert ladj.abs().max() <= 10 * bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [0, 3], ids=["plain", "conditional"])
def test_inverse_and_log_jacobian(kind, context, dtype):
    features = 6
    backbone = _backbone(kind, features, context=context)
    _disturb(backbone)
    given = torch.randn(context) if context else None
    noise = 2 * torch.randn(20, features)
    value, ladj = backbone(given).call_and_ladj(noise)
    back, back_ladj = backbone(given).inv.call_and_ladj(value)
    bound = 2e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(back, noise, atol=bound, rtol=bound)
    torch.testing.assert_close(back_ladj, -ladj, atol=bound, rtol=bound)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x: backbone(given).inv(x), value[row])
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(back_ladj[row], expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_elements_keep_their_places_and_the_last_sees_all(kind):
    """One layer in each order: noise d belongs to element d, and the last in order depends on every other."""
    features = 300
    backbone = _backbone(kind, features, transforms=2, hidden=(128, 128))
    _disturb(backbone, 0.02)
    point = torch.randn(features)
    for layer, ascending in zip(backbone.layers, (True, False), strict=True):
        last = features - 1 if ascending else 0
        value = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer().inv(value)[last], value)
        assert (gradient != 0).all()
        first = 0 if ascending else features - 1
        (gradient,) = torch.autograd.grad(layer().inv(value)[first], value)
        assert gradient.nonzero().flatten().tolist() == [first]


def test_density_direction_is_one_pass():
    backbone = _backbone("maf", 40, transforms=2)
    calls = 0

    def count(*_args):
        nonlocal calls
        calls += 1

    for layer in backbone.layers:
        layer.network.register_forward_hook(count)
    backbone().inv.call_and_ladj(torch.randn(8, 40))
    assert calls == 2


def test_coupling_samples_in_one_pass():
    backbone = _backbone("coupling", 40, transforms=2)
    calls = 0

    def count(*_args):
        nonlocal calls
        calls += 1

    for layer in backbone.layers:
        layer.layer.hyper.register_forward_hook(count)
    backbone()(torch.randn(8, 40))
    assert calls == 2


@pytest.mark.parametrize("kind", ["maf", "nsf", "coupling"])
@pytest.mark.parametrize("factor", [8.0, 100.0])
def test_large_weights_give_finite_samples_and_densities(kind, factor):
    backbone = _backbone(kind, 30, transforms=3, hidden=(32, 32))
    _disturb(backbone, 0.3)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(factor)
    backbone = backbone.float()
    value, ladj = backbone().call_and_ladj(torch.randn(64, 30, dtype=torch.float32))
    assert torch.isfinite(ladj).all()
    assert torch.isfinite(value).all()
    noise, ladj = backbone().inv.call_and_ladj(50 * torch.randn(64, 30, dtype=torch.float32))
    assert torch.isfinite(noise).all()
    assert torch.isfinite(ladj).all()


@pytest.mark.parametrize("kind", KINDS)
def test_far_inputs_have_finite_gradients(kind):
    backbone = _backbone(kind, 8)
    _disturb(backbone)
    value = (50 * torch.randn(16, 8)).requires_grad_()
    noise, ladj = backbone().inv.call_and_ladj(value)
    (noise.square().sum() + ladj.sum()).backward()
    assert torch.isfinite(value.grad).all()
    for name, parameter in backbone.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_context_changes_the_density_and_broadcasts():
    backbone = _backbone("maf", 4, context=2)
    _disturb(backbone)
    value = torch.randn(5, 1, 4)
    contexts = torch.randn(3, 2)
    noise, ladj = backbone(contexts).inv.call_and_ladj(value.expand(5, 3, 4))
    assert noise.shape == (5, 3, 4)
    assert ladj.shape == (5, 3)
    one, one_ladj = backbone(contexts[1]).inv.call_and_ladj(value[:, 0])
    torch.testing.assert_close(noise[:, 1], one)
    torch.testing.assert_close(ladj[:, 1], one_ladj)


def test_log_scales_are_bounded_on_both_sides():
    far = torch.tensor([-1e30, -1.0, 0.0, 1.0, 1e30])
    bounded = soft_bound(far, LOG_SCALE_BOUND, LOG_SCALE_BOUND)
    assert bounded.abs().max() <= math.log(1e3) * (1 + 1e-6)
    assert bounded[2] == 0
    transform = AffineTransform(torch.zeros(5), far)
    assert torch.isfinite(transform(torch.ones(5))).all()
    assert torch.isfinite(transform.inv(torch.ones(5))).all()


def test_other_elements_take_a_log_scale_down_by_its_bound_at_most(dtype):
    configuration = FlowConfiguration(hidden_features=(16,), context_features=1, transforms=1)
    layer = AutoregressiveLayer(5, configuration, reverse=False).to(dtype)
    _disturb(layer, 30.0)
    constants = torch.tensor([0.5, -4.0, 0.0, 1.0, 2.0], dtype=dtype)
    with torch.no_grad():
        layer.log_scale.copy_(constants)
    inverse = layer(100 * torch.randn(64, 1, dtype=dtype)).inv
    value = (100 * torch.randn(64, 5, dtype=dtype)).requires_grad_()
    noise = inverse(value)
    slopes = [torch.autograd.grad(noise[:, i].sum(), value, retain_graph=True)[0][:, i] for i in range(5)]
    moved = -torch.stack(slopes, -1).log() - soft_bound(constants, LOG_SCALE_BOUND, LOG_SCALE_BOUND)
    assert -configuration.log_scale_bound <= moved.min() < -0.9 * configuration.log_scale_bound
    assert 0.9 * LOG_SCALE_BOUND < moved.max() <= LOG_SCALE_BOUND


def test_an_unbounded_layer_has_one_output_for_the_log_scale():
    layer = AutoregressiveLayer(5, FlowConfiguration(log_scale_bound=None), reverse=False)
    assert layer.log_scale is None
    assert isinstance(layer().inv, BlockwiseTransform)


def test_spline_starts_as_the_identity_with_knots_in_the_middle():
    transform = spline(8, 10.0, 4.0)(torch.zeros(8), torch.zeros(8), torch.zeros(7))
    points = torch.linspace(-12, 12, 201)
    torch.testing.assert_close(transform(points), points, atol=1e-5, rtol=1e-5)
    knots = transform.horizontal
    torch.testing.assert_close(knots[1], torch.tensor(-4.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(knots[-2], torch.tensor(4.0), atol=1e-4, rtol=1e-4)


def test_gaussian_layer_is_a_gaussian():
    backbone = _backbone("mvn", 4, transforms=1)
    _disturb(backbone, 0.5)
    layer = backbone.layers[0]
    jacobian = torch.autograd.functional.jacobian(lambda e: layer()(e), torch.zeros(4))
    assert torch.equal(jacobian, jacobian.tril())
    assert (jacobian.diagonal() > 0).all()
    density = torch.distributions.MultivariateNormal(layer.mean, scale_tril=jacobian)
    value = torch.randn(10, 4)
    noise, ladj = backbone().inv.call_and_ladj(value)
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) + ladj
    torch.testing.assert_close(log_density, density.log_prob(value))
