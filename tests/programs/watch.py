"""Runs a program with its sites and parameters given, and reports the parameters of every site's distribution.

This is the reference in tests: it knows nothing of emfc and rewrites nothing, it only watches the model run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Run", "SiteRecord", "distribution_parameters", "draw", "program_parameters", "run"]

Model = Callable[..., Any]


@dataclass(frozen=True)
class SiteRecord:
    """What one ``pyro.sample`` statement did."""

    fn: Any
    value: torch.Tensor
    observed: bool
    parameters: dict[str, torch.Tensor]


@dataclass
class Run:
    """One watched run: the sites in their order, and the parameters that the program read."""

    sites: dict[str, SiteRecord] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def latent(self) -> dict[str, SiteRecord]:
        return {name: site for name, site in self.sites.items() if not site.observed}


_ALTERNATIVES = ({"probs", "logits"}, {"gate", "gate_logits"}, {"covariance_matrix", "precision_matrix", "scale_tril"})


def distribution_parameters(fn: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors that a distribution was made from, inner distributions and transforms included."""
    if type(fn).__name__ == "TransformedDistribution":
        found = distribution_parameters(fn.base_dist, prefix + "base.")
        for index, transform in enumerate(fn.transforms):
            found.update(_transform_parameters(transform, f"{prefix}transform_{index}."))
        return found
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        return {
            **distribution_parameters(fn.mixture_distribution, prefix + "mixture."),
            **distribution_parameters(fn.component_distribution, prefix + "component."),
        }
    if type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        return distribution_parameters(fn.base_dist, prefix)
    found = {}
    for name in inspect.signature(type(fn).__init__).parameters:
        alternatives = next((group for group in _ALTERNATIVES if name in group), set())
        if name not in vars(fn) and alternatives & vars(fn).keys():
            continue  # made from another parametrisation
        value = getattr(fn, "base_dist" if name == "base" else name, None)
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, torch.distributions.Distribution):
            found.update(distribution_parameters(value, f"{prefix}{name}."))
    return found


def _transform_parameters(transform: Any, prefix: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, value in sorted(vars(transform).items()):
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
        elif name in ("loc", "scale", "exponent"):  # given as a number
            found[f"{prefix}{name}"] = torch.tensor(float(value))
        elif isinstance(value, torch.distributions.Transform):
            found.update(_transform_parameters(value, f"{prefix}{name}."))
    for index, part in enumerate(getattr(transform, "parts", ())):
        found.update(_transform_parameters(part, f"{prefix}{index}."))
    return found


class _Watcher(Messenger):  # type: ignore[misc]
    """Gives sites and parameters their values and writes down what the run did."""

    def __init__(
        self,
        run: Run,
        values: Mapping[str, torch.Tensor],
        parameters: Mapping[str, torch.Tensor],
        *,
        python_indices: bool,
    ) -> None:
        super().__init__()
        self.run, self.values, self.given, self.python_indices = run, values, parameters, python_indices
        self.initial: dict[str, torch.nn.Parameter] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg):
            if self.python_indices and msg["value"] is None:
                msg["value"] = list(range(msg["fn"].size))
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        self.run.sites[msg["name"]] = SiteRecord(
            msg["fn"], msg["value"], msg["is_observed"], distribution_parameters(msg["fn"])
        )

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], torch.nn.Parameter):
            self.initial[msg["name"]] = msg["args"][1]
        if msg["name"] in self.given:
            msg["value"] = self.given[msg["name"]]

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        self.run.parameters[msg["name"]] = msg["value"]


@contextmanager
def _modules_seen(seen: list[torch.nn.Module]) -> Iterator[None]:
    handle = register_module_forward_pre_hook(lambda module, _: seen.append(module))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _swapped(entries: dict[str, Any], name: str, value: torch.Tensor) -> Iterator[None]:
    before = entries[name]
    entries[name] = value
    try:
        yield
    finally:
        entries[name] = before


def _once(watcher: _Watcher, model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    with warnings.catch_warnings(), pyro.get_param_store().scope(), pyro.validation_enabled(False), watcher:
        warnings.filterwarnings("ignore", message=".*was not registered in the param store.*")
        model(*args, **kwargs)


def run(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    values: Mapping[str, torch.Tensor] | None = None,
    parameters: Mapping[str, torch.Tensor] | None = None,
    *,
    python_indices: bool = False,
) -> Run:
    """Runs the model with some sites and (constrained) parameters given; the global param store stays as it was.

    Args:
        model: The program.
        args: Its arguments.
        kwargs: Its keyword arguments.
        values: Site name -> value; observed sites may be given too. Sites that are not given are drawn.
        parameters: Parameter name -> constrained value, under Pyro's names (``"module$$$weight"`` for modules).
        python_indices: Whether plates count in Python numbers (a tracer can't read numbers from tensors).

    Returns:
        The sites in the order of the program with their distributions and values, and the parameters.
    """
    kwargs, values, parameters = kwargs or {}, values or {}, parameters or {}
    slots: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    if parameters:  # parameters that a module reads by itself take their value inside the module
        seen: list[torch.nn.Module] = []
        scout = _Watcher(Run(), values, parameters, python_indices=python_indices)
        with _modules_seen(seen), torch.random.fork_rng(devices=[]), torch.no_grad():
            _once(scout, model, args, kwargs)
        owner = {id(tensor): name for name, tensor in scout.initial.items() if name in parameters}
        entries = {id(module._parameters): module._parameters for module in seen}
        slots = [
            (held, key, parameters[owner[id(tensor)]])
            for held in entries.values()
            for key, tensor in held.items()
            if id(tensor) in owner
        ]
    result = Run()
    with ExitStack() as stack:
        for held, key, value in slots:
            stack.enter_context(_swapped(held, key, value))
        _once(_Watcher(result, values, parameters, python_indices=python_indices), model, args, kwargs)
    return result


def program_parameters(
    model: Model, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """The program's learnable parameters, name -> constrained starting value."""
    with torch.random.fork_rng(devices=[]):
        found = run(model, args, kwargs).parameters
    return {name: value.detach().clone() for name, value in found.items()}


def draw(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    number: int,
    seed: int = 0,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The program's own draws: site name -> ``[number, *site_shape]``, all sites."""
    runs = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(number):
            runs.append(run(model, args, kwargs, parameters=parameters).sites)
    return {name: torch.stack([sites[name].value for sites in runs]) for name in runs[0]}
