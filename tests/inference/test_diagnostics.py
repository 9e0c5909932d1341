"""Diagnostics against known answers: Pareto tails, autoregressions, and ArviZ where it is installed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfc import UserError
from emfc.inference.diagnostics import (
    ess_bulk,
    ess_mean,
    ess_quantile,
    ess_tail,
    importance_ess,
    mean_ess,
    pareto_khat,
    psis,
    rhat,
    weighted_khat,
    weighted_quantiles,
)
from emfc.inference.psis import fit_generalized_pareto
from emfc.inference.verdict import FLAT, khat_threshold, verdict_on
from emfc.inference.weighted import WeightedDraws

DOUBLE = torch.float64


def _uniform(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def _pareto(count: int, k: float, seed: int = 0) -> torch.Tensor:
    """Draws of a generalised Pareto distribution with scale 1."""
    held = -torch.log1p(-_uniform(count, seed))
    return held if k == 0 else torch.expm1(k * held) / k


def _autoregression(chains: int, draws: int, rho: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, dtype=DOUBLE, generator=generator)
    values = [noise[:, 0]]
    for step in range(1, draws):
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * noise[:, step])
    return torch.stack(values, 1)


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.2, 0.5, 0.7, 1.0, 1.5])
def test_shape_of_pareto_tails(k: float) -> None:
    found, scale = fit_generalized_pareto(_pareto(20_000, k).sort().values)
    assert abs(found - k) < 0.03
    assert abs(scale - 1) < 0.05


def test_shape_of_few_values_is_drawn_to_a_half() -> None:
    shapes = [fit_generalized_pareto(_pareto(10, 0.0, seed).sort().values)[0] for seed in range(200)]
    assert abs(sum(shapes) / len(shapes) - 0.25) < 0.08


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.25, 2.0, 4.0])
def test_khat_of_exponential_proposals(rate: float) -> None:
    """Draws of Exp(r) for Exp(1) have weights exp((r - 1) x) / r, whose tail has k = 1 - 1 / r; bounded for r < 1."""
    draws = -torch.log1p(-_uniform(100_000)) / rate
    khat = psis((rate - 1) * draws)[1]
    if rate < 1:
        assert khat < 0.1
    else:
        assert abs(khat - (1 - 1 / rate)) < 0.08


def test_smoothed_weights_are_normalised_and_no_larger() -> None:
    log_weights = _pareto(2000, 0.8).log()
    smoothed, khat = psis(log_weights)
    assert torch.isclose(smoothed.exp().sum(), torch.tensor(1.0, dtype=DOUBLE))
    assert 0.6 < khat < 1.0
    untouched = log_weights.argsort()[:1500]
    shift = (smoothed - log_weights)[untouched]
    assert torch.allclose(shift, shift[:1])
    assert bool((smoothed - shift[0] <= log_weights.max() + 1e-12).all())
    assert bool((smoothed[log_weights.argsort()].diff() >= -1e-12).all())


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_shift_of_log_weights_changes_nothing(shift: float) -> None:
    log_weights = _pareto(1000, 0.5).log()
    first, second = psis(log_weights), psis(log_weights + shift)
    assert abs(first[1] - second[1]) < 1e-6
    assert torch.allclose(first[0], second[0], atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    k=st.floats(-0.3, 2.0).filter(lambda k: k == 0 or abs(k) > 1e-6),  # a k about 0 makes ties, which have no order
    count=st.integers(30, 600),
    seed=st.integers(0, 2**31),
    shift=st.floats(-1e5, 1e5),
    single=st.booleans(),
)
def test_laws_of_smoothing(k: float, count: int, seed: int, shift: float, single: bool) -> None:
    """A permutation permutes, a shift changes nothing, the order stays, and the sum is 1."""
    log_weights = (_pareto(count, k, seed) + 0.1).log()
    smoothed, khat = psis(log_weights)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again, same = psis(log_weights[order] + shift)
    assert math.isclose(khat, same, abs_tol=1e-5)
    assert torch.allclose(again, smoothed[order], atol=1e-6)
    assert math.isclose(float(smoothed.exp().sum()), 1, rel_tol=1e-9)
    assert bool((smoothed[log_weights.argsort()].diff() >= -1e-9).all())
    assert 1 - 1e-9 <= importance_ess(smoothed) <= count * (1 + 1e-9)
    if single:
        narrow, its = psis(log_weights.float())
        assert narrow.dtype == torch.float32
        assert abs(its - khat) < 0.02
    values = torch.stack([log_weights, -log_weights], 1)
    low, middle, high = weighted_quantiles(values, smoothed.exp(), torch.tensor([0.1, 0.5, 0.9]))
    assert bool((low <= middle).all() and (middle <= high).all())
    assert bool((low >= values.amin(0)).all() and (high <= values.amax(0)).all())


def test_smoothing_makes_heavy_averages_steadier() -> None:
    raw, smooth = [], []
    for seed in range(200):
        log_weights = _pareto(400, 0.7, seed).log()
        smoothed, _ = psis(log_weights)
        low = log_weights.argmin()
        raw.append(float(log_weights.logsumexp(0)))
        smooth.append(float(log_weights[low] - smoothed[low]))
    assert torch.tensor(smooth).std() < torch.tensor(raw).std()


def test_weights_that_are_all_the_same() -> None:
    for dtype in (torch.float32, torch.float64):
        weights = torch.full((1000,), -300.0, dtype=dtype) * (
            1 + torch.finfo(dtype).eps * torch.randn(1000, dtype=dtype)
        )
        smoothed, khat = psis(weights)
        assert khat == 0
        assert torch.allclose(smoothed.exp(), torch.tensor(1e-3, dtype=dtype), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.05, 1.0, 4.0])
def test_a_constant_does_not_change_the_verdict(dtype: torch.dtype, spread: float) -> None:
    """A constant in the log density, as large data sets have, neither makes a bad fit good nor a good one bad."""
    generator = torch.Generator().manual_seed(0)
    log_weights = (spread * torch.randn(4000, dtype=DOUBLE, generator=generator).square()).to(dtype)
    here = psis(log_weights)[1]
    there = WeightedDraws(torch.zeros(4000, 1, dtype=dtype), log_weights - 2e5)
    assert verdict_on(there.khat, 4000).split(":")[0] == verdict_on(here, 4000).split(":")[0]
    assert (here > 0.7) == (there.khat > 0.7) == (spread >= 1)


def test_weights_of_which_the_largest_are_the_same() -> None:
    """Rounding leaves few values, and the tail none that is above the others."""
    log_weights = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(0)) / 64
    assert psis(log_weights - 2e5)[1] == 0
    alone = torch.full((4000,), -5.0)
    alone[:3] = 0.0
    assert psis(alone)[1] == math.inf


def test_evidence_beside_an_infinite_weight() -> None:
    weights = torch.zeros(100, dtype=DOUBLE)
    weights[3] = math.inf
    held = WeightedDraws(torch.zeros(100, 1, dtype=DOUBLE), weights)
    assert held.log_evidence == held.elbo == math.inf
    assert not held.trusted
    weights[4] = math.nan
    assert math.isnan(WeightedDraws(torch.zeros(100, 1, dtype=DOUBLE), weights).log_evidence)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers(bad: float) -> None:
    weights = torch.zeros(100, dtype=DOUBLE)
    weights[3] = bad
    smoothed, khat = psis(weights)
    assert khat == math.inf
    assert torch.allclose(smoothed.exp(), torch.tensor(0.01, dtype=DOUBLE))


def test_weights_of_zero() -> None:
    log_weights = _pareto(1000, 0.2).log()
    log_weights[::2] = -math.inf
    smoothed, khat = psis(log_weights)
    assert bool((smoothed[::2] == -math.inf).all())
    assert khat < 0.7
    assert psis(torch.full((100,), -math.inf))[1] == math.inf
    alone = torch.full((100,), -math.inf, dtype=DOUBLE)
    alone[:2] = 0.0
    assert psis(alone)[1] == math.inf


def test_few_weights() -> None:
    assert psis(torch.tensor([0.0, 1.0, 2.0]))[1] == math.inf
    with pytest.raises(UserError, match="one dimension"):
        psis(torch.zeros(3, 2))


def test_khat_of_values() -> None:
    assert abs(pareto_khat(_pareto(100_000, 0.6)) - 0.6) < 0.05
    assert pareto_khat(torch.ones(1000)) == 0
    values = torch.randn(20_000, dtype=DOUBLE).sinh() ** 3
    assert weighted_khat(values, torch.zeros(20_000)) > 0.7
    assert weighted_khat(_uniform(20_000), torch.zeros(20_000)) < 0.3


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_effective_draws_of_autoregressions(rho: float) -> None:
    chains = torch.stack([_autoregression(4, 4000, rho, seed) for seed in range(8)], -1)
    expected = 16_000 * (1 - rho) / (1 + rho)
    assert abs(float(ess_mean(chains).mean()) / expected - 1) < 0.12
    assert abs(float(ess_bulk(chains).mean()) / expected - 1) < 0.12
    assert ess_bulk(chains).shape == (8,)
    assert float(rhat(chains).max()) < (1.01 if rho < 0.9 else 1.03)


def test_chains_that_disagree() -> None:
    chains = torch.randn(4, 500, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    chains[0, :, 0] += 2.0
    chains[1, :, 1] *= 6.0  # the same centre, another width
    assert bool((rhat(chains) > 1.05).all())
    assert float(ess_bulk(chains)[0]) < 100
    assert float(ess_tail(chains)[1]) < 400


def test_trend_within_one_chain() -> None:
    chain = torch.linspace(0, 3, 1000, dtype=DOUBLE) + torch.randn(1, 1000, dtype=DOUBLE)
    assert float(rhat(chain)) > 1.2


def test_chains_of_one_value_or_of_none() -> None:
    assert float(ess_mean(torch.ones(2, 100))) == 200
    bad = torch.randn(2, 100, 2)
    bad[0, 3, 0] = math.nan
    for found in (ess_bulk(bad), ess_tail(bad), rhat(bad)):
        assert math.isnan(float(found[0]))
        assert math.isfinite(float(found[1]))
    with pytest.raises(UserError, match="at least 4 draws"):
        ess_bulk(torch.randn(2, 3))


def test_same_as_arviz() -> None:
    arviz = pytest.importorskip("arviz")
    for rho in (-0.4, 0.0, 0.7, 0.95):
        for chains, draws in ((1, 400), (4, 101), (3, 1000)):
            held = _autoregression(chains, draws, rho, seed=7)
            array = held.numpy()
            assert math.isclose(float(ess_bulk(held)), float(arviz.ess(array, method="bulk")), rel_tol=1e-8)
            assert math.isclose(float(ess_mean(held)), float(arviz.ess(array, method="mean")), rel_tol=1e-8)
            assert math.isclose(float(ess_tail(held)), float(arviz.ess(array, method="tail")), rel_tol=1e-8)
            if chains > 1:
                assert math.isclose(float(rhat(held)), float(arviz.rhat(array)), rel_tol=1e-10)
            quantile = arviz.ess(array, method="quantile", prob=0.3)
            assert math.isclose(float(ess_quantile(held, 0.3)), float(quantile), rel_tol=1e-8)
    for k in (0.2, 0.7, 1.2):
        for count in (100, 1000, 10_000):
            log_weights = _pareto(count, k).log()
            smoothed, khat = psis(log_weights)
            theirs, their_khat = arviz.psislw(log_weights.numpy().copy())
            assert math.isclose(khat, float(their_khat), abs_tol=1e-9)
            assert torch.allclose(smoothed, torch.as_tensor(theirs), atol=1e-9)


def test_effective_number_of_weights() -> None:
    assert math.isclose(importance_ess(torch.zeros(50)), 50, rel_tol=1e-9)
    assert math.isclose(importance_ess(torch.tensor([0.0, 0.0, -math.inf])), 2, rel_tol=1e-9)
    assert importance_ess(torch.full((3,), -math.inf)) == 0
    draws = torch.randn(10_000, 2, dtype=DOUBLE)
    assert torch.allclose(mean_ess(draws, torch.zeros(10_000)), torch.tensor(10_000.0, dtype=DOUBLE))
    weights = -0.5 * draws[:, 0]
    size = mean_ess(draws, weights)
    spread = []
    for seed in range(300):
        again = torch.randn(400, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        held = torch.softmax(-0.5 * again[:, 0], 0)
        spread.append(held @ again)
    measured = 1 / torch.stack(spread).var(0) / 400
    assert torch.allclose(size / 10_000, measured, rtol=0.25)


def test_weighted_quantiles() -> None:
    draws = torch.randn(100_000, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    weights = torch.softmax(0.5 * draws[:, 0], 0)  # moves the first to N(0.5, 1)
    found = weighted_quantiles(draws, weights, torch.tensor([0.05, 0.5, 0.95]))
    expected = torch.tensor([-1.645, 0.0, 1.645], dtype=DOUBLE)
    assert torch.allclose(found[:, 0], expected + 0.5, atol=0.03)
    assert torch.allclose(found[:, 1], expected, atol=0.03)
    same = weighted_quantiles(torch.arange(5.0)[:, None], torch.full((5,), 0.2), torch.tensor([0.5]))
    assert math.isclose(float(same), 2, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("khat", "draws", "word"),
    [
        (-0.3, 4000, "good"),
        (0.49, 4000, "good"),
        (0.6, 4000, "usable"),
        (0.71, 4000, "not to be trusted"),
        (math.inf, 4000, "not to be trusted"),
        (0.6, 200, "not to be trusted with 200 draws"),
        (0.9, 200, "not to be trusted:"),
    ],
)
def test_verdicts(khat: float, draws: int, word: str) -> None:
    assert verdict_on(khat, draws).startswith(word)
    assert (khat < khat_threshold(draws)) == (not word.startswith("not"))


def test_verdict_where_weights_are_nearly_the_same() -> None:
    assert verdict_on(1.3, 4000, largest=1.2).startswith("usable: k-hat 1.30 is above 0.7, but no weight is more than")
    assert verdict_on(1.3, 4000, largest=1.6).startswith("not to be trusted")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, dtype=DOUBLE, generator=generator)
    small = WeightedDraws(noise[:, None], 1e-3 * noise.sinh() ** 3)
    assert small.khat > 0.7
    assert (small.largest < FLAT) == small.trusted
    large = WeightedDraws(noise[:, None], (0.5 * noise).sinh() ** 3)
    assert not large.trusted
    assert large.largest > 10


def test_verdict_on_an_interrupted_fit() -> None:
    assert "stopped before" in verdict_on(0.1, 4000, stopped="interrupted")
    assert "the fit failed" in verdict_on(math.inf, 4000, stopped="failed")
