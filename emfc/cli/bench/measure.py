"""Measuring: times of functions that take turns, dispatched operations, and memory kept for the backward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["kept_bytes", "one_thread", "operations", "ratio", "seconds"]

LEAST_ROUNDS = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(function: Callable[[], object]) -> float:
    """Processor seconds of one call: on one thread the time that passes, less what other programs took."""
    began = time.process_time()
    function()
    return time.process_time() - began


def seconds(function: Callable[[], object], *, budget: float = 1.0, most: int = 61) -> float:
    """Median processor seconds of a function."""
    first = _timed(function)
    rounds = max(LEAST_ROUNDS, min(most, int(budget / max(first, 1e-6))))
    return statistics.median(_timed(function) for _ in range(rounds))


def ratio(
    first: Callable[[], object], second: Callable[[], object], *, budget: float = 2.0, most: int = 61
) -> tuple[float, float, float]:
    """Time of one function over that of another, both taking turns.

    Args:
        first: The function above the line.
        second: The one below it.
        budget: Seconds that the rounds may take in all; there are at least three.
        most: Rounds at most.

    Returns:
        Median of the ratios of all rounds, then the median processor seconds of both.
    """
    second()
    warm = _timed(first) + _timed(second)
    rounds = max(LEAST_ROUNDS, min(most, int(budget / max(warm, 1e-6))))
    pairs = [(_timed(first), _timed(second)) for _ in range(rounds)]
    return (
        statistics.median(one / max(other, 1e-9) for one, other in pairs),
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
    )


class _Counter(TorchDispatchMode):
    """Counts what is dispatched, views included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], object]) -> int:
    """Operations that a call dispatches, forward and backward, after a first call that may prepare things."""
    function()
    with _Counter() as counter:
        function()
    count: int = counter.count
    return count


def kept_bytes(function: Callable[[], Tensor], inputs: Iterable[Tensor]) -> int:
    """Bytes that a call keeps for its backward pass, beside its inputs.

    Args:
        function: Builds a graph and returns its end.
        inputs: Tensors that exist anyway, whose storage isn't counted.
    """
    held: dict[int, Tensor] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known:
            held[pointer] = tensor  # kept, so that its storage isn't given to another
        return tensor

    function()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        end = function()
    total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del end
    return total
