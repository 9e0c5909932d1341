"""Inverses found block by block: the values and gradients of passes of the whole network, in far less work."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from emfc.flows import inversion
from emfc.flows.backbones import AutoregressiveLayer, Backbone
from emfc.flows.configuration import FlowConfiguration
from emfc.inference.backbones import InverseAutoregressiveLayer

KINDS = pytest.mark.parametrize("kind", ["maf", "nsf"])
BLOCKS = pytest.mark.parametrize("block", [None, 3], ids=["chosen", "three"])
TIGHT, LOOSE = 1e-9, 1e-3


def layer(kind, features, hidden=(24, 24), *, context=0, reverse=False, scale=0.15, dtype=None, activation="tanh"):
    configuration = FlowConfiguration(
        backbone=kind, hidden_features=hidden, context_features=context, activation=activation
    )
    made = AutoregressiveLayer(features, configuration, reverse=reverse)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return made if dtype is None else made.to(dtype)


def take(monkeypatch, block):
    """Blocks of one size, where one is given, and blocks for any number of elements."""
    monkeypatch.setattr(inversion, "FEWEST", 2)
    if block is not None:
        monkeypatch.setattr(inversion, "block_size", lambda *_: block)


def results(made, context, noise, *, by_passes):
    """Values, log-Jacobian, and gradients to noise, context and parameters of a function of both."""
    noise = noise.detach().requires_grad_()
    context = None if context is None else context.detach().requires_grad_()
    transform = made.autoregressive(context)
    if by_passes:
        value = transform.by_passes(noise)
        ladj = -transform.log_abs_det_jacobian(value, noise)
    else:
        assert transform._by_blocks(noise)
        value, ladj = transform.inv.call_and_ladj(noise)
    weights = torch.linspace(-1, 2, noise.shape[-1], dtype=noise.dtype)
    rows = torch.linspace(1, 2, max(ladj.numel(), 1), dtype=noise.dtype)[: ladj.numel()].reshape(ladj.shape)
    total = (weights * value).sum() + 0.1 * value.square().sum() + (rows * ladj).sum()
    leaves = [noise, *([] if context is None else [context]), *made.parameters()]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [value, ladj, *(torch.zeros(()) if one is None else one for one in gradients)]


def agree(made, context, noise, bound):
    found = results(made, context, noise, by_passes=False)
    for one, other in zip(found, results(made, context, noise, by_passes=True), strict=True):
        size = 1 + float(other.detach().abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=bound, atol=bound * size, check_dtype=False)
    with torch.no_grad():
        torch.testing.assert_close(made(context)(noise), found[0], rtol=bound, atol=bound)


CASES = {
    "two elements": (2, (4, 4)),
    "three elements, one unit": (3, (1,)),
    "wide": (5, (40, 40)),
    "one layer": (9, (20,)),
    "one unit": (6, (1,)),
    "two units": (9, (2, 2)),
    "shrinking": (30, (64, 7)),
    "growing": (30, (7, 64)),
    "three layers, narrow": (20, (6, 5, 4)),
    "no hidden excess": (17, (16, 16)),
    "thirty": (30, (32, 32)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("context", [0, 3], ids=["plain", "conditional"])
@pytest.mark.parametrize(("kind", "block"), [("maf", 3), ("maf", 1), ("nsf", 5), ("nsf", 64)])
def test_values_and_gradients_are_those_of_passes(case, context, kind, block, dtype, monkeypatch):
    take(monkeypatch, block)
    features, hidden = CASES[case]
    made = layer(kind, features, hidden, context=context, reverse=len(case) % 2 == 1)
    given_context = torch.randn(4, context) if context else None
    agree(made, given_context, torch.randn(4, features), LOOSE if dtype == torch.float32 else TIGHT)


@KINDS
@BLOCKS
@pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
def test_single_precision(kind, block, reverse, monkeypatch):
    take(monkeypatch, block)
    made = layer(kind, 40, (33, 17), context=2, reverse=reverse, scale=0.1, dtype=torch.float32)
    agree(made, torch.randn(6, 2, dtype=torch.float32), torch.randn(6, 40, dtype=torch.float32), LOOSE)


@KINDS
@pytest.mark.parametrize("scale", [0.02, 0.1])
def test_single_precision_is_as_accurate_as_passes(kind, scale):
    """Beside the values of double precision, which both ways share."""
    made = layer(kind, 100, (64, 64), scale=scale, dtype=torch.float32)
    noise = torch.randn(16, 100, dtype=torch.float32)
    with torch.no_grad():
        found = made()(noise), made.autoregressive().by_passes(noise)
        made.double()
        exact = made()(noise.double())
        torch.testing.assert_close(exact, made.autoregressive().by_passes(noise.double()), rtol=1e-8, atol=1e-8)
    errors = [float((one - exact).square().mean().sqrt()) for one in found]
    assert errors[0] <= 2 * errors[1] + 1e-7


@KINDS
def test_elements_that_the_network_sees_clipped(kind, dtype):
    made = layer(kind, 20, (16, 16), scale=0.1)
    noise, cotangent = torch.randn(6, 20, requires_grad=True), torch.randn(6, 20)
    transform = inversion.BlockwiseTransform(made.network, made._parametrised, None, limit=0.8, passes=20)
    bound = LOOSE if dtype == torch.float32 else TIGHT
    leaves = [noise, *made.network.parameters()]
    found = torch.autograd.grad(transform.inv(noise), leaves, cotangent)
    for one, other in zip(found, torch.autograd.grad(transform.by_passes(noise), leaves, cotangent), strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@given(
    kind=st.sampled_from(["maf", "nsf"]),
    features=st.integers(2, 24),
    hidden=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    context=st.integers(0, 3),
    reverse=st.booleans(),
    block=st.integers(1, 30),
    batch=st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]),
    activation=st.sampled_from(["tanh", "relu", "elu", "silu", "softplus"]),
    scale=st.floats(0.0, 0.3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_layer(kind, features, hidden, context, reverse, block, batch, activation, scale, seed):
    with pytest.MonkeyPatch.context() as monkeypatch:
        take(monkeypatch, block)
        torch.manual_seed(seed)
        made = layer(
            kind,
            features,
            tuple(hidden),
            context=context,
            reverse=reverse,
            scale=scale,
            activation=activation,
            dtype=torch.float64,
        )
        shape = batch[-1:] if seed % 2 else batch
        given_context = torch.randn(*shape, context, dtype=torch.float64) if context else None
        agree(made, given_context, torch.randn(*batch, features, dtype=torch.float64), 1e-7)


@KINDS
@pytest.mark.parametrize("factor", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("block", [1, 64])
def test_large_weights_solve_the_equation(kind, factor, block, monkeypatch):
    """The passes amplify rounding here, so that what counts is that the noise comes back."""
    take(monkeypatch, block)
    made = layer(kind, 30, (32, 32), scale=0.3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(factor)
    noise = torch.randn(16, 30, dtype=torch.float64)
    transform = made.autoregressive()
    with torch.no_grad():
        value, reference = transform.inv(noise), transform.by_passes(noise)
        assert value.isfinite().all()
        error = (transform(value) - noise).abs().max()
        assert error <= 10 * (transform(reference) - noise).abs().max() + 1e-10


@KINDS
@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_many_elements(kind, scale):
    features = 784
    made = layer(kind, features, (512, 300), reverse=True, scale=scale, dtype=torch.float32)
    noise = torch.randn(4, features, dtype=torch.float32)
    with torch.no_grad():
        value, ladj = made().call_and_ladj(noise)
        back, back_ladj = made().inv.call_and_ladj(value)
    assert (back - noise).abs().max() < (1e-4 if scale < 0.1 else 2e-2)
    torch.testing.assert_close(ladj, -back_ladj, rtol=1e-5, atol=1e-3)
    if kind == "maf" and scale < 0.1:
        with torch.no_grad():
            torch.testing.assert_close(value, made.autoregressive().by_passes(noise), rtol=1e-4, atol=1e-4)


@KINDS
def test_gradients_of_many_elements_solve_their_equation(kind):
    r"""With :math:`w = J^{-T} v` for x, the cotangent :math:`J^T w` of one pass at x is v again."""
    made = layer(kind, 784, (512, 512), scale=0.02, dtype=torch.float64)
    noise = torch.randn(3, 784, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(noise)
    value = made()(noise)
    (pulled,) = torch.autograd.grad(value, noise, cotangent)
    point = value.detach().requires_grad_()
    (again,) = torch.autograd.grad(made().inv(point), point, pulled)
    torch.testing.assert_close(again, cotangent, rtol=1e-9, atol=1e-9)


@KINDS
def test_second_derivatives(kind, monkeypatch):
    take(monkeypatch, 2)
    made = layer(kind, 4, (5, 5), context=2, dtype=torch.float64)
    inputs = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    inputs = tuple(one.requires_grad_() for one in inputs)
    assert torch.autograd.gradcheck(lambda noise, context: made(context)(noise), inputs)
    assert torch.autograd.gradgradcheck(lambda noise, context: made(context)(noise), inputs)


@KINDS
def test_modes_and_function_transforms(kind):
    made = layer(kind, 10, context=2)
    context, noise = torch.randn(3, 2), torch.randn(4, 3, 10)

    def draw(noise, context):
        return made(context)(noise)

    expected = made.autoregressive(context).by_passes(noise).detach()
    bound = {"rtol": LOOSE, "atol": LOOSE} if noise.dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    with torch.no_grad():
        torch.testing.assert_close(draw(noise, context), expected, **bound)
    with torch.inference_mode():
        torch.testing.assert_close(draw(noise, context).clone(), expected, **bound)
    torch.testing.assert_close(torch.vmap(draw, (0, None))(noise, context).detach(), expected, **bound)
    compiled = torch.compile(draw, backend="eager")
    torch.testing.assert_close(compiled(noise, context).detach(), expected, **bound)
    point = noise[0, 0]
    one = torch.func.jacrev(lambda e: draw(e, context[0]))(point)
    other = torch.autograd.functional.jacobian(lambda e: draw(e, context[0]), point)
    torch.testing.assert_close(one.detach(), other, **bound)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(draw(forward_ad.make_dual(point, torch.ones(10)), context[0])).tangent
    torch.testing.assert_close(tangent.detach(), other.sum(-1), **bound)


@KINDS
def test_parameters_given_for_one_call(kind):
    """What a call is made with is what its gradients are about."""
    made, other = layer(kind, 12, (8, 8), reverse=True), layer(kind, 12, (8, 8), reverse=True)
    noise = torch.randn(5, 12)
    parameters = {name: one.detach().clone().requires_grad_() for name, one in other.named_parameters()}
    holder = torch.nn.ModuleDict({"layer": made})

    class Draw(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = holder["layer"]

        def forward(self, noise):
            return self.layer()(noise)

    draws = torch.func.functional_call(Draw(), {f"layer.{name}": one for name, one in parameters.items()}, (noise,))
    found = torch.autograd.grad(draws.square().sum(), list(parameters.values()))
    expected = torch.autograd.grad(other()(noise).square().sum(), list(other.parameters()))
    for one, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(one, reference)


@KINDS
def test_values_that_are_not_numbers_stay_in_their_rows(kind):
    made = layer(kind, 40, (16, 16))
    noise = torch.randn(6, 40)
    noise[1, 3], noise[2, 20], noise[3, 0] = math.nan, math.inf, -math.inf
    noise[4, 7] = 1e30
    value, ladj = made().call_and_ladj(noise.requires_grad_())
    (ladj[[0, 5]].sum() + value[[0, 5]].sum()).backward()
    expected = made.autoregressive().by_passes(noise.detach())
    same = [0, 4, 5]
    tolerance = {"rtol": LOOSE, "atol": LOOSE} if noise.dtype == torch.float32 else {}
    torch.testing.assert_close(value[same].detach(), expected[same].detach(), **tolerance)
    assert value[1, 3].isnan()
    assert noise.grad[[0, 5]].isfinite().all()


@KINDS
@pytest.mark.parametrize("features", [1, 2, 12])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 0), (2, 3)], ids=str)
def test_batch_shapes(kind, features, batch):
    made = layer(kind, features, context=2)
    noise = torch.randn(*batch, features, requires_grad=True)
    value = made(torch.randn(2))(noise)
    assert value.shape == noise.shape
    assert value.is_contiguous()
    value.sum().backward()
    assert noise.grad.shape == noise.shape
    value, ladj = Backbone(
        features, FlowConfiguration(backbone=kind, hidden_features=(8,)), transforms=2
    )().call_and_ladj(noise)
    assert (value.shape, ladj.shape) == (noise.shape, batch)


def test_context_that_does_not_fit_is_refused():
    made = layer("maf", 12, context=2)
    for context in (None, torch.randn(3), torch.randn(5, 2)):
        with pytest.raises(RuntimeError):
            made(context)(torch.randn(4, 12))
    with pytest.raises(RuntimeError):
        made(torch.randn(2))(torch.randn(4, 11))


@KINDS
def test_neither_direction_makes_more_than_one_pass(kind):
    calls = []
    configuration = FlowConfiguration(backbone=kind, hidden_features=(16, 16))
    for made in (layer(kind, 40), InverseAutoregressiveLayer(40, configuration, reverse=True)):
        made.network.register_forward_hook(lambda *_: calls.append(1))
        for transform in (made(), made().inv):
            calls.clear()
            transform.call_and_ladj(torch.randn(8, 40))
            assert len(calls) == 1


def test_dropout_takes_passes():
    made = layer("maf", 12)
    calls = []
    made.network.register_forward_hook(lambda *_: calls.append(1))
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    made()(torch.randn(8, 12))
    assert len(calls) == 12
    calls.clear()
    made.eval()
    made()(torch.randn(8, 12))
    assert not calls


@KINDS
def test_gradients_keep_no_more_than_a_few_passes(kind):
    """Bytes kept for the backward pass, beside those of one pass in the direction of the density."""
    made = layer(kind, 200, (128, 128))
    noise = torch.randn(16, 200, requires_grad=True)

    def kept(function):
        total = 0

        def hold(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            function(noise)
        return total

    assert kept(made()) <= kept(made().inv)


def test_block_size_falls_with_the_batch():
    network = layer("nsf", 100).network
    sizes = [inversion.block_size(network, batch, torch.device("cpu")) for batch in (0, 1, 16, 64, 256, 4096)]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (64, 1)
