"""Log densities of many rows, in batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emfc.training.examples import Examples

__all__ = ["Evaluation", "evaluate", "log_prob", "mean_nll"]


class Evaluation(NamedTuple):
    """Mean negative log likelihood over rows.

    Attributes:
        nll: Mean negative log density in nats per example.
        standard_error: Its standard error over the rows; not a number for one row.
        rows: The number of rows.
    """

    nll: float
    standard_error: float
    rows: int


def _place(flow: Any) -> tuple[torch.device, torch.dtype]:
    noise = flow.noise_reference
    return noise.device, noise.dtype


def log_prob(
    flow: Any,
    data: Tensor | Mapping[str, Any],
    *,
    context: Tensor | None = None,
    batch_size: int = 1024,
    seed: int = 0,
) -> Tensor:
    """Returns the log density (nats) of every row, shape ``[rows]``, on the flow's device.

    Args:
        flow: The flow.
        data: Examples ``[rows, D]``, or a mapping from site name to values, whose discrete sites are dequantised with
            noise of the seed.
        context: Contexts ``[rows, C]``, if the flow is conditional.
        batch_size: Rows evaluated at once.
        seed: Seed of the dequantisation.

    Raises:
        UserError: If there are no rows or if parts of the data differ in their number of rows.
    """
    device, dtype = _place(flow)
    examples = Examples.of(data, context, device=device, dtype=dtype)
    training = flow.training
    flow.eval()
    try:
        return _log_prob(flow, examples.packed(flow, seed=seed), examples.context, batch_size)
    finally:
        flow.train(training)


@torch.no_grad()
def _log_prob(flow: Any, packed: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
    parts = []
    for start in range(0, packed.shape[0], batch_size):
        rows = slice(start, start + batch_size)
        distribution = flow() if context is None else flow(context[rows])
        parts.append(distribution.log_prob(packed[rows]))
    return torch.cat(parts)


def mean_nll(flow: Any, packed: Tensor, context: Tensor | None, batch_size: int) -> float:
    """Returns the mean negative log density (nats) of packed examples, with dropout off."""
    training = flow.training
    flow.eval()
    try:
        return float(-_log_prob(flow, packed, context, batch_size).mean())
    finally:
        flow.train(training)


def evaluate(
    flow: Any,
    data: Tensor | Mapping[str, Any],
    *,
    context: Tensor | None = None,
    batch_size: int = 1024,
    seed: int = 0,
) -> Evaluation:
    """Returns the mean negative log likelihood (nats per example), its standard error and the number of rows.

    Takes the same arguments as ``log_prob``.

    Raises:
        UserError: If there are no rows or if parts of the data differ in their number of rows.
    """
    densities = log_prob(flow, data, context=context, batch_size=batch_size, seed=seed).double()
    rows = densities.numel()
    error = float(densities.std()) / math.sqrt(rows) if rows > 1 else math.nan
    return Evaluation(float(-densities.mean()), error, rows)
