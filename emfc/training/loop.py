"""The training loop: epochs, best weights, going back after a divergence."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.training.checkpoint import Checkpoint, TrainingState, load_state
from emfc.training.evaluation import mean_nll
from emfc.training.examples import batches
from emfc.training.optimiser import FixedGates, WeightAverage, make_optimiser, schedule
from emfc.training.progress import EpochRow, TrainingProgress
from emfc.training.settings import Outcome, Settings
from emfc.training.snapshot import Snapshot
from emfc.training.sources import Source

__all__ = ["Trainer"]

EVALUATED_AT_ONCE = 1024


class _Diverged(Exception):
    """A step or an epoch went wrong; the message says how."""


class Trainer:
    """Trains a flow on rows, with everything that ``fit`` promises.

    Args:
        flow: The flow.
        train: Where the training rows come from.
        validation: Packed validation examples ``[rows, D]``.
        validation_context: Their contexts.
        settings: The numbers.
        progress: What hears of the epochs.
        checkpoint: Run folder to write to, if any.
        checkpoint_every: Seconds between two writes.
    """

    def __init__(
        self,
        flow: Any,
        train: Source,
        validation: Tensor,
        validation_context: Tensor | None,
        *,
        settings: Settings,
        progress: TrainingProgress,
        checkpoint: str | os.PathLike[str] | None,
        checkpoint_every: float,
    ) -> None:
        self.flow = flow
        self.train = train
        self.validation = validation
        self.validation_context = validation_context
        self.settings = settings
        self.progress = progress
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, every=checkpoint_every)
        self.fixed_gates = FixedGates(flow)
        self.average = WeightAverage(flow, settings.averaging)
        self.optimiser = self._new_optimiser()
        self.outcome = Outcome()
        self.epoch = 0
        self.step = 0
        self.rate_scale = 1.0
        self.initial_nll = math.inf
        self.lowest_train_nll = math.inf
        self.parameters = self.average.parameters
        self.best = [parameter.detach().clone() for parameter in self.parameters]
        self.good = self._snapshot()
        self._improved = True
        self._rows_done = 0
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        self.steps_per_epoch = -(-train.rows // settings.batch_size)
        self.steps = settings.steps or settings.epochs * self.steps_per_epoch

    # ---- the run -------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Trains until the epochs or the patience end, or Ctrl-C; leaves the best weights in the flow."""
        self._began = time.perf_counter()
        was_training = self.flow.training
        with self.progress:
            try:
                self.flow.train()
                self.flow.set_dropout(self.settings.dropout)
                self._begin()
                while not self._ended():
                    self._one_epoch()
            except KeyboardInterrupt:
                self.outcome.stopped = "interrupted"
                self.progress.remark(f"interrupted: keeping the weights of epoch {self.outcome.best_epoch}")
            finally:
                self._put(self.best)
                self.flow.set_dropout(0.0)
                self.flow.train(was_training)
        self.outcome.seconds = self._seconds()
        self._write()
        return self.outcome

    def _begin(self) -> None:
        self.progress.start(self.settings.epochs, done=self.epoch)
        if self.epoch == 0:
            self.initial_nll = self.outcome.best_nll = self._validate()
        else:
            self.progress.remark(f"going on from epoch {self.epoch}")

    def _ended(self) -> bool:
        """Whether nothing is left to do, which the outcome then says why."""
        if self.outcome.diverged > self.settings.max_divergences:
            self.outcome.stopped = "diverged"
        elif self.epoch >= self.settings.epochs:
            self.outcome.stopped = "epochs"
        elif self.epoch - self.outcome.best_epoch >= self.settings.patience:
            self.outcome.stopped = "patience"
        else:
            return False
        return True

    def _seconds(self) -> float:
        """Duration so far, that of the part before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._began

    def _one_epoch(self) -> None:
        began = time.perf_counter()
        try:
            train_nll, validation_nll = self._pass_over_data()
        except _Diverged as error:
            self._go_back(str(error))
            return
        self.lowest_train_nll = min(self.lowest_train_nll, train_nll)
        self.good, self.epoch = self._snapshot(), self.epoch + 1
        outcome = self.outcome
        if validation_nll < outcome.best_nll or not math.isfinite(outcome.best_nll):
            best = self.good.average if self.settings.averaging else self.good.live
            self.best = [tensor.clone() for tensor in best]
            outcome.best_nll, outcome.best_epoch = validation_nll, self.epoch
            self._improved = True
        seconds = time.perf_counter() - began
        row = EpochRow(
            epoch=self.epoch,
            train_nll=train_nll,
            validation_nll=validation_nll,
            learning_rate=self.optimiser.param_groups[0]["lr"] / self.optimiser.param_groups[0]["factor"],
            seconds=seconds,
            examples_per_second=self._rows_done / max(seconds, 1e-9),
        )
        outcome.history.append(row)
        self.progress.epoch(row, best=outcome.best_nll)
        if self.checkpoint is not None and self.checkpoint.due():
            self._write()

    def _pass_over_data(self) -> tuple[float, float]:
        """One epoch of steps and its validation: mean training loss and validation loss."""
        seed = self.settings.seed + 7919 * (self.epoch + 1) + 104729 * self.outcome.diverged
        generator = torch.Generator().manual_seed(seed)
        packed, contexts = self.train.epoch(self.flow, self.epoch + 1, seed=seed, again=self.outcome.diverged)
        torch.manual_seed(seed)
        total, self._rows_done = 0.0, 0
        for index in batches(self.train.rows, self.settings.batch_size, generator=generator):
            if self.step >= self.steps:
                break
            rows = index.to(packed.device)
            total += self._one_step(packed[rows], None if contexts is None else contexts[rows]) * rows.numel()
            self._rows_done += rows.numel()
        train_nll = total / max(self._rows_done, 1)
        reference = self.initial_nll if math.isfinite(self.initial_nll) else self.lowest_train_nll
        if train_nll > reference + self.flow.dim and self.epoch > 0:
            raise _Diverged(f"the training loss rose to {train_nll:.4g} nats")
        validation_nll = self._validate()
        if math.isnan(validation_nll):
            raise _Diverged("the validation loss is not a number")
        return train_nll, validation_nll

    def _one_step(self, examples: Tensor, context: Tensor | None) -> float:
        settings = self.settings
        factor = schedule((self.step + 1) / self.steps, warm_up=settings.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * factor * self.rate_scale * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        loss = -self.flow(context).log_prob(examples).mean()
        if not bool(torch.isfinite(loss)):
            raise _Diverged("the loss is not finite")
        loss.backward()
        self.fixed_gates.clear_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.gradient_clip)
        if not bool(torch.isfinite(norm)):
            raise _Diverged("a gradient is not finite")
        self.optimiser.step()
        self.average.update()
        self.step += 1
        return float(loss.detach())

    def _validate(self) -> float:
        self.average.swap()
        try:
            return mean_nll(self.flow, self.validation, self.validation_context, EVALUATED_AT_ONCE)
        finally:
            self.average.swap()

    # ---- going back ----------------------------------------------------------------------------------------------

    def _go_back(self, reason: str) -> None:
        """Returns to the last good weights with half the learning rate, or ends the training."""
        self.good.optimiser.clear()
        self.optimiser = self._new_optimiser()
        self.good.restore(self.average, self.optimiser)
        self.step = min(self.epoch * self.steps_per_epoch, self.steps)
        self.rate_scale *= 0.5
        self.outcome.diverged += 1
        rate = self.settings.learning_rate * self.rate_scale
        if self.outcome.diverged > self.settings.max_divergences:
            self.progress.remark(f"{reason}; training ends with the weights of epoch {self.outcome.best_epoch}")
        else:
            self.progress.remark(f"{reason}; going back to epoch {self.epoch} with learning rate {rate:.3g}")

    def _new_optimiser(self) -> torch.optim.AdamW:
        settings = self.settings
        return make_optimiser(
            self.flow,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            gate_factor=settings.gate_factor,
            program_factor=settings.program_factor,
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot.take(self.average, None if self.checkpoint is None else self.optimiser)

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        for parameter, saved in zip(self.parameters, weights, strict=True):
            parameter.copy_(saved)

    # ---- disk ----------------------------------------------------------------------------------------------------

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.flow.named_parameters() if parameter.requires_grad]

    def _fixed(self) -> dict[str, Tensor]:
        """What the flow stores but does not learn, such as its standardisation."""
        learned = {name for name, _ in self.flow.named_parameters()}
        return {name: value for name, value in self.flow.state_dict().items() if name not in learned}

    def _write(self) -> None:
        """Writes where the training stood at the end of its last good epoch, if there is a place for it."""
        if self.checkpoint is None:
            return
        names = [name for name, _ in self._named()]
        best = dict(zip(names, self.best, strict=True))
        tensors = {f"best.{name}": value for name, value in best.items()} | self.good.tensors(names)
        tensors |= {f"fixed.{name}": value.clone() for name, value in self._fixed().items()}
        state = TrainingState(
            seed=self.settings.seed,
            epochs=self.settings.epochs,
            epoch=self.epoch,
            step=min(self.epoch * self.steps_per_epoch, self.steps),
            best_epoch=self.outcome.best_epoch,
            best_nll=self.outcome.best_nll,
            initial_nll=self.initial_nll,
            lowest_train_nll=self.lowest_train_nll,
            rate_scale=self.rate_scale,
            diverged=self.outcome.diverged,
            average_steps=self.good.average_steps,
            history=[asdict(row) for row in self.outcome.history],
            seconds=self._seconds(),
        )
        self.checkpoint.write(self.flow, best if self._improved else None, state, tensors)
        self._improved = False

    def _same_flow(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether stored tensors are those of this flow: their names, shapes, and which gates are fixed."""
        named, fixed = self._named(), self._fixed()
        expected: dict[str, Tensor] = {
            f"{kind}.{name}": weight for kind in ("best", "live", "average") for name, weight in named
        }
        expected |= {f"fixed.{name}": value for name, value in fixed.items()}
        stored = {name for name in tensors if not name.startswith("optimiser.")}
        if stored != set(expected) or any(tensors[name].shape != value.shape for name, value in expected.items()):
            return False
        gates = {id(parameter) for parameter in self.flow.gate_parameters()}
        pairs = [(tensors[f"live.{name}"], weight) for name, weight in named if id(weight) in gates]
        return all(torch.equal(saved.isinf(), weight.isinf()) for saved, weight in pairs)

    def resume(self) -> None:
        """Takes up the state that the checkpoint folder holds; begins anew if it holds none.

        Raises:
            UserError: If the state is damaged, or is that of another flow or of another seed.
        """
        if self.checkpoint is None:
            return
        path = self.checkpoint.path
        found = load_state(path, device=self.validation.device)
        if found is None:
            return
        state, tensors = found
        if state.seed != self.settings.seed:
            raise UserError(f"{path} holds a training of seed {state.seed}, not {self.settings.seed}; give that seed")
        named, fixed = self._named(), self._fixed()
        if not self._same_flow(tensors):
            raise UserError(f"{path} holds the training of another flow; choose another folder")
        for name, value in fixed.items():
            value.copy_(tensors[f"fixed.{name}"])
        self.best = [tensors[f"best.{name}"].to(parameter.dtype) for name, parameter in named]
        self.good = Snapshot.of(tensors, named, average_steps=state.average_steps)
        self.good.restore(self.average, self.optimiser)
        self.epoch, self.step = state.epoch, state.step
        self.initial_nll, self.lowest_train_nll = state.initial_nll, state.lowest_train_nll
        self.rate_scale = state.rate_scale
        self._seconds_before = state.seconds
        self._improved = True
        self.outcome = Outcome(
            history=[EpochRow(**row) for row in state.history],  # type: ignore[arg-type]
            best_epoch=state.best_epoch,
            best_nll=state.best_nll,
            diverged=state.diverged,
        )
