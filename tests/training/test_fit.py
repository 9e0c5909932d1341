"""Maximum likelihood: it learns, keeps the best, is repeatable, and survives trouble."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from emfc.data import Chain, Dequantise, Logit, Scale
from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow
from emfc.training import SilentProgress, evaluate, fit, log_prob
from emfc.training.optimiser import make_optimiser
from tests.flows.fakes import ChainLayer, LevelLayer

DIM = 5


def _data(rows: int = 400, *, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randn(rows, generator=generator)]
    for _ in range(DIM - 1):
        columns.append(0.5 * columns[-1] + 0.3 * torch.randn(rows, generator=generator) + 1)
    return torch.stack(columns, dim=-1)


def _floor() -> float:
    """Entropy of the process of ``_data``."""
    return DIM * 0.5 * math.log(2 * math.pi * math.e) + (DIM - 1) * math.log(0.3)


def _flow(**options) -> EmbeddedModelFlow:
    options = {"hidden_features": (16, 16), "activation": "tanh", "backbone": "maf", **options}
    return EmbeddedModelFlow.from_layer(ChainLayer(DIM), **options)


@pytest.mark.parametrize("backbone", ["maf", "nsf", "coupling", "mvn", None])
def test_training_gains(backbone):
    flow = _flow(backbone=backbone)
    before = evaluate(flow, _data(seed=2)).nll
    result = fit(flow, _data(2000), epochs=25, learning_rate=3e-2 if backbone == "mvn" else 5e-3, batch_size=128)
    after = evaluate(flow, _data(2000, seed=2))
    assert after.nll < before - 1
    if backbone == "mvn":
        assert after.nll == pytest.approx(_floor(), abs=0.15)
    assert result.flow is flow
    assert result.epochs == len(result.history) <= 25
    assert 0 < result.best_epoch <= result.epochs
    assert min(row.validation_nll for row in result.history) == result.best_validation_nll
    assert result.stopped in ("epochs", "patience")
    assert not result.interrupted
    assert result.diverged == 0
    assert result.seconds > 0


def test_flow_has_the_best_weights():
    flow = _flow(backbone="maf", hidden_features=(64, 64))
    train, held_out = _data(60), _data(60, seed=3)
    result = fit(flow, train, validation=held_out, epochs=60, learning_rate=2e-2, batch_size=20, patience=8)
    assert result.stopped == "patience"
    assert result.epochs == result.best_epoch + 8
    assert evaluate(flow, held_out).nll == pytest.approx(result.best_validation_nll, abs=1e-4)


def test_same_seed_same_result_and_global_random_state_untouched():
    def run(seed: int) -> tuple[list[float], torch.Tensor]:
        torch.manual_seed(5)
        flow = _flow()
        before = torch.get_rng_state()
        result = fit(flow, _data(), epochs=4, seed=seed, dropout=0.1)
        assert torch.equal(before, torch.get_rng_state())
        return [row.train_nll for row in result.history], log_prob(flow, _data(seed=2))

    first, again, other = run(0), run(0), run(1)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert first[0] != other[0]


def test_fresh_noise_each_epoch_for_integers_only():
    seen: list[torch.Tensor] = []

    class Watched(LevelLayer):
        def pack(self, mapping, *, generator=None):
            packed = super().pack(mapping, generator=generator)
            seen.append(packed)
            return packed

    levels = torch.randint(0, 4, (50, 3))
    flow = EmbeddedModelFlow.from_layer(Watched(torch.zeros(3, 4)), hidden_features=(8,))
    fit(flow, {"pixels": levels}, epochs=3, validation_fraction=0.2)
    training = [packed for packed in seen if packed.shape[0] == 40]
    assert len(training) >= 3
    assert not torch.equal(training[-1], training[-2])
    assert torch.equal(training[-1].floor(), training[-2].floor())


def test_raw_values_are_dequantised_afresh_where_the_preprocessing_does():
    seen: list[torch.Tensor] = []

    class Watched(Dequantise):
        def pack(self, x, *, generator=None):
            seen.append(super().pack(x, generator=generator))
            return seen[-1]

    counts = torch.randint(0, 256, (50, DIM), generator=torch.Generator().manual_seed(0))
    preprocess = Chain([Watched(), Scale(0.0, 256.0), Logit(1e-6)])
    flow = EmbeddedModelFlow.from_layer(ChainLayer(DIM), hidden_features=(8,), preprocess=preprocess)
    raw = {"x": counts}
    fit(flow, raw, epochs=3, validation_fraction=0.2)
    training = [packed for packed in seen if packed.shape[0] == 40]
    assert not torch.equal(training[-1], training[-2])
    assert torch.equal(training[-1].floor(), training[-2].floor())
    assert not torch.equal(training[-1], training[-1].floor())
    assert torch.equal(log_prob(flow, raw, seed=1), log_prob(flow, raw, seed=1))
    assert not torch.equal(log_prob(flow, raw, seed=1), log_prob(flow, raw, seed=2))
    with pytest.raises(UserError, match="whole numbers"):
        log_prob(flow, {"x": counts + 0.5})


def test_categorical_program_is_learned():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 3, (3000, 2), generator=generator).clamp(max=1)
    flow = EmbeddedModelFlow.from_layer(LevelLayer(torch.zeros(2, 3)), backbone=None)
    fit(flow, {"pixels": levels}, epochs=30, learning_rate=5e-2)
    entropy = -2 * (math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert evaluate(flow, {"pixels": levels}).nll == pytest.approx(entropy, abs=0.02)
    mass = flow.layer.logits.softmax(-1)
    torch.testing.assert_close(mass[:, 0], torch.full((2,), 1 / 3), atol=0.03, rtol=0)


def test_conditional_flow_is_learned():
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2000, 1, generator=generator)
    data = 3 * context + 0.5 * torch.randn(2000, DIM, generator=generator)
    flow = _flow(context_features=1)
    fit(flow, data, context=context, epochs=30, learning_rate=1e-2)
    floor = DIM * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    assert evaluate(flow, data, context=context).nll == pytest.approx(floor, abs=0.5)


def test_baseline_is_standardised_first():
    flow = _flow().baseline()
    result = fit(flow, 100 + 50 * _data(), epochs=2)
    assert flow.layer.location.min() > 50
    assert result.history[0].train_nll < 40


def test_ctrl_c_keeps_the_best_weights():
    class Interrupting(SilentProgress):
        def __init__(self):
            self.remarks = []

        def epoch(self, row, *, best):
            if row.epoch == 3:
                raise KeyboardInterrupt

        def remark(self, text):
            self.remarks.append(text)

    flow, progress = _flow(), Interrupting()
    held_out = _data(seed=3)
    result = fit(flow, _data(), validation=held_out, epochs=50, progress=progress)
    assert result.interrupted
    assert result.epochs == 3
    assert "interrupted" in progress.remarks[0]
    assert evaluate(flow, held_out).nll == pytest.approx(result.best_validation_nll, abs=1e-4)


def test_ctrl_c_before_the_first_epoch_keeps_the_start():
    class Interrupting(SilentProgress):
        def start(self, epochs, *, done=0):
            raise KeyboardInterrupt

    flow = _flow()
    weights = [p.detach().clone() for p in flow.parameters()]
    result = fit(flow, _data(), progress=Interrupting())
    assert result.interrupted
    assert result.epochs == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, flow.parameters(), strict=True))


def test_an_interrupted_start_leaves_the_flow_as_it_was(monkeypatch):
    def model():
        scale = pyro.param("scale", lambda: torch.ones(3), constraint=dist.constraints.positive)
        pyro.sample("x", dist.Normal(torch.zeros(3), scale).to_event(1))

    def interrupted(flow, data):
        flow.noise_normalisation.opened.scale.fill_(7.0)
        raise KeyboardInterrupt

    flow = EmbeddedModelFlow(model, hidden_features=(8, 8))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    monkeypatch.setattr("emfc.flows.starting.start_gates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(flow, 5 * torch.randn(200, 3), epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_data_that_would_be_misread_are_refused():
    with pytest.raises(UserError, match="data must be real numbers"):
        fit(_flow(), _data().to(torch.complex64))
    with pytest.raises(UserError, match=r"dtype must be torch.float32, torch.float64 or None, not 'float64'"):
        fit(_flow(), _data(), dtype="float64")
    with pytest.raises(UserError, match="dtype must be"):
        fit(_flow(), _data(), dtype=torch.float16)
    with pytest.raises(UserError, match=r"device must be the name of a device, .* not 'foo'"):
        fit(_flow(), _data(), device="foo")
    with pytest.raises(ValueError, match="hidden_features: "):
        _flow(hidden_features=8)
    with pytest.raises(UserError, match="validation_context belongs to validation"):
        fit(_flow(context_features=1), _data(), context=torch.zeros(400, 1), validation_context=torch.zeros(40, 1))


class _Breaking(ChainLayer):
    """Gives a wrong loss at some of its training evaluations."""

    def __init__(self, at: set[int], what: float) -> None:
        super().__init__(DIM)
        self.at, self.what, self.count = at, what, 0

    def _to_noise(self, value):
        noise, ladj = super()._to_noise(value)
        if self.training and torch.is_grad_enabled():
            self.count += 1
            if self.count in self.at:
                ladj = ladj * self.what
        return noise, ladj


@pytest.mark.parametrize("what", [math.nan, math.inf, 1e6], ids=["nan", "infinite", "explosion"])
def test_divergence_goes_back_with_a_lower_rate(what):
    flow = EmbeddedModelFlow.from_layer(_Breaking({10, 11}, what), hidden_features=(8,))
    with torch.no_grad():
        flow.layer.log_scale.fill_(0.5)
    result = fit(flow, _data(), epochs=8, batch_size=100, gradient_clip=1e9)
    assert 1 <= result.diverged <= 2
    assert result.epochs == 8
    assert all(math.isfinite(row.train_nll) for row in result.history)
    assert all(torch.isfinite(parameter).all() for parameter in flow.parameters())
    assert result.history[-1].validation_nll < result.history[0].validation_nll


def test_a_repeated_epoch_draws_other_noise():
    seen: list[int] = []

    class Watched(LevelLayer):
        def pack(self, mapping, *, generator=None):
            seen.append(generator.initial_seed())
            return super().pack(mapping, generator=generator)

        def _to_noise(self, value):
            noise, ladj = super()._to_noise(value)
            return noise, ladj * math.nan if self.training and torch.is_grad_enabled() else ladj

    flow = EmbeddedModelFlow.from_layer(Watched(torch.zeros(3, 4)), hidden_features=(8,))
    with pytest.raises(UserError, match="diverged"):
        fit(flow, {"pixels": torch.randint(0, 4, (50, 3))}, max_divergences=3)
    assert len(seen) == len(set(seen)) == 6


def test_hopeless_divergence_is_told():
    flow = EmbeddedModelFlow.from_layer(_Breaking(set(range(10_000)), math.nan), hidden_features=(8,))
    weights = [p.detach().clone() for p in flow.parameters()]
    with pytest.raises(UserError, match=r"diverged 4 times .* lower learning_rate"):
        fit(flow, _data(), epochs=20, max_divergences=3)
    assert all(torch.equal(a, b) for a, b in zip(weights, flow.parameters(), strict=True))


def test_late_divergence_ends_with_the_best_weights():
    flow = EmbeddedModelFlow.from_layer(_Breaking(set(range(12, 10_000)), math.nan), hidden_features=(8,))
    result = fit(flow, _data(), epochs=20, batch_size=100, max_divergences=2, learning_rate=1e-2)
    assert result.stopped == "diverged"
    assert result.diverged == 3
    assert result.best_epoch >= 1


def test_bad_data_are_told_with_their_rows():
    flow = EmbeddedModelFlow.from_layer(LevelLayer(torch.zeros(3, 4)), hidden_features=(8,))
    good = 4 * torch.rand(50, 3)
    held_out = 4 * torch.rand(10, 3)
    wrong = good.clone()
    wrong[7, 1] = math.nan
    with pytest.raises(UserError, match=r"training data .* row 7;"):
        fit(flow, wrong, validation=held_out)
    wrong = good.clone()
    wrong[[3, 9], 2] = 4.5
    with pytest.raises(UserError, match=r"outside the support .* rows 3, 9"):
        fit(flow, wrong, validation=held_out)
    with pytest.raises(UserError, match="validation data"):
        fit(flow, good, validation=wrong)
    with pytest.raises(UserError, match=r"3 elements a row .* 5 were found"):
        fit(flow, torch.rand(50, 5))
    with pytest.raises(UserError, match="table of rows"):
        fit(flow, torch.rand(50))
    with pytest.raises(UserError, match="no rows"):
        fit(flow, torch.rand(0, 3))
    with pytest.raises(UserError, match="at least two rows"):
        fit(flow, torch.rand(1, 3))
    with pytest.raises(UserError, match="same number of rows"):
        fit(flow, good, context=torch.zeros(3, 1))


def test_bad_options_are_told():
    for options in [{"epochs": 0}, {"learning_rate": -1.0}, {"averaging": 1.0}, {"validation_fraction": 0.0}]:
        with pytest.raises(ValueError, match=next(iter(options))):
            fit(_flow(), _data(), **options)
    with pytest.raises(ValueError, match="checkpoint"):
        fit(_flow(), _data(), resume=True)


def test_nothing_to_learn_is_told():
    flow = _flow(backbone=None).baseline()
    with pytest.raises(UserError, match="nothing to learn"):
        fit(flow, _data())


def test_dtype_and_training_mode():
    flow = _flow()
    flow.eval()
    fit(flow, _data(), epochs=2, dtype=torch.float32)
    assert flow().sample((2,)).dtype == torch.float32
    assert not flow.training


def test_gates_have_their_own_rate_and_no_decay():
    class Gated(ChainLayer):
        def __init__(self):
            super().__init__(DIM)
            self.gate_logits = torch.nn.Parameter(torch.full((DIM,), 7.0))

    flow = EmbeddedModelFlow.from_layer(Gated(), hidden_features=(8,))
    optimiser = make_optimiser(flow, learning_rate=1e-3, weight_decay=0.1, gate_factor=10.0, program_factor=2.0)
    found = {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["factor"], group["weight_decay"])
    assert len(found) == len(list(flow.parameters()))
    assert found[id(flow.layer.gate_logits)] == (10.0, 0.0)
    assert found[id(flow.layer.slope)] == (2.0, 0.0)
    weight = next(p for p in flow.backbone_parameters() if p.ndim == 2)
    assert found[id(weight)] == (1.0, 0.1)
    scales = list(flow.scale_parameters())
    assert len(scales) == 2
    assert all(found[id(scale)] == (30.0, 0.0) for scale in scales)
    fast = make_optimiser(flow, learning_rate=0.1, weight_decay=0.1, gate_factor=10.0, program_factor=2.0)
    factors = [group["factor"] for group in fast.param_groups if group["params"][0] is scales[0]]
    assert factors == [pytest.approx(1.5)]


def _walk():
    slope = pyro.param("slope", lambda: torch.tensor(0.5))
    value = torch.zeros(())
    for step in range(DIM):
        value = pyro.sample(f"x_{step}", dist.Normal(slope * value, 1.0))


def _changed(flow, before) -> list[str]:
    held = flow.state_dict()
    return [
        name for name, value in before.items() if not torch.equal(value, held[name]) or value.dtype != held[name].dtype
    ]


@pytest.mark.parametrize("at", ["validation", "context", "width", "empty"])
def test_a_refused_fit_leaves_the_flow_as_it_was(at):
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,), placement="middle", context_features=2 * (at == "context"))
    flow = flow.double()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    wrong = _data(20)
    wrong[3, 1] = math.nan
    options = {
        "validation": {"validation": wrong},
        "context": {"context": torch.full((400, 2), math.nan)},
        "width": {"validation": wrong[:, 1:]},
        "empty": {"validation": wrong[:0]},
    }[at]
    with pytest.raises(UserError):
        fit(flow, _data(), dtype=torch.float32, **options)
    assert _changed(flow, before) == []
    assert flow.noise_reference.dtype == torch.float64


@pytest.mark.parametrize("gate", ["site", "element"])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("placement", ["top", "middle", "bottom"])
def test_gates_at_their_ends_stay_while_the_rest_is_trained(gate, value, placement):
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,), placement=placement, gate=gate)
    flow.layer.set_gates(value)
    result = fit(flow, _data(), epochs=3)
    assert result.diverged == 0
    assert result.best_epoch > 0
    assert torch.equal(flow.layer.element_gates(), torch.full((DIM,), value))
    assert all(torch.isfinite(parameter).all() for parameter in flow.backbone_parameters())


def test_only_the_gates_at_their_ends_stay():
    flow = EmbeddedModelFlow(_walk, hidden_features=(8,))
    with torch.no_grad():
        flow.layer.gate_logits[:2] = torch.tensor([math.inf, -math.inf])
    open_before = flow.layer.gate_logits[2:].detach().clone()
    assert fit(flow, _data(), epochs=3).diverged == 0
    assert flow.layer.gate_logits[:2].tolist() == [math.inf, -math.inf]
    assert torch.isfinite(flow.layer.gate_logits[2:]).all()
    assert not torch.equal(flow.layer.gate_logits[2:], open_before)


@pytest.mark.parametrize(
    "option",
    [
        {"steps": "10"},
        {"steps": 1.5},
        {"steps": True},
        {"rows": "10"},
        {"rows": None},
        {"rows": math.nan},
        {"epochs": "2"},
        {"epochs": 1.5},
        {"batch_size": 1.5},
        {"batch_size": 0},
        {"seed": "a"},
        {"start": "no"},
        {"resume": 1},
        {"patience": 0},
        {"learning_rate": "fast"},
        {"learning_rate": math.nan},
        {"max_divergences": 1.5},
        {"dropout": "x"},
        {"averaging": None},
        {"checkpoint_every": -1},
        {"validation_fraction": "half"},
    ],
    ids=str,
)
def test_an_option_of_no_meaning_is_refused_in_a_sentence(option):
    ((name, _),) = option.items()
    with pytest.raises(UserError, match=f"^{name} must be .*, not "):
        fit(_flow(), _data(), **option)


def test_contexts_are_checked_before_training():
    flow = _flow(context_features=2)
    context = torch.zeros(400, 2)
    with pytest.raises(UserError, match="the context is missing"):
        fit(flow, _data())
    with pytest.raises(UserError, match="table of 2 features a row"):
        fit(flow, _data(), context=context[:, :1])
    with pytest.raises(UserError, match="the validation context is missing"):
        fit(flow, _data(), context=context, validation=_data(20))
    with pytest.raises(UserError, match="has no context"):
        fit(_flow(), _data(), context=context)
    context[17, 1] = math.nan
    with pytest.raises(UserError, match="the context holds missing or infinite values in row 17;"):
        fit(flow, _data(), context=context)


def test_data_that_are_none_are_told():
    with pytest.raises(UserError, match="cannot be made of None"):
        fit(_flow(), None)
