"""Checkpoints: the best weights on disk while training goes on, and going on from them."""

from __future__ import annotations

import errno
import math
import os

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow, load
from emfc.training import SilentProgress, evaluate, fit
from emfc.training.checkpoint import Checkpoint, TrainingState, read_state


def _model(length):
    slope = pyro.param("slope", torch.tensor(0.5))
    value = torch.zeros(())
    for step in range(length):
        value = pyro.sample(f"x_{step}", dist.Normal(slope * value, 1.0))


def _flow(dim: int = 4) -> EmbeddedModelFlow:
    torch.manual_seed(0)
    return EmbeddedModelFlow(_model, dim, hidden_features=(16,))


def _data(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    series = torch.randn(300, 4, generator=generator).cumsum(-1)
    return 2 + series + 0.5 * series.roll(1, -1).sin()  # more than the program knows


class _Killed(SilentProgress):
    """Ends the training as a crash would, after an epoch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def epoch(self, row, *, best):
        if row.epoch == self.at:
            raise SystemExit


OPTIONS = {"epochs": 12, "batch_size": 50, "learning_rate": 1e-2, "checkpoint_every": 0.0, "patience": 12}


def test_a_killed_training_leaves_its_best_flow_and_goes_on_as_if_nothing_were(tmp_path):
    held_out = _data(1)
    whole = fit(_flow(), _data(), validation=held_out, **OPTIONS)
    with pytest.raises(SystemExit):
        fit(_flow(), _data(), validation=held_out, checkpoint=tmp_path / "run", progress=_Killed(7), **OPTIONS)
    stored = load(tmp_path / "run")
    assert evaluate(stored, held_out).nll < evaluate(_flow(), held_out).nll
    flow = _flow()
    resumed = fit(flow, _data(), validation=held_out, checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    assert resumed.epochs == 12
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.best_validation_nll == pytest.approx(whole.best_validation_nll, rel=1e-9)
    assert [row.epoch for row in resumed.history] == list(range(1, 13))
    assert evaluate(load(tmp_path / "run"), held_out).nll == pytest.approx(evaluate(flow, held_out).nll, rel=1e-9)


def test_a_training_that_never_gets_better_leaves_its_start(tmp_path):
    options = {**OPTIONS, "epochs": 2, "learning_rate": 0.1}
    flow = _flow()
    result = fit(flow, torch.randn(300, 4), checkpoint=tmp_path / "run", **options)
    assert result.best_epoch == 0
    rows = _data(1)
    torch.testing.assert_close(load(tmp_path / "run")().log_prob(rows), flow().log_prob(rows))


def test_resuming_from_nothing_begins_anew(tmp_path):
    result = fit(_flow(), _data(), checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    assert result.epochs == 12
    assert load(tmp_path / "run").dim == 4


def test_a_finished_training_is_not_repeated(tmp_path):
    first = fit(_flow(), _data(), checkpoint=tmp_path / "run", **OPTIONS)
    again = fit(_flow(), _data(), checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    assert again.best_validation_nll == pytest.approx(first.best_validation_nll, rel=1e-9)


def test_writes_are_spaced(tmp_path, monkeypatch):
    written = []
    original = Checkpoint.write

    def write(self, *arguments):
        written.append(1)
        original(self, *arguments)

    monkeypatch.setattr(Checkpoint, "write", write)
    fit(_flow(), _data(), checkpoint=tmp_path / "run", **{**OPTIONS, "checkpoint_every": 1000.0})
    assert len(written) == 2


def test_damaged_and_foreign_states_are_told(tmp_path):
    fit(_flow(), _data(), checkpoint=tmp_path / "run", **OPTIONS)
    other = _flow(5)
    with pytest.raises(UserError, match="of another flow"):
        fit(other, torch.randn(50, 5), checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    file = tmp_path / "run" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        fit(_flow(), _data(), checkpoint=tmp_path / "run", resume=True, **OPTIONS)


def test_another_seed_is_refused(tmp_path):
    fit(_flow(), _data(), checkpoint=tmp_path / "run", **OPTIONS)
    with pytest.raises(UserError, match="of seed 0, not 1"):
        fit(_flow(), _data(), checkpoint=tmp_path / "run", resume=True, seed=1, **OPTIONS)


class _Interrupted(SilentProgress):
    """Ctrl-C in the middle of an epoch, some steps after its start."""

    def __init__(self, at: int, flow: EmbeddedModelFlow) -> None:
        self.at, self.calls, self.flow = at, 0, flow
        flow.register_forward_pre_hook(self._step)

    def _step(self, module, arguments):
        if self.at < 0 and module.training:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt

    def epoch(self, row, *, best):
        if row.epoch == self.at:
            self.at = -1


def test_ctrl_c_within_an_epoch_goes_back_to_its_start(tmp_path):
    held_out = _data(1)
    options = {**OPTIONS, "dropout": 0.2, "checkpoint_every": 1000.0}
    whole = fit(_flow(), _data(), validation=held_out, **options)
    flow = _flow()
    stopped = fit(
        flow, _data(), validation=held_out, checkpoint=tmp_path / "run", progress=_Interrupted(5, flow), **options
    )
    assert stopped.interrupted
    assert stopped.epochs == 5
    resumed = fit(_flow(), _data(), validation=held_out, checkpoint=tmp_path / "run", resume=True, **options)
    assert [row.train_nll for row in resumed.history] == [row.train_nll for row in whole.history]
    assert [row.validation_nll for row in resumed.history] == [row.validation_nll for row in whole.history]
    assert resumed.seconds > stopped.seconds
    again = fit(_flow(), _data(), validation=held_out, checkpoint=tmp_path / "run", resume=True, **options)
    assert again.seconds >= resumed.seconds  # nothing is left to train, and the time before counts


def test_a_training_that_ran_out_of_patience_has_ended(tmp_path):
    options = {**OPTIONS, "epochs": 60, "patience": 2, "learning_rate": 5e-2}
    first = fit(_flow(), _data()[:60], checkpoint=tmp_path / "run", **options)
    assert first.stopped == "patience"
    again = fit(_flow(), _data()[:60], checkpoint=tmp_path / "run", resume=True, **options)
    assert again.stopped == "patience"
    assert again.history == first.history


def test_losses_that_are_not_finite_can_be_stored(tmp_path):
    state = TrainingState(
        seed=0,
        epochs=3,
        epoch=1,
        step=4,
        best_epoch=0,
        best_nll=math.inf,
        initial_nll=math.nan,
        lowest_train_nll=1.5,
        rate_scale=1.0,
        diverged=0,
        average_steps=4,
        history=[],
    )
    Checkpoint(tmp_path / "run").write(_flow(), None, state, {"best.x": torch.ones(2)})
    found = read_state(tmp_path / "run")
    assert found is not None
    assert found.best_nll == math.inf
    assert math.isnan(found.initial_nll)
    assert load(tmp_path / "run").dim == 4


def test_a_disk_that_fills_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    fit(_flow(), _data(), checkpoint=tmp_path / "run", **OPTIONS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left on device"):
        fit(_flow(), _data(), checkpoint=tmp_path / "run", **OPTIONS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_drawn_data_go_on_exactly(tmp_path):
    def data(n, seed):
        return _data(seed)[:n] * torch.ones(n, 1)

    options = {**OPTIONS, "epochs": None, "steps": 21, "rows": 200, "dropout": 0.2}
    whole = fit(_flow(), data, **options)
    with pytest.raises(SystemExit):
        fit(_flow(), data, checkpoint=tmp_path / "run", progress=_Killed(3), **options)
    flow = _flow()
    resumed = fit(flow, data, checkpoint=tmp_path / "run", resume=True, **options)
    assert resumed.epochs == 6
    assert [row.train_nll for row in resumed.history] == [row.train_nll for row in whole.history]
    assert [row.validation_nll for row in resumed.history] == [row.validation_nll for row in whole.history]
    for name, value in flow.state_dict().items():
        assert torch.equal(value, whole.flow.state_dict()[name]), name


def test_a_flow_that_was_trained_already_takes_up_the_start_of_the_folder(tmp_path):
    flow = _flow()
    fit(flow, _data(), checkpoint=tmp_path / "run", **OPTIONS)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    with torch.no_grad():
        flow.layer.set_values({"slope": torch.tensor(-0.3)})
    fit(flow, _data(), checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


@pytest.mark.parametrize("stored", [True, False])
def test_a_flow_with_other_normalisation_is_refused_and_left_alone(stored, tmp_path):
    def flow(normalise: bool) -> EmbeddedModelFlow:
        return EmbeddedModelFlow(_model, 4, hidden_features=(8,), placement="middle", normalise=normalise)

    fit(flow(stored), _data(), epochs=2, checkpoint=tmp_path / "run")
    other = flow(not stored)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match="holds the training of another flow"):
        fit(other, _data(), epochs=4, checkpoint=tmp_path / "run", resume=True)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_gates_that_are_fixed_go_on_fixed(tmp_path):
    def flow(gates: float | None) -> EmbeddedModelFlow:
        made = _flow()
        if gates is not None:
            made.layer.set_gates(gates)
        return made

    whole = fit(flow(1.0), _data(), **OPTIONS)
    with pytest.raises(SystemExit):
        fit(flow(1.0), _data(), checkpoint=tmp_path / "run", progress=_Killed(5), **OPTIONS)
    with pytest.raises(UserError, match="holds the training of another flow"):
        fit(flow(None), _data(), checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    resumed = fit(flow(1.0), _data(), checkpoint=tmp_path / "run", resume=True, **OPTIONS)
    assert resumed.best_validation_nll == pytest.approx(whole.best_validation_nll, rel=1e-9)
    assert torch.equal(resumed.flow.layer.gate_logits, torch.full((4,), math.inf))
