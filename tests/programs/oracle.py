"""The reference front end: ``make_fx(functionalize(f))`` in real mode, true Jacobians, and Pyro's own density.

``f`` takes the values of all sites and the program's parameters, runs the model with them, and returns the tensors
that every site's distribution was made from.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from tests.programs.watch import Model, Run, draw, run

__all__ = [
    "element_sparsity",
    "jacobian_parents",
    "oracle_parameters",
    "oracle_parents",
    "pyro_log_prob",
    "trace_oracle",
]


class _IndexByTensor(TorchFunctionMode):
    """Keeps ``table[z]`` with a tensor ``z`` of no dimensions an operation on tensors (torch reads its number)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            tensor, index = args
            entries = list(index) if isinstance(index, tuple) else [index]
            if not any(entry is None or entry is Ellipsis for entry in entries):
                for position, entry in enumerate(entries):
                    if isinstance(entry, torch.Tensor) and entry.dim() == 0 and entry.dtype is not torch.bool:
                        rows = torch.index_select(tensor, position, entry.long().reshape(1))
                        entries[position] = 0
                        tensor = rows
                return func(tensor, tuple(entries))
        return func(*args, **(kwargs or {}))


class _Flat:
    """The model as a function of a flat list of tensors: site values, then program parameters."""

    def __init__(self, model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], example: Run) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.sites, self.parameters = list(example.sites), list(example.parameters)
        self.keys: list[tuple[str, str]] = []

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = dict(zip(self.sites, inputs, strict=False))
        parameters = dict(zip(self.parameters, inputs[len(self.sites) :], strict=True))
        with _IndexByTensor():
            found = run(self.model, self.args, self.kwargs, values, parameters, python_indices=True).sites
        self.keys = [(site, name) for site, record in found.items() for name in record.parameters]
        return tuple(tensor for record in found.values() for tensor in record.parameters.values())


def _example(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0) -> Run:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return run(model, args, kwargs)


def _inputs(example: Run, values: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    sites = [values.get(name, record.value).detach().clone() for name, record in example.sites.items()]
    return sites + [value.detach().clone() for value in example.parameters.values()]


def trace_oracle(
    model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[torch.fx.GraphModule, _Flat, Run]:
    """Traces the model at one draw; returns the graph, the flat function (for its names) and the draw."""
    example = _example(model, args, kwargs or {})
    flat = _Flat(model, args, kwargs or {}, example)
    graph = make_fx(torch.func.functionalize(flat))(*_inputs(example, {}))
    return graph, flat, example


def oracle_parameters(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    values: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of every site at the given values, from the graph that was traced at other values."""
    graph, flat, example = trace_oracle(model, args, kwargs)
    outputs = graph(*_inputs(example, values or {}))
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in flat.sites}
    for (site, name), tensor in zip(flat.keys, outputs, strict=True):
        found[site][name] = tensor.detach()
    return found


def oracle_parents(
    model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, set[str]]:
    """Parents by backward slices of the traced graph: never too few, sometimes too many (memory counts as use)."""
    graph, flat, _ = trace_oracle(model, args, kwargs)
    reached: dict[torch.fx.Node, frozenset[str]] = {}
    names = iter(flat.sites + [""] * len(flat.parameters))
    outputs: Sequence[Any] = ()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            name = next(names)
            reached[node] = frozenset({name} if name else ())
        elif node.op == "output":
            outputs = node.args[0]
        else:
            reached[node] = frozenset().union(*(reached[parent] for parent in node.all_input_nodes))
    parents: dict[str, set[str]] = {name: set() for name in flat.sites}
    for (site, _), node in zip(flat.keys, outputs, strict=True):
        if isinstance(node, torch.fx.Node):
            parents[site] |= reached[node]
    return parents


def _sites_only(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: dict[str, torch.Tensor]):
    found = run(model, args, kwargs, values).sites
    blocks = [torch.cat([p.reshape(-1).to(torch.get_default_dtype()) for p in record.parameters.values()])
              for record in found.values()]  # fmt: skip
    return torch.cat(blocks), {name: block.numel() for name, block in zip(found, blocks, strict=True)}


def element_sparsity(
    model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, points: int = 5
) -> dict[str, dict[str, torch.Tensor]]:
    """Which element of which site moves which parameter: site -> parent -> Boolean ``[parameters, elements]``.

    Continuous parents by ``torch.autograd.functional.jacobian`` at several draws of the program and, since steps such
    as ``a > 0`` have no slope, by putting the value of another draw in the place of each element; discrete parents by
    trying every value of their support. Run it in float64.
    """
    kwargs = kwargs or {}
    draws = draw(model, args, kwargs, number=points, seed=7)
    example = _example(model, args, kwargs)
    names = list(example.sites)
    moved: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    for point in range(points):
        values = {name: draws[name][point] for name in names}
        smooth = [name for name in names if values[name].is_floating_point() and not _is_discrete(example, name)]
        base, sizes = _sites_only(model, args, kwargs, values)

        def parameters_of(*inputs: torch.Tensor, values: dict[str, torch.Tensor] = values, smooth=smooth):
            return _sites_only(model, args, kwargs, {**values, **dict(zip(smooth, inputs, strict=True))})[0]

        inputs = tuple(values[name] for name in smooth)
        jacobian = torch.autograd.functional.jacobian(parameters_of, inputs) if smooth else ()
        for name, block in zip(smooth, jacobian, strict=True):
            now = block.reshape(base.numel(), -1) != 0
            moved[name] = now | moved.get(name, torch.zeros_like(now))
        for name in names:
            other = draws[name][(point + 1) % points]
            levels = other.reshape(-1, 1) if name in smooth else _levels(example, name).expand(other.numel(), -1)
            now = _jumps(model, args, kwargs, values, name, levels)
            moved[name] = now | moved.get(name, torch.zeros_like(now))
    found: dict[str, dict[str, torch.Tensor]] = {}
    start = 0
    for site in names:
        rows = slice(start, start + sizes[site])
        found[site] = {parent: moved[parent][rows] for parent in names}
        start += sizes[site]
    return found


def _is_discrete(example: Run, name: str) -> bool:
    return bool(getattr(example.sites[name].fn.support, "is_discrete", False))


def _levels(example: Run, name: str) -> torch.Tensor:
    fn = example.sites[name].fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Binomial):
        return torch.arange(int(fn.total_count.max()) + 1).reshape(1, -1)
    if not fn.has_enumerate_support:
        return torch.arange(6).reshape(1, -1)  # some of infinitely many
    return fn.enumerate_support(expand=False).reshape(1, -1)


def _jumps(model, args, kwargs, values, name, levels: torch.Tensor) -> torch.Tensor:
    """Which parameters change when one element after the other takes each of its levels."""
    base, _ = _sites_only(model, args, kwargs, values)
    columns = []
    for element, choices in enumerate(levels):
        column = torch.zeros(base.numel(), dtype=torch.bool)
        for choice in choices:
            moved = values[name].clone()
            moved.reshape(-1)[element] = choice
            column |= _sites_only(model, args, kwargs, {**values, name: moved})[0] != base
        columns.append(column)
    return torch.stack(columns, -1)


def jacobian_parents(
    model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, points: int = 5
) -> dict[str, set[str]]:
    """The true parents: site -> the sites on whose values its parameters really depend."""
    sparsity = element_sparsity(model, args, kwargs, points=points)
    return {
        site: {parent for parent, block in blocks.items() if bool(block.any())} for site, blocks in sparsity.items()
    }


def pyro_log_prob(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    values: Mapping[str, torch.Tensor] | None = None,
    parameters: Mapping[str, torch.Tensor] | None = None,
    *,
    summed: Sequence[str] = (),
) -> torch.Tensor:
    """Pyro's log density of one example: the sum over its latent sites, with the sites in ``summed`` summed out.

    Args:
        model: The program.
        args: Its arguments.
        kwargs: Its keyword arguments.
        values: Values of the latent sites of the example; observed sites keep their own.
        parameters: Constrained parameters; the program's starting values where they are not given.
        summed: Discrete sites whose values are enumerated; the result is the log-sum-exp over them.
    """
    values = dict(values or {})
    if not summed:
        return _joint(model, args, kwargs, values, parameters)
    example = _example(model, args, kwargs or {})
    supports = [_joint_levels(example, name) for name in summed]
    terms = [
        _joint(model, args, kwargs, {**values, **dict(zip(summed, combination, strict=True))}, parameters)
        for combination in itertools.product(*supports)
    ]
    return torch.logsumexp(torch.stack(terms), 0)


def _joint_levels(example: Run, name: str) -> list[torch.Tensor]:
    """All values that the elements of a discrete site can have together."""
    fn, value = example.sites[name].fn, example.sites[name].value
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    levels = fn.enumerate_support(expand=False).reshape(-1)
    return [torch.stack(chosen).reshape(value.shape) for chosen in itertools.product(levels, repeat=value.numel())]


def _joint(model, args, kwargs, values, parameters) -> torch.Tensor:
    with pyro.validation_enabled(False):
        latent = run(model, args, kwargs, values, parameters).latent
        missing = set(latent) - set(values)
        if missing:
            raise ValueError(f"the example lacks the sites {sorted(missing)}")
        return torch.stack([record.fn.log_prob(record.value).sum() for record in latent.values()]).sum()
