"""A kernel: the shared code of one class of sites, run for all its sites and examples at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from emfc.layers.batching import apply_step, cast
from emfc.layers.emit import Code
from emfc.layers.readers import Environment, Layout, Picker, Reader
from emfc.passes.classify import SiteClass, batch_ranks
from emfc.passes.slices import Gather, Load, Step
from emfc.program.ir import Addresses
from emfc.program.specification import build

__all__ = ["Kernel", "View"]


@dataclass(frozen=True, eq=False)
class View:
    """Some rows of a class with the readers of their loads.

    Attributes:
        rows: Which of the class's sites, by position in ``SiteClass.sites``.
        readers: One per load.
        own: Columns of the rows' own values in an example, ``[n, *shape]``.
        noise: Columns of their noise, ``[n, *noise_shape]``.
    """

    rows: tuple[int, ...]
    readers: tuple[Reader, ...]
    own: Picker
    noise: Picker


class Kernel:
    """Evaluates the distribution parameters of the sites of one class."""

    def __init__(
        self,
        held: SiteClass,
        layout: Layout,
        own: Addresses,
        noise: Addresses,
        *,
        number: int,
        mixed: bool,
        emitted: bool = True,
    ) -> None:
        """Prepare a class.

        Args:
            held: The class.
            layout: Of the program.
            own: Columns ``[n, *shape]`` of the sites' own values.
            noise: Columns ``[n, *noise_shape]`` of their noise.
            number: Its place among the classes.
            mixed: Whether the parameters read a summed-out site.
            emitted: Whether the slice runs as one written function; otherwise it is interpreted step by step.
        """
        self.held = held
        self.number = number
        self.layout = layout
        self.own = own
        self.noise = noise
        self.mixed = mixed
        self.emitted = emitted
        self.kinds = tuple(operand.dtype for operand in held.specification.operands())
        self.gathers = {
            place: Picker(value.indices) for place, value in enumerate(held.slice.values) if isinstance(value, Gather)
        }
        self.batch_ranks = batch_ranks(held.specification, len(held.shape))
        self.full = self.view(range(len(held.sites)))

    def view(self, rows: Sequence[int] | Addresses, columns: Addresses | None = None) -> View:
        """Readers for some of the class's sites."""
        chosen = np.asarray(list(rows), dtype=np.int64)
        loads = [value for value in self.held.slice.values if isinstance(value, Load)]
        readers = tuple(
            Reader(_rows(addresses, chosen), load.dtype, self.layout, columns)
            for addresses, load in zip(self.held.addresses, loads, strict=True)
        )
        return View(tuple(chosen.tolist()), readers, Picker(self.own[chosen]), Picker(self.noise[chosen]))

    @cached_property
    def code(self) -> Code:
        """The written functions of the slice."""
        literals: dict[int, float] = {}
        constants = self.layout.program.constant_values
        loads = [value for value in self.held.slice.values if isinstance(value, Load)]
        for place, (addresses, load) in enumerate(zip(self.held.addresses, loads, strict=True)):
            if load.dtype == "float" and addresses.size and addresses.max() < len(constants):
                values = constants[addresses]
                number = float(values.flat[0])
                if math.isfinite(number) and bool((values == number).all()):
                    literals[place] = number
        return Code(self.held.slice, literals)

    def parameters(self, environment: Environment, view: View) -> dict[str, Tensor]:
        """Distribution parameters by path, each ``[B or 1, n or 1, *batch, *event]``.

        Where the class is mixed, a dimension for the joint values of the summed-out sites stands behind the batch.
        """
        lead = 2 if environment.configurations is None else 3
        if self.emitted:
            wanted = tuple(zip(self.held.slice.outputs, self.kinds, strict=True))
            function = self.code.function(wanted, lead, environment.dtype)
            values = function.call(*[view.readers[place](environment) for place in function.taken])
        else:
            values = self._interpreted(environment, view, lead)
        outputs = dict(zip(self.held.paths, values, strict=True))
        if lead == 3:
            return {path: value.movedim(1, 1 + self.batch_ranks[path] + 1) for path, value in outputs.items()}
        return outputs

    def _interpreted(self, environment: Environment, view: View, lead: int) -> list[Tensor]:
        """The outputs of the slice, step by step."""
        computed: dict[int, Tensor] = {}
        readers = iter(view.readers)
        for place, (number, value) in enumerate(zip(self.held.slice.numbers, self.held.slice.values, strict=True)):
            if isinstance(value, Load):
                computed[number] = next(readers)(environment)
            elif isinstance(value, Step):
                inputs = [
                    cast(computed[source], kind, environment.dtype)
                    for source, kind in zip(value.inputs, value.kinds, strict=True)
                ]
                for offset, result in enumerate(apply_step(value, inputs, lead, environment.dtype)):
                    computed[number + offset] = result
            else:
                computed[number] = self._gather(value, self.gathers[place], computed, lead, environment)
        return [
            cast(computed[number], kind, environment.dtype)
            for number, kind in zip(self.held.slice.outputs, self.kinds, strict=True)
        ]

    def distribution(self, environment: Environment, view: View) -> Distribution:
        """The distribution of the rows' values, with leading dimensions ``[B or 1, n or 1]``."""
        return build(self.held.specification, self.parameters(environment, view))

    @staticmethod
    def _gather(
        value: Gather, picker: Picker, computed: dict[int, Tensor], lead: int, environment: Environment
    ) -> Tensor:
        pieces = [cast(computed[source], value.dtype, environment.dtype) for source in value.inputs]
        flat = [piece.flatten(lead) if piece.ndim > lead else piece.unsqueeze(-1) for piece in pieces]
        if len(flat) == 1:
            return picker(flat[0])
        sizes = torch.broadcast_shapes(*(piece.shape[:lead] for piece in flat))
        return picker(torch.cat([piece.expand(*sizes, piece.shape[-1]) for piece in flat], -1))


def _rows(addresses: Addresses, chosen: Addresses) -> Addresses:
    """Rows of a load; one where all are the same."""
    if len(addresses) > 1:
        addresses = addresses[chosen]
    return addresses[:1] if len(addresses) > 1 and (addresses == addresses[:1]).all() else addresses
