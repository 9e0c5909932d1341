"""Where the rows of an epoch come from: data that are given, or a function that draws them afresh."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.training.examples import Examples, check_context, check_examples

__all__ = ["DRAWN_ROWS", "VALIDATION", "Drawn", "Given", "Source"]

VALIDATION = -1
"""The number that stands for the validation rows where others are those of epochs."""

DRAWN_ROWS = 10_000
"""Rows of an epoch where a function draws them and nothing else is said."""


class Source(Protocol):
    """Rows for the epochs of a training.

    Attributes:
        rows: How many an epoch has.
        endless: Whether no row comes twice.
    """

    rows: int

    @property
    def endless(self) -> bool: ...

    def epoch(self, flow: Any, number: int, *, seed: int, again: int = 0) -> tuple[Tensor, Tensor | None]:
        """Packed examples ``[rows, D]`` of an epoch that was begun ``again`` times before, and their contexts."""
        ...


class Given:
    """Rows that are the same in every epoch, but for the noise of dequantisation.

    Args:
        examples: The rows.
    """

    endless = False

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.rows = examples.rows

    def epoch(self, flow: Any, number: int, *, seed: int, again: int = 0) -> tuple[Tensor, Tensor | None]:
        """Packed examples ``[rows, D]`` of an epoch that was begun ``again`` times before, and their contexts."""
        return self.examples.packed(flow, seed=seed), self.examples.context


class Drawn:
    """Rows that a function draws afresh for every epoch.

    Args:
        function: ``function(n=..., seed=...)`` gives n examples: a tensor ``[n, D]``, a mapping from site name to
            values, or a pair of one of these and their contexts ``[n, C]``. What it takes from torch's global random
            state is repeatable too.
        rows: Number of rows of an epoch.
        seed: Seed of the training, of which each epoch's seed is made.
        device: Where the rows are wanted.
        dtype: In which type.

    Raises:
        UserError: If the function does not take ``n`` and ``seed``.
    """

    endless = True

    def __init__(
        self, function: Callable[..., Any], rows: int, *, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        try:
            inspect.signature(function).bind(n=1, seed=0)
        except TypeError as error:
            raise UserError(f"a function of data must take n and seed, data(n=..., seed=...): {error}") from error
        except ValueError:
            pass
        self.function = function
        self.rows = rows
        self.seed = seed
        self.device = device
        self.dtype = dtype

    def draw(self, rows: int, number: int, again: int = 0) -> Examples:
        """Draws rows; the same number gives the same ones.

        Raises:
            UserError: If it gives another number of rows, or no examples.
        """
        words = np.random.SeedSequence([self.seed, number - VALIDATION, again]).generate_state(1)
        seed = int(words[0]) >> 1
        torch.manual_seed(seed)
        data, context = self.function(n=rows, seed=seed), None
        if isinstance(data, tuple) and len(data) == 2:
            data, context = data
        if not isinstance(data, (Tensor, Mapping, np.ndarray)):
            what = f"a tuple of {len(data)}" if isinstance(data, tuple) else f"{type(data).__name__}"
            raise UserError(
                "the function of data must return a tensor or a mapping from site name to values, "
                f"or a tuple of one of these and their contexts, not {what}"
            )
        try:
            examples = Examples.of(data, context, device=self.device, dtype=self.dtype)
        except UserError as error:
            raise UserError(f"the function of data gave what cannot be trained on: {error}") from error
        if examples.rows != rows:
            raise UserError(f"the function of data was asked for {rows} rows and gave {examples.rows}")
        return examples

    def epoch(self, flow: Any, number: int, *, seed: int, again: int = 0) -> tuple[Tensor, Tensor | None]:
        """Packed examples ``[rows, D]`` of an epoch that was begun ``again`` times before, and their contexts."""
        examples = self.draw(self.rows, number, again)
        packed = examples.packed(flow, seed=seed)
        when = f" for epoch {number}" if number else ""
        check_examples(flow, packed, what=f"the data drawn{when}")
        check_context(flow, examples.context, what=f"the context drawn{when}", from_function=True)
        return packed, examples.context
