"""Which latent numbers a posterior makes depend on one another: masks of autoregressive layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.program.ir import Addresses, Instruction, Operand, Program, SiteRecord
from emfc.program.operations import is_pointwise
from emfc.program.specification import event_dim
from emfc.program.target import Target

__all__ = ["closed_mask", "posterior_dependencies", "turned_mask"]

Bits = npt.NDArray[np.uint64]
"""Sets of latent elements, 64 to a word, one set for each row."""

_REDUCTIONS = frozenset("sum mean amax amin logsumexp prod var std all any linalg_vector_norm".split())
_LARGEST_PRODUCT = 10_000_000


def posterior_dependencies(target: Target) -> tuple[tuple[int, ...], ...]:
    r"""For each noise element of a target's prior the earlier ones that it depends on under the posterior.

    The factors of the joint density, priors and likelihoods, make a moral graph of the latent elements. Eliminating
    these from the last to the first, with fill-in, gives :math:`p(x \mid y) = \prod_j p(x_j \mid x_{S_j}, y)` with
    :math:`S_j` before j. A noise element is a function of its value and the values that its prior reads, so that the
    noise j depends on the noise of :math:`S_j`, of theirs, and so on: the relation is transitive, and triangular maps
    with this pattern are closed under products and inverses. It is a superset where an operation's own pattern is not
    known.
    """
    sets = _Sets(target)
    neighbours = [0] * sets.count
    for clique in sets.cliques:
        for node in _members(clique):
            neighbours[node] |= clique
    for node in sets.summed:
        _eliminate(neighbours, node)
    kept = [node for node in range(sets.count) if node not in set(sets.summed)]
    before: dict[int, int] = {}
    for node in reversed(kept):
        before[node] = _eliminate(neighbours, node)
    place = {node: position for position, node in enumerate(kept)}
    closed: dict[int, int] = {}
    for node in kept:
        closed[node] = before[node]
        for other in _members(before[node]):
            closed[node] |= closed[other]
    return tuple(tuple(place[other] for other in _members(closed[node])) for node in kept)


def closed_mask(dependencies: Sequence[Collection[int]], features: int) -> Tensor:
    """The strictly lower-triangular mask ``[N, N]`` of a relation between elements, made transitive.

    Raises:
        UserError: There is not one collection for each element, or an element is to depend on itself or a later one.
    """
    if len(dependencies) != features:
        raise UserError(
            f"dependencies must have one entry for each of the {features} elements, not {len(dependencies)}"
        )
    mask = torch.zeros(features, features, dtype=torch.bool)
    for place, held in enumerate(dependencies):
        for other in held:
            if not 0 <= other < place:
                raise UserError(f"element {place} can depend on elements 0 to {place - 1} only, not on {other}")
            mask[place] |= mask[other]
            mask[place, other] = True
    return mask


def turned_mask(mask: Tensor) -> Tensor:
    """The same relation ``[N, N]`` with the order turned round wherever that lets nothing else see more.

    Elements that see the same others and are seen by the same others are a block, such as the shared parameters of a
    hierarchy or a whole chain: in any order they make the same joint dependencies.
    """
    below = mask.bool()
    turned = below.mT.clone()
    eye = torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    while True:
        whole = below | turned | eye
        lacks = (~whole).to(torch.float64)
        held = whole.to(torch.float64)
        # What j sees and i doesn't, and what sees i and not j.
        wrong = (lacks @ held.mT > 0) | (held.mT @ lacks > 0)
        kept = turned & ~wrong
        if bool((kept == turned).all()):
            return turned | (below & ~turned.mT)
        turned = kept


def _members(bits: int) -> Iterable[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _eliminate(neighbours: list[int], node: int) -> int:
    """Take a node out of the graph, joining its neighbours, which are returned."""
    found = neighbours[node] & ~(1 << node)
    for other in _members(found):
        neighbours[other] = (neighbours[other] | found) & ~(1 << node)
    neighbours[node] = 0
    return found


def _sites(program: Program, chosen: Iterable[int]) -> list[tuple[int, SiteRecord]]:
    return [(index, program.sites[index]) for index in chosen]


class _Sets:
    """Sets of latent elements that every value of a program depends on directly, not through other sites.

    Attributes:
        count: Number of nodes: noise elements of the latent sites in program order, or values of what is summed out.
        summed: Nodes that are summed out.
        cliques: For each factor of the joint density the nodes that it reads, as bits of an integer.
    """

    def __init__(self, target: Target) -> None:
        program = target.program
        latent = target.latent()
        sizes = {index: held.size if held.discrete else held.noise_size for index, held in _sites(program, latent)}
        self.starts = dict(zip(latent, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        self.count = sum(sizes.values())
        self.words = max(1, -(-self.count // 64))
        self._bits = self._values(program, sizes)
        factors = {index: self._factors(index, site, sizes) for index, site in enumerate(program.sites)}
        self.cliques = [clique for held in factors.values() for clique in held]
        self.summed: list[int] = []
        for index, site in _sites(program, latent):
            nodes = range(self.starts[index], self.starts[index] + sizes[index])
            whole = sum(1 << node for node in nodes)
            others = (clique for other, held in factors.items() if other != index for clique in held)
            if site.discrete and any(clique & whole for clique in others):
                self.summed += nodes

    def _values(self, program: Program, sizes: dict[int, int]) -> Bits:
        ends = [output.start + output.size for held in program.instructions for output in held.outputs]
        bits = np.zeros((max(ends, default=program.instruction_base), self.words), dtype=np.uint64)
        for index, start in self.starts.items():
            site = program.sites[index]
            for row, nodes in enumerate(self._nodes(site, start, sizes[index])):
                held = np.zeros(self.words, dtype=np.uint64)
                for node in nodes:
                    held[node // 64] |= np.uint64(1 << (node % 64))
                width = site.size // max(len(self._nodes(site, start, sizes[index])), 1)
                bits[site.start + row * width : site.start + (row + 1) * width] = held
        fixed = [index for index in self.starts if not sizes[index] and program.sites[index].size]
        for _ in range(1 + len(fixed)):  # a site without noise of its own is what its parameters are
            self._run(program, bits)
            for index in fixed:
                site = program.sites[index]
                for operand in site.specification.operands():
                    bits[site.start : site.start + site.size] |= _union(bits[operand.addresses])
        return bits

    def _run(self, program: Program, bits: Bits) -> None:
        for instruction in program.instructions:
            found = _forward(instruction, bits, program.constant_values).reshape(-1, self.words)
            start = 0
            for output in instruction.outputs:
                bits[output.start : output.start + output.size] = found[start : start + output.size]
                start += output.size

    @staticmethod
    def _nodes(site: SiteRecord, start: int, size: int) -> list[range]:
        """Nodes of each row of a site: elements that depend on one another within their event."""
        dims = event_dim(site.specification)
        rows = int(np.prod(site.shape[: len(site.shape) - dims], dtype=np.int64)) if dims else site.size
        if size == 0 or rows == 0 or size % rows:
            return [range(start, start + size)]
        each = size // rows
        return [range(start + row * each, start + (row + 1) * each) for row in range(rows)]

    def _factors(self, index: int, site: SiteRecord, sizes: dict[int, int]) -> list[int]:
        """Cliques of a site, one for each of its rows."""
        rank = len(site.shape) - event_dim(site.specification)
        batch = site.shape[: max(rank, 0)]
        rows = int(np.prod(batch, dtype=np.int64))
        total = np.zeros((*batch, self.words), dtype=np.uint64)
        for operand in site.specification.operands():
            total = total | _over_events(operand, self._bits, batch)
        flat = total.reshape(rows, self.words)
        cliques = [int.from_bytes(row.tobytes(), "little") for row in np.ascontiguousarray(flat)]
        if index in self.starts:
            own = self._nodes(site, self.starts[index], sizes[index])
            if len(own) != len(cliques):
                joint = 0
                for clique in cliques:
                    joint |= clique
                cliques = [joint] * len(own)
            for place, nodes in enumerate(own):
                for node in nodes:
                    cliques[place] |= 1 << node
        return list(dict.fromkeys(cliques))


def _over_events(operand: Operand, bits: Bits, batch: tuple[int, ...]) -> Bits:
    """Sets of an operand of a distribution, for each row of its site."""
    held: Bits = bits[operand.addresses]
    while held.ndim - 1 > len(batch):
        held = np.bitwise_or.reduce(held, axis=held.ndim - 2)
    try:
        return np.broadcast_to(held, (*batch, held.shape[-1]))
    except ValueError:
        return np.broadcast_to(_union(held), (*batch, held.shape[-1]))


def _union(bits: Bits) -> Bits:
    joint: Bits = np.bitwise_or.reduce(bits.reshape(-1, bits.shape[-1]), axis=0)
    return joint


def _forward(instruction: Instruction, bits: Bits, constants: npt.NDArray[np.float64]) -> Bits:
    """Sets of the outputs of an instruction."""
    held: list[Bits] = [bits[operand.addresses] for operand in instruction.operands]
    name = instruction.operation.partition(".")[0]
    words = bits.shape[-1]
    single = instruction.outputs[0] if len(instruction.outputs) == 1 else None
    if single is not None and is_pointwise(instruction):
        total = np.zeros((*single.shape, words), dtype=np.uint64)
        for part in held:
            total = total | np.broadcast_to(part, (*single.shape, words))
        return total
    if single is not None and name in ("mv", "mm", "dot") and len(held) == 2:
        product = _product(instruction, held, constants)
        if product is not None:
            return product
    if single is not None and name in _REDUCTIONS and len(held) == 1:
        reduced = _reduced(instruction, held[0], single.shape)
        if reduced is not None:
            return reduced
    joint = np.zeros(words, dtype=np.uint64)
    for part in held:
        joint = joint | _union(part)
    return np.broadcast_to(joint, (sum(output.size for output in instruction.outputs), words))


def _product(instruction: Instruction, held: list[Bits], constants: npt.NDArray[np.float64]) -> Bits | None:
    """Matrix products: what meets a constant zero has no effect."""
    left, right = held
    live_left, live_right = (~_zero(operand.addresses, constants) for operand in instruction.operands)
    if left.ndim == 2:
        left, live_left = left[None], live_left[None]
    if right.ndim == 2:
        right, live_right = right[:, None], live_right[:, None]
    if left.shape[0] * left.shape[1] * right.shape[1] * left.shape[2] > _LARGEST_PRODUCT:
        return None
    live = live_left[:, :, None, None] & live_right[None, :, :, None]
    joint = np.where(live, left[:, :, None] | right[None], np.uint64(0))
    total: Bits = np.bitwise_or.reduce(joint, axis=1)
    return total.reshape(*instruction.outputs[0].shape, total.shape[-1])


def _zero(addresses: Addresses, constants: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    fixed = addresses < len(constants)
    zero: npt.NDArray[np.bool_] = fixed & (constants[np.where(fixed, addresses, 0)] == 0)
    return zero


def _reduced(instruction: Instruction, held: Bits, shape: tuple[int, ...]) -> Bits | None:
    """Reductions over the dimensions that the output's shape lacks, where these are clear from the call."""
    position = 2 if instruction.operation.startswith("linalg_vector_norm") else 1
    arguments = instruction.arguments
    dims = arguments[position] if len(arguments) > position else dict(instruction.keywords).get("dim")
    if not isinstance(dims, int | Sequence) or isinstance(dims, bool) or dims in ((), []):
        return None
    rank = held.ndim - 1
    axes = tuple(int(dim) % rank for dim in ((dims,) if isinstance(dims, int) else dims)) if rank else ()
    total: Bits = np.bitwise_or.reduce(held, axis=axes, keepdims=True) if axes else held
    if total.size != int(np.prod(shape, dtype=np.int64)) * held.shape[-1]:
        return None
    return total.reshape(*shape, held.shape[-1])
