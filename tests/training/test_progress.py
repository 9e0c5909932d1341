"""What a long training shows."""

from __future__ import annotations

import dataclasses
import io
import re

import torch
from rich.console import Console

from emfc.flows import EmbeddedModelFlow
from emfc.training import BarProgress, EpochRow, LineProgress, SilentProgress, fit, make_progress
from tests.flows.fakes import ChainLayer

ROW = EpochRow(
    epoch=2, train_nll=1.25, validation_nll=1.5, learning_rate=1e-3, seconds=0.1, examples_per_second=12345.6
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_choice_of_display():
    assert isinstance(make_progress(stream=io.StringIO()), LineProgress)
    assert isinstance(make_progress(stream=_Terminal()), BarProgress)
    assert isinstance(make_progress(False), SilentProgress)


def test_lines_say_epoch_losses_and_rate():
    stream = io.StringIO()
    with LineProgress(stream, every=0.0) as progress:
        progress.start(10)
        progress.epoch(ROW, best=1.4)
        progress.remark("a remark")
    assert stream.getvalue() == "epoch 2/10  train 1.25  validation 1.50  best 1.40  12,346 examples/s\na remark\n"


def test_lines_are_few_and_the_last_epoch_is_shown():
    stream = io.StringIO()
    flow = EmbeddedModelFlow.from_layer(ChainLayer(3), hidden_features=(8,))
    fit(flow, torch.randn(60, 3), epochs=6, progress=LineProgress(stream, every=1000.0))
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/6", "6/6"]


def test_lines_stand_in_the_order_of_what_happened():
    stream = io.StringIO()
    with LineProgress(stream, every=1000.0) as progress:
        progress.start(10)
        for epoch in (1, 2, 3):
            progress.epoch(dataclasses.replace(ROW, epoch=epoch), best=1.4)
        progress.remark("interrupted")
    lines = stream.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1/10"], ["epoch", "3/10"], ["interrupted"]]


def test_bar_shows_figures():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160)
    flow = EmbeddedModelFlow.from_layer(ChainLayer(3), hidden_features=(8,))
    fit(flow, torch.randn(60, 3), epochs=3, progress=BarProgress(console))
    shown = stream.getvalue()
    assert "training" in shown
    assert "3/3" in shown
    assert re.search(r"best \S+  [\d,]+/s", shown)
