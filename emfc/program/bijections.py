"""Transforms inside a `TransformedDistribution` as data, and the transforms again from what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions.transforms import LowerCholeskyAffine, Permute
from torch import Tensor
from torch.distributions import Distribution, transforms

from emfc.program.errors import CompileError
from emfc.program.families import Reading, read_arguments

__all__ = ["flatten_transforms", "make_transform", "read_transform", "transform_class", "transform_event_dims"]

_TENSORS: dict[str, dict[str, int]] = {  # tensor arguments, with their dimensions beyond those of the value
    "AffineTransform": {"loc": 0, "scale": 0},
    "LowerCholeskyAffine": {"loc": 0, "scale_tril": 1},
    "PositivePowerTransform": {"exponent": 0},
    "PowerTransform": {"exponent": 0},
    "SimplexToOrderedTransform": {"anchor_point": -1},
}
_OMITTED = {"AffineTransform": {"event_dim"}}
_ELEMENTWISE = frozenset(("AffineTransform",))


class _BatchedLowerCholeskyAffine(LowerCholeskyAffine):
    """The same bijection with a batch of matrices."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant of the matrix, in the batch shape of the values."""
        held: Tensor = self.scale_tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return held.expand(torch.broadcast_shapes(held.shape, x.shape[:-1]))


class _StoredPermute(Permute):
    """The same permutation, on the device of the values."""

    def __init__(self, permutation: Sequence[int], dim: int = -1) -> None:
        super().__init__(torch.tensor(permutation, dtype=torch.int64), dim=dim, cache_size=0)  # type: ignore[no-untyped-call]

    def _call(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.permutation.to(x.device))

    def _inverse(self, y: Tensor) -> Tensor:
        return y.index_select(self.dim, self.permutation.argsort().to(y.device))


_CLASSES: dict[str, type[transforms.Transform]] = {
    "LowerCholeskyAffine": _BatchedLowerCholeskyAffine,
    "Permute": _StoredPermute,
}


def transform_class(name: str) -> type[transforms.Transform] | None:
    """A fixed transform of torch or Pyro by its class name; None where there is none, or it learns or joins others."""
    found = getattr(pyro_transforms, name, None) or getattr(transforms, name, None)
    if not (isinstance(found, type) and issubclass(found, transforms.Transform)):
        return None
    joined = (transforms.ComposeTransform, transforms.CatTransform, transforms.StackTransform, torch.nn.Module)
    return None if issubclass(found, joined) or found is transforms.Transform else found


def flatten_transforms(parts: Sequence[transforms.Transform]) -> Iterator[transforms.Transform]:
    """The single steps of compositions, in order; `IndependentTransform` only counts dimensions, and vanishes."""
    for part in parts:
        inverted = isinstance(part, transforms._InverseTransform)
        inner: Any = part.inv if inverted else part
        if isinstance(inner, transforms.ComposeTransform):
            flat = list(flatten_transforms(inner.parts))
            yield from (step.inv for step in reversed(flat)) if inverted else flat
        elif isinstance(inner, transforms.IndependentTransform):
            yield from flatten_transforms([inner.base_transform.inv if inverted else inner.base_transform])
        else:
            yield part


def transform_event_dims(transform: transforms.Transform) -> tuple[int, int]:
    """Event dimensions of what a transform takes and of what it gives."""
    if type(_inner(transform)).__name__ in _ELEMENTWISE:
        return 0, 0
    return transform.domain.event_dim, transform.codomain.event_dim


def _inner(transform: transforms.Transform) -> transforms.Transform:
    return transform.inv if isinstance(transform, transforms._InverseTransform) else transform


def read_transform(transform: transforms.Transform) -> tuple[str, bool, Reading]:
    """Read one step of a chain.

    Returns:
        Its class name, whether it is used inverted, and what it was made from; the event dimensions of tensors count
        from the last dimension of a value.

    Raises:
        CompileError: It cannot be written as data (E-NOCDF).
    """
    inner: Any = _inner(transform)
    name = type(inner).__name__
    if isinstance(inner, torch.nn.Module):
        raise CompileError(
            "E-NOCDF",
            f"the transform {name} has weights of its own, and a program's transforms are fixed",
            advice="leave it out: the learned layers of the flow (backbone=...) do its work",
        )
    if transform_class(name) is not type(inner):
        raise CompileError(
            "E-NOCDF",
            f"a TransformedDistribution through {name} cannot be written as data",
            advice="use the fixed transforms of pyro.distributions.transforms, their inverses and compositions, "
            "or a sample site for each part",
        )
    reading = Reading()
    for argument in read_arguments(type(inner)):
        if argument in _OMITTED.get(name, ()):
            continue
        value = getattr(inner, argument)
        extra = _TENSORS.get(name, {}).get(argument)
        if extra is not None:
            held = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
            reading.tensors[argument] = held, extra
        elif isinstance(value, Distribution):
            reading.children[argument] = value
        elif isinstance(value, Tensor):  # a permutation
            reading.options[argument] = value.tolist()
        else:
            reading.options[argument] = list(value) if isinstance(value, tuple) else value
    return name, transform is not inner, reading


def make_transform(name: str, values: Mapping[str, Any], *, inverse: bool) -> transforms.Transform:
    """The transform that `read_transform` read.

    Raises:
        KeyError: No such transform.
    """
    made: Any = _CLASSES.get(name) or transform_class(name)
    if made is None:
        raise KeyError(name)
    part: transforms.Transform = made(**values)
    return part.inv if inverse else part
