"""Data drawn afresh for every epoch, and a length in steps."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from emfc.errors import UserError
from emfc.flows import EmbeddedModelFlow
from emfc.training import fit
from emfc.training.sources import VALIDATION, Drawn
from tests.flows.fakes import ChainLayer

DIM = 3


def _flow(**options) -> EmbeddedModelFlow:
    torch.manual_seed(0)
    return EmbeddedModelFlow.from_layer(ChainLayer(DIM), hidden_features=(8,), **options)


class Simulator:
    """Standard normal rows, and a note of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, n: int = 10, seed: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
        self.calls.append((n, seed))
        return {"x": scale * torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))}


def test_every_epoch_has_rows_of_its_own():
    simulator = Simulator()
    result = fit(_flow(), simulator, rows=200, epochs=4, batch_size=50)
    assert result.epochs == 4
    assert simulator.calls[0][0] == 20
    assert [rows for rows, _ in simulator.calls[1:]] == [200] * 5
    assert len({seed for _, seed in simulator.calls}) == len(simulator.calls)


def test_the_same_seed_gives_the_same_training_and_another_seed_another():
    def run(seed: int) -> list[float]:
        return [row.train_nll for row in fit(_flow(), Simulator(), rows=100, epochs=3, seed=seed).history]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_the_global_random_state_is_left_alone_and_may_be_used():
    def simulate(n, seed):
        return torch.randn(n, DIM)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = fit(_flow(), simulate, rows=100, epochs=2)
    torch.set_rng_state(before)
    second = fit(_flow(), simulate, rows=100, epochs=2)
    assert [row.train_nll for row in first.history] == [row.train_nll for row in second.history]
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("steps", "epochs", "last"), [(1, 1, 50), (4, 1, 200), (5, 2, 50), (11, 3, 150)])
def test_a_length_in_steps(steps, epochs, last):
    made: list[int] = []

    class Counted(ChainLayer):
        def _to_noise(self, value):
            if self.training and torch.is_grad_enabled():
                made.append(len(value))
            return super()._to_noise(value)

    flow = EmbeddedModelFlow.from_layer(Counted(DIM), hidden_features=(8,))
    result = fit(flow, Simulator(), rows=200, steps=steps, batch_size=50)
    assert result.epochs == epochs
    assert made == [50] * steps
    assert result.history[-1].learning_rate == pytest.approx(0, abs=1e-9)
    assert sum(made) - 200 * (epochs - 1) == last


def test_steps_with_data_that_are_given():
    result = fit(_flow(), torch.randn(110, DIM), steps=7, batch_size=25)
    assert result.epochs == 2


def test_rows_may_come_with_contexts():
    def simulate(n, seed):
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(n, 1, generator=generator)
        return 3 * context + 0.5 * torch.randn(n, DIM, generator=generator), context

    flow = EmbeddedModelFlow.from_layer(ChainLayer(DIM), hidden_features=(32,), context_features=1)
    result = fit(flow, simulate, rows=1000, epochs=25, learning_rate=2e-2)
    floor = DIM * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    assert result.best_validation_nll == pytest.approx(floor, abs=0.5)


def test_dropout_and_patience_know_that_the_rows_never_end():
    flow = EmbeddedModelFlow.from_layer(ChainLayer(DIM), hidden_features=(64, 64))
    dropped = []
    flow.set_dropout = lambda probability: dropped.append(probability)
    result = fit(flow, functools.partial(Simulator(), scale=0.7), rows=50, epochs=60, batch_size=50, learning_rate=0.05)
    assert result.stopped == "epochs"
    assert result.epochs == 60
    assert set(dropped) == {0.0}
    fit(flow, Simulator()(n=50, seed=0), epochs=1, batch_size=50)  # as many parameters, and no more rows than these
    assert dropped[-2:] == [0.1, 0.0]


def test_what_is_wrong_is_told():
    with pytest.raises(UserError, match="must take n and seed"):
        fit(_flow(), lambda: torch.zeros(3, DIM))
    with pytest.raises(UserError, match="asked for 10 rows and gave 7"):
        fit(_flow(), lambda n, seed: torch.zeros(7, DIM), rows=100)
    with pytest.raises(UserError, match="gives its contexts itself"):
        fit(_flow(), Simulator(), context=torch.zeros(3, 1))
    with pytest.raises(UserError, match="missing or infinite"):
        fit(_flow(), lambda n, seed: torch.full((n, DIM), math.nan), rows=100)
    with pytest.raises(ValueError, match="rows"):
        fit(_flow(), Simulator(), rows=0)
    with pytest.raises(ValueError, match="give one of them"):
        fit(_flow(), Simulator(), steps=3, epochs=2)
    with pytest.raises(ValueError, match="steps"):
        fit(_flow(), Simulator(), steps=0)


def test_an_epoch_that_is_done_again_draws_other_rows():
    source = Drawn(Simulator(), 5, seed=0, device=torch.device("cpu"), dtype=torch.float32)
    flow = _flow()
    first, _ = source.epoch(flow, 1, seed=0)
    again, _ = source.epoch(flow, 1, seed=0)
    other, _ = source.epoch(flow, 1, seed=0, again=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(source.draw(5, VALIDATION).data["x"], first)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (lambda rows: iter(rows), "not generator|iterator"),
        (lambda rows: None, "not NoneType"),
        (lambda rows: (rows, rows, rows), "not a tuple of 3"),
        (lambda rows: [rows, rows[:, :1]], "not list"),
        (lambda rows: {"x": None}, "cannot be made of None"),
    ],
)
def test_what_a_function_must_return_is_told(given, what):
    with pytest.raises(UserError, match=f"the function of data .*({what})"):
        fit(_flow(), lambda n, seed: given(torch.zeros(n, DIM)), rows=100)


def test_a_function_for_a_conditional_flow_must_return_a_pair():
    flow = _flow(context_features=2)
    for wrong in (lambda n: torch.zeros(n, DIM), lambda n: (torch.zeros(n, DIM), torch.zeros(n, 1))):
        with pytest.raises(UserError, match="must return a pair"):
            fit(flow, lambda n, seed, wrong=wrong: wrong(n), rows=100)
    with pytest.raises(UserError, match=r"the context drawn .* rows 0, 1"):
        fit(flow, lambda n, seed: (torch.zeros(n, DIM), torch.full((n, 2), math.nan)), rows=100)


def test_before_training_no_epoch_is_named():
    with pytest.raises(UserError, match=r"^the data drawn must have 3 elements"):
        fit(_flow(), lambda n, seed: torch.zeros(n, DIM + 1), rows=100)


def test_any_whole_number_is_a_seed():
    assert fit(_flow(), Simulator(), rows=50, epochs=1, seed=-1).epochs == 1


def test_a_training_that_did_all_its_steps_ended_with_them():
    result = fit(_flow(), Simulator(), rows=100, steps=1, learning_rate=1e-9, averaging=0.0, start=False, warm_up=0.0)
    assert result.stopped == "epochs"
    result = fit(_flow(), Simulator(), rows=100, epochs=3, patience=1, learning_rate=1e-30, averaging=0.0)
    assert result.stopped == "patience"
