"""Pyro messengers: one that watches a run and fixes its sites, one that replays the model at given values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from emfc.program.constraint import constraint_to_data
from emfc.program.data import outside_support
from emfc.program.errors import CompileError
from emfc.program.improper import IMPROPER, is_improper, stand_in
from emfc.program.ir import Plate
from emfc.program.locations import Location, user_location

__all__ = ["ProgramMessenger", "RawParameter", "RawSite", "isolated_store"]


@dataclass
class RawSite:
    """A sample site as met in one run of the model.

    Attributes:
        description: What `emfc.program.specification.describe` read; None for a `pyro.factor`.
        noise_shape: Shape of the noise that a draw is made from.
        given: Whether the value is data, in a target.
        scale: What the log density is multiplied by.
        masks: Where the log density counts, from the outside in.
        source: Of data, the tensor that was given.
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
    given: bool = False
    scale: Any = 1.0
    masks: tuple[Any, ...] = ()
    source: Tensor | None = None


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
        target: Whether the run is of a variational target, whose data are sites with given values and in which
            observed sites may stand in subsampled plates.
        computed: Whether a tensor is computed from random values.
        checked: Whether data outside the support of their distribution are refused.
        subsampled: Names of the plates that took a part of their rows.
    """

    draw: Callable[[RawSite], Tensor]
    lift: Callable[[RawParameter, nn.Parameter | None], Tensor]
    seen: Callable[[RawSite], None]
    pause: Callable[[], Any]
    target: bool = False
    computed: Callable[[str, Tensor], bool] = lambda name, value: False
    checked: bool = False
    subsampled: list[str] = field(default_factory=list)
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
            scale=msg["scale"],
            masks=() if msg["mask"] is None else (msg["mask"],),
        )
        if site.observed:
            site.value = msg["value"] if isinstance(msg["value"], Tensor) else torch.as_tensor(msg["value"])
        if self.target:
            self._as_target(site)
        if not site.observed and not site.given:
            with self.pause():
                site.value = self.draw(site).detach().clone(memory_format=torch.contiguous_format)
        self.sites[name] = site
        self.seen(site)
        if site.adjustment != "pyro.factor":
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
        if subsample is not None and subsample < size and self.target:
            self.subsampled.append(msg["name"])
            if msg["value"] is None:
                with self.pause():
                    msg["value"] = torch.arange(subsample)
            msg["done"] = True
            msg["stop"] = True
            return
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

    def _as_target(self, site: RawSite) -> None:
        """Data become sites with a given value, improper priors something that can be drawn from."""
        if site.observed:
            if site.adjustment == "pyro.factor":  # a term for each element of its batch
                with self.pause():
                    site.value = torch.zeros(site.distribution.batch_shape)
            elif not self.computed(site.name, site.value):
                with self.pause():
                    self._check_data(site)
                site.given = bool(site.value.numel())
                site.observed = not site.given
            return
        for plate in site.plates:
            if plate.name in self.subsampled:
                raise CompileError(
                    "E-SUBSAMPLE",
                    f"a latent site stands in plate {plate.name!r}, which takes a part of its rows at random",
                    site=site.name,
                    advice="give that plate its full size; only plates of observed sites may be subsampled",
                    **self._where(),
                )
        if is_improper(site.distribution):
            try:
                site.distribution, site.adjustment = stand_in(site.distribution), IMPROPER
            except CompileError as error:
                where = self._where()
                raise CompileError(error.code, error.reason, site=site.name, advice=error.advice, **where) from None

    def _check_data(self, site: RawSite) -> None:
        """Give data their full shape, and refuse what is outside the support of its distribution and counts.

        Raises:
            CompileError: The shape does not fit, or there is such a value (E-MODEL).
        """
        held: Any = site.distribution
        full = held.batch_shape + held.event_shape
        try:
            shape = torch.broadcast_shapes(site.value.shape, full)
        except RuntimeError:
            raise CompileError(
                "E-MODEL",
                f"the observed value has shape {tuple(site.value.shape)}, and its distribution {tuple(full)}",
                site=site.name,
                advice="give data of the distribution's shape",
                **self._where(),
            ) from None
        site.source = site.value
        site.value = site.value.detach().expand(shape).clone(memory_format=torch.contiguous_format)
        if not self.checked:
            return
        outside = outside_support(held, site.value, partial(self.computed, ""), site.masks)
        if outside is not None:
            value, support = outside
            raise CompileError(
                "E-MODEL",
                f"the observed value {value:g} lies outside the support of its distribution, {support}",
                site=site.name,
                advice="mend the data, mask what is missing, or compile under pyro.validation_enabled(False)",
                **self._where(),
            )

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
