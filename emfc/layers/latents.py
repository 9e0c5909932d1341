"""What both directions share: gates, and classes of sites at the joint values of what is summed out."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emfc.layers.components import components
from emfc.layers.kernel import Kernel, View
from emfc.layers.plan import Plan
from emfc.layers.readers import Environment, Picker, Reader
from emfc.layers.terms import site_log_density
from emfc.passes.scopes import Scopes
from emfc.passes.slots import Slots
from emfc.program.ir import Addresses
from emfc.transforms import NormalTransform, ScalarFamily, gated
from emfc.transforms.parameter_gates import slope_and_scale

__all__ = ["OPEN", "Enumeration", "Gates", "accumulate", "enumerations"]


@dataclass(frozen=True, eq=False)
class Gates:
    """Gate values of one call, per element of the noise, or None where the layer has no gates.

    Attributes:
        values: In [0, 1].
        form: ``"value"`` or ``"parameter"``, what they act on, or a name of its own for gates of another kind.
    """

    values: Tensor | None
    form: str = "value"

    def apply(self, transform: NormalTransform, columns: Picker) -> NormalTransform:
        """The transform with its gates, which line up with noise ``[B, *columns.positions.shape]``."""
        if self.values is None:
            return transform
        return self.opened(transform, self.pick(columns))

    def pick(self, columns: Picker) -> Tensor:
        """What the gates of some elements are made of, ``[1, *columns.positions.shape]``."""
        if self.values is None:
            raise RuntimeError("a layer without gates has none to hand over")
        return columns(self.values)[None]

    def opened(self, transform: NormalTransform, picked: Tensor) -> NormalTransform:
        """The transform with the gates that were picked for its elements."""
        return gated(transform, picked, form=self.form)

    def normal(self, scale: Tensor, picked: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """A gated Normal: what its location is multiplied by, what is added to it, and its scale."""
        if self.form == "parameter":
            slope, power = slope_and_scale(scale, picked)
            return slope, None, power
        return picked, None, 1 + picked * (scale - 1)


OPEN = Gates(None)
"""The gates of a layer without gates."""


def accumulate(total: Tensor | None, ladj: Tensor, value: Tensor | None = None) -> Tensor:
    """Add log-Jacobians, summed over all but the first dimension.

    Args:
        total: The sum so far ``[B]``.
        ladj: Log-Jacobians ``[B, ...]``; with `value`, dimensions of size one stand for those of the value, so that one
            number shared by all sites and examples is multiplied instead of summed.
        value: The values ``[B, n, *shape]`` that the log-Jacobian belongs to.
    """
    part = ladj.flatten(1).sum(-1) if ladj.ndim > 1 else ladj
    if value is None:
        return part if total is None else total + part
    sizes = zip(value.shape[1:], ladj.shape[1:], strict=True)
    factor = math.prod(size for size, held in sizes if held == 1)
    if factor != 1:
        part = part * factor
    return part.expand(len(value)) if total is None else total + part


class Enumeration:
    """A class that is summed out, or that reads what is, at all joint values of its slots (the K populations)."""

    def __init__(self, kernel: Kernel, scopes: Scopes, slots: Slots) -> None:
        self.kernel = kernel
        self.scopes = scopes
        self.slots = slots
        self.count = slots.count
        self._table = torch.from_numpy(slots.table())
        self._full = self.view(kernel.full)

    def view(self, view: View) -> View:
        """The view with readers that take each summed-out value from its slot, whatever the row."""
        readers = tuple(
            _from_slots(reader, places) for reader, places in zip(view.readers, self.scopes.loads, strict=True)
        )
        return replace(view, readers=readers)

    def environment(self, plain: Environment) -> Environment:
        """An environment that also holds the joint values."""
        return replace(plain, configurations=self._table.to(dtype=plain.dtype, device=plain.device))

    def parameters(self, plain: Environment, view: View | None = None) -> dict[str, Tensor]:
        """Distribution parameters at all joint values, of a view from `view`; of all rows without one."""
        return self.kernel.parameters(self.environment(plain), self._full if view is None else view)

    def family(self, plain: Environment, values: Tensor) -> ScalarFamily:
        """Components of all rows given values ``[B, n, *shape]``, batch ``[B or 1, n or 1, *shape, K]``."""
        return components(self.kernel, self.parameters(plain), values)

    def log_masses(self, plain: Environment, view: View | None = None) -> Tensor:
        """Log probabilities of the class's own values, ``[B or 1, n, size, K]``."""
        if self.scopes.own is None:
            raise RuntimeError("only what is summed out has masses")
        view = self._full if view is None else view
        size = len(self.scopes.elements)
        specification, parameters = self.kernel.held.specification, self.parameters(plain, view)
        own = self._table[:, self.scopes.own : self.scopes.own + size].to(dtype=plain.dtype, device=plain.device)
        shape = (*self.kernel.held.shape, self.count)
        log_prob = site_log_density(specification, parameters, own.mT.reshape(shape)[None, None], given=True)
        full = log_prob.expand(log_prob.shape[0], len(view.rows), *shape)
        return full.reshape(*full.shape[:2], size, self.count)


def _from_slots(reader: Reader, places: Addresses) -> Reader:
    if "latent" not in reader.pickers:
        return reader
    changed = copy.copy(reader)
    changed.pickers = {**reader.pickers, "latent": Picker(places[None])}
    return changed


def enumerations(plan: Plan) -> dict[int, Enumeration]:
    """Of all classes that are summed out or read what is, by number."""
    scopes, slots = plan.elimination.scopes, plan.elimination.slots
    return {
        kernel.number: Enumeration(kernel, scopes[kernel.number], slots[kernel.number])
        for kernel in plan.kernels
        if kernel.number in scopes
    }
