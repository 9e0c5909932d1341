"""Pyro messengers: one that watches a run and fixes its sites, one that replays the model at given values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from emfc.program.constraint import constraint_to_data
from emfc.program.errors import CompileError
from emfc.program.ir import Plate
from emfc.program.locations import Location, user_location

__all__ = ["ProgramMessenger", "RawParameter", "RawSite", "isolated_store"]


@dataclass
class RawSite:
    """A sample site as met in one run of the model.

    Attributes:
        description: What `emfc.program.specification.describe` read; None for a `pyro.factor`.
        noise_shape: Shape of the noise that a draw is made from.
    """

    name: str
    distribution: Distribution
    value: Tensor
    observed: bool
    plates: tuple[Plate, ...]
    location: Location | None
    adjustment: str | None
    description: Any = None
    noise_shape: tuple[int, ...] = ()


@dataclass
class RawParameter:
    """A `pyro.param` statement as met in one run: the constrained value and its constraint as data."""

    name: str
    value: Tensor
    constraint: Mapping[str, Any]


@contextmanager
def isolated_store() -> Iterator[None]:
    """Run on a copy of the global parameter store, which is as before afterwards."""
    store = pyro.get_param_store()
    state = store.get_state()
    copy: Any = {"params": dict(state["params"]), "constraints": dict(state["constraints"])}
    with store.scope(copy):
        yield


@dataclass
class ProgramMessenger(Messenger):
    """Fixes every latent site's value and every parameter's, and keeps what it saw in program order.

    Subclass-free: what differs between the watched run and a replay is given as functions.

    Attributes:
        draw: Chooses the value of a latent site.
        lift: Chooses the value of a parameter, from its constrained starting value and the module parameter behind it.
        seen: Called with each site once it has its value.
        pause: Context in which the compiler's own tensor work is not watched.
    """

    draw: Callable[[RawSite], Tensor]
    lift: Callable[[RawParameter, nn.Parameter | None], Tensor]
    seen: Callable[[RawSite], None]
    pause: Callable[[], Any]
    sites: dict[str, RawSite] = field(default_factory=dict)
    parameters: dict[str, RawParameter] = field(default_factory=dict)
    deterministic: dict[str, Tensor] = field(default_factory=dict)
    _lifted: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def _pyro_sample(self, msg: Any) -> None:
        name, distribution = msg["name"], msg["fn"]
        kind = type(distribution).__name__
        if kind == "_Subsample":
            self._subsample(msg)
            return
        if msg["infer"].get("_deterministic"):
            self.deterministic[name] = msg["value"]
            return
        if name in self.sites:
            raise CompileError(
                "E-STRUCT",
                "two sample sites have the same name",
                site=name,
                advice="give every site a name of its own, such as f'x_{t}' in a loop",
                **self._where(),
            )
        site = RawSite(
            name=name,
            distribution=distribution,
            value=torch.zeros(()),
            observed=bool(msg["is_observed"]) or msg["value"] is not None,
            plates=tuple(Plate(frame.name, frame.size, frame.dim) for frame in msg["cond_indep_stack"]),
            location=user_location(2),
            adjustment=self._adjustment(msg, kind),
        )
        if site.observed:
            site.value = msg["value"] if isinstance(msg["value"], Tensor) else torch.as_tensor(msg["value"])
        else:
            with self.pause():
                site.value = self.draw(site).detach().clone(memory_format=torch.contiguous_format)
        self.sites[name] = site
        self.seen(site)
        msg["value"] = site.value
        msg["done"] = True
        msg["stop"] = True

    def _adjustment(self, msg: Any, kind: str) -> str | None:
        """What makes the site's log density differ from its distribution's, in words, or None."""
        if kind == "Unit":
            return "pyro.factor"
        with self.pause():
            scale, mask = msg["scale"], msg["mask"]
            if not (isinstance(scale, (int, float)) and scale == 1.0) and not bool((torch.as_tensor(scale) == 1).all()):
                return "poutine.scale"
            inner = msg["fn"]
            masks = [] if mask is None else [mask]
            while hasattr(inner, "base_dist"):
                if type(inner).__name__ == "MaskedDistribution":
                    masks.append(inner._mask)
                inner = inner.base_dist
            if any(not bool(torch.as_tensor(held).all()) for held in masks):
                return "a mask"
        return None

    def _subsample(self, msg: Any) -> None:
        distribution = msg["fn"]
        size, subsample = distribution.size, distribution.subsample_size
        if msg["value"] is not None:
            subsample = len(msg["value"])
        if subsample is not None and subsample < size:
            raise CompileError(
                "E-SUBSAMPLE",
                f"plate {msg['name']!r} takes {subsample} of {size} rows at random",
                site=msg["name"],
                advice="give the plate its full size; batches of examples are made outside the program",
                **self._where(),
            )
        with self.pause():
            msg["value"] = torch.arange(size)
        msg["done"] = True
        msg["stop"] = True

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self._lifted:
            init = msg["args"][1] if len(msg["args"]) > 1 else None
            module = init if isinstance(init, nn.Parameter) else None
            with self.pause():
                value = msg["fn"](*msg["args"], **msg["kwargs"])
                constraint = pyro.get_param_store().get_state()["constraints"][name]
                start = (module if module is not None else value).detach().clone(memory_format=torch.contiguous_format)
                raw = RawParameter(name, start, constraint_to_data(constraint, name))
                self.parameters[name] = raw
                self._lifted[name] = self.lift(raw, module)
        msg["value"] = self._lifted[name]
        msg["done"] = True
        msg["stop"] = True

    @staticmethod
    def _where() -> dict[str, str | None]:
        location = user_location(3)
        return {"location": str(location), "source": location.source} if location else {}
