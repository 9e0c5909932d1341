"""The Pyro side of a guide: what SVI, Predictive and NeuTra ask of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Self

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.params import param_with_module_name
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.inference._pyro import Coordinates, GuideDistribution, GuideTransform
from emfc.inference._pyro_model import read_model, vectorised_plates
from emfc.inference.amortised import Amortiser, data_vector
from emfc.inference.variational import VariationalFlow
from emfc.options import keywords_of, likely, read_flag, read_function, read_probabilities
from emfc.program.errors import CompileError

__all__ = ["FlowGuide"]

_DRAWS = 4096


class FlowGuide(AutoContinuous):
    """A flow over the latent sites of a model as one of Pyro's guides; see `emfc.inference.guide.EMFGuide`."""

    prototype_trace: Any
    flow: VariationalFlow
    amortiser: Amortiser | None

    def __init__(
        self,
        model: Callable[..., Any],
        backbone: str = "iaf",
        *,
        gate: str | None = "site",
        informed: bool = False,
        amortize: bool | int | str | nn.Module | None = None,
        create_plates: Callable[..., Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        _check_options(model, informed, create_plates, name, options)
        super().__init__(model)  # type: ignore[no-untyped-call]
        self._pyro_name = name or _name_of(model)
        self.create_plates = create_plates
        self._original = (model,)
        self._options = {"backbone": backbone, "gate": gate, **options}
        if informed:
            self._options["informed"] = informed
        self._amortize = (amortize,)
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._coordinates: Coordinates | None = None

    # ------------------------------------------------------------------ building

    def setup(self, *args: Any, **kwargs: Any) -> Self:
        """Build the guide, given the arguments of the model; the first call does it as well.

        Raises:
            CompileError: The program does something that cannot be compiled, or a latent site is discrete and has too
                many values to be summed out, or stands in a subsampled plate.
        """
        self._setup_prototype(*args, **kwargs)
        return self

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self._build(args, kwargs, None)

    def _build(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], flow: VariationalFlow | None) -> None:
        reading = read_model(self._original[0], args, kwargs, with_data=bool(self._amortize[0]))
        target, program = reading.target, reading.target.prior()
        self._nesting = reading.nesting
        amortiser = None
        if flow is None:
            (amortize,) = self._amortize
            if amortize is not None and amortize is not False:
                amortiser = Amortiser(amortize, target)
                self._options["context_features"] = amortiser.features
            flow = VariationalFlow(program, **self._options)
        discrete = [site.name for site in program.sites if site.discrete and site.name in flow.layer.example_sites]
        if discrete:
            raise CompileError(
                "E-DISCRETE",
                f"the latent site {discrete[0]!r} is discrete and cannot be summed out",
                site=discrete[0],
                advice="sum it out by hand, or give it a continuous distribution",
            )
        _check_sites(flow, reading.trace)
        self.flow = flow
        self.amortiser = amortiser
        self._arguments, self._coordinates = (args, dict(kwargs)), None
        self._read_prototype(reading.trace)
        if self.master is None:
            with poutine.block():
                self._create_plates(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _read_prototype(self, trace: Any) -> None:
        """What Pyro's own guides keep of a run of the model."""
        self.prototype_trace = trace
        self._prototype_frames = {}
        self._cond_indep_stacks = {}
        for name, site in trace.iter_stochastic_nodes():
            frames = vectorised_plates(site)
            self._cond_indep_stacks[name] = frames
            self._prototype_frames.update((frame.name, frame) for frame in frames)
        if self.master is not None:
            self.master()._check_prototype(trace)

    @property
    def _unconstrained_shapes(self) -> dict[str, torch.Size]:  # type: ignore[override]
        """Shapes of the sites in Pyro's unconstrained coordinates."""
        return {site.name: site.free_shape for site in self._coordinate_map().sites}

    @property
    def latent_dim(self) -> int:
        """Number of Pyro's unconstrained coordinates."""
        return self._coordinate_map().dim

    def _coordinate_map(self) -> Coordinates:
        self._check_built()
        if self._coordinates is None:
            nodes = dict(self.prototype_trace.iter_stochastic_nodes())
            self._coordinates = Coordinates(self.flow, nodes)
        return self._coordinates

    def _check_built(self) -> None:
        if self.prototype_trace is None:
            raise UserError("the guide is not built yet; call guide.setup with the model's arguments first")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if self.prototype_trace is None and any(key.startswith(prefix + "flow.") for key in state_dict):
            raise UserError(
                "the guide is not built yet; call guide.setup with the model's arguments, then load its state"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    # ------------------------------------------------------------------ as a guide

    def _context(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What the flow is conditioned on, given arguments of the model; those of the setup where there are none."""
        if self.amortiser is None:
            return None
        data = None
        if args or kwargs:
            nodes = self.prototype_trace.iter_stochastic_nodes()
            latent = {name: site["value"] for name, site in nodes}
            data = data_vector(self._original[0], self.amortiser.sites, latent, args, kwargs)
        return self.amortiser(data)  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site.

        The auxiliary site holds the whole draw with its exact density, each latent site is a `Delta` in its plates.

        Returns:
            Values by site.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._check_store()
        name = f"_{self._pyro_name}_latent"
        with self._as_deep_as_the_model(name):
            flow = GuideDistribution(self.flow, self._context(args, kwargs))
            latent = pyro.sample(name, flow, infer={"is_auxiliary": True})
        plates = self._create_plates(*args, **kwargs)  # type: ignore[no-untyped-call]
        result = {}
        for name, value in self._values(latent):
            event_dim = self.prototype_trace.nodes[name]["fn"].event_dim
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, dist.Delta(value, event_dim=event_dim))
        return result

    def _check_store(self) -> None:
        """Refuses to train where Pyro's parameter store holds other parameters under the guide's name."""
        if not (torch.is_grad_enabled() and am_i_wrapped()) or pyro.settings.get("module_local_params"):
            return
        stored = pyro.get_param_store()._params
        for part in ("flow", "amortiser"):
            module = getattr(self, part)
            for path, value in () if module is None else module.named_parameters():
                full = param_with_module_name(f"{self._pyro_name}.{part}", path)
                if value.requires_grad and stored.get(full, value) is not value:
                    raise UserError(
                        f"Pyro's parameter store holds other parameters under the name {self._pyro_name!r}; give each "
                        "guide a name=, clear the store, or load them by pyro.module("
                        f"'{self._pyro_name}.{part}', guide.{part}, update_module_params=True)"
                    )

    def _as_deep_as_the_model(self, name: str) -> Any:
        """A plate of one row at the model's outermost plate, so that Pyro makes room for all of its plates."""
        if self._nesting == 0:
            return nullcontext()
        return IndepMessenger(f"{name}_plate", size=1, dim=-self._nesting)

    def _values(self, examples: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Sites of examples ``[*, D]``, whose batch dimensions stand left of the plates'."""
        batch = examples.shape[:-1]
        for name, (start, shape) in self.flow.layer.packing.places.items():
            event_dim = self.prototype_trace.nodes[name]["fn"].event_dim
            full = torch.broadcast_shapes(shape, (*batch, *(1,) * event_dim))
            yield name, examples[..., start : start + torch.Size(shape).numel()].reshape(full)

    def get_base_dist(self) -> Any:
        """Standard-normal noise ``[N]``."""
        self._check_built()
        like = next(self.flow.parameters())
        return dist.Normal(like.new_zeros(self.flow.noise_dim), 1.0).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> GuideTransform:
        """The map from noise to Pyro's unconstrained coordinates.

        Raises:
            UserError: Pyro has no map from the real numbers to the support of a site.
        """
        coordinates = self._coordinate_map()
        return GuideTransform(self.flow, coordinates, self._context(args, kwargs))

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of each element of each latent site, from draws; see `quantiles`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each latent site, ``[Q, *shape]``, from 4,096 draws that are the same at every call.

        They are taken in Pyro's unconstrained coordinates, elementwise, so that they lie in the support.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        coordinates, like = self._coordinate_map(), next(self.flow.parameters())
        generator = torch.Generator().manual_seed(20201)
        noise = torch.randn(_DRAWS, self.flow.noise_dim, generator=generator, dtype=torch.float64).to(like)
        free = self.get_transform(*args, **kwargs)(noise)
        given = quantiles.reshape(-1).tolist() if isinstance(quantiles, (Tensor, np.ndarray)) else quantiles
        levels = read_probabilities(given if isinstance(given, Sequence) and not isinstance(given, str) else [given])
        held = torch.tensor(levels, dtype=like.dtype, device=like.device)
        examples = coordinates.constrain(torch.quantile(free, held, dim=0))
        return self.flow.layer.unpack(examples)


def _check_options(model: Any, informed: Any, create_plates: Any, name: Any, options: Mapping[str, Any]) -> None:
    """Refuses options of a guide that there are not, or of another type, before it sees its model's arguments.

    Raises:
        UserError: There is one, or the model cannot be called.
    """
    if not callable(model):
        raise UserError(f"a guide is made of a model, which must be callable, not {type(model).__name__}")
    read_flag("informed", informed)
    read_function("create_plates", create_plates)
    if name is not None and not isinstance(name, str):
        raise UserError(f"name must be text, not {name!r}")
    if "context_features" in options:
        raise UserError("the context of a guide follows from its data; leave context_features out, and give amortize=")
    known = keywords_of(VariationalFlow)
    for option in options:
        if option not in known:
            raise UserError(f"EMFGuide has no option {option!r}{likely(option, [*known, 'amortize', 'create_plates'])}")


def _name_of(model: Any) -> str:
    """A name for the guide of a model, the same in every process."""
    while isinstance(model, functools.partial):
        model = model.func
    name = getattr(model, "__name__", type(model).__name__)
    return "EMFGuide_" + re.sub(r"\W", "", name)


def _check_sites(flow: VariationalFlow, trace: Any) -> None:
    shapes = {name: tuple(site["value"].shape) for name, site in trace.iter_stochastic_nodes()}
    held = {name: tuple(shape) for name, shape in flow.layer.example_sites.items()}
    if shapes != held:
        raise UserError(f"the flow is of the latent sites {held}, and the model has {shapes}")
