"""Run folders: the same numbers back, nothing trusted, complete at every moment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.data import Chain as Steps
from emfc.data import Logit, Scale
from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow, load, save
from emfc.flows import files as files_module
from emfc.flows.manifest import Manifest


def _model():
    logits = pyro.param("logits", torch.zeros(4, 3))
    pyro.sample("pixels", dist.Categorical(logits=logits).to_event(1))


def _flow(seed: int = 0, **options) -> EmbeddedModelFlow:
    torch.manual_seed(seed)
    flow = EmbeddedModelFlow(_model, gate="site", **{"hidden_features": (8, 8), **options})
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def _value() -> torch.Tensor:
    return 3 * torch.rand(10, 4, generator=torch.Generator().manual_seed(1))


OPTIONS = {
    "maf": {},
    "nsf in the middle": {"backbone": "nsf", "placement": "middle", "bins": 6},
    "coupling at the bottom": {"backbone": "coupling", "placement": "bottom", "activation": "elu"},
    "gaussian": {"backbone": "mvn"},
    "bare": {"backbone": None},
    "conditional": {"context_features": 2},
    "narrow": {"hidden_features": (2,)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_same_numbers_come_back(name, tmp_path):
    flow = _flow(**OPTIONS[name])
    save(flow, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["manifest.json", "program.safetensors", "weights.safetensors"]
    again = load(tmp_path / "run")
    context = torch.ones(2) if flow.configuration.context_features else None
    assert torch.equal(again(context).log_prob(_value()), flow(context).log_prob(_value()))
    assert again.configuration == flow.configuration
    assert again.layer.gate == "site"
    save(again, tmp_path / "again")
    for file in ("manifest.json", "program.safetensors", "weights.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_whatever_the_default(dtype, tmp_path):
    flow = _flow().to(dtype)
    save(flow, tmp_path / "run")
    torch.set_default_dtype(torch.float32 if dtype == torch.float64 else torch.float64)
    again = load(tmp_path / "run")
    assert again().sample().dtype == dtype
    assert torch.equal(again().log_prob(_value().to(dtype)), flow().log_prob(_value().to(dtype)))


def test_baseline_and_preprocessing_come_back(tmp_path):
    steps = Steps([Scale(0.0, 4.0), Logit(0.01), Scale(-20.0, 20.0), Scale(0.0, 1 / 3)])
    flow = _flow()
    baseline = EmbeddedModelFlow.from_layer(flow.layer, flow.configuration, preprocess=steps).baseline()
    baseline.start_from_data(_value())
    save(baseline, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(again().log_prob(_value()), baseline().log_prob(_value()))
    assert torch.isfinite(again().log_prob(_value())).all()
    assert again.parameter_count == baseline.parameter_count


def test_weights_may_be_given(tmp_path):
    flow, other = _flow(0), _flow(1)
    save(flow, tmp_path / "run", state=dict(other.named_parameters()))
    torch.testing.assert_close(load(tmp_path / "run")().log_prob(_value()), other().log_prob(_value()))


def test_saving_again_replaces_the_flow_and_keeps_other_files(tmp_path):
    run = tmp_path / "run"
    save(_flow(0), run)
    (run / "picture.png").write_bytes(b"picture")
    (run / f"{files_module.ASIDE}left").write_bytes(b"of a killed process")
    flow = _flow(1)
    save(flow, run)
    assert torch.equal(load(run)().log_prob(_value()), flow().log_prob(_value()))
    names = ["manifest.json", "picture.png", "program.safetensors", "weights.safetensors"]
    assert sorted(os.listdir(run)) == names


def test_saving_into_an_empty_folder(tmp_path):
    save(_flow(), tmp_path)
    load(tmp_path)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("first", [False, True], ids=["replacing", "new"])
def test_a_crash_at_any_moment_leaves_a_complete_flow(first, tmp_path, monkeypatch):
    """Stops the process before each of its renames and removals in turn, without any tidying up."""
    old, new = _flow(0), _flow(1)
    expected = [flow().log_prob(_value()) for flow in (old, new)]
    template = tmp_path / "template"
    save(old, template)
    outcomes = []
    for moment in range(50):
        run = tmp_path / f"run{moment}"
        if not first:
            shutil.copytree(template, run)
        count = 0

        def step(function, *arguments, moment=moment, **named):
            nonlocal count
            count += 1
            if count > moment:
                raise _KilledError
            return function(*arguments, **named)

        with monkeypatch.context() as patch:
            for owner, name in [(os, "replace"), (os, "rename"), (os, "fsync"), (Path, "unlink")]:
                original = getattr(owner, name)
                patch.setattr(owner, name, lambda *a, f=original, s=step, **k: s(f, *a, **k))
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)
            try:
                save(new, run)
                finished = True
            except _KilledError:
                finished = False
        if run.exists():
            density = load(run)().log_prob(_value())
            outcomes.append([torch.equal(density, e) for e in expected].index(True))
        else:
            assert first
            outcomes.append(-1)
        if finished:
            break
    assert finished
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == (-1 if first else 0)
    assert outcomes[-1] == 1
    assert len(outcomes) > 3


def _edit(run: Path, change) -> None:
    document = json.loads((run / "manifest.json").read_text())
    change(document)
    (run / "manifest.json").write_text(json.dumps(document))


def _sealed(run: Path, change) -> None:
    """Edits the manifest and gives it a right checksum."""
    document = json.loads((run / "manifest.json").read_text())
    change(document)
    manifest = Manifest.model_construct(**document)
    (run / "manifest.json").write_bytes(manifest.seal())


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


DAMAGES = {
    "no folder": (lambda run: shutil.rmtree(run), "there is no run folder"),
    "no manifest": (lambda run: (run / "manifest.json").unlink(), "not a run folder"),
    "no weights": (lambda run: (run / "weights.safetensors").unlink(), "cannot be read"),
    "no program": (lambda run: (run / "program.safetensors").unlink(), "cannot be read"),
    "truncated manifest": (lambda run: _cut(run / "manifest.json"), "damaged"),
    "empty manifest": (lambda run: (run / "manifest.json").write_text(""), "damaged"),
    "manifest of another kind": (lambda run: (run / "manifest.json").write_text("[1, 2]"), "does not say its format"),
    "binary manifest": (lambda run: (run / "manifest.json").write_bytes(b"\x80\x04\xff"), "damaged"),
    "truncated weights": (lambda run: _cut(run / "weights.safetensors"), "truncated"),
    "tampered weights": (lambda run: _flip(run / "weights.safetensors"), "changed after it was saved"),
    "tampered program": (lambda run: _flip(run / "program.safetensors"), "changed after it was saved"),
    "newer": (lambda run: _edit(run, lambda d: d.update(format=2)), "newer emfc"),
    "tampered program text": (lambda run: _edit(run, lambda d: d["program"]["sites"][0].update(name="x")), "checksum"),
    "tampered configuration": (lambda run: _edit(run, lambda d: d["configuration"].update(bins=9)), "checksum"),
    "unknown field": (lambda run: _edit(run, lambda d: d.update(extra=1)), "damaged: extra"),
    "missing field": (lambda run: _edit(run, lambda d: d.pop("dtype")), "damaged: dtype"),
    "wrong kind of field": (lambda run: _edit(run, lambda d: d["configuration"].update(transforms="2")), "transforms"),
    "file elsewhere": (
        lambda run: _sealed(run, lambda d: d["files"]["weights"].update(name="../weights.safetensors")),
        "name of a file",
    ),
    "other configuration": (
        lambda run: _sealed(run, lambda d: d["configuration"].update(hidden_features=[9, 9])),
        "another shape",
    ),
    "fewer layers": (lambda run: _sealed(run, lambda d: d["configuration"].update(transforms=1)), "only one of them"),
    "no files named": (lambda run: _sealed(run, lambda d: d.update(files={})), "names no program file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_in_one_sentence(name, tmp_path):
    run = tmp_path / "run"
    save(_flow(), run)
    damage, message = DAMAGES[name]
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        load(run)
    assert "\n" not in str(caught.value)


def test_a_path_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is a file of that name"):
        save(_flow(), tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        save(_flow(), tmp_path / "file" / "run")
