"""Cost of sampling from autoregressive layers, beside zuko's passes of the whole network, on one thread."""

from __future__ import annotations

import time

import pytest
import torch

from emfc.cli.bench.measure import one_thread, ratio
from emfc.flows._zuko import AutoregressiveTransform
from emfc.flows.backbones import AutoregressiveLayer
from emfc.flows.configuration import FlowConfiguration

pytestmark = pytest.mark.benchmark

FEATURES = 784
LEAST = 5.0
KINDS = pytest.mark.parametrize("kind", ["maf", "nsf"])


def layer(kind, features, hidden, *, context=0, reverse=False, scale=0.02):
    torch.manual_seed(0)
    configuration = FlowConfiguration(backbone=kind, hidden_features=hidden, context_features=context)
    made = AutoregressiveLayer(features, configuration, reverse=reverse).float()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return made


def series(rows, features):
    """Rows of a smooth series, every element close to the one before: what an inverse by iteration finds hard."""
    noise = torch.randn(rows, features, dtype=torch.float32)
    values = [noise[:, 0]]
    for step in range(1, features):
        values.append(0.98 * values[-1] + 0.2 * torch.tanh(noise[:, step]))
    return torch.stack(values, -1)


def fit(made, data, steps):
    optimiser = torch.optim.Adam(made.parameters(), 1e-3)
    for step in range(steps):
        noise, ladj = made().inv.call_and_ladj(data[64 * step % len(data) :][:64])
        loss = (0.5 * noise.square().sum(-1) - ladj).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 10.0)
        optimiser.step()


@torch.no_grad()
def gain(made, batch, context=None, *, budget=4.0):
    """How many times as long the passes take: some of them, which all cost the same, times the number of elements."""
    features = made.features
    noise = torch.randn(batch, features, dtype=torch.float32)
    transform = made.autoregressive(context)
    passes = min(features, 16)
    some = AutoregressiveTransform(transform.meta, passes)
    with one_thread():
        found, _, seconds = ratio(lambda: some.inv(noise), lambda: transform.inv(noise), budget=budget)
    found *= features / passes
    value = transform.inv(noise)
    assert (transform(value) - noise).abs().max() < 1e-2
    print(f"\n| D {features} | batch {batch} | {1e3 * seconds:.1f} ms | {found:.0f} times |", end="")
    return found


@KINDS
@pytest.mark.parametrize("batch", [1, 64, 256])
@pytest.mark.parametrize("context", [0, 8], ids=["plain", "conditional"])
def test_many_elements(kind, batch, context):
    made = layer(kind, FEATURES, (512, 512), context=context, reverse=batch == 64)
    given = torch.randn(batch, context, dtype=torch.float32) if context else None
    assert gain(made, batch, given) >= LEAST


@pytest.mark.parametrize("hidden", [(64, 64), (1024,), (300, 500, 200)], ids=str)
@KINDS
def test_other_widths(kind, hidden):
    assert gain(layer(kind, FEATURES, hidden), 64) >= LEAST


@KINDS
def test_large_weights(kind):
    """Where blocks need all their rounds."""
    assert gain(layer(kind, FEATURES, (512, 512), scale=0.1), 64) >= LEAST


@KINDS
def test_trained_on_a_series(kind):
    made = layer(kind, FEATURES, (512, 512), scale=0.0)
    fit(made, series(640, FEATURES), 60 if kind == "maf" else 20)
    assert gain(made, 64) >= LEAST


@KINDS
def test_values_are_those_of_all_passes(kind):
    """All passes, once; the error of both is told by double precision."""
    made = layer(kind, FEATURES, (512, 512), reverse=True)
    noise = torch.randn(8 if kind == "nsf" else 64, FEATURES, dtype=torch.float32)
    transform = made.autoregressive()
    with torch.no_grad(), one_thread():
        times = [time.process_time()]
        value = transform.inv(noise)
        times.append(time.process_time())
        expected = transform.by_passes(noise)
        times.append(time.process_time())
        exact = made.double()()(noise.double())
        errors = [float((one - exact).abs().max()) for one in (value, expected)]
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)
    assert errors[0] <= 3 * errors[1] + 1e-6
    assert times[2] - times[1] >= LEAST * (times[1] - times[0])


@KINDS
@pytest.mark.parametrize("features", [30, 64])
def test_few_elements_cost_no_more(kind, features):
    assert gain(layer(kind, features, (128, 128)), 64, budget=2.0) >= 1.0


def test_gradients_cost_little_more_than_draws():
    made = layer("maf", FEATURES, (512, 512))
    noise = torch.randn(64, FEATURES, dtype=torch.float32)

    def draw():
        with torch.no_grad():
            return made()(noise)

    def learn():
        made()(noise).square().sum().backward()

    with one_thread():
        found, _, _ = ratio(learn, draw, budget=4.0)
    print(f"\n| draws with gradient over draws | {found:.1f} |", end="")
    assert found <= 12
