"""Scopes: which summed-out values each element of a site depends on.

The sites of a class run the same slice, so one walk over it tells the scopes of all of them: in place of numbers it
carries sets of summed-out values, as arrays whose last dimension lists the members in falling order, padded with -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emfc.passes.slices import Gather, Load, Slice, Step
from emfc.program.ir import Addresses, Program, Ref, SiteRecord
from emfc.program.specification import event_dim

if TYPE_CHECKING:
    from emfc.passes.classify import SiteClass

__all__ = ["Scopes", "find_scopes", "latent_pattern", "level_count"]

_REDUCTIONS = frozenset("sum mean amax amin logsumexp prod var std all any".split())
_ALONG = frozenset("_softmax _log_softmax sort cumsum cumprod logcumsumexp".split())
_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
_WHOLE = frozenset("sum mean prod all any".split())  # their default overload reduces everything


@dataclass(frozen=True, eq=False)
class Scopes:
    """How the sites of one class read summed-out values.

    The values that a site reads, and its own where it is summed out itself, are numbered within the site; the numbers
    mean the same for all sites of the class.

    Attributes:
        latents: For each site (row) its values, as places in ``Populations.addresses``, ``[n, m]``.
        levels: How many levels each of the m values has.
        loads: For each load of the slice the number of the value that stands at each position, 0 where none does.
        elements: For each element of the site the numbers that it depends on; its own comes last.
        own: Number of the first element's own value, or None where the site is not summed out.
    """

    latents: Addresses
    levels: tuple[int, ...]
    loads: tuple[Addresses, ...]
    elements: tuple[tuple[int, ...], ...]
    own: int | None


def level_count(site: SiteRecord) -> int | None:
    """How many levels an element of a discrete site has; None where that is not known or not finite."""
    held = site.specification
    if held.family == "Adjusted":
        held = held.children["base"]
    if held.family == "Categorical":
        return int(held.parameters["logits"].shape[-1])
    return 2 if held.family == "Bernoulli" else None


def latent_pattern(held: Slice, latents: Addresses, levels: Sequence[int | None]) -> tuple[Any, ...]:
    """What sites must have in common to share their scopes: where the same value is read again, and how many levels
    each one has.

    Args:
        held: The slice of a site.
        latents: Ascending addresses of the summed-out values.
        levels: How many levels each of them has.
    """
    if not latents.size:
        return ()
    flat = [load.addresses.reshape(-1) for load in held.loads()]
    joined = np.concatenate(flat) if flat else np.zeros(0, dtype=np.int64)
    read = joined[_member(joined, latents)]
    if not read.size:
        return ()
    first, numbers = _numbered(read)
    return numbers.tobytes(), tuple(levels[place] for place in np.searchsorted(latents, first))


def _member(values: Addresses, latents: Addresses) -> npt.NDArray[np.bool_]:
    """Which addresses are those of summed-out values."""
    if not latents.size:
        return np.zeros(values.shape, dtype=np.bool_)
    places = np.minimum(np.searchsorted(latents, values), len(latents) - 1)
    return np.asarray(latents[places] == values)


def _numbered(values: Addresses) -> tuple[Addresses, Addresses]:
    """Distinct values in order of first appearance, and the number of each value among them."""
    distinct, places, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(places, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return distinct[order], ranks[inverse.reshape(-1)]


def find_scopes(program: Program, held: SiteClass, latents: Addresses, levels: Sequence[int], summed: bool) -> Scopes:
    """The scopes of a class whose sites have one `latent_pattern`.

    Args:
        program: The program.
        held: The class.
        latents: Ascending addresses of the summed-out values.
        levels: How many levels each of them has.
        summed: Whether the class itself is summed out.
    """
    count = len(held.sites)
    shapes = [rows.shape[1:] for rows in held.addresses]
    flat = [np.broadcast_to(rows.reshape(len(rows), -1), (count, rows[0].size)) for rows in held.addresses]
    joined = np.concatenate([np.zeros((count, 0), dtype=np.int64), *flat], 1)
    reads = _member(joined[0], latents)
    _, numbers = _numbered(joined[0, reads])
    chosen = np.searchsorted(latents, joined[:, reads])
    distinct = int(numbers.max()) + 1 if numbers.size else 0
    first = np.array([int(np.flatnonzero(numbers == number)[0]) for number in range(distinct)], dtype=np.int64)
    places = chosen[:, first] if distinct else np.zeros((count, 0), dtype=np.int64)
    everywhere = np.full(joined.shape[1], -1, dtype=np.int64)
    everywhere[reads] = numbers
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    loads = [piece.reshape(shape) for piece, shape in zip(np.split(everywhere, ends[:-1]), shapes, strict=True)]
    elements = _element_scopes(held, loads)
    own = None
    if summed:
        own, size = distinct, len(elements)
        starts = np.searchsorted(latents, [program.sites[index].start for index in held.sites])
        places = np.concatenate([places, starts[:, None] + np.arange(size)], 1)
        elements = [(*read, own + place) for place, read in enumerate(elements)]
    return Scopes(
        latents=places,
        levels=tuple(levels[place] for place in places[0]),
        loads=tuple(np.maximum(load, 0) for load in loads),
        elements=tuple(elements),
        own=own,
    )


def _element_scopes(held: SiteClass, loads: list[Addresses]) -> list[tuple[int, ...]]:
    size = math.prod(held.shape)
    rank = len(held.shape) - event_dim(held.specification)
    batch = held.shape[:rank]
    if all((load < 0).all() for load in loads):
        return [()] * size
    computed = _walk(held.slice, loads)
    sets = [_spread(_reduce(computed[number], rank), batch) for number in held.slice.outputs]
    joined = _union(*sets).reshape(math.prod(batch), -1)
    rows = [tuple(sorted(int(number) for number in row if number >= 0)) for row in joined]
    each = size // max(len(rows), 1)
    return [row for row in rows for _ in range(each)]


def _walk(held: Slice, loads: list[Addresses]) -> dict[int, Addresses]:
    """The sets behind every value of a slice."""
    pending = iter(loads)
    computed: dict[int, Addresses] = {}
    for number, value in zip(held.numbers, held.values, strict=True):
        if isinstance(value, Load):
            computed[number] = _tidy(next(pending)[..., None])
        elif isinstance(value, Gather):
            pieces = [_flat(computed[source]) for source in value.inputs]
            width = max(piece.shape[-1] for piece in pieces)
            wide = [np.pad(piece, ((0, 0), (0, width - piece.shape[-1])), constant_values=-1) for piece in pieces]
            computed[number] = _tidy(np.concatenate(wide)[value.indices])
        else:
            inputs = [computed[source] for source in value.inputs]
            for offset, shape in enumerate(value.shapes):
                computed[number + offset] = _step(value, inputs, shape)
    return computed


def _flat(sets: Addresses) -> Addresses:
    return sets.reshape(math.prod(sets.shape[:-1]), sets.shape[-1])


def _tidy(sets: Addresses) -> Addresses:
    """Each member once, in falling order, without columns of padding alone."""
    if sets.shape[-1] > 1:
        sets = np.sort(sets, -1)
        repeated = np.zeros(sets.shape, dtype=np.bool_)
        repeated[..., 1:] = sets[..., 1:] == sets[..., :-1]
        sets = -np.sort(-np.where(repeated, -1, sets), -1)
    kept = (_flat(sets) >= 0).any(0)
    return np.asarray(sets[..., : int(kept.sum())])


def _union(*sets: Addresses) -> Addresses:
    """Element by element, of sets that broadcast against each other."""
    present = [held for held in sets if held.shape[-1]]
    shape = np.broadcast_shapes(*(held.shape[:-1] for held in sets))
    if not present:
        return np.zeros((*shape, 0), dtype=np.int64)
    return _tidy(np.concatenate([np.broadcast_to(held, (*shape, held.shape[-1])) for held in present], -1))


def _spread(sets: Addresses, shape: tuple[int, ...]) -> Addresses:
    return np.broadcast_to(sets, (*np.broadcast_shapes(sets.shape[:-1], shape), sets.shape[-1]))


def _reduce(sets: Addresses, first: int) -> Addresses:
    """Unions over all dimensions from `first` on."""
    return _tidy(sets.reshape(*sets.shape[:first], math.prod(sets.shape[first:])))


def _along(sets: Addresses, dims: Sequence[int], *, keep: bool) -> Addresses:
    """Unions along some dimensions, which keep size one or vanish."""
    rank = sets.ndim - 1
    dims = sorted({dim % rank for dim in dims})
    rest = [dim for dim in range(rank) if dim not in dims]
    shape = [sets.shape[dim] for dim in rest]
    width = sets.shape[-1] * math.prod(sets.shape[dim] for dim in dims)
    joined = _tidy(sets.transpose(*rest, *dims, rank).reshape(*shape, width))
    return np.expand_dims(joined, tuple(dims)) if keep else joined


def _step(step: Step, inputs: list[Addresses], shape: tuple[int, ...]) -> Addresses:
    """The sets of one output of an instruction."""
    if not any(held.shape[-1] for held in inputs):
        return np.zeros((*shape, 0), dtype=np.int64)
    found = _union(*inputs) if step.pointwise else _known(step, inputs)
    if found is None or np.broadcast_shapes(found.shape[:-1], shape) != shape:
        found = _union(*(_reduce(held, 0) for held in inputs))  # everything depends on everything
    return _spread(found, shape)


def _known(step: Step, inputs: list[Addresses]) -> Addresses | None:
    """The finer rule of an instruction, where there is one."""
    name, _, overload = step.operation.partition(".")
    arguments = step.arguments
    if name in _REDUCTIONS and len(inputs) == 1 and len(step.shapes) == 1:
        dims = arguments[1] if len(arguments) > 1 and not (overload == "default" and name in _WHOLE) else None
        chosen = (dims,) if isinstance(dims, int) else dims
        keep = bool(len(arguments) > 2 and arguments[2]) or bool(dict(step.keywords).get("keepdim"))
        if inputs[0].ndim == 1 or isinstance(chosen, dict):
            return None
        return _along(inputs[0], tuple(chosen) if chosen else range(inputs[0].ndim - 1), keep=keep)
    if name in _ALONG and len(inputs) == 1 and inputs[0].ndim > 1 and len(arguments) > 1:
        return _along(inputs[0], (arguments[1],), keep=True) if isinstance(arguments[1], int) else None
    if name in _PRODUCTS and len(inputs) == 2 + _PRODUCTS[name]:
        return _product(name, inputs)
    if name in ("index_select", "gather") and len(inputs) == 2:
        return _select(inputs[0], inputs[1], int(arguments[1]), whole=name == "gather")
    if name == "embedding" and len(inputs) == 2:
        return _union(_along(inputs[0], (0,), keep=False), inputs[1][..., None, :])
    if name in ("index", "_unsafe_index"):
        return _index(inputs, arguments)
    return None


def _product(name: str, inputs: list[Addresses]) -> Addresses:
    left, right = inputs[_PRODUCTS[name] :]
    rows = _along(left, (-1,), keep=False)
    columns = _along(right, (0 if right.ndim == 2 else right.ndim - 3,), keep=False)
    if right.ndim == 2:  # a vector
        result = _union(rows, columns)
    else:
        result = _union(rows[..., :, None, :], columns[..., None, :, :])
    return _union(result, inputs[0]) if _PRODUCTS[name] else result


def _select(table: Addresses, index: Addresses, dim: int, *, whole: bool) -> Addresses | None:
    rank = table.ndim - 1
    if not rank:
        return None
    if whole:
        return _union(index, _reduce(table, 0))
    dim %= rank
    placed = index.reshape(*(-1 if axis == dim else 1 for axis in range(rank)), index.shape[-1])
    return _union(placed, _along(table, (dim,), keep=True))


def _index(inputs: list[Addresses], arguments: tuple[Any, ...]) -> Addresses | None:
    """Advanced indexing: where the indices' own dimensions lie in the result, and what each entry reads."""
    listed = arguments[1]
    dims = [place for place, item in enumerate(listed) if isinstance(item, Ref)]
    table, indices = inputs[0], _union(*(inputs[listed[place].index] for place in dims))
    rank, own = table.ndim - 1, indices.ndim - 1
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    before = dims[0] if adjacent else 0
    after = rank - len(dims) - before
    placed = indices.reshape(*(1,) * before, *indices.shape[:-1], *(1,) * after, indices.shape[-1])
    rest = _along(table, dims, keep=False)
    rest = rest.reshape(*rest.shape[:before], *(1,) * own, *rest.shape[before:])
    return _union(placed, rest)
