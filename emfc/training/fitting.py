"""Maximum likelihood: the function that users call."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.flows.starting import start_from_data
from emfc.options import read_flag, read_number, read_seed, read_whole
from emfc.training.checkpoint import read_state
from emfc.training.examples import Examples, check_context, check_examples
from emfc.training.loop import Trainer
from emfc.training.optimiser import check_learnable
from emfc.training.progress import EpochRow, SilentProgress, TrainingProgress
from emfc.training.settings import Settings
from emfc.training.snapshot import undone_on_error
from emfc.training.sources import DRAWN_ROWS, VALIDATION, Drawn, Given, Source

__all__ = ["DivergenceError", "FitResult", "fit"]

DEFAULT_STEPS = 4000
FEWEST_EPOCHS = 30
MOST_EPOCHS = 300
DEFAULT_DROPOUT = 0.1
FEW_ROWS = 10


class DivergenceError(UserError):
    """Training diverged again and again without improving on its start."""


@dataclass(frozen=True)
class FitResult:
    """What a training came to.

    Attributes:
        flow: The flow that was trained, with its best weights.
        history: One row for each epoch.
        best_epoch: The epoch of the best weights; 0 if training never improved on the start.
        best_validation_nll: Their mean negative log likelihood on the validation rows, nats per example.
        epochs: The number of epochs done.
        seconds: Duration of the whole training.
        stopped: Why it ended: ``"epochs"``, ``"patience"``, ``"interrupted"`` or ``"diverged"``.
        diverged: How often it went back to earlier weights.
    """

    flow: Any
    history: list[EpochRow]
    best_epoch: int
    best_validation_nll: float
    epochs: int
    seconds: float
    stopped: str
    diverged: int

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.stopped == "interrupted"


def fit(
    flow: Any,
    data: Tensor | Mapping[str, Any] | Callable[..., Any],
    *,
    rows: int = DRAWN_ROWS,
    context: Tensor | None = None,
    validation: Tensor | Mapping[str, Any] | None = None,
    validation_context: Tensor | None = None,
    validation_fraction: float = 0.1,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 5e-3,
    gate_factor: float = 10.0,
    program_factor: float = 1.0,
    weight_decay: float = 1e-4,
    warm_up: float = 0.05,
    patience: int | None = None,
    gradient_clip: float = 5.0,
    averaging: float = 0.995,
    dropout: float | None = None,
    start: bool = True,
    max_divergences: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: TrainingProgress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 5.0,
    resume: bool = False,
) -> FitResult:
    r"""Trains a flow by maximum likelihood, :math:`\min_\theta -\frac{1}{n} \sum_i \log p_\theta(x_i)`.

    AdamW with decoupled weight decay on the matrices of the learned layers, a linear warm-up and a cosine to zero,
    gradients clipped by norm. After each epoch the averaged weights are evaluated on the validation rows; the best ones
    are what the flow has in the end, also after Ctrl-C. Loss or gradients that are not finite, or an explosion of the
    loss, send the training back to the weights of the last good epoch with half the learning rate. torch's global
    random state is left as it was.

    Args:
        flow: The flow; trained in place.
        data: Examples ``[rows, D]``, taken as they are, or a mapping from site name to raw values
            ``[rows, *site_shape]``, which get fresh dequantisation noise in every epoch: discrete sites always, others
            where the flow's preprocessing dequantises. Or a function ``data(n=..., seed=...)`` that gives n such
            examples (or a pair of examples and contexts), which are then drawn afresh for every epoch, and for the
            validation once.
        rows: How many such a function draws for an epoch.
        context: Contexts ``[rows, C]`` of a conditional flow.
        validation: Validation rows, a tensor or a mapping; left out, a random part of the data, or as many drawn apart.
        validation_context: Their contexts.
        validation_fraction: That part.
        epochs: The largest number of epochs, over which the learning rate falls to zero; None for as many as make 4000
            steps, at least 30 and at most 300.
        steps: The number of steps, instead of epochs.
        batch_size: Rows a step.
        learning_rate: Highest learning rate of the learned layers; log-scales of affine layers have thirty times as
            much, at most 0.15.
        gate_factor: What it is multiplied by for the gates.
        program_factor: What it is multiplied by for the program's parameters.
        weight_decay: Decay of the learned layers' matrices.
        warm_up: Share of the steps over which the rate rises.
        patience: Epochs without improvement after which training ends; None for a quarter of the epochs, and for all
            where every epoch draws its rows afresh.
        gradient_clip: Largest norm of the gradients; ``math.inf`` for none.
        averaging: Decay of the average of the weights (a step's share is one minus it); 0 for none.
        dropout: Probability with which hidden units are dropped in training; None for 0.1 where the flow has more than
            ten parameters for each training row, else 0.
        start: Whether the flow first starts from the training data: the program's parameters by maximum likelihood of
            the bare program (kept where that is better), gates nearly closed where the program is worse than none, and
            the standardisation of what the learned layers see.
        max_divergences: How often training may go back to earlier weights.
        seed: Seed of the split, the order of the rows, the dequantisation and dropout.
        device: Where to train; the flow is moved there and stays there.
        dtype: Floating-point type to train in; the flow is changed to it.
        progress: What to show; nothing if left out. See ``make_progress``.
        checkpoint: A run folder that holds the best weights so far, and the state of the training, as it goes on.
        checkpoint_every: Seconds that lie at least between two writes.
        resume: Whether to go on from what that folder holds, if it holds anything; given the same data and options, the
            result is that of a training without a break.

    Returns:
        The result, whose ``flow`` is the flow given.

    Raises:
        UserError: If the data do not fit the flow (says which rows), if training cannot be kept from diverging, or if
            the checkpoint cannot be written (the flow then has its best weights so far, and the one before is kept),
            or if an option has no meaning. What is refused before training leaves the flow as it was.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, emfc
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> flow = emfc.EmbeddedModelFlow(model, backbone="mvn")
        >>> result = emfc.fit(flow, {"scale": torch.ones(20), "x": torch.zeros(20)}, epochs=2)
        >>> result.epochs
        2
    """
    read_number("validation_fraction", validation_fraction, above=0.0, below=1.0)
    read_number("checkpoint_every", checkpoint_every, least=0.0, infinite=True)
    read_flag("start", start)
    if read_flag("resume", resume) and checkpoint is None:
        raise UserError("resume=True needs checkpoint, the folder to go on from")
    if epochs is not None and steps is not None:
        raise UserError("epochs and steps are two ways to say how long to train; give one of them")
    if dtype not in (None, torch.float32, torch.float64):
        raise UserError(f"dtype must be torch.float32, torch.float64 or None, not {dtype!r}")
    try:
        device = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be the name of a device, such as 'cpu' or 'cuda', not {device!r}") from error
    rows, seed = read_whole("rows", rows, 1), read_seed(seed)
    settings = Settings(
        epochs=1 if epochs is None else epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        gate_factor=gate_factor,
        program_factor=program_factor,
        weight_decay=weight_decay,
        warm_up=warm_up,
        patience=1 if patience is None else patience,
        gradient_clip=gradient_clip,
        averaging=averaging,
        dropout=0.0 if dropout is None else dropout,
        max_divergences=max_divergences,
        seed=seed,
        steps=steps,
    )
    with undone_on_error(flow):
        flow.to(device=device, dtype=dtype)
        place = {"device": flow.noise_reference.device, "dtype": flow.noise_reference.dtype}
        cuda = _cuda_devices(place["device"])
        check_learnable(flow)
        with torch.random.fork_rng(devices=cuda):
            train, held_out = _sources(
                flow, data, context, validation, validation_context, fraction=validation_fraction, rows=rows, seed=seed
            )
            epochs = _epochs(epochs, steps, train.rows, batch_size)
            if dropout is None:
                few = not train.endless and flow.parameter_count > FEW_ROWS * train.rows
                dropout = DEFAULT_DROPOUT if few else 0.0
            if patience is None:
                patience = epochs if train.endless else max(epochs // 4, 10)
            going_on = resume and checkpoint is not None and read_state(checkpoint) is not None
            torch.manual_seed(seed)
            packed, _ = train.epoch(flow, 0, seed=seed)
            check_examples(flow, packed, what="the training data")
            packed_held_out = held_out.packed(flow, seed=seed + 1)
            check_examples(flow, packed_held_out, what="the validation data")
            if start and not going_on:
                order = torch.randperm(len(packed), generator=torch.Generator().manual_seed(seed))
                start_from_data(flow, packed[order.to(packed.device)])
            trainer = Trainer(
                flow,
                train,
                packed_held_out,
                held_out.context,
                settings=replace(settings, epochs=epochs, patience=patience, dropout=dropout),
                progress=SilentProgress() if progress is None else progress,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
            )
            if resume:
                trainer.resume()
    with torch.random.fork_rng(devices=cuda):
        outcome = trainer.run()
    if outcome.stopped == "diverged" and outcome.best_epoch == 0:
        raise DivergenceError(
            f"training diverged {outcome.diverged} times without improving on the start; "
            f"lower learning_rate (now {learning_rate:g}) or check the scale of the data"
        )
    return FitResult(
        flow=flow,
        history=outcome.history,
        best_epoch=outcome.best_epoch,
        best_validation_nll=outcome.best_nll if math.isfinite(outcome.best_nll) else math.nan,
        epochs=len(outcome.history),
        seconds=outcome.seconds,
        stopped=outcome.stopped,
        diverged=outcome.diverged,
    )


def _sources(
    flow: Any,
    data: Any,
    context: Tensor | None,
    validation: Tensor | Mapping[str, Any] | None,
    validation_context: Tensor | None,
    *,
    fraction: float,
    rows: int,
    seed: int,
) -> tuple[Source, Examples]:
    """Where the training rows come from, and the validation rows; the contexts of both are checked."""
    device, dtype = flow.noise_reference.device, flow.noise_reference.dtype
    held_out = None
    if validation is not None:
        held_out = Examples.of(validation, validation_context, device=device, dtype=dtype)
        check_context(flow, held_out.context, what="the validation context")
    elif validation_context is not None:
        raise UserError("validation_context belongs to validation, which was not given")
    if callable(data) and not isinstance(data, Mapping):
        if context is not None:
            raise UserError(
                "a function of data gives its contexts itself: let it return examples and contexts as a pair"
            )
        drawn = Drawn(data, rows, seed=seed, device=device, dtype=dtype)
        if held_out is None:
            held_out = drawn.draw(max(round(fraction * rows), 1), VALIDATION)
            check_context(flow, held_out.context, what="the context drawn for validation", from_function=True)
        return drawn, held_out
    given = Examples.of(data, context, device=device, dtype=dtype)
    check_context(flow, given.context)
    if held_out is None:
        given, held_out = given.split(fraction, generator=torch.Generator().manual_seed(seed))
    return Given(given), held_out


def _epochs(epochs: int | None, steps: int | None, rows: int, batch_size: int) -> int:
    """The number of epochs, of which the last may be cut short by the number of steps."""
    each = -(-rows // batch_size)
    if steps is None:
        return min(max(-(-DEFAULT_STEPS // each), FEWEST_EPOCHS), MOST_EPOCHS) if epochs is None else int(epochs)
    return -(-int(steps) // each)


def _cuda_devices(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]
