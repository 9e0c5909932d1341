"""Slices that are polynomials in what they read, element by element, and the shortest code for them.

A step of a differential equation, such as Lorenz's, is a polynomial of few terms. Written as a sum of terms, each term
is one fused operation on a column, whatever brackets, stacks and intermediate vectors the program had.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from emfc.passes.slices import Gather, Load, Slice, Step
from emfc.program.ir import Ref

__all__ = ["Atom", "Polynomials", "polynomials", "written"]

_TERMS, _DEGREE = 8, 3
_LARGEST = 2.0  # of a coefficient: terms that large may cancel, which brackets in the program can have kept from them

Polynomial = Mapping[tuple[int, ...], float]


@dataclass(frozen=True)
class Atom:
    """A number that polynomials are made of: one element of a value of the slice."""

    number: int
    element: int


@dataclass(frozen=True, eq=False)
class Polynomials:
    """Elements of a value as polynomials.

    Attributes:
        elements: One polynomial for each element: coefficients by ascending places in `atoms`.
        atoms: What they are made of.
    """

    elements: tuple[Polynomial, ...]
    atoms: tuple[Atom, ...]

    @property
    def cost(self) -> int:
        """How many operations on columns they take."""
        return sum(max(len(term) - 1, 1) for held in self.elements for term in held)


class _NoPolynomial(Exception):
    """Something is no polynomial, or too large a one."""


def polynomials(
    held: Slice,
    target: int,
    inside: Collection[int],
    literal: Callable[[int], float | None],
    shape: Sequence[int],
    same: Mapping[Atom, Atom],
) -> Polynomials | None:
    """A value of a slice as polynomials in what the slice reads, or None where it is none of few terms.

    Args:
        held: The slice.
        target: Number of the value.
        inside: Numbers of the values that change inside a loop; others are atoms, or numbers where they are literal.
        literal: The number that a value is everywhere, where it is one.
        shape: The full shape of the value.
        same: Elements of loads that are the same for all sites as another, and that one.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    for number, value in zip(held.numbers, held.values, strict=True):
        for offset, size in enumerate(value.shapes if isinstance(value, Step) else (value.shape,)):
            shapes[number + offset] = size
    known: dict[int, Any] = {}
    atoms: dict[Atom, int] = {}

    def read(number: int) -> Any:
        if number not in known:
            constant = None if number in inside else literal(number)
            cells = np.empty(shapes[number], dtype=object)
            for element, place in enumerate(np.ndindex(*shapes[number])):
                atom = same.get(Atom(number, element), Atom(number, element))
                cells[place] = {(): constant} if constant is not None else {(atoms.setdefault(atom, len(atoms)),): 1.0}
            known[number] = cells
        return known[number]

    try:
        for number, value in zip(held.numbers, held.values, strict=True):
            if number not in inside or isinstance(value, Load):
                continue
            if isinstance(value, Gather):
                flat = np.concatenate([read(source).reshape(-1) for source in value.inputs])
                known[number] = flat[value.indices.reshape(-1)].reshape(value.indices.shape)
            else:
                known[number] = _step(value, [read(source) for source in value.inputs])
        elements = tuple(np.broadcast_to(read(target), tuple(shape)).reshape(-1).tolist())
    except _NoPolynomial:
        return None
    if any(abs(factor) > _LARGEST for item in elements for term, factor in item.items() if term):
        return None
    return Polynomials(elements, tuple(atoms))


def _step(step: Step, inputs: Sequence[Any]) -> Any:
    """An instruction on arrays of polynomials."""
    name = step.operation.partition(".")[0]
    if step.keywords or not set(step.kinds) <= {"float"} or not step.pointwise:
        raise _NoPolynomial
    operands = [inputs[held.index] if isinstance(held, Ref) else _constant(held) for held in step.arguments]
    if name == "neg":
        return _over(lambda a: _scaled(a, -1.0), *operands)
    if name == "square":
        return _over(lambda a: _product(a, a), *operands)
    if len(operands) != 2:
        raise _NoPolynomial
    if name == "pow" and step.arguments[1] in (2, 2.0):
        return _over(lambda a: _product(a, a), operands[0])
    function = {"add": _sum, "sub": _difference, "rsub": lambda a, b: _difference(b, a), "mul": _product, "div": _ratio}
    if name not in function:
        raise _NoPolynomial
    return _over(function[name], *operands)


def _constant(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NoPolynomial
    cell = np.empty((), dtype=object)
    cell[()] = {(): float(value)}
    return cell


def _over(function: Callable[..., Polynomial], *arrays: Any) -> Any:
    held = np.broadcast_arrays(*arrays)
    result = np.empty(held[0].shape, dtype=object)
    for place in np.ndindex(*held[0].shape):
        result[place] = _small(function(*(array[place] for array in held)))
    return result


def _small(held: Polynomial) -> Polynomial:
    kept = {term: factor for term, factor in held.items() if factor != 0.0}
    if len(kept) > _TERMS or any(len(term) > _DEGREE for term in kept):
        raise _NoPolynomial
    if not all(math.isfinite(factor) for factor in kept.values()):
        raise _NoPolynomial
    return kept


def _scaled(held: Polynomial, factor: float) -> Polynomial:
    return {term: factor * value for term, value in held.items()}


def _sum(left: Polynomial, right: Polynomial) -> Polynomial:
    return {term: left.get(term, 0.0) + right.get(term, 0.0) for term in {**left, **right}}


def _difference(left: Polynomial, right: Polynomial) -> Polynomial:
    return _sum(left, _scaled(right, -1.0))


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    result: dict[tuple[int, ...], float] = {}
    for first, a in left.items():
        for second, b in right.items():
            term = tuple(sorted(first + second))
            result[term] = result.get(term, 0.0) + a * b
    return result


def _ratio(left: Polynomial, right: Polynomial) -> Polynomial:
    if set(right) != {()} or right[()] == 0:
        raise _NoPolynomial
    return {term: value / right[()] for term, value in left.items()}


def written(held: Polynomials, *, noisy: bool) -> Callable[..., list[torch.Tensor]]:
    """A function of the atoms and then, for each element, of what is added to it: the elements.

    Args:
        held: The polynomials.
        noisy: Whether there is something to be added, its constants included; without it constants count.
    """
    count = len(held.atoms)
    rows = [_row(item, count + element if noisy else None) for element, item in enumerate(held.elements)]

    def run(*cells: torch.Tensor) -> list[torch.Tensor]:
        results = []
        for first, terms in rows:
            total = first(cells)
            for kind, left, right, factor in terms:
                if kind == "linear":
                    total = torch.add(total, cells[left], alpha=factor)
                elif kind == "product":
                    total = torch.addcmul(total, cells[left], cells[right], value=factor)
                elif kind == "plus":
                    total = total + cells[left]
                else:
                    total = total + factor * _power(cells, (left, *right))
            results.append(total)
        return results

    return run


_Term = tuple[str, int, Any, float]


def _row(item: Polynomial, noise: int | None) -> tuple[Callable[[Sequence[torch.Tensor]], torch.Tensor], list[_Term]]:
    """What a sum starts from, and its other terms."""
    terms = sorted(item.items(), key=lambda pair: (not pair[0], len(pair[0]), pair[1] != 1.0))
    if noise is not None:
        first: Callable[[Sequence[torch.Tensor]], torch.Tensor] = operator.itemgetter(noise)
    else:
        (term, factor), *terms = terms
        if factor == 1.0 and len(term) == 1:
            first = operator.itemgetter(term[0])
        else:
            first = partial(_scaled_power, places=term, factor=factor)
    result: list[_Term] = []
    for term, factor in terms:
        if len(term) == 1:
            result.append(("plus" if factor == 1.0 else "linear", term[0], term[0], factor))
        elif len(term) == 2:
            result.append(("product", *term, factor))
        elif term:
            result.append(("power", term[0], term[1:], factor))
        elif noise is None:
            result.append(("power", -1, (), factor))
    return first, result


def _power(cells: Sequence[torch.Tensor], places: Sequence[int]) -> Any:
    """The product of some cells; 1 for the place -1 alone."""
    held = [cells[place] for place in places if place >= 0]
    return math.prod(held[1:], start=held[0]) if held else 1.0


def _scaled_power(cells: Sequence[torch.Tensor], places: Sequence[int], factor: float) -> torch.Tensor:
    product: torch.Tensor = factor * _power(cells, places)
    return product
