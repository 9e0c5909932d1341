"""Training data as the loop sees it: checked, split, packed with fresh noise, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfc.errors import UserError

__all__ = ["Examples", "batches", "check_context", "check_examples"]

ROWS_NAMED = 5
CHECKED_AT_ONCE = 4096


@dataclass(frozen=True)
class Examples:
    """Rows of data, with their contexts.

    Attributes:
        data: Examples ``[rows, D]``, or a mapping from site name to values ``[rows, *site_shape]``.
        context: Contexts ``[rows, C]``, if the flow is conditional.
        rows: The number of rows.
    """

    data: Tensor | dict[str, Tensor]
    context: Tensor | None
    rows: int

    @classmethod
    def of(
        cls,
        data: Tensor | Mapping[str, Any] | np.ndarray[Any, Any],
        context: Tensor | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Examples:
        """Moves data to a device and dtype (whole numbers keep theirs) and counts the rows.

        Raises:
            UserError: If there are no rows, if sites or contexts differ in their number of rows, or if a part is
                nothing that a tensor can be made of.
        """

        def place(value: Any) -> Tensor:
            try:
                tensor = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(
                    "data are a tensor, an array, or a mapping from site name to one of these, "
                    f"and cannot be made of {_what(value)}"
                ) from error
            if tensor.is_complex():
                raise UserError("data must be real numbers; these are complex")
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        held: Tensor | dict[str, Tensor]
        if isinstance(data, Mapping):
            held = {name: place(value) for name, value in data.items()}
            sizes = {name: value.shape[0] if value.ndim else 0 for name, value in held.items()}
        else:
            held = place(data).to(dtype)
            if held.ndim != 2:
                shape = tuple(held.shape)
                raise UserError(f"examples must be a table of rows and elements, not a tensor of shape {shape}")
            sizes = {"the examples": held.shape[0]}
        if context is not None:
            context = place(context).to(dtype)
            sizes["the context"] = context.shape[0] if context.ndim else 0
        if len(set(sizes.values())) != 1:
            counts = ", ".join(f"{name} has {size}" for name, size in sizes.items()) or "there are none"
            raise UserError(f"every part of the data must have the same number of rows: {counts}")
        rows = next(iter(sizes.values()))
        if rows == 0:
            raise UserError("the data hold no rows")
        return cls(held, context, rows)

    def take(self, index: Tensor) -> Examples:
        """Returns the rows of an index, in its order."""
        if isinstance(self.data, Tensor):
            data: Tensor | dict[str, Tensor] = self.data[index]
        else:
            data = {name: value[index] for name, value in self.data.items()}
        return Examples(data, None if self.context is None else self.context[index], index.numel())

    def split(self, fraction: float, *, generator: torch.Generator) -> tuple[Examples, Examples]:
        """Returns a random split into training rows and at least one validation row.

        Raises:
            UserError: If there are fewer than two rows.
        """
        if self.rows < 2:
            raise UserError("training needs at least two rows, one of them for validation")
        count = min(max(round(self.rows * fraction), 1), self.rows - 1)
        order = torch.randperm(self.rows, generator=generator)
        device = self.data.device if isinstance(self.data, Tensor) else next(iter(self.data.values())).device
        order = order.to(device)
        return self.take(order[count:].sort().values), self.take(order[:count].sort().values)

    def packed(self, flow: Any, *, seed: int) -> Tensor:
        """Returns the examples ``[rows, D]``; the noise of a mapping's whole numbers is that of the seed.

        The values of a mapping are raw: what the flow's preprocessing does where data come in is done here too.
        """
        if isinstance(self.data, Tensor):
            return self.data
        device = next(iter(self.data.values())).device
        generator = torch.Generator(device=device).manual_seed(seed)
        packed: Tensor = flow.layer.pack(self.data, generator=generator).to(flow.noise_reference)
        if flow.preprocess is not None:
            packed = flow.preprocess.pack(packed, generator=generator)
        return packed


def batches(rows: int, batch_size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields random batches of row numbers of nearly equal sizes, at most ``batch_size``, that cover every row once."""
    order = torch.randperm(rows, generator=generator)
    yield from torch.tensor_split(order, -(-rows // batch_size))


def check_examples(flow: Any, examples: Tensor, *, what: str = "the data") -> None:
    """Checks that examples ``[rows, D]`` fit a flow.

    Raises:
        UserError: If the width is wrong, or if values are missing or outside their site's support; says which rows.
    """
    if examples.ndim != 2 or examples.shape[1] != flow.dim:
        width = examples.shape[-1] if examples.ndim else 0
        raise UserError(f"{what} must have {flow.dim} elements a row for this program; {width} were found")
    missing = ~torch.isfinite(examples).all(dim=1)
    if missing.any():
        raise UserError(f"{what} hold missing or infinite values in {_rows(missing)}; remove or fill those rows")
    inside = torch.cat([flow.support.check(part) for part in torch.split(examples, CHECKED_AT_ONCE)])
    if not inside.all():
        raise UserError(f"{what} hold values outside the support of their site in {_rows(~inside)}")


def check_context(flow: Any, context: Tensor | None, *, what: str = "the context", from_function: bool = False) -> None:
    """Checks that contexts ``[rows, C]`` fit a flow.

    Raises:
        UserError: If they are missing, not wanted or of the wrong width, or if values are missing; says which rows.
    """
    width = flow.configuration.context_features
    if context is None:
        if width and from_function:
            raise UserError(
                f"this flow needs a context of width {width}: the function of data must return a pair, "
                "the examples and their contexts"
            )
        if width:
            raise UserError(f"this flow needs a context of width {width}, and {what} is missing; give one for each row")
        return
    if not width:
        raise UserError("this flow has no context; build it with context_features to give it one")
    if context.ndim != 2 or context.shape[1] != width:
        hint = "; the function of data must return a pair, the examples and such contexts" if from_function else ""
        raise UserError(f"{what} must be a table of {width} features a row, not of shape {tuple(context.shape)}{hint}")
    missing = ~torch.isfinite(context).all(dim=1)
    if missing.any():
        raise UserError(f"{what} holds missing or infinite values in {_rows(missing)}; remove or fill those rows")


def _what(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _rows(mask: Tensor) -> str:
    numbers = mask.nonzero().flatten().tolist()
    named = ", ".join(str(number) for number in numbers[:ROWS_NAMED])
    more = f" and {len(numbers) - ROWS_NAMED} more" if len(numbers) > ROWS_NAMED else ""
    return f"row {named}" if len(numbers) == 1 else f"rows {named}{more}"
