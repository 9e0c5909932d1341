"""Learned layers of a variational family: identity start, inverse, log-Jacobian, masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc.errors import UserError
from emfc.inference.backbones import BACKBONES, VariationalBackbone, default_hidden_features
from emfc.inference.family_affine import Affine, LowRank, diagonal_of, low_rank_of
from emfc.inference.masks import closed_mask, turned_mask
from tests.inference.family_programs import disturb

BUILDS = [*BACKBONES, "affine coupling"]
EVERY = pytest.mark.parametrize("kind", BUILDS)
TRIANGLE = [[], [0], [0], [0, 1], [0, 1, 3], [2]]


def build(kind, features=5, *, context=0, mask=None, transforms=2):
    name, univariate = ("coupling", "affine") if kind == "affine coupling" else (kind, "spline")
    return VariationalBackbone(
        features,
        name,
        transforms=transforms,
        hidden_features=(16, 16),
        context_features=context,
        univariate=univariate,
        rank=2,
        mask=mask,
    ).to(torch.get_default_dtype())


def tolerance(dtype):
    return 2e-3 if dtype == torch.float32 else 1e-8


@EVERY
@pytest.mark.parametrize("features", [1, 2, 6])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_untrained_is_the_identity(kind, features, precision):
    noise = 3 * torch.randn(40, features, dtype=precision)
    value, ladj = build(kind, features).to(precision)().call_and_ladj(noise)
    bound = 1e-5 if precision == torch.float32 else 1e-13
    torch.testing.assert_close(value, noise, atol=bound, rtol=bound)
    assert ladj.abs().max() <= 10 * bound


@EVERY
@pytest.mark.parametrize("context", [0, 3], ids=["plain", "conditional"])
def test_inverse_and_log_jacobian(kind, context, dtype):
    backbone = build(kind, context=context)
    disturb(backbone)
    given = torch.randn(context) if context else None
    check_bijection(backbone, given, torch.randn(7, 5), tolerance(dtype))


def check_bijection(backbone, given, noise, bound):
    value, ladj = backbone(given).call_and_ladj(noise)
    back, back_ladj = backbone(given).inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, atol=bound, rtol=bound)
    torch.testing.assert_close(back_ladj, -ladj, atol=bound, rtol=bound)
    torch.testing.assert_close(backbone(given)(noise), value)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda e: backbone(given)(e), noise[row])
        torch.testing.assert_close(ladj[row], torch.linalg.slogdet(jacobian).logabsdet, atol=bound, rtol=bound)


@pytest.mark.parametrize("kind", ["iaf", "maf", "nsf", "coupling"])
def test_a_context_matters_row_by_row(kind):
    backbone = build(kind, context=2)
    disturb(backbone)
    noise, given = torch.randn(4, 5), torch.randn(4, 2)
    value, _ = backbone(given).call_and_ladj(noise)
    assert (value[:, None] != backbone(given.flip(0))(noise)[:, None]).any()
    for row in range(4):
        torch.testing.assert_close(backbone(given[row])(noise[row]), value[row])


@pytest.mark.parametrize("kind", ["iaf", "nsf", "maf"])
def test_graph_masks_hold_in_both_directions(kind, dtype):
    mask = closed_mask(TRIANGLE, 6)
    backbone = build(kind, 6, mask=mask)
    disturb(backbone)
    noise = torch.randn(5, 6)
    check_bijection(backbone, None, noise, tolerance(dtype))
    allowed = mask | turned_mask(mask) | torch.eye(6, dtype=torch.bool)
    value = backbone()(noise)
    for transform, at in ((backbone(), noise[0]), (backbone().inv, value[0])):
        jacobian = torch.autograd.functional.jacobian(lambda x, t=transform: t(x), at)
        assert (jacobian[~allowed].abs() <= 1e-6).all()
        assert (jacobian[allowed] != 0).all()


@pytest.mark.parametrize("kind", ["iaf", "maf", "nsf", "coupling", "lowrank"])
def test_reset_is_the_identity(kind):
    backbone = build(kind, 4)
    disturb(backbone)
    noise = torch.randn(6, 4)
    assert (backbone()(noise) - noise).abs().max() > 1e-3
    backbone.reset()
    torch.testing.assert_close(backbone()(noise), noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_affine_map(diagonal, context, dtype):
    affine = Affine(4, diagonal=diagonal, context_features=context).to(torch.get_default_dtype())
    scale = torch.randn(4, 4).tril(-1) + torch.diag(torch.rand(4) + 0.5)
    affine.set(torch.randn(4), scale.diagonal() if diagonal else scale)
    disturb(affine)
    given = torch.randn(context) if context else None
    noise, bound = torch.randn(6, 4), tolerance(dtype)
    value, ladj = affine(given).call_and_ladj(noise)
    back, back_ladj = affine(given).inv.call_and_ladj(value)
    torch.testing.assert_close(back, noise, atol=bound, rtol=bound)
    torch.testing.assert_close(back_ladj, -ladj, atol=bound, rtol=bound)
    jacobian = torch.autograd.functional.jacobian(lambda e: affine(given)(e), noise[0])
    torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian).logabsdet, atol=bound, rtol=bound)
    if not context:
        matrix = torch.diag(affine.scale) if diagonal else affine.scale
        torch.testing.assert_close(value, affine.loc + noise @ matrix.mT)


def test_low_rank_has_the_covariance_that_it_is_set_to():
    layer = LowRank(5, rank=2).to(torch.get_default_dtype())
    factor = torch.randn(5, 2)
    layer.set(factor)
    matrix = torch.autograd.functional.jacobian(lambda z: layer()(z), torch.zeros(5))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(5) + factor @ factor.mT, atol=1e-5, rtol=1e-5)


def test_low_rank_factor_of_a_covariance_that_has_one():
    spread, factor = torch.rand(8) + 0.5, torch.randn(8, 2)
    covariance = torch.diag(spread**2) + (spread[:, None] * factor) @ (spread[:, None] * factor).mT
    found, held = low_rank_of(torch.linalg.cholesky(covariance), 2, rounds=2000)
    again = torch.diag(found**2) + (found[:, None] * held) @ (found[:, None] * held).mT
    torch.testing.assert_close(again, covariance, atol=2e-2, rtol=2e-2)


def test_the_nearest_diagonal_has_conditional_deviations():
    scale = torch.randn(4, 4).tril(-1) + torch.diag(torch.rand(4) + 0.5)
    precision = torch.linalg.inv(scale @ scale.mT)
    torch.testing.assert_close(diagonal_of(scale), precision.diagonal().rsqrt(), atol=1e-4, rtol=1e-4)


def test_masks_are_made_transitive():
    mask = closed_mask([[], [0], [1], [2]], 4)
    assert bool((mask == torch.ones(4, 4).tril(-1).bool()).all())


def test_orders_turn_round_in_blocks_only():
    chain = torch.ones(4, 4).tril(-1).bool()
    assert bool((turned_mask(chain) == chain.mT).all())
    star = closed_mask([[], [0], [0, 1], [0, 1]], 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 1] = expected[2, 0] = expected[2, 1] = expected[3, 0] = expected[3, 1] = True
    assert bool((turned_mask(star) == expected).all())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_turned_order_adds_no_dependency_to_the_whole(data):
    count = data.draw(st.integers(1, 7))
    relation = [data.draw(st.sets(st.integers(0, place - 1))) if place else set() for place in range(count)]
    mask = closed_mask(relation, count)
    turned = turned_mask(mask)
    whole = (mask | turned | torch.eye(count, dtype=torch.bool)).double()
    assert bool(((whole @ whole > 0) == (whole > 0)).all())  # the two orders together are still transitive
    assert not bool(torch.linalg.matrix_power(turned.double(), count).any())  # and each is an order


@pytest.mark.parametrize("wrong", [[[], [1]], [[], [0], [0]], [[0], []]])
def test_wrong_dependencies_are_refused(wrong):
    with pytest.raises(UserError, match="depend"):
        closed_mask(wrong, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "glow"},
        {"transforms": 0},
        {"transforms": True},
        {"hidden_features": ()},
        {"hidden_features": (0,)},
        {"activation": "swish"},
        {"univariate": "cubic"},
        {"backbone": "coupling", "mask": torch.zeros(3, 3, dtype=torch.bool)},
    ],
)
def test_options_without_meaning_are_refused(options):
    given = {"backbone": "iaf", "transforms": 2, "hidden_features": (8,), **options}
    with pytest.raises(UserError):
        VariationalBackbone(3, given.pop("backbone"), **given)


def test_widths_grow_with_the_elements_within_limits():
    assert default_hidden_features(3) == (64, 64)
    assert default_hidden_features(90) == (128, 128)
    assert default_hidden_features(10_000) == (256, 256)
