"""From a model to a layer: parse, plan, verify."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from emfc.layers.structured import StructuredLayer
from emfc.layers.verification import evaluate_plan
from emfc.passes.pipeline import site_parents
from emfc.program.graph import ModelGraph
from emfc.program.trace import trace
from emfc.program.verify import verify

__all__ = ["compile", "parse"]


@contextmanager
def _compiling() -> Iterator[None]:
    """Leave inference mode, and pause Python's cyclic garbage collector.

    A long program is many small objects that all stay; walking them all again and again would make compiling grow
    faster than the program.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        if enabled:
            gc.enable()


def parse(model: Callable[..., Any], *args: Any, **kwargs: Any) -> ModelGraph:
    """Read a program once.

    Args:
        model: Any callable that calls Pyro's primitives.
        *args: The program's own arguments.
        **kwargs: The program's own keyword arguments.

    Returns:
        Its graph: sites, parents, learnable parameters.

    Raises:
        CompileError: The program does something that cannot be compiled.

    Example:
        >>> import pyro, pyro.distributions as dist, emfc
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> emfc.parse(model).sites["x"].parents
        ('scale',)
    """
    with _compiling():
        program = trace(model, args, kwargs)
        return ModelGraph(program, partial(site_parents, program), model, args, kwargs)


def compile(
    model: ModelGraph | Callable[..., Any],
    *args: Any,
    gate: str | None = None,
    optimize: bool = True,
    passes: Collection[str] | None = None,
    compile: bool = False,
    chunk: int | None = None,
    **kwargs: Any,
) -> StructuredLayer:
    """Compile a program into an invertible layer.

    Args:
        model: A model, or a graph from `parse`.
        *args: The program's own arguments.
        gate: ``None``, ``"site"`` or ``"element"``.
        optimize: False evaluates site by site, as a reference.
        passes: Names of the passes that run, where not all should: out of fold, common, dead, recurrences, classify.
        compile: Whether log densities run under `torch.compile`, which pays after some hundred evaluations.
        chunk: How many sites of one kind a log density takes at a time, so that memory does not grow with the length
            of the program; None for all.
        **kwargs: The program's own keyword arguments; one that clashes with an option here is given through
            `functools.partial` or a parsed graph.

    Returns:
        An `nn.Module`; ``layer()`` is the transform from standard-normal noise to examples.

    Raises:
        CompileError: The program cannot be compiled.
        UserError: An option has a value that it can't have.

    Example:
        >>> import pyro, pyro.distributions as dist, emfc
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> print(emfc.compile(model).rows()[1]["parents"])
        ['scale']
    """
    with _compiling():
        graph = model if isinstance(model, ModelGraph) else parse(model, *args, **kwargs)
        layer = StructuredLayer(
            graph.program, gate=gate, optimize=optimize, passes=passes, compile=compile, chunk=chunk
        )
        if graph.model is not None:
            checked: Mapping[str, Any] = graph.kwargs
            verify(graph.program, graph.model, graph.args, checked, evaluate_plan(layer.plan))
    return layer
