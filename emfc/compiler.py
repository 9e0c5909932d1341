"""From a model to a layer: parse, plan, verify."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from emfc.errors import UserError
from emfc.layers.log_joint import LogJoint
from emfc.layers.structured import StructuredLayer
from emfc.layers.verification import evaluate_plan
from emfc.options import keywords_of, read_keywords
from emfc.passes.pipeline import site_parents
from emfc.program.errors import CompileError
from emfc.program.graph import ModelGraph
from emfc.program.target import Target
from emfc.program.trace import trace, trace_target
from emfc.program.verify import verify

__all__ = ["compile", "compile_target", "parse", "parse_target"]


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
        UserError: An option is unknown or has a value that it can't have.

    Example:
        >>> import pyro, pyro.distributions as dist, emfc
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> print(emfc.compile(model).rows()[1]["parents"])
        ['scale']
    """
    if isinstance(model, ModelGraph) and (args or kwargs):
        raise UserError("a parsed graph has its program's arguments already; give none with it")
    read_keywords("compile", _OPTIONS, model, kwargs)
    with _compiling():
        graph = model if isinstance(model, ModelGraph) else parse(model, *args, **kwargs)
        layer = StructuredLayer(
            graph.program, gate=gate, optimize=optimize, passes=passes, compile=compile, chunk=chunk
        )
        if graph.model is not None:
            checked: Mapping[str, Any] = graph.kwargs
            verify(graph.program, graph.model, graph.args, checked, evaluate_plan(layer.plan))
    return layer


_OPTIONS = keywords_of(compile)


def parse_target(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Target:
    """Read a model and its data as the target of variational inference.

    `pyro.factor`, scales and masks count, improper priors are free coordinates, and observed sites may stand in
    subsampled plates.

    Args:
        model: Any callable that calls Pyro's primitives.
        *args: The model's own arguments.
        **kwargs: The model's own keyword arguments.

    Raises:
        CompileError: The program does something that cannot be compiled.
    """
    with _compiling():
        return trace_target(model, args, kwargs)


def compile_target(model: Callable[..., Any], *args: Any, **kwargs: Any) -> LogJoint:
    """Compile a model and its data into the log joint density of its latent sites.

    Args:
        model: Any callable that calls Pyro's primitives.
        *args: The model's own arguments.
        **kwargs: The model's own keyword arguments.

    Returns:
        An `nn.Module` from values of the latent sites ``[*, D]`` to log densities ``[*]``.

    Raises:
        CompileError: The program cannot be compiled.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> log_joint = compile_target(model, torch.tensor(2.0))
        >>> round(float(log_joint(torch.zeros(1))), 4)
        -3.8379
    """
    with _compiling():
        target = trace_target(model, args, kwargs)
        if target.subsampled:
            raise CompileError(
                "E-SUBSAMPLE",
                f"plate {target.subsampled[0]!r} takes a part of its rows at random, and a compiled density needs all",
                site=target.subsampled[0],
                advice="give the plate its full size, or train the guide with Pyro's SVI, which draws rows anew",
            )
        held = LogJoint(target)
        verify(target.program, model, args, kwargs, evaluate_plan(held.plan), density=held)
    return held
