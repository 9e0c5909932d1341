"""The operations that random programs are made of: a table of name -> function, operands, options."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["OPERATIONS", "SHAPES", "Operation", "constant_tensor"]

SHAPES = [(), (), (1,), (2,), (3,), (3,), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3)]

Options = Callable[[random.Random], tuple[Any, ...]]


@dataclass(frozen=True)
class Operation:
    """One row of the operations table.

    Attributes:
        function: Takes the operands, then the options; returns ``None`` if it changes its first operand in place.
        kinds: The kind of each operand: ``f`` floating, ``i`` integer, ``b`` Boolean, ``z`` a Categorical site,
            and ``F``, ``I``, ``B`` for the same kinds where the tensor is stored into.
        options: Draws the options.
        weight: How often it is chosen.
    """

    function: Callable[..., torch.Tensor | None]
    kinds: str
    options: Options = lambda generator: ()
    weight: float = 1.0

    @property
    def in_place(self) -> bool:
        return self.kinds[:1].isupper()


def _one_of(*choices: Any) -> Options:
    """One option out of several."""
    return lambda generator: (generator.choice(choices),)


_dim = _one_of(0, 0, 1, -1, -1, -2)
_number = _one_of(0.5, -0.7, 2, 1.5, -1, 0, 3)
_view_shape = _one_of((-1,), (1, -1), (-1, 1), (2, -1), (3, -1), (6,), (2, 3), (3, 2), (1, 1, -1), ())
_full_shape = _one_of((2, 3), (3, 3), (3,), (2,), (2, 2), (1, 3), (2, 1, 3))
_everything = slice(None)
_PLACES = [
    0, 1, -1, None, slice(None, None, 2), slice(1, None), slice(None, -1), (0, 1), (0, -1), (_everything, 0),
    (_everything, slice(1, None)), (slice(1, None), slice(None, 2)), (..., 0), (..., None), (..., slice(0, 1)),
    [0, 1], (_everything, [0, 1]), ([0, 1], [1, 0]), ([[0], [1]], [0, 1]), (..., [1, 0]),
]  # fmt: skip
_place = _one_of(*_PLACES)
_place_with_repeats = _one_of(*_PLACES, [1, 0, 1])  # for reading: repeats have no one value where they are stored


def _dims(generator: random.Random) -> tuple[Any, ...]:
    """All the forms of ``dim``, and ``keepdim``."""
    return generator.choice([0, 1, -1, -2, (0,), (-1,), (0, 1), (-2, -1), (0, -1), None]), generator.random() < 0.4


def _dims_or_empty(generator: random.Random) -> tuple[Any, ...]:
    dim, keepdim = _dims(generator)
    return (() if generator.random() < 0.1 else dim), keepdim


def _one_dim(generator: random.Random) -> tuple[Any, ...]:
    return generator.choice([0, 1, -1, -2]), generator.random() < 0.4


def _roll(generator: random.Random) -> tuple[Any, ...]:
    return generator.choice([-1, 1, 2]), generator.choice([0, 1, -1])


def _constant(levels: Iterable[Any], dtype: str) -> Options:
    """Numbers, a shape and the kind of a constant tensor."""
    choices = list(levels)

    def options(generator: random.Random) -> tuple[Any, ...]:
        shape = generator.choice(SHAPES)
        return [generator.choice(choices) for _ in range(math.prod(shape))], shape, dtype

    return options


def constant_tensor(numbers: list[Any], shape: tuple[int, ...], kind: str = "f") -> torch.Tensor:
    """A tensor of floating numbers ``f``, integers ``i`` or Booleans ``b``."""
    dtype = {"f": torch.get_default_dtype(), "i": torch.long, "b": torch.bool}[kind]
    return torch.tensor(numbers, dtype=dtype).reshape(shape)


def _as_float(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.get_default_dtype())


def _store(x: torch.Tensor, value: Any, place: Any) -> None:
    x[place] = value


def _in_place(method: str) -> Callable[..., None]:
    """A method such as ``add_`` whose result is not used."""

    def function(x: torch.Tensor, *others: Any) -> None:
        getattr(x, method)(*others)

    return function


def _reduction(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A reduction that also takes no ``dim`` at all."""
    return lambda x, dim, keepdim: function(x, dim=dim, keepdim=keepdim) if dim is not None or keepdim else function(x)


def _positive_definite(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT + torch.eye(x.shape[-1])


def _solve(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    matrix = x.reshape(-1, x.shape[-1])
    return torch.linalg.solve(_positive_definite(matrix), y.reshape(len(matrix), -1))


def _three_rows(x: torch.Tensor) -> torch.Tensor:
    """A table with a row for each of the indices 0 to 2."""
    return torch.cat([x, x.tanh(), 0.5 - x])


MAPPED = {
    "tanh": torch.tanh,
    "sum": lambda x: x.sum(),
    "mean square": lambda x: (x * x).mean(),
    "cumsum": lambda x: x.cumsum(0) if x.ndim else x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "stack": lambda x: torch.stack([x, x.sin()]).sum(0),
    "softmax": lambda x: x.softmax(-1) if x.ndim else x.sigmoid(),
}
_mapped = _one_of(*MAPPED)


def _rows(kinds: str, options: Options, functions: Mapping[str, Callable[..., Any]], weight: float = 1.0):
    """Several rows of the table that take the same operands and options."""
    return {name: Operation(function, kinds, options, weight) for name, function in functions.items()}


def _none(generator: random.Random) -> tuple[Any, ...]:
    return ()


OPERATIONS: dict[str, Operation] = {
    # Constants to compute with and to store into.
    "constant": Operation(constant_tensor, "", _constant([0.0, 1.0, -1.0, 0.5, 1.7, -0.3], "f"), 2.0),
    "indices": Operation(constant_tensor, "", _constant([0, 1, 2], "i"), 1.0),
    "mask": Operation(constant_tensor, "", _constant([False, True], "b"), 1.0),
    "zeros": Operation(torch.zeros, "", _full_shape, 2.0),
    "zeros_like": Operation(torch.zeros_like, "f"),
    # One tensor, element by element.
    **_rows("f", _none, {
        "tanh": torch.tanh, "sin": torch.sin, "exp of minus the square": lambda x: torch.exp(-x * x),
        "abs": torch.abs, "sigmoid": torch.sigmoid, "relu": torch.relu, "softplus": F.softplus, "floor": torch.floor,
        "sign": torch.sign, "square": lambda x: x**2, "clone": torch.clone, "clamp": lambda x: x.clamp(-0.5, 0.8),
    }, 0.6),
    **_rows("f", _number, {
        "times": lambda x, number: x * number, "plus": lambda x, number: x + number,
        "rsub": lambda x, number: number - x,
    }, 0.8),
    # Several tensors, element by element. Known: atan2 and copysign are left out, since they read the sign of a zero,
    # and the product of a tensor with a constant zero compiles to a zero without its sign (refused with E-IMPURE).
    **_rows("ff", _none, {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": lambda x, y: x / (1 + y * y),
        "maximum": torch.maximum, "minimum": torch.minimum, "fmax": torch.fmax, "logaddexp": torch.logaddexp,
        "add alpha": lambda x, y: torch.add(x, y, alpha=0.3), "clamp by tensor": lambda x, y: torch.clamp(x, min=y),
    }),
    **_rows("fff", _none, {"lerp": torch.lerp, "addcmul": lambda x, y, z: torch.addcmul(x, y, z, value=0.5)}, 0.6),
    "where": Operation(torch.where, "bff", weight=1.5),
    "where number": Operation(lambda b, x: torch.where(b, x, 0.3), "bf"),
    "masked_fill": Operation(lambda x, b: x.masked_fill(b, 0.4), "fb"),
    # Comparisons, Booleans, integers and casts.
    **_rows("ff", _none, {"gt": torch.gt, "le": torch.le}, 0.7),
    **_rows("bb", _none, {"and": torch.logical_and, "xor": torch.logical_xor}, 0.6),
    **_rows("b", _none, {"not": torch.logical_not, "float of mask": _as_float, "count": lambda x: x.sum()}, 0.7),
    **_rows("i", _none, {
        "float of integers": _as_float, "is one": lambda x: x == 1, "halved": lambda x: x / 2,
        "modulo": lambda x: x % 3, "one hot": lambda x: F.one_hot(x % 3, 3),
    }, 0.8),
    **_rows("if", _none, {"integers plus": torch.add, "integers times": torch.mul}, 0.8),
    "mask times": Operation(torch.mul, "bf", weight=0.8),
    "truncated": Operation(lambda x: (3 * x).long(), "f"),
    # Reductions and scans.
    **_rows("f", _dims_or_empty, {"sum": _reduction(torch.sum), "mean": _reduction(torch.mean)}, 1.2),
    **_rows("f", _dims, {
        "amax": _reduction(torch.amax), "logsumexp": lambda x, dim, keepdim: x.logsumexp(dim or 0, keepdim=keepdim),
        "variance": lambda x, dim, keepdim: torch.var(x, dim, correction=0, keepdim=keepdim),
        "norm": lambda x, dim, keepdim: torch.linalg.vector_norm(x + 0.1, dim=dim, keepdim=keepdim),
    }, 0.8),
    **_rows("f", _one_dim, {
        "prod": torch.prod, "max": lambda x, dim, keepdim: x.max(dim, keepdim=keepdim).values, "argmax": torch.argmax,
    }, 0.7),
    **_rows("f", _dim, {
        "softmax": torch.softmax, "log_softmax": torch.log_softmax, "cumsum": torch.cumsum, "cumprod": torch.cumprod,
        "sort": lambda x, dim: x.sort(dim).values,
    }, 0.8),
    # Moves, which are views where torch makes them views.
    "reshape": Operation(torch.reshape, "f", _view_shape, 1.5),
    "expand": Operation(lambda x, shape: x.expand(shape), "f", _full_shape),
    "permute": Operation(torch.permute, "f", _one_of((0,), (1, 0), (2, 0, 1))),
    "transpose": Operation(lambda x: x.mT, "f"),
    "roll": Operation(torch.roll, "f", _roll, 0.6),
    "pad": Operation(F.pad, "f", _one_of((0, 1), (1, 0), (1, 1, 0, 1), (-1, 0)), 0.6),
    **_rows("f", _dim, {
        "unsqueeze": torch.unsqueeze, "squeeze": torch.squeeze, "flip": lambda x, dim: x.flip(dim),
        "narrow": lambda x, dim: x.narrow(dim, 1, 1), "unbind": lambda x, dim: x.unbind(dim)[-1],
    }, 0.8),
    **_rows("f", _none, {
        "diagonal": lambda x: x.diagonal(dim1=-2, dim2=-1), "tril": torch.tril, "diag_embed": torch.diag_embed,
    }, 0.6),
    **_rows("ff", _dim, {
        "cat": lambda x, y, dim: torch.cat([x, y], dim), "stack": lambda x, y, dim: torch.stack([x, y], dim),
    }),
    # Indexing.
    "read": Operation(lambda x, place: x[place], "f", _place_with_repeats, 4.0),
    "read integers": Operation(lambda x, place: x[place], "i", _place_with_repeats, 0.7),
    "index": Operation(lambda x, i: x[i % x.shape[0]], "fi", weight=1.5),
    "index columns": Operation(lambda x, i: x[:, i % x.shape[1]], "fi", weight=0.6),
    "index pairs": Operation(lambda x, i, j: x[i % x.shape[0], j % x.shape[1]], "fii", weight=0.6),
    "index by site": Operation(lambda x, i: _three_rows(x)[i], "fz", weight=1.5),
    "gather": Operation(lambda x, i, dim: x.gather(dim, i % x.shape[dim]), "fi", _dim, 0.8),
    "index_select": Operation(lambda x, i, dim: x.index_select(dim, i.reshape(-1) % x.shape[dim]), "fi", _dim, 0.6),
    # Products of matrices. Known: linalg.solve is given square matrices without batch dimensions alone, since a right
    # side with fewer batch dimensions than the matrix is refused with E-IMPURE, or fails when it is evaluated.
    "matmul": Operation(torch.matmul, "ff", weight=2.0),
    **_rows("ff", _none, {
        "tril matmul": lambda x, y: x.tril() @ y, "outer": torch.outer,
        "einsum": lambda x, y: torch.einsum("...i,...i->...", x, y),
        "solve": _solve,
    }, 0.6),
    **_rows("fff", _none, {"linear": F.linear, "addmm": lambda x, y, z: torch.addmm(x, y, z, beta=0.5, alpha=2)}, 0.6),
    "cholesky": Operation(lambda x: torch.linalg.cholesky(_positive_definite(x)), "f", weight=0.5),
    "logdet": Operation(lambda x: torch.logdet(_positive_definite(x)), "f", weight=0.4),
    # In place, through whatever view the first operand is.
    "store": Operation(_store, "Ff", _place, 4.0),
    "store number": Operation(lambda x, place: _store(x, 0.3, place), "F", _place),
    "store integers": Operation(_store, "Ii", _place, 0.8),
    "store mask": Operation(_store, "Bb", _place, 0.8),
    "store where": Operation(lambda x, b: _store(x, 0.7, b), "Fb"),
    "shift": Operation(lambda x: _store(x, x[:-1].clone(), slice(1, None)), "F", weight=0.5),
    **_rows("Ff", _none, {name: _in_place(name) for name in ("add_", "sub_", "mul_", "copy_")}),
    **_rows("F", _none, {name: _in_place(name) for name in ("tanh_", "relu_", "zero_")}, 0.5),
    "add_ integers": Operation(_in_place("add_"), "Fi", weight=0.5),
    "accumulate": Operation(lambda x, i, y: _in_place("index_put_")(x, (i % len(x),), y, True), "Fif", weight=0.7),
    "scatter_add_": Operation(
        lambda x, i, y, dim: _in_place("scatter_add_")(x, dim, i % x.shape[dim], y), "Fif", _dim, 0.6
    ),
    # Function transforms.
    "vmap": Operation(lambda x, name: torch.vmap(MAPPED[name])(x), "f", _mapped, 0.8),
    "vmap last": Operation(lambda x, name: torch.vmap(MAPPED[name], in_dims=-1, out_dims=-1)(x), "f", _mapped, 0.5),
    "vmap pair": Operation(
        lambda x, y: torch.vmap(lambda a, b: a.tanh() * b.sum(), in_dims=(0, None))(x, y), "ff", weight=0.5
    ),
    "grad": Operation(lambda x: torch.func.grad(lambda q: (q.tanh() * q).sum())(x), "f", weight=0.6),
    "vmap grad": Operation(
        lambda x: torch.vmap(torch.func.grad(lambda q: (q.sigmoid() * q).sum()))(x), "f", weight=0.4
    ),
}  # fmt: skip
